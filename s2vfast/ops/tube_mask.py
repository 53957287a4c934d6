"""Motion-aware tube masking. Contract: `s2vfast.reference.tube_mask`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.tube_mask import tube_mask as _reference


def tube_mask(
    clips: Tensor,
    *,
    segment_frames: int,
    tube_len: int,
    keep: int,
    motion_weight: float,
    noise: Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    ids: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Visible and masked tokens: of every tube the joints with the lowest noise + weighted motion stay.

    Args:
        clips: [N, T, V, C], float32 or float64.
        segment_frames: s, frames a token; T = S * s.
        tube_len: segments a tube; divides S.
        keep: visible joints a tube, 1 to V.
        motion_weight: w in score = u + w * intensity.
        noise: [N, S / tube_len, V], u in [0, 1); None draws it from (seed, epoch, ids).
        seed: seed of the draws.
        epoch: epoch of the draws.
        ids: int64 [N], ids of the tracks (`s2vfast.reference.philox.track_ids`).
        impl: implementation; None: see `use_impl`.

    Returns:
        visible int32 [N, K] and masked int32 [N, S * V - K], token ids (segment * V + joint) in ascending order.
        All implementations choose the same tokens, bit for bit.
    """
    require(clips.ndim == 4, "tube_mask", "clips", "[N, T, V, C]", clips)
    require(clips.dtype in (torch.float32, torch.float64), "tube_mask", "clips", "float32 or float64", clips)
    N, T, V, _ = clips.shape
    require(segment_frames >= 1, "tube_mask", "segment_frames", "1 or more", segment_frames)
    require(tube_len >= 1, "tube_mask", "tube_len", "1 or more", tube_len)
    tube_frames = segment_frames * tube_len
    require(T % tube_frames == 0, "tube_mask", "clips", f"a multiple of {tube_frames} frames", clips)
    require(1 <= keep <= V, "tube_mask", "keep", f"1 to {V}", keep)
    if noise is None:
        good = ids is not None and ids.shape == (N,) and ids.dtype == torch.int64
        require(good, "tube_mask", "ids", f"int64 [{N}] where no noise is given", ids)
    else:
        require(noise.shape == (N, T // tube_frames, V), "tube_mask", "noise", f"[{N}, {T // tube_frames}, {V}]", noise)
    options = {"segment_frames": segment_frames, "tube_len": tube_len, "keep": keep, "motion_weight": motion_weight}
    return _op(impl, clips.device, clips, **options, noise=noise, seed=seed, epoch=epoch, ids=ids)


def _results(clips: Tensor, segment_frames: int, keep: int) -> tuple[Tensor, Tensor]:
    """Room for visible and masked."""
    N, T, V, _ = clips.shape
    S = T // segment_frames
    return tuple(clips.new_empty((N, S * kept), dtype=torch.int32) for kept in (keep, V - keep))


@torch.library.custom_op("s2vfast::tube_mask_native", mutates_args=())
def _native_op(
    clips: Tensor,
    noise: Tensor | None,
    ids: Tensor | None,
    segment_frames: int,
    tube_len: int,
    keep: int,
    motion_weight: float,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    N, T, V, C = clips.shape
    visible, masked = _results(clips, segment_frames, keep)
    clips = clips.contiguous()
    noise = None if noise is None else noise.to(clips.dtype).contiguous()
    ids = None if ids is None or noise is not None else ids.contiguous()
    _extension.load().tube_mask(
        **_native.addresses(clips=clips, noise=noise, ids=ids, visible=visible, masked=masked),
        **_native.place(clips),
        itemsize=clips.element_size(),
        tracks=N,
        frames=T,
        joints=V,
        channels=C,
        segment_frames=segment_frames,
        tube_len=tube_len,
        keep=keep,
        motion_weight=motion_weight,
        seed=seed % 2**64,
        epoch=epoch,
    )
    return visible, masked


@_native_op.register_fake
def _(
    clips: Tensor,
    noise: Tensor | None,
    ids: Tensor | None,
    segment_frames: int,
    tube_len: int,
    keep: int,
    motion_weight: float,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    return _results(clips, segment_frames, keep)


@torch.library.custom_op("s2vfast::tube_mask_triton", mutates_args=())
def _triton_op(
    clips: Tensor,
    noise: Tensor | None,
    ids: Tensor | None,
    segment_frames: int,
    tube_len: int,
    keep: int,
    motion_weight: float,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    return _triton.kernels("tube_mask").forward(
        clips.contiguous(),
        segment_frames,
        tube_len,
        keep,
        motion_weight,
        None if noise is None else noise.to(clips.dtype).contiguous(),
        seed,
        epoch,
        None if ids is None else ids.contiguous(),
    )


@_triton_op.register_fake
def _(
    clips: Tensor,
    noise: Tensor | None,
    ids: Tensor | None,
    segment_frames: int,
    tube_len: int,
    keep: int,
    motion_weight: float,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    return _results(clips, segment_frames, keep)


def _flat(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The implementation that calls a custom operator, whose schema has no keywords without a default."""

    def run(
        clips: Tensor,
        *,
        segment_frames: int,
        tube_len: int,
        keep: int,
        motion_weight: float,
        noise: Tensor | None,
        seed: int,
        epoch: int,
        ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # A schema has signed integers only: a large seed goes as the number of the same 64 bits.
        seed = (seed + 2**63) % 2**64 - 2**63
        return op(clips, noise, ids, segment_frames, tube_len, keep, motion_weight, seed, epoch)

    return run


def _float32_clips(clips: Tensor, **_: object) -> list[str]:
    return [] if clips.dtype == torch.float32 else [f"it takes float32 clips, not {str(clips.dtype)[6:]}"]


def _on_a_gpu(clips: Tensor, **options: object) -> list[str]:
    return _float32_clips(clips) if clips.is_cuda else []


# The noise may be of any dtype: it is made that of the clips.
_ANY = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# A stable sort is the best that PyTorch offers for this, so its own implementation is the reference.
_op = register(
    "tube_mask",
    reference=_reference,
    torch=_reference,
    triton=_flat(_triton_op),
    native=_flat(_native_op),
    reasons={
        "triton": _triton.reasons(_float32_clips, floats=_ANY),
        "native": _native.reasons(_on_a_gpu, floats=_ANY),
    },
)
