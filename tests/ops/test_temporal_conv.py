import functools

import pytest
import torch

from s2vfast import errors
from s2vfast.ops import temporal_conv
from s2vfast.ops.temporal_conv import _matrices, _window
from s2vfast.reference.temporal_conv import temporal_conv as reference


def case(numbers, T=16, R=5, C=24, D=40, K=9, bias=True):
    return {
        "x": numbers(T, R, C, seed=0),
        "weight": numbers(K, C, D, seed=1, scale=(K * C) ** -0.5),
        "bias": numbers(D, seed=2) if bias else None,
    }


# Wide enough for frequencies, and for the columns of few channels; clips shorter than the kernel; odd lengths.
@pytest.mark.parametrize("how", [{}, {"stride": 2}, {"dilation": 2}, {"stride": 3, "dilation": 3}])
@pytest.mark.parametrize("shape", [{}, {"T": 13, "bias": False}, {"T": 3}, {"T": 1}, {"K": 1}, {"C": 2, "D": 3}])
def test_agrees(agree, numbers, impl, shape, how):
    fast, plain = functools.partial(temporal_conv, **how), functools.partial(reference, **how)
    agree(fast, plain, case(numbers, **shape), impl)


def test_the_definition(numbers):
    x, weight, bias = case(numbers, T=11, K=5).values()
    for t in range(4):
        taps = [(t * 3 + (k - 2) * 2, k) for k in range(5)]
        expected = bias + sum(x[at] @ weight[k] for at, k in taps if 0 <= at < 11)
        torch.testing.assert_close(reference(x, weight, bias, stride=3, dilation=2)[t], expected)


def test_frequencies_are_as_exact_as_taps(numbers):
    """In float64, where a wrong digit of a matrix would show."""
    inputs = {name: value.double() for name, value in case(numbers, T=64, C=48, D=48).items()}
    assert 3 * (_window(64, 9, 1) // 2) - 1 == len(_matrices(64, 9, 1, 1)[0]) == 101
    torch.testing.assert_close(temporal_conv(**inputs, impl="torch"), reference(**inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"), [("x", (3, 4)), ("weight", (2, 24, 40)), ("weight", (3, 7, 40)), ("bias", (7,))]
)
def test_refuses_shapes_by_name(numbers, name, shape):
    with pytest.raises(errors.ShapeError, match=f"temporal_conv: {name}: expected"):
        temporal_conv(**case(numbers) | {name: torch.zeros(shape)})
