import pytest
import torch

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.ops import add_norm
from s2vfast.reference.add_norm import add_norm as reference


def case(numbers, D=16, branch=True, gamma=True, norm=True):
    return {
        "residual": numbers(2, 5, D, seed=0),
        "branch": numbers(2, 5, D, seed=1) if branch else None,
        "gamma": numbers(D, seed=2) if gamma else None,
        "weight": numbers(D, seed=3) if norm else None,
        "bias": numbers(D, seed=4) if norm else None,
    }


@pytest.mark.parametrize(
    "kind",
    [{}, {"branch": False}, {"branch": False, "gamma": False}, {"gamma": False}, {"norm": False}, {"D": 2}, {"D": 37}],
)
def test_agrees(agree, numbers, impl, kind):
    agree(add_norm, reference, case(numbers, **kind), impl)


def projected(numbers, E=24, bias=True, **kind):
    given = case(numbers, **kind)
    D = given["residual"].shape[-1]
    given["branch"] = numbers(2, 5, E, seed=5)
    given["projection"] = numbers(D, E, seed=6, scale=E**-0.5)
    return given | {"projection_bias": numbers(D, seed=7) if bias else None}


@pytest.mark.parametrize(
    "kind", [{}, {"gamma": False}, {"norm": False}, {"bias": False}, {"D": 48, "E": 16}, {"D": 37, "E": 5}]
)
def test_with_a_projection_it_agrees(agree, numbers, impl, kind):
    agree(add_norm, reference, projected(numbers, **kind), impl)


@pytest.mark.parametrize("values", [(0.0,), (1e-4,), (0.0, 1e-4, -1e-4, 1e-30, 1.0)])
@pytest.mark.parametrize("norm", [True, False])
def test_with_a_projection_it_agrees_wherever_layer_scale_starts(agree, numbers, impl, values, norm):
    """The gradient of a gamma of nought is not nought."""
    gamma = torch.tensor(values, dtype=torch.float64).repeat(16)[:16]
    agree(add_norm, reference, projected(numbers, norm=norm) | {"gamma": gamma}, impl)


def test_a_projection_is_a_linear_map_before(numbers):
    given = projected(numbers)
    maps = {name: given.pop(name) for name in ("projection", "projection_bias")}
    before = torch.nn.functional.linear(given["branch"], maps["projection"], maps["projection_bias"])
    for found, expected in zip(reference(**given, **maps), reference(**given | {"branch": before}), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", [case, projected])
def test_small_tiles(agree, numbers, make):
    """Several tiles of rows and columns, several splits of the rows."""
    with (
        _launch.override("add_norm", "add", BLOCK_M=2),
        _launch.override("add_norm", "project", BLOCK_M=16, BLOCK_E=16),
        _launch.override("add_norm", "grad_rows", BLOCK_M=2, PROGRAMS=2),
        _launch.override("add_norm", "grad_project", BLOCK_M=16, BLOCK_E=16),
        _launch.override("add_norm", "weight_grad", BLOCK_M=16, BLOCK_R=16, BLOCK_C=16, SPLITS=2),
        _launch.override("add_norm", "finish", BLOCK=32, BLOCK_C=16, BLOCK_N=2),
    ):
        given = make(numbers, D=48)
        wide = {name: given[name].repeat(1, 5, 1) for name in ("residual", "branch")}
        agree(add_norm, reference, given | wide, "triton")


def test_only_one_of_the_results_has_a_gradient(impl, numbers):
    """A norm that nobody uses, or a stream that ends here."""
    for kept in (0, 1):
        grads = []
        for name in (impl, "reference"):
            given = {k: v.float().requires_grad_() for k, v in projected(numbers).items()}
            add_norm(**given, impl=name)[kept].square().sum().backward()
            grads.append([None if v.grad is None else v.grad for v in given.values()])
        for found, expected in zip(*grads, strict=True):
            expected = torch.zeros_like(found) if expected is None and found is not None else expected
            assert (found is None and expected is None) or torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_reference_against_torch(numbers):
    given = case(numbers)
    stream = given["residual"] + given["gamma"] * given["branch"]
    found = reference(**given)
    torch.testing.assert_close(found[0], stream)
    torch.testing.assert_close(
        found[1], torch.nn.functional.layer_norm(stream, (16,), given["weight"], given["bias"], 1e-6)
    )


def test_a_small_branch_is_not_rounded_away(impl):
    residual, branch = torch.full((1, 1, 4), 8.0), torch.ones(1, 1, 4)
    out, _ = add_norm(residual, branch, torch.full((4,), 1e-4), None, None, impl=impl)
    assert (out > 8.0).all()


def test_refuses_shapes_by_name(numbers):
    given = case(numbers)
    with pytest.raises(errors.ShapeError, match="add_norm: gamma"):
        add_norm(**given | {"gamma": given["gamma"][1:]})
    given = projected(numbers)
    with pytest.raises(errors.ShapeError, match=r"add_norm: projection: expected \[16, 24\]"):
        add_norm(**given | {"projection": given["projection"].T})
    with pytest.raises(errors.ShapeError, match="add_norm: branch"):
        add_norm(**given | {"branch": None})
