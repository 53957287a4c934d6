import itertools

import pytest
import torch
from torch import nn

from s2vfast import _extension, errors, ops
from s2vfast.networks.norm import normalise
from s2vfast.ops import batch_norm
from s2vfast.reference.batch_norm import batch_norm as reference

NATIVE = pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")


def case(numbers, rows=(3, 5), widths=(6, 21), residual=True, **options):
    channels = sum(widths)
    return {
        "x": [numbers(*rows, width, seed=i) for i, width in enumerate(widths)],
        "weight": numbers(channels, seed=7),
        "bias": numbers(channels, seed=8),
        "residual": numbers(*rows, channels, seed=9) if residual else None,
        **options,
    }


# Every combination of what comes after the norm; several ranges of rows, whole registers; one channel; no row.
NAMES = "residual", "relu_first", "relu"
OPTIONS = [dict(zip(NAMES, values, strict=True)) for values in itertools.product((False, True), repeat=3)]
SHAPES = [*OPTIONS, {"rows": (1100,), "widths": (16, 32), "relu": True}, {"widths": (1,)}]
SHAPES += [{"widths": (95,)}, {"rows": (0, 5)}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(agree, numbers, impl, shape):
    agree(batch_norm, reference, case(numbers, **shape), impl)


def test_a_mean_that_is_large_beside_the_deviation_costs_no_digits(numbers, impl):
    x = (numbers(300, 17, seed=0) + 1000.0).float()
    y, mean, variance = batch_norm([x], torch.ones(17), torch.zeros(17), impl=impl)
    exact = reference([x.double()], torch.ones(17).double(), torch.zeros(17).double())
    for value, truth, tolerance in zip((y, mean, variance), exact, (1e-3, 1e-3, 1e-4), strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=tolerance)


def test_only_what_the_residual_needs_is_computed_for_it(numbers, impl):
    """Its gradient is there whether x wants one or not."""
    arguments = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in case(numbers, relu=True).items()}
    arguments["x"] = [x.float() for x in arguments["x"]]
    residual = arguments["residual"].requires_grad_()
    y, *_ = batch_norm(**arguments, impl=impl)
    (gradient,) = torch.autograd.grad(y.sum(), residual)
    torch.testing.assert_close(gradient, (y > 0).float())


@NATIVE
def test_the_number_of_threads_changes_nothing(numbers):
    x = numbers(5000, 24, seed=0).float().requires_grad_()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = batch_norm([x], torch.ones(24), torch.zeros(24), relu=True, impl="native")
            results.append([*out, *torch.autograd.grad(out[0].square().sum(), [x])])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [("x", []), ("weight", torch.zeros(3)), ("bias", torch.zeros(3)), ("residual", torch.zeros(3, 5, 3))],
)
def test_refuses_shapes_by_name(numbers, name, value):
    with pytest.raises(errors.ShapeError, match=f"batch_norm: {name}: expected"):
        batch_norm(**case(numbers) | {name: value})


@pytest.mark.parametrize("choice", ["torch", pytest.param("native", marks=NATIVE)])
def test_a_norm_keeps_the_statistics_that_pytorchs_keeps(numbers, choice):
    norm, plain = nn.BatchNorm1d(12), nn.BatchNorm1d(12)
    for seed in range(3):
        x, residual = (numbers(4, 7, 12, seed=seed + i).float() * 3 + 2 for i in (0, 9))
        with ops.use_impl(f"batch_norm={choice}"):
            y = normalise(norm, x.split([4, 8], -1), residual, relu_first=True, relu=True)
        torch.testing.assert_close(y, torch.relu(plain(x.flatten(0, 1)).view(x.shape).relu() + residual))
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer)
    norm.eval(), plain.eval()
    torch.testing.assert_close(normalise(norm, x), plain(x.flatten(0, 1)).view(x.shape))


def test_a_shift_counts_in_the_running_mean_alone(numbers):
    norm, plain = nn.BatchNorm1d(12), nn.BatchNorm1d(12)
    x, shift = numbers(30, 12, seed=0).float(), (numbers(12, seed=1).float() + 5.0).requires_grad_()
    y = normalise(norm, x, relu=True, shift=shift)
    torch.testing.assert_close(y, plain(x + shift).relu(), rtol=1e-4, atol=1e-5)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(norm.get_buffer(name), buffer)
    (gradient,) = torch.autograd.grad(y.square().sum(), shift)
    assert torch.equal(gradient, torch.zeros(12))
    norm.eval(), plain.eval()
    torch.testing.assert_close(normalise(norm, x, shift=shift), plain(x + shift))
