import functools

import pytest
import torch

from s2vfast import _extension, errors
from s2vfast.ops import temporal_branches
from s2vfast.reference.temporal_branches import temporal_branches as reference

NATIVE = pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")


def case(numbers, B=3, T=9, V=4, b=6, K=2, taps=5, more=5, norm=True):
    columns = (K + 1) * b
    return {
        "x": numbers(B, T, V, columns + more, seed=0) + 0.5,
        "weight": numbers(K, b, b, taps, seed=1, scale=(taps * b) ** -0.5),
        "norm_weight": numbers(columns, seed=2) if norm else None,
        "norm_bias": numbers(columns, seed=3) if norm else None,
    }


# Registers and a rest of columns; joints in tens, fives and ones; several ranges of rows; nothing beside the branches.
SHAPES = [
    {},
    {"V": 16, "b": 16, "norm": False},
    {"B": 5, "T": 12, "V": 25, "b": 33},
    {"T": 1, "b": 1, "more": 0},
    {"K": 1, "taps": 1, "more": 1},
    {"B": 0},
]
OPTIONS = [
    {},
    {"stride": 2},
    {"stride": 3, "dilations": [2, 3], "pool": 5},
    {"dilations": [4, 1], "pool": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(agree, numbers, impl, shape, options):
    dilations = options.get("dilations", [1, 2])[: shape.get("K", 2)]
    fast, plain = (functools.partial(op, **options | {"dilations": dilations}) for op in (temporal_branches, reference))
    agree(fast, plain, case(numbers, **shape), impl)


def test_by_hand():
    """One branch of two taps' distance that adds what is before and after, and a maximum of three frames."""
    x = torch.tensor([1.0, 2.0, 4.0, 8.0])[None, :, None, None].repeat(1, 1, 1, 3)
    branches, remainder, *_ = reference(x, torch.tensor([1.0, 0.0, 1.0]).view(1, 1, 1, 3), None, None, dilations=[2])
    assert branches[0, :, 0, 0].tolist() == [4.0, 8.0, 1.0, 2.0]
    assert branches[0, :, 0, 1].tolist() == [2.0, 4.0, 8.0, 8.0]
    assert torch.equal(remainder, x[..., 2:])


def test_a_mean_that_is_large_beside_the_deviation_costs_no_digits(numbers, impl):
    arguments = case(numbers, B=20)
    arguments["x"] += 1000.0
    *_, mean, variance = temporal_branches(**{name: value.float() for name, value in arguments.items()}, impl=impl)
    rows = arguments["x"].float().double()[..., :18].flatten(0, 2)
    torch.testing.assert_close(mean.double(), rows.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), rows.var(0, correction=0), rtol=1e-4, atol=0)


def test_one_tap_and_a_stride_with_threads(agree, numbers, impl):
    """oneDNN's own way through this writes beyond its buffer, and one gradient in five is wrong (oneDNN issue 6035)."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(40):
            fast, plain = (functools.partial(op, stride=2, dilations=[1]) for op in (temporal_branches, reference))
            agree(fast, plain, case(numbers, T=16, K=1, taps=1, more=1, norm=False), impl)
    finally:
        torch.set_num_threads(before)


@NATIVE
def test_the_number_of_threads_changes_nothing(numbers):
    arguments = {k: v.float().requires_grad_() for k, v in case(numbers, B=7, T=60, V=5).items()}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = temporal_branches(**arguments, impl="native")
            results.append([*out, *torch.autograd.grad(out[0].square().sum(), list(arguments.values()))])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", torch.zeros(3, 9, 4, 17)),
        ("weight", torch.zeros(2, 6, 5, 5)),
        ("norm_weight", torch.zeros(17)),
        ("norm_bias", None),
        ("dilations", [1]),
        ("pool", 2),
        ("stride", 0),
    ],
)
def test_refuses_arguments_by_name(numbers, name, value):
    with pytest.raises(errors.ShapeError, match=f"temporal_branches: {name}: expected"):
        temporal_branches(**case(numbers) | {name: value})
