import pytest
import torch

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.ops import norm_linear
from s2vfast.reference.norm_linear import norm_linear as reference


def case(numbers, N=2, L=5, D=16, E=24, bias=True, shift=0.0):
    return {
        "x": numbers(N, L, D, seed=0) + shift,
        "norm_weight": numbers(D, seed=1),
        "norm_bias": numbers(D, seed=2),
        "weight": numbers(E, D, seed=3, scale=D**-0.5),
        "bias": numbers(E, seed=4) if bias else None,
    }


@pytest.mark.parametrize(
    "shape", [{}, {"N": 1, "L": 1}, {"D": 48, "E": 7}, {"bias": False}, {"D": 37, "E": 70}, {"shift": 30.0}]
)
def test_agrees(agree, numbers, impl, shape):
    agree(norm_linear, reference, case(numbers, **shape), impl)


def test_reference_against_torch(numbers):
    tensors = case(numbers)
    normed = torch.nn.functional.layer_norm(tensors["x"], (16,), tensors["norm_weight"], tensors["norm_bias"], 1e-6)
    torch.testing.assert_close(
        reference(**tensors), torch.nn.functional.linear(normed, tensors["weight"], tensors["bias"])
    )


@pytest.mark.parametrize("piece", [16, 64])
def test_small_tiles(agree, numbers, piece):
    """Several tiles of rows and of results, several splits of the rows, rows that are kept and rows that are not."""
    with (
        _launch.override("norm_linear", "forward", BLOCK_M=16, BLOCK_E=16, BLOCK_K=piece),
        _launch.override("norm_linear", "grad_normed", BLOCK_M=16, BLOCK_E=16),
        _launch.override("norm_linear", "weight_grad", BLOCK_M=16, BLOCK_R=16, BLOCK_C=16, SPLITS=2),
    ):
        agree(norm_linear, reference, case(numbers, N=3, L=13, D=48, E=40), "triton")


@pytest.mark.parametrize("piece", [16, 64])
def test_without_a_backward_pass_it_is_the_same(numbers, piece):
    """The normed rows are then not written, but where a program goes through them piece by piece."""
    tensors = {name: value.float() for name, value in case(numbers, N=3, L=13, D=48, E=40).items()}
    with torch.no_grad(), _launch.override("norm_linear", "forward", BLOCK_M=16, BLOCK_E=16, BLOCK_K=piece):
        torch.testing.assert_close(norm_linear(**tensors, impl="triton"), reference(**tensors), rtol=1e-4, atol=1e-4)


def test_the_result_has_the_dtype_of_the_weight(numbers):
    tensors = {name: value.float() for name, value in case(numbers).items()}
    tensors["weight"] = tensors["weight"].bfloat16()
    assert norm_linear(**tensors, impl="torch").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["norm_weight", "norm_bias", "weight", "bias"])
def test_refuses_shapes_by_name(numbers, name):
    tensors = case(numbers)
    with pytest.raises(errors.ShapeError, match=f"norm_linear: {name}: expected"):
        norm_linear(**tensors | {name: tensors[name][:-1, :-1] if name == "weight" else tensors[name][:-1]})
