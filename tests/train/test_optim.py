import pytest
import torch

from s2vfast import ops
from s2vfast.networks.block import BlockOptions
from s2vfast.networks.transformer import Transformer
from s2vfast.objectives import Objective
from s2vfast.objectives.decoder import Decoder
from s2vfast.train.optim import FlatAdamW, FlatSGD

OPTIONS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0, "tau": 0.9}


BLOCKS = BlockOptions(6, heads=2)


class Pair(Objective):
    """An encoder, a decoder and, where it is asked for, a teacher."""

    def __init__(self, teacher=True):
        torch.manual_seed(0)
        super().__init__(Transformer(joints=3, segments=2, segment_frames=2, channels=3, depth=1, blocks=BLOCKS))
        self.decoder = Decoder(joints=3, segments=2, depth=1, blocks=BLOCKS)
        if teacher:
            self.averages = {"teacher": "encoder"}
            self.teacher = self.average_of(self.encoder)


def decays(name):
    linear = any(part in name for part in ("qkv", "proj", "fc1", "fc2", "embed", "head"))
    return linear and name.endswith("weight")


def test_is_torch_adamw_with_groups():
    pair = Pair()
    encoder, decoder, teacher = pair.encoder, pair.decoder, pair.teacher
    plain = {f"encoder.{k}": p.detach().clone().requires_grad_() for k, p in encoder.named_parameters()}
    plain |= {f"decoder.{k}": p.detach().clone().requires_grad_() for k, p in decoder.named_parameters()}
    expected_teacher = {k: p.clone() for k, p in teacher.named_parameters()}
    groups = [
        {"params": [p for k, p in plain.items() if decays(k)], "weight_decay": 0.1},
        {"params": [p for k, p in plain.items() if not decays(k)], "weight_decay": 0.0},
    ]
    torch_adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    flat = FlatAdamW(pair)
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
    pair = Pair()
    encoder, decoder = pair.encoder, pair.decoder
    with torch.no_grad():
        for module in (encoder, decoder):
            for p in module.parameters():
                p.fill_(1.0)
    flat = FlatAdamW(pair)
    flat.step(1, **OPTIONS)
    for label, module in (("encoder", encoder), ("decoder", decoder)):
        for name, p in module.named_parameters():
            assert bool((p == 1.0).all()) != decays(f"{label}.{name}"), name


def test_parameters_are_aligned_views():
    pair = Pair()
    encoder, decoder = pair.encoder, pair.decoder
    flat = FlatAdamW(pair)
    for p in [*encoder.parameters(), *decoder.parameters()]:
        assert 0 <= p.data_ptr() - flat.param.data_ptr() < 4 * flat.param.numel()
        assert (p.data_ptr() - flat.param.data_ptr()) % 64 == 0
    assert flat.spans[0].start == 0
    assert flat.spans[-1] == ops.Span(flat.spans[-1].start, flat.param.numel(), flat.spans[-1].decay)


def test_without_a_teacher_the_student_is_trained_alone():
    flats = [FlatAdamW(Pair()), FlatAdamW(Pair(teacher=False))]
    for flat in flats:
        for step in (1, 2):
            gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) for p in flat.parameters]
            flat.collect(gradients, add=False)
            flat.step(step, **OPTIONS)
    weights = [flat.weights() for flat in flats]
    assert weights[1].keys() == {name for name in weights[0] if name.startswith("student.")}
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert flats[1].average.numel() == 0
    assert sum(buffer.numel() for buffer in flats[1].state_buffers()) == 3 * flats[1].param.numel()


def test_a_rate_for_every_layer():
    """The embedding is two layers below the final norm, and its step smaller by the square of the factor."""
    plain, layered = Pair(teacher=False), Pair(teacher=False)
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    options = OPTIONS | {"weight_decay": 0.0, "clip": 0.0}
    for pair, decay in ((plain, 1.0), (layered, 0.5)):
        flat = FlatAdamW(pair, layer_decay=decay)
        flat.collect([torch.ones_like(p) for p in flat.parameters], add=False)
        flat.step(1, **options)
    for name, p in layered.named_parameters():
        factor = 0.25 if "embedding" in name else 0.5 if name.startswith("encoder.blocks") else 1.0
        moved = dict(plain.named_parameters())[name].detach() - before[name]
        torch.testing.assert_close(p.detach() - before[name], factor * moved, rtol=1e-4, atol=1e-7)


def test_buffers_are_averaged_and_put_back_where_a_step_was_not_finite():
    pair = Pair()
    for module in (pair.encoder, pair.teacher):
        module.register_buffer("mean", torch.zeros(3))
        module.register_buffer("count", torch.zeros((), dtype=torch.int64))
    pair.register_buffer("queue", torch.zeros(2, 2))
    flat = FlatAdamW(pair)
    assert {"student.encoder.mean", "teacher.mean", "student.queue", "teacher.count"} <= set(flat.weights())
    for gradient, expected in ((1.0, 0.1), (float("nan"), 0.1)):
        flat.buffers.begin()
        pair.encoder.mean += 1.0
        pair.encoder.count += 1
        pair.queue += 1.0
        flat.collect([torch.full_like(p, gradient) for p in flat.parameters], add=False)
        flat.step(1, **OPTIONS)
        assert (pair.encoder.mean.tolist(), pair.encoder.count.item()) == ([1.0] * 3, 1)
        assert (pair.queue == 1.0).all()
        torch.testing.assert_close(pair.teacher.mean, torch.full((3,), expected))
        assert pair.teacher.count.item() == 1


def test_rates_of_layers_are_groups_of_torch_adamw():
    """A group for each parameter, over several steps, with clipping by the norm of all."""
    pair, plain = Pair(teacher=False), Pair(teacher=False)
    flat = FlatAdamW(pair, layer_decay=0.5)
    assert [scale for _, _, scale in flat.groups] == [0.25, 0.5, 1.0]
    parameters = dict(plain.named_parameters())
    groups = []
    for name, parameter in parameters.items():
        layer = 0.25 if "embedding" in name else 0.5 if name.startswith("encoder.blocks") else 1.0
        groups.append({"params": [parameter], "lr": 1e-2 * layer, "weight_decay": 0.1 if decays(name) else 0.0})
    torch_adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    for number in (1, 2, 3):
        for name in flat.names:
            parameters[name].grad = torch.randn(parameters[name].shape, generator=generator)
        flat.collect([parameters[name].grad.clone() for name in flat.names], add=False)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        torch_adamw.step()
        torch.testing.assert_close(flat.step(number, **OPTIONS), norm, rtol=1e-5, atol=0)
    weights = flat.weights()
    for name, parameter in parameters.items():
        found, moved = weights[f"student.{name}"] - before[name], parameter.detach() - before[name]
        torch.testing.assert_close(found, moved, rtol=2e-3, atol=1e-6, msg=name)


def test_with_rates_of_layers_a_gradient_that_is_not_finite_changes_nothing():
    flat = FlatAdamW(Pair(teacher=False), layer_decay=0.5)
    before = {name: tensor.clone() for name, tensor in flat.weights().items()}
    gradients = [torch.ones_like(p) for p in flat.parameters]
    gradients[-1][0] = float("nan")
    flat.collect(gradients, add=False)
    assert not torch.isfinite(flat.step(1, **OPTIONS))
    assert all(torch.equal(before[name], tensor) for name, tensor in flat.weights().items())
    assert all(not tensor.any() for tensor in flat.moments().values())


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_torch(nesterov):
    """Weight decay on everything, clipping by the norm of all, an average; then a step that is not finite."""
    pair, plain = Pair(), Pair()
    flat = FlatSGD(pair, decay_all=True)
    options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.01, "clip": 1.0, "tau": 0.9, "lr": 0.1}
    parameters = {name: p for name, p in plain.named_parameters() if not name.startswith("teacher.")}
    sgd = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    for number in (1, 2, 3):
        generator = torch.Generator().manual_seed(number)
        for name in flat.names:
            parameters[name].grad = torch.randn(parameters[name].shape, generator=generator)
        flat.collect([parameters[name].grad.clone() for name in flat.names], add=False)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        sgd.step()
        torch.testing.assert_close(flat.step(number, **options), norm, rtol=1e-5, atol=0)
        for name, p in plain.teacher.named_parameters():
            p.data.mul_(0.9).add_(parameters[f"encoder.{name}"].detach(), alpha=0.1)
    weights = flat.weights()
    for name, parameter in plain.named_parameters():
        own = name if name.startswith("teacher.") else f"student.{name}"
        torch.testing.assert_close(weights[own], parameter.detach(), rtol=1e-5, atol=1e-6, msg=name)
    assert flat.moments().keys() == {f"momentum_buffer.{name}" for name in flat.names}

    before = [buffer.clone() for buffer in flat.state_buffers()]
    flat.grad[0] = float("nan")
    assert not torch.isfinite(flat.step(4, **options))
    assert all(map(torch.equal, before, flat.state_buffers()))
