"""The fine-tuned network and its optimizer against plain PyTorch."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import s2vfast.errors as errors
from s2vfast.evaluate import classifier, finetune_config
from s2vfast.evaluate.finetune_config import FinetuneConfig
from s2vfast.evaluate.layered import LayeredAdamW
from s2vfast.networks import Encoder

V, S, D, M = 5, 4, 16, 2


def _encoder(depth=4, seed=0):
    torch.manual_seed(seed)
    encoder = Encoder(V, S, 3, 3, D, 2, depth, layer_scale=0.5)
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return encoder


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
    rates = classifier.drop_rates(4, 0.6)
    paths = classifier.draw_paths(rates, 3, 1, torch.arange(3), M)
    assert paths.shape == (6, 4, 2)
    assert (paths == 0).any()
    upstream = torch.randn(6, V * S, D)
    found = classifier.encode(encoder, clips, paths, rates)
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
    found = classifier.encode(encoder, clips, torch.ones(2, 4, 2), [0.0] * 4)
    torch.testing.assert_close(found, encoder(clips), rtol=1e-6, atol=1e-6)
    found = classifier.encode(encoder, clips, torch.ones(2, 4, 2), [0.1] * 4)
    torch.testing.assert_close(found, encoder(clips), rtol=1e-5, atol=1e-6)


def test_drop_rates_grow_with_depth_and_are_kept():
    rates = classifier.drop_rates(4, 0.3)
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert classifier.drop_rates(1, 0.3) == [0.3]
    paths = classifier.draw_paths(rates, 0, 0, torch.arange(4000), M)
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
    whole = classifier.draw_paths(rates, 5, 2, ids, M)
    assert torch.equal(classifier.draw_paths(rates, 5, 2, ids[1:2], M), whole[2:4])
    many = torch.arange(50)
    paths = [classifier.draw_paths(rates, s, e, many, M) for s, e in ((0, 0), (1, 0), (0, 1))]
    assert not torch.equal(paths[0], paths[1])
    assert not torch.equal(paths[0], paths[2])
    assert not torch.equal(paths[0][::2], paths[0][1::2])
    kept = classifier.draw_dropout(0.3, 5, 2, ids, 4000)
    assert torch.equal(classifier.draw_dropout(0.3, 5, 2, ids[2:], 4000), kept[2:])
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.03)
    assert classifier.draw_dropout(0.0, 5, 2, ids, 4) is None


def test_the_head_is_the_published_one():
    head = classifier.Head(V * D, 32, 3, seed=4)
    plain = nn.Sequential(nn.Linear(V * D, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    for part, other in ((head.fc1, plain[0]), (head.norm, plain[1]), (head.fc2, plain[3])):
        other.load_state_dict(part.state_dict())
    x, kept = torch.randn(8, V * D), classifier.draw_dropout(0.3, 0, 0, torch.arange(8), V * D)
    torch.testing.assert_close(head(x, kept), plain(x * kept))
    torch.testing.assert_close(head.norm.running_var, plain[1].running_var)
    torch.testing.assert_close(head.eval()(x), plain.eval()(x))
    assert torch.equal(classifier.Head(V * D, 32, 3, seed=4).fc1.weight, head.fc1.weight)
    assert not torch.equal(classifier.Head(V * D, 32, 3, seed=5).fc1.weight, head.fc1.weight)


def test_pooling_is_a_mean_of_each_joint_over_time_and_bodies():
    model = classifier.Classifier(_encoder(), classifier.Head(V * D, 8, 3), V).eval()
    tokens = torch.randn(6, S * V, D)
    expected = tokens.view(3, M, S, V, D).mean(dim=(1, 2)).reshape(3, V * D)
    torch.testing.assert_close(model.pool(tokens, M), expected)
    clips = torch.randn(3, M, 12, V, 3)
    pooled = model.pool(model.encoder(clips.view(6, 12, V, 3)), M)
    torch.testing.assert_close(model(clips), model.head(pooled))


def test_layers_learn_at_their_rates():
    """torch.optim.AdamW with a group for each parameter, over several steps, with clipping."""
    encoder, head = _encoder(depth=3), classifier.Head(V * D, 8, 3)
    mine = [copy.deepcopy(module) for module in (encoder, head)]
    options = FinetuneConfig(layer_decay=0.5, weight_decay=0.3, clip=1.0)
    optimizer = LayeredAdamW(*mine, options, torch.float32)
    assert [scale for _, _, scale in optimizer.layers] == pytest.approx([0.0625, 0.125, 0.25, 0.5, 1.0])

    groups, parameters, lr = [], [], 1e-2
    for label, module in (("encoder.", encoder), ("head.", head)):
        for name, parameter in module.named_parameters():
            scale = 1.0
            if label == "encoder." and name.startswith("embedding"):
                scale = 0.0625
            elif label == "encoder." and name.startswith("blocks"):
                scale = 0.5 ** (3 - int(name.split(".")[1]))
            decay = 0.3 if parameter.ndim == 2 and name.endswith("weight") else 0.0
            groups.append({"params": [parameter], "lr": lr * scale, "weight_decay": decay})
            parameters.append(parameter)
    plain = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    start = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 4):
        gradients = [torch.randn(p.shape, generator=generator) for p in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        plain.step()
        optimizer.collect(gradients)
        assert float(optimizer.step(number, lr)) == pytest.approx(float(norm), rel=1e-5)
    for old, parameter, (name, found) in zip(start, parameters, optimizer.weights().items(), strict=True):
        torch.testing.assert_close(found - old, parameter.detach() - old, rtol=2e-3, atol=1e-6, msg=name)


def test_a_gradient_that_is_not_finite_changes_nothing():
    encoder, head = _encoder(depth=2), classifier.Head(V * D, 8, 3)
    optimizer = LayeredAdamW(encoder, head, FinetuneConfig(), torch.float32)
    before = {name: tensor.clone() for name, tensor in optimizer.weights().items()}
    gradients = [torch.ones_like(p) for p in optimizer.parameters]
    gradients[-1][0] = float("nan")
    optimizer.collect(gradients)
    assert not torch.isfinite(optimizer.step(1, 1e-2))
    assert all(torch.equal(before[name], tensor) for name, tensor in optimizer.weights().items())
    assert all(not tensor.any() for tensor in optimizer.moments().values())


def test_configs():
    assert finetune_config.load() == FinetuneConfig()
    changed = finetune_config.load("nwucla", {"lr": 1e-3})
    assert (changed.lr, changed.hidden) == (1e-3, 256)
    assert finetune_config.from_dict(changed.to_dict()) == changed
    for changes, message in [
        ({"lrr": 1}, "finetune.lrr: no such field; did you mean finetune.lr"),
        ({"lr": "fast"}, "finetune.lr: 'fast'; a finite number"),
        ({"lr": -1.0}, "finetune.lr: -1.0; a positive number"),
        ({"lr": 1e-6}, "finetune.lr_min"),
        ({"batch": 1}, "finetune.batch: 1; 2 or more"),
        ({"batch": 2.5}, "finetune.batch: 2.5; a whole number"),
        ({"drop_path": 1.0}, r"finetune.drop_path: 1.0; a number in \[0, 1\)"),
        ({"layer_decay": 0.0}, "finetune.layer_decay"),
        ({"precision": "half"}, "finetune.precision: 'half'; one of auto"),
    ]:
        with pytest.raises(errors.ConfigError, match=message):
            finetune_config.load(changes=changes)
    with pytest.raises(errors.ConfigError, match="--recipe ntu: neither a file nor one of published, nwucla"):
        finetune_config.load("ntu")


def test_recipes_and_files(tmp_path):
    for name in finetune_config.RECIPES:
        finetune_config.load(name)
    made = finetune_config.load("nwucla", {"epochs": 3.5})
    (tmp_path / "mine.yaml").write_text(finetune_config.dump(made))
    assert finetune_config.load(tmp_path / "mine.yaml") == made
