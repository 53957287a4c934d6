import pytest
import torch

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.ops import embed_gather
from s2vfast.reference.embed_gather import embed_gather as reference


def case(numbers, N=3, T=12, V=5, C=3, s=4, D=16, K=7):
    L = T // s * V
    visible = torch.rand(N, L, generator=torch.Generator().manual_seed(9)).argsort(1)[:, :K]
    return {
        "clips": numbers(N, T, V, C, seed=0),
        "weight": numbers(D, s * C, seed=1),
        "bias": numbers(D, seed=2),
        "positions": numbers(L, D, seed=3),
        "visible": visible.to(torch.int32),
    }


@pytest.mark.parametrize("shape", [{}, {"K": 1}, {"N": 1, "V": 1, "K": 3}, {"C": 6, "s": 3}, {"K": 15}])
def test_agrees(agree, numbers, impl, shape):
    agree(embed_gather, reference, case(numbers, **shape), impl)


def test_all_tokens(agree, numbers, impl):
    agree(embed_gather, reference, case(numbers) | {"visible": None}, impl)


@pytest.mark.parametrize("every", [False, True])
def test_small_tiles(agree, numbers, every):
    """Several tiles of rows, tokens and channels, several splits, lists longer than what is compared at once."""
    with (
        _launch.override("embed_gather", "forward", BLOCK_M=16, BLOCK_D=16),
        _launch.override("embed_gather", "grad_weight", BLOCK_M=16, BLOCK_D=16, SPLITS=2),
        _launch.override("embed_gather", "grad_positions", BLOCK_L=4, BLOCK_K=4, SPLITS=2),
        _launch.override("embed_gather", "grad_clips", BLOCK_L=16, BLOCK_K=4, BLOCK_D=16),
    ):
        given = case(numbers, N=3, T=24, D=48, K=11)
        agree(embed_gather, reference, given | ({"visible": None} if every else {}), "triton")


def test_a_token_is_one_joint_over_one_segment(numbers):
    given = case(numbers)
    out = reference(**given)
    token = int(given["visible"][1, 2])
    segment, joint = divmod(token, 5)
    piece = given["clips"][1, segment * 4 : segment * 4 + 4, joint].reshape(-1)  # frame, channel
    expected = given["weight"] @ piece + given["bias"] + given["positions"][token]
    torch.testing.assert_close(out[1, 2], expected)


def test_is_the_published_convolution(numbers):
    given = case(numbers) | {"visible": None}
    kernel = given["weight"].reshape(16, 4, 3).permute(0, 2, 1)[..., None]  # [D, C, s, 1]
    conv = torch.nn.functional.conv2d(given["clips"].permute(0, 3, 1, 2), kernel, given["bias"], stride=(4, 1))
    tokens = conv.permute(0, 2, 3, 1).flatten(1, 2) + given["positions"]
    torch.testing.assert_close(reference(**given), tokens)


def test_empty_batch(numbers, impl):
    given = {k: v.float() if v.is_floating_point() else v for k, v in case(numbers, N=0).items()}
    assert embed_gather(**given, impl=impl).shape == (0, 7, 16)


def test_not_contiguous(numbers, impl):
    given = {k: v.float() if v.is_floating_point() else v for k, v in case(numbers).items()}
    turned = given | {"clips": given["clips"].transpose(1, 2).contiguous().transpose(1, 2)}
    torch.testing.assert_close(embed_gather(**turned, impl=impl), embed_gather(**given, impl=impl))


def test_refuses_shapes_by_name(numbers):
    given = case(numbers)
    with pytest.raises(errors.ShapeError, match="embed_gather: positions"):
        embed_gather(**given | {"positions": given["positions"][1:]})
    with pytest.raises(errors.ShapeError, match="embed_gather: weight"):
        embed_gather(**given | {"weight": given["weight"][:, 1:]})
