import pytest
import torch

from s2vfast import errors
from s2vfast.kernels import _launch
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


def branch(numbers, gamma=True, **shape):
    """The whole residual branch: norm, MLP, LayerScale, addition."""
    given = case(numbers, **shape)
    D = given["x"].shape[-1]
    more = {"norm_weight": numbers(D, seed=5), "norm_bias": numbers(D, seed=6)}
    return given | more | {"gamma": numbers(D, seed=7, scale=0.1) if gamma else None}


@pytest.mark.parametrize("shape", [{}, {"N": 1, "L": 1}, {"gamma": False}, {"D": 24, "E": 37}])
def test_the_whole_branch_agrees(agree, numbers, impl, shape):
    agree(mlp, reference, branch(numbers, **shape), impl)


@pytest.mark.parametrize("values", [(0.0,), (1e-4,), (0.0, 1e-4, -1e-4, 1e-30, 1.0)])
def test_agrees_wherever_layer_scale_starts(agree, numbers, impl, values):
    """The gradient of a gamma of nought is not nought."""
    given = branch(numbers)
    gamma = torch.tensor(values, dtype=torch.float64).repeat(16)[:16]
    agree(mlp, reference, given | {"gamma": gamma}, impl)


def test_the_branch_is_made_of_its_parts(numbers):
    given = branch(numbers)
    normed = torch.nn.functional.layer_norm(given["x"], (16,), given["norm_weight"], given["norm_bias"], 1e-6)
    plain = {name: given[name] for name in ("weight1", "bias1", "weight2", "bias2")}
    torch.testing.assert_close(reference(**given), given["x"] + given["gamma"] * reference(normed, **plain))


@pytest.mark.parametrize("make", [case, branch])
def test_what_nothing_is_kept_of_is_the_same(numbers, make):
    """A teacher's pass keeps nothing for a gradient."""
    arguments = {name: None if value is None else value.float() for name, value in make(numbers, L=37, E=80).items()}
    alone = mlp(**arguments, impl="triton")
    followed = mlp(**arguments | {"x": arguments["x"].requires_grad_()}, impl="triton")
    assert alone.equal(followed.detach())


@pytest.mark.parametrize("piece", [16, 64])
@pytest.mark.parametrize("make", [case, branch])
def test_small_tiles(agree, numbers, make, piece):
    """Several tiles of rows, slices of the hidden state and splits; rows that are kept and rows that are not."""
    tiles = {"BLOCK_M": 16, "BLOCK_E": 16, "BLOCK_K": piece}
    with (
        _launch.override("mlp", "forward", **tiles),
        _launch.override("mlp", "grad_hidden", **tiles),
        _launch.override("mlp", "grad_normed", BLOCK_M=16, BLOCK_E=16),
        _launch.override("mlp", "grad_weight", BLOCK_M=16, BLOCK_D=piece, BLOCK_E=16, SPLITS=2),
        _launch.override("mlp", "finish", BLOCK=32, BLOCK_C=16, BLOCK_N=2),
    ):
        agree(mlp, reference, make(numbers, N=3, L=13, D=48, E=40), "triton")


@pytest.mark.parametrize("piece", [16, 64])
def test_without_a_backward_pass_it_is_the_same(numbers, piece):
    """The normed rows are then not written, but where a program goes through them piece by piece."""
    arguments = {name: value.float() for name, value in branch(numbers, N=3, L=13, D=48, E=40).items()}
    with torch.no_grad(), _launch.override("mlp", "forward", BLOCK_M=16, BLOCK_E=16, BLOCK_K=piece):
        torch.testing.assert_close(mlp(**arguments, impl="triton"), reference(**arguments), rtol=1e-4, atol=1e-4)


def test_the_fast_gelu_is_good_to_the_last_place_of_bfloat16(numbers):
    """Through the kernel, as the sum of single hidden numbers: weight1 = weight2 = 1."""
    x = torch.linspace(-9.0, 9.0, 2000)[None, :, None]
    one, zero = torch.ones(1, 1), torch.zeros(1)
    results = []
    for fast in (0, 1):
        with _launch.override("mlp", "forward", FAST_GELU=fast), _launch.override("mlp", "grad_hidden", FAST_GELU=fast):
            leaf = x.clone().requires_grad_()
            out = mlp(leaf, one, zero, one, zero, impl="triton")
            results.append((out.detach(), *torch.autograd.grad(out.sum(), leaf)))
    exact = x.double().requires_grad_()
    value = torch.nn.functional.gelu(exact)
    truth = value.detach(), *torch.autograd.grad(value.sum(), exact)
    for plain, fast, true in zip(*results, truth, strict=True):
        assert (plain - true).abs().max() < 2e-6
        # A unit in the last place of bfloat16 is 2**-8 of the number; next to zero, what vanishes beside other numbers.
        assert ((fast - true).abs() <= 2**-9 * true.abs() + 2e-6).all()


def test_refuses_what_does_not_belong_together(numbers):
    given = branch(numbers)
    with pytest.raises(errors.ShapeError, match="mlp: norm_bias"):
        mlp(**given | {"norm_bias": None})
    with pytest.raises(errors.ShapeError, match="mlp: gamma"):
        mlp(**given | {"norm_weight": None, "norm_bias": None})


def test_reference_is_the_exact_gelu():
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(reference(x, one, zero, one, zero), torch.nn.functional.gelu(x))


def test_refuses_shapes_by_name(numbers):
    given = case(numbers)
    with pytest.raises(errors.ShapeError, match="mlp: weight2"):
        mlp(**given | {"weight2": given["weight2"].T})
