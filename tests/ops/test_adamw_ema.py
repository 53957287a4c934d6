import pytest
import torch

from s2vfast import errors
from s2vfast.ops import Span, adamw_ema
from s2vfast.reference.adamw_ema import adamw_ema as reference

SPANS = [Span(0, 10, True), Span(10, 16, False), Span(16, 31, True)]
OPTIONS = {
    "lr": 1e-2,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.05,
    "clip": 4.0,
    "tau": 0.99,
}


def buffers(numbers, dtype=torch.float64):
    given = [numbers(31, seed=0), numbers(31, seed=1, scale=3.0), numbers(31, seed=2), numbers(31, seed=3).abs()]
    return [x.to(dtype) for x in [*given, numbers(20, seed=4)]]


def test_agrees(numbers, impl):
    exact, eager, found = buffers(numbers), buffers(numbers, torch.float32), buffers(numbers, torch.float32)
    for step in (1, 2, 3):
        norms = [
            reference(*exact, SPANS, step=step, **OPTIONS),
            reference(*eager, SPANS, step=step, **OPTIONS),
            adamw_ema(*found, SPANS, step=step, **OPTIONS, impl=impl),
        ]
        assert abs(norms[2] - norms[0]) <= 2 * abs(norms[1] - norms[0]) + 1e-5
        for e, g, f in zip(exact, eager, found, strict=True):
            assert (f - e).abs().max() <= 2 * (g - e).abs().max() + 1e-6


@pytest.mark.parametrize("name", ["torch", "native"])
def test_the_norm_of_millions_is_that_of_float64(name):
    """One sum over them in float32 is off by 2e-4."""
    grad = torch.randn(5_000_003, generator=torch.Generator().manual_seed(0))
    given = [torch.zeros_like(grad), grad, torch.zeros_like(grad), torch.ones_like(grad), grad[:0].clone()]
    exact = float(grad.double().norm())
    norm = adamw_ema(*given, [Span(0, len(grad), True)], step=1, **OPTIONS, impl=name)
    assert float(norm) == pytest.approx(exact, rel=1e-6)
    assert float(grad.double().norm()) == pytest.approx(OPTIONS["clip"], rel=1e-5)


def test_without_a_teacher(numbers, impl):
    """A teacher of no numbers changes nothing in what the parameters become."""
    whole, alone = buffers(numbers, torch.float32), buffers(numbers, torch.float32)
    alone[4] = alone[0][31:]
    for step in (1, 2):
        norms = [adamw_ema(*given, SPANS, step=step, **OPTIONS, impl=impl) for given in (whole, alone)]
        assert torch.equal(*norms)
    assert all(torch.equal(a, b) for a, b in zip(whole[:4], alone[:4], strict=True))
    assert alone[4].numel() == 0


@pytest.mark.parametrize("clip", [4.0, 0.0])
def test_reference_is_torch_adamw_and_ema(numbers, clip):
    param, grad, _, _, teacher = buffers(numbers)
    leaf = param.clone().requires_grad_()
    groups = [{"params": [leaf], "weight_decay": 0.05}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    zeros = [torch.zeros(31, dtype=torch.float64) for _ in range(2)]
    expected = teacher.clone()
    for step in (1, 2, 3):
        leaf.grad = grad.clone()
        if clip:
            torch.nn.utils.clip_grad_norm_([leaf], clip)
        optimizer.step()
        expected = 0.99 * expected + 0.01 * leaf.detach()[:20]
        options = OPTIONS | {"clip": clip}
        reference(param, grad.clone(), *zeros, teacher, [Span(0, 31, True)], step=step, **options)
    torch.testing.assert_close(param, leaf.detach())
    torch.testing.assert_close(teacher, expected)


def test_spans_without_decay_do_not_decay(numbers, impl):
    param, _, exp_avg, exp_avg_sq, teacher = buffers(numbers, torch.float32)
    before = param.clone()
    still = [torch.zeros_like(param), torch.zeros_like(param), torch.zeros_like(param)]
    adamw_ema(param, *still, teacher, SPANS, step=1, **OPTIONS, impl=impl)
    assert torch.equal(param[10:16], before[10:16])
    torch.testing.assert_close(param[:10], before[:10] * (1 - 1e-2 * 0.05))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("function", ["reference", "torch"])
def test_a_bad_gradient_changes_nothing(numbers, bad, function):
    given = buffers(numbers, torch.float32)
    given[1][7] = bad
    before = [x.clone() for x in given]
    norm = adamw_ema(*given, SPANS, step=1, **OPTIONS, impl=function)
    assert not torch.isfinite(norm)
    for i in (0, 2, 3, 4):
        assert torch.equal(given[i], before[i])


def test_refuses_by_name(numbers):
    with pytest.raises(errors.ShapeError, match="adamw_ema: spans"):
        adamw_ema(*buffers(numbers), SPANS[:2], step=1, **OPTIONS)
