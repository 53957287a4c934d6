import copy

import pytest
import torch

from s2vfast import ops
from s2vfast.nn import Decoder, Encoder
from s2vfast.train.optim import FlatAdamW

OPTIONS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0, "tau": 0.9}


def parts():
    torch.manual_seed(0)
    encoder = Encoder(joints=3, segments=2, segment_frames=2, channels=3, dim=6, heads=2, depth=1)
    decoder = Decoder(joints=3, segments=2, dim=6, heads=2, depth=1)
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    return encoder, decoder, teacher


def decays(name):
    linear = any(part in name for part in ("qkv", "proj", "fc1", "fc2", "embed", "head"))
    return linear and name.endswith("weight")


def test_is_torch_adamw_with_groups():
    encoder, decoder, teacher = parts()
    plain = {f"encoder.{k}": p.detach().clone().requires_grad_() for k, p in encoder.named_parameters()}
    plain |= {f"decoder.{k}": p.detach().clone().requires_grad_() for k, p in decoder.named_parameters()}
    expected_teacher = {k: p.clone() for k, p in teacher.named_parameters()}
    groups = [
        {"params": [p for k, p in plain.items() if decays(k)], "weight_decay": 0.1},
        {"params": [p for k, p in plain.items() if not decays(k)], "weight_decay": 0.0},
    ]
    torch_adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    flat = FlatAdamW(encoder, [decoder], teacher)
    named = {f"encoder.{k}": p for k, p in encoder.named_parameters()}
    named |= {f"decoder.{k}": p for k, p in decoder.named_parameters()}
    for step in (1, 2, 3):
        generator = torch.Generator().manual_seed(step)
        for name, p in named.items():
            plain[name].grad = torch.randn(p.shape, generator=generator)
        flat.collect([plain[name].grad for name in flat.names], add=False)
        expected_norm = torch.nn.utils.clip_grad_norm_(plain.values(), 1.0)
        torch_adamw.step()
        for k, t in expected_teacher.items():
            t.mul_(0.9).add_(plain[f"encoder.{k}"].detach(), alpha=0.1)
        torch.testing.assert_close(flat.step(step, **OPTIONS), expected_norm)
    for name, p in named.items():
        torch.testing.assert_close(p.detach(), plain[name].detach(), rtol=1e-5, atol=1e-6)
    for k, p in teacher.named_parameters():
        torch.testing.assert_close(p, expected_teacher[k], rtol=1e-5, atol=1e-6)


def test_embeddings_norms_and_biases_do_not_decay():
    encoder, decoder, teacher = parts()
    with torch.no_grad():
        for module in (encoder, decoder):
            for p in module.parameters():
                p.fill_(1.0)
    flat = FlatAdamW(encoder, [decoder], teacher)
    flat.step(1, **OPTIONS)
    for label, module in (("encoder", encoder), ("decoder", decoder)):
        for name, p in module.named_parameters():
            assert bool((p == 1.0).all()) != decays(f"{label}.{name}"), name


def test_parameters_are_aligned_views():
    encoder, decoder, teacher = parts()
    flat = FlatAdamW(encoder, [decoder], teacher)
    for p in [*encoder.parameters(), *decoder.parameters()]:
        assert 0 <= p.data_ptr() - flat.param.data_ptr() < 4 * flat.param.numel()
        assert (p.data_ptr() - flat.param.data_ptr()) % 64 == 0
    assert flat.spans[0].start == 0
    assert flat.spans[-1] == ops.Span(flat.spans[-1].start, flat.param.numel(), flat.spans[-1].decay)


def test_without_a_teacher_the_student_is_trained_alone():
    with_one, without = parts(), parts()
    flats = [FlatAdamW(with_one[0], [with_one[1]], with_one[2]), FlatAdamW(without[0], [without[1]], None)]
    for flat in flats:
        for step in (1, 2):
            gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in flat.parameters]
            flat.collect(gradients, add=False)
            flat.step(step, **OPTIONS)
    weights = [flat.weights() for flat in flats]
    assert weights[1].keys() == {name for name in weights[0] if name.startswith("student.")}
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert flats[1].teacher.numel() == 0
    assert sum(buffer.numel() for buffer in flats[1].buffers()) == 3 * flats[1].param.numel()


def test_two_modules_of_one_name_are_refused():
    """A checkpoint would hold one of them, and the other would begin anew when the run goes on."""
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="linear.weight: two parameters of this name"):
        FlatAdamW(torch.nn.LayerNorm(2), [one, two], None)
    both = torch.nn.Sequential(one, two)
    assert len(FlatAdamW(torch.nn.LayerNorm(2), [both], None).weights()) == 6
