import pytest
import torch

from s2vfast import errors
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


def test_empty_batch(impl):
    assert attention(torch.zeros(0, 5, 3, 2, 8), impl=impl).shape == (0, 5, 2, 8)


def test_refuses_shapes_by_name():
    with pytest.raises(errors.ShapeError, match=r"attention: qkv: expected \[N, L, 3, H, d\]"):
        attention(torch.zeros(1, 5, 2, 2, 8))
