import pytest
import torch

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.ops import mask_fill
from s2vfast.reference.mask_fill import mask_fill as reference


def case(numbers, N=3, L=12, K=4, D=8):
    visible = torch.stack([torch.randperm(L, generator=torch.Generator().manual_seed(n))[:K] for n in range(N)])
    return {
        "latents": numbers(N, K, D, seed=0),
        "mask_token": numbers(D, seed=1),
        "positions": numbers(L, D, seed=2),
        "visible": visible.to(torch.int32),
    }


@pytest.mark.parametrize("shape", [{}, {"K": 12}, {"K": 1, "N": 1}, {"L": 1, "K": 1}])
def test_agrees(agree, numbers, impl, shape):
    agree(mask_fill, reference, case(numbers, **shape), impl)


def test_small_tiles(agree, numbers):
    """Several tiles of tokens, several shares of the tracks, lists longer than what is compared at once."""
    with (
        _launch.override("mask_fill", "forward", BLOCK_L=4, BLOCK_K=4),
        _launch.override("mask_fill", "backward", BLOCK_L=4, BLOCK_K=4, SPLITS=2),
    ):
        agree(mask_fill, reference, case(numbers, N=3, L=21, K=9, D=48), "triton")


def test_latents_return_to_their_tokens(numbers):
    given = case(numbers)
    out = reference(**given)
    for n in range(3):
        at = dict(zip(given["visible"][n].tolist(), given["latents"][n], strict=True))
        for token in range(12):
            torch.testing.assert_close(out[n, token], at.get(token, given["mask_token"]) + given["positions"][token])


def test_refuses_shapes_by_name(numbers):
    given = case(numbers)
    with pytest.raises(errors.ShapeError, match="mask_fill: visible"):
        mask_fill(**given | {"visible": given["visible"][:, 1:]})
