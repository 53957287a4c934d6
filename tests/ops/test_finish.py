"""The last launch of a backward pass against sums in float64."""

import pytest
import torch

from s2vfast.kernels import _launch
from s2vfast.kernels._finish import LayerScale, Sum, finish

TILES = {"BLOCK": 32, "BLOCK_C": 16, "BLOCK_N": 2}


def partial_sums(numbers, count, *shape, seed):
    return numbers(count, *shape, seed=seed).float()


@pytest.mark.parametrize("tiles", [{}, TILES])
def test_sums_of_few_splits_and_of_many(numbers, tiles):
    sums = [
        Sum(partial_sums(numbers, 200, 37, seed=0), torch.float32),
        Sum(partial_sums(numbers, 3, 5, 7, seed=1), torch.float32),
        None,
        Sum(partial_sums(numbers, 1, 1, seed=2), torch.float32),
        Sum(partial_sums(numbers, 49, 3, 6, seed=3)[:, 1], torch.float32),
        Sum(partial_sums(numbers, 48, 300, seed=4), torch.float32),
        Sum(partial_sums(numbers, 0, 9, seed=5), torch.float32),
    ]
    with _launch.override("mlp", "finish", **tiles):
        results = finish("mlp", sums)
    assert results[2] is None
    for out, one in zip(results, sums, strict=True):
        if one is not None:
            torch.testing.assert_close(out, one.partial.double().sum(0).float(), rtol=1e-6, atol=2e-5)


def test_each_sum_is_rounded_once_to_its_dtype(numbers):
    """To within one unit of the last place: the interpreter cuts off where a GPU rounds."""
    partials = [partial_sums(numbers, count, 40, seed=count) for count in (4, 100)]
    for out, partial in zip(finish("mlp", [Sum(p, torch.bfloat16) for p in partials]), partials, strict=True):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, partial.double().sum(0).bfloat16(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tiles", [{}, TILES])
def test_layer_scale(numbers, tiles, bias):
    """Of gamma * (a @ W^T + b), beside autograd, where gamma is nought, next to it, and ordinary."""
    M, R, C = 6, 7, 37
    gamma = torch.tensor([0.0, -0.0, 1e-4, -1e-4, 1e-30, -2.0, 1.0], dtype=torch.float64)
    upstream, a = numbers(M, R, seed=0), numbers(M, C, seed=1)
    leaves = [numbers(R, C, seed=2), numbers(R, seed=3), gamma]
    for leaf in leaves:
        leaf.requires_grad_()
    weight, b, _ = leaves
    expected = torch.autograd.grad(gamma * (a @ weight.T + (b if bias else 0)), leaves, upstream, allow_unused=True)

    used = torch.where(gamma.abs() < 1e-18, torch.where(gamma < 0, -1e-18, 1e-18), gamma)
    partial = ((used * upstream)[:, :, None] * a[:, None, :]).float().detach()  # a share for each row
    single = [leaf.detach().float() for leaf in leaves]
    scaled = LayerScale(partial, upstream.float(), single[0], single[1] if bias else None, single[2])
    with _launch.override("mlp", "finish", **tiles):
        first, *results = finish("mlp", [Sum(upstream.float(), torch.float32)], scaled)
    torch.testing.assert_close(first, upstream.sum(0).float(), rtol=1e-5, atol=1e-5)
    assert (results[1] is None) == (not bias)
    for name, out, true in zip(("weight", "bias", "gamma"), results, expected, strict=True):
        if out is not None:
            rows = out.double().reshape(R, -1), true.reshape(R, -1)
            worst = (rows[0] - rows[1]).abs().amax(1)
            largest = rows[1].abs().max() if name == "gamma" else rows[1].abs().amax(1)
            assert (worst <= 1e-5 * largest).all(), name
