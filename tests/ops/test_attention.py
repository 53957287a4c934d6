import pytest
import torch

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.ops import attention
from s2vfast.reference.attention import attention as reference


@pytest.mark.parametrize("shape", [(2, 7, 3, 2, 8), (1, 1, 3, 1, 16), (3, 33, 3, 4, 32), (2, 5, 3, 3, 5)])
def test_agrees(agree, numbers, impl, shape):
    agree(
        lambda qkv, impl: attention(qkv, return_lse=True, impl=impl), reference, {"qkv": numbers(*shape, seed=0)}, impl
    )
    agree(attention, lambda qkv: reference(qkv)[0], {"qkv": numbers(*shape, seed=1)}, impl)


def test_reference_by_hand(numbers):
    qkv = numbers(1, 4, 3, 1, 2, seed=0)
    q, k, v = qkv[0, :, :, 0].unbind(1)
    weights = torch.exp(q @ k.T / 2**0.5)
    out, lse = reference(qkv)
    torch.testing.assert_close(out[0, :, 0], weights / weights.sum(1, keepdim=True) @ v)
    torch.testing.assert_close(lse[0, 0], weights.sum(1).log())


def test_large_scores_stay_finite(numbers, impl):
    qkv = (numbers(2, 9, 3, 2, 16, seed=0) * 60).float()
    assert torch.isfinite(attention(qkv, impl=impl)).all()


@pytest.mark.parametrize("shape", [(2, 37, 3, 2, 16), (1, 32, 3, 2, 24), (1, 17, 3, 1, 80), (1, 16, 3, 1, 128)])
def test_small_tiles(agree, numbers, shape):
    """Several tiles, with a tail and without, of heads as wide as a power of two and not."""
    tiles = {"BLOCK_M": 16, "BLOCK_N": 16}
    with (
        _launch.override("attention", "forward", **tiles),
        _launch.override("attention", "grad_keys", **tiles),
        _launch.override("attention", "grad_queries", **tiles),
    ):
        agree(
            lambda qkv, impl: attention(qkv, return_lse=True, impl=impl),
            reference,
            {"qkv": numbers(*shape, seed=0)},
            "triton",
        )


def test_exponentials_by_polynomial(numbers):
    """Every fourth; good to half a unit of bfloat16's last place."""
    qkv = numbers(2, 37, 3, 2, 16, seed=0).float()
    exact = attention(qkv, impl="triton")
    with _launch.override("attention", "forward", POLYNOMIAL=1, BLOCK_N=16):
        found, lse = attention(qkv, return_lse=True, impl="triton")
        large = attention(qkv * 60, impl="triton")
    assert 0 < (found - exact).abs().max() < 2e-4
    assert (lse - reference(qkv)[1]).abs().max() < 1e-4
    assert torch.allclose(large, attention(qkv * 60, impl="reference"), rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("scale", [1e2, -1e2])
def test_extreme_scores(scale):
    """Scores of 1e4 and -1e4: one key takes all, or all alike; nothing overflows, forward or backward."""
    qkv = torch.randn(1, 19, 3, 1, 16, generator=torch.Generator().manual_seed(0))
    qkv[:, :, 0] = scale
    qkv[:, :, 1] = torch.rand(1, 19, 1, 16, generator=torch.Generator().manual_seed(1)) * 25
    results = []
    for impl in ("triton", "reference"):
        leaf = qkv.clone().requires_grad_()
        out, lse = attention(leaf, return_lse=True, impl=impl)
        gradient = torch.autograd.grad(out.square().sum() + lse.sum(), leaf)[0]
        results.append((out, lse, gradient))
    for found, expected in zip(*results, strict=True):
        assert torch.isfinite(found).all()
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))


def test_heads_that_are_too_wide_are_refused():
    with pytest.raises(errors.ImplementationError, match="heads up to 128 wide, not 144"):
        attention(torch.zeros(1, 2, 3, 1, 144), impl="triton")


def test_empty_batch(impl):
    assert attention(torch.zeros(0, 5, 3, 2, 8), impl=impl).shape == (0, 5, 2, 8)


def test_refuses_shapes_by_name():
    with pytest.raises(errors.ShapeError, match=r"attention: qkv: expected \[N, L, 3, H, d\]"):
        attention(torch.zeros(1, 5, 2, 2, 8))
