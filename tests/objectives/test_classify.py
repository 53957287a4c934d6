"""The network with its head and what is left out of it at random, against plain PyTorch."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import s2vfast.errors as errors
from s2vfast.config import Config
from s2vfast.networks.block import BlockOptions
from s2vfast.networks.transformer import Transformer
from s2vfast.objectives import classify
from s2vfast.objectives.base import Draw, MicroBatch

V, S, D, M = 5, 4, 16, 2
CLASSES = ("wave", "nod", "kick")


def _encoder(depth=4, seed=0):
    torch.manual_seed(seed)
    encoder = Transformer(V, S, 3, 3, depth, BlockOptions(D, heads=2, layer_scale=0.5))
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return encoder


def _model(**options):
    return classify.Classify(_encoder(), classify.ClassifyConfig(**{"hidden": 8, **options}), M, CLASSES)


def _plain_block(block, x, first, second):
    """A block in plain PyTorch, its branches multiplied by numbers a track."""
    N, L, _ = x.shape
    qkv = block.qkv(block.norm1(x)).view(N, L, 3, 2, D // 2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = (torch.softmax(q @ k.transpose(-1, -2) * (D // 2) ** -0.5, -1) @ v).transpose(1, 2).reshape(N, L, D)
    x = x + first[:, None, None] * block.gamma1 * block.proj(mixed)
    return x + second[:, None, None] * block.gamma2 * block.fc2(F.gelu(block.fc1(block.norm2(x))))


def test_branches_are_dropped_as_in_plain_pytorch():
    encoder, clips = _encoder(), torch.randn(6, 12, V, 3)
    rates = classify.drop_rates(4, 0.6)
    paths = classify.draw_paths(rates, 2, 3, 1, torch.arange(3), M)
    assert paths.shape == (6, 4, 2)
    assert (paths == 0).any()
    upstream = torch.randn(6, V * S, D)
    found = encoder.with_drop_path(clips, paths, rates)
    plain = copy.deepcopy(encoder)
    x = plain.embedding(clips)
    for i, block in enumerate(plain.blocks):
        x = _plain_block(block, x, paths[:, i, 0], paths[:, i, 1])
    expected = plain.norm(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.backward(upstream)
    expected.backward(upstream)
    for (name, a), b in zip(encoder.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_without_drops_it_is_the_encoder():
    encoder, clips = _encoder(), torch.randn(2, 12, V, 3)
    found = encoder.with_drop_path(clips, torch.ones(2, 4, 2), [0.0] * 4)
    torch.testing.assert_close(found, encoder(clips), rtol=1e-6, atol=1e-6)
    found = encoder.with_drop_path(clips, torch.ones(2, 4, 2), [0.1] * 4)
    torch.testing.assert_close(found, encoder(clips), rtol=1e-5, atol=1e-6)


def test_drop_rates_grow_with_depth_and_are_kept():
    rates = classify.drop_rates(4, 0.3)
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert classify.drop_rates(1, 0.3) == [0.3]
    paths = classify.draw_paths(rates, 2, 0, 0, torch.arange(4000), M)
    for i, rate in enumerate(rates):
        values = paths[:, i]
        assert set(values.unique().tolist()) <= {0.0, float(np.float32(1) / np.float32(1 - rate))}
        for branch in range(2):
            dropped = float((values[:, branch] == 0).float().mean())
            assert dropped == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 8000) ** 0.5 + 1e-9)
    both = (paths[:, 3] == 0).all(dim=1).float().mean()  # branches are dropped independently
    assert float(both) == pytest.approx(0.09, abs=0.015)


def test_draws_are_of_the_sample_alone():
    """Whatever the batch and whoever makes it; others in another epoch, of another seed, of the other body."""
    rates, ids = [0.5] * 3, torch.tensor([7, 900, 12])
    whole = classify.draw_paths(rates, 2, 5, 2, ids, M)
    assert torch.equal(classify.draw_paths(rates, 2, 5, 2, ids[1:2], M), whole[2:4])
    many = torch.arange(50)
    paths = [classify.draw_paths(rates, 2, s, e, many, M) for s, e in ((0, 0), (1, 0), (0, 1))]
    assert not torch.equal(paths[0], paths[1])
    assert not torch.equal(paths[0], paths[2])
    assert not torch.equal(paths[0][::2], paths[0][1::2])
    kept = classify.draw_dropout(0.3, 5, 2, ids, 4000)
    assert torch.equal(classify.draw_dropout(0.3, 5, 2, ids[2:], 4000), kept[2:])
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.03)
    assert classify.draw_dropout(0.0, 5, 2, ids, 4) is None


def test_the_head_is_the_published_one():
    head = classify.Head(V * D, 32, 3, seed=4)
    plain = nn.Sequential(nn.Linear(V * D, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    for part, other in ((head.fc1, plain[0]), (head.norm, plain[1]), (head.fc2, plain[3])):
        other.load_state_dict(part.state_dict())
    x, kept = torch.randn(8, V * D), classify.draw_dropout(0.3, 0, 0, torch.arange(8), V * D)
    torch.testing.assert_close(head(x, kept), plain(x * kept))
    torch.testing.assert_close(head.norm.running_var, plain[1].running_var)
    torch.testing.assert_close(head.eval()(x), plain.eval()(x))
    assert torch.equal(classify.Head(V * D, 32, 3, seed=4).fc1.weight, head.fc1.weight)
    assert not torch.equal(classify.Head(V * D, 32, 3, seed=5).fc1.weight, head.fc1.weight)


def test_pooling_is_a_mean_of_each_joint_over_time_and_bodies():
    model = _model().eval()
    tokens = torch.randn(6, S * V, D)
    expected = tokens.view(3, M, S, V, D).mean(dim=(1, 2)).reshape(3, V * D)
    torch.testing.assert_close(model.pool(tokens, M), expected)
    clips = torch.randn(3, M, 12, V, 3)
    pooled = model.pool(model.encoder(clips.view(6, 12, V, 3)), M)
    torch.testing.assert_close(model(clips), model.head(pooled))


def test_the_loss_is_plain_pytorchs_and_says_how_many_were_right():
    """Labels, drops of branches and of inputs, smoothing; ``top1`` is of the clips and drops of training."""
    model = _model(drop_path=0.6, dropout=0.4, label_smoothing=0.2).train()
    plain = copy.deepcopy(model)
    ids, labels = torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])
    clips = torch.randn(12, 12, V, 3)
    inputs = model.prepare((clips,), Draw(3, 1, ids, labels))
    assert torch.equal(inputs.paths, classify.draw_paths(model.rates, 2, 3, 1, ids, M))
    assert torch.equal(inputs.dropout, classify.draw_dropout(0.4, 3, 1, ids, V * D))
    found = model.step_loss(MicroBatch((clips,), inputs))
    x = plain.encoder.embedding(clips)
    for i, block in enumerate(plain.encoder.blocks):
        x = _plain_block(block, x, inputs.paths[:, i, 0], inputs.paths[:, i, 1])
    pooled = plain.encoder.norm(x).view(6, M, S, V, D).mean(dim=(1, 2)).flatten(1)
    head = plain.head
    logits = head.fc2(F.relu(head.norm(head.fc1(pooled * inputs.dropout))))
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.terms["top1"].item() == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert found.count == 6


def test_what_does_not_fit_is_said():
    tree = {"objective": {"name": "classify"}, "data": {"frames": 12}}
    Config.from_dict(tree)
    for section, values, message in [
        ("train", {"batch": 1}, "train.batch: 1; 2 or more is expected, for the head's batch norm"),
        ("mask", {"ratio": 0.5}, "mask: objective.name: classify masks nothing; leave the section out"),
        ("objective", {"name": "classify", "drop_path": 1.0}, r"objective.drop_path: 1.0; a number in \[0, 1\)"),
    ]:
        with pytest.raises(errors.ConfigError, match=message):
            Config.from_dict({**tree, section: values})
