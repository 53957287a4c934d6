import pytest
import torch

from s2vfast import errors
from s2vfast.ops import mlp
from s2vfast.reference.mlp import mlp as reference


def case(numbers, N=2, L=5, D=16, E=64):
    return {
        "x": numbers(N, L, D, seed=0),
        "weight1": numbers(E, D, seed=1, scale=D**-0.5),
        "bias1": numbers(E, seed=2),
        "weight2": numbers(D, E, seed=3, scale=E**-0.5),
        "bias2": numbers(D, seed=4),
    }


@pytest.mark.parametrize("shape", [{}, {"N": 1, "L": 1}, {"D": 1, "E": 1}, {"D": 24, "E": 37}])
def test_agrees(agree, numbers, impl, shape):
    agree(mlp, reference, case(numbers, **shape), impl)


def test_reference_is_the_exact_gelu():
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(reference(x, one, zero, one, zero), torch.nn.functional.gelu(x))


def test_refuses_shapes_by_name(numbers):
    given = case(numbers)
    with pytest.raises(errors.ShapeError, match="mlp: weight2"):
        mlp(**given | {"weight2": given["weight2"].T})
