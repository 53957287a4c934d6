import pytest
import torch

from s2vfast import errors
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
    "kind", [{}, {"branch": False, "gamma": False}, {"gamma": False}, {"norm": False}, {"D": 2}, {"D": 37}]
)
def test_agrees(agree, numbers, impl, kind):
    agree(add_norm, reference, case(numbers, **kind), impl)


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
