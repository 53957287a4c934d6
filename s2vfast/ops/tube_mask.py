"""Motion-aware tube masking. Contract: `s2vfast.reference.tube_mask`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, fake, operator, signed
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


_ARGUMENTS = (
    "(Tensor clips, Tensor? noise, Tensor? ids, int segment_frames, int tube_len, int keep, float motion_weight, "
    "int seed, int epoch) -> (Tensor, Tensor)"
)


@operator(f"tube_mask_native{_ARGUMENTS}")
def _native_op(clips, noise, ids, segment_frames, tube_len, keep, motion_weight, seed, epoch):
    N, T, V, C = clips.shape
    visible, masked = _empty(clips, segment_frames, keep)
    noise = None if noise is None else noise.to(clips.dtype)
    clips, noise, ids = contiguous((clips, noise, ids if noise is None else None))
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


@operator(f"tube_mask_triton{_ARGUMENTS}")
def _triton_op(clips, noise, ids, segment_frames, tube_len, keep, motion_weight, seed, epoch):
    noise = None if noise is None else noise.to(clips.dtype)
    clips, noise, ids = contiguous((clips, noise, ids))
    return _triton.kernels("tube_mask").forward(
        clips, segment_frames, tube_len, keep, motion_weight, noise, seed, epoch, ids
    )


def _empty(clips: Tensor, segment_frames: int, keep: int) -> tuple[Tensor, Tensor]:
    """Visible and masked, not yet written."""
    N, T, V, _ = clips.shape
    S = T // segment_frames
    visible, masked = (clips.new_empty((N, S * joints), dtype=torch.int32) for joints in (keep, V - keep))
    return visible, masked


@fake(_native_op)
@fake(_triton_op)
def _(clips, noise, ids, segment_frames, tube_len, keep, *_):
    return _empty(clips, segment_frames, keep)


def _with_signed_seed(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(clips: Tensor, *, seed: int, **options: Any) -> tuple[Tensor, Tensor]:
        return op(clips, seed=signed(seed), **options)

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
    triton=_with_signed_seed(_triton_op),
    native=_with_signed_seed(_native_op),
    reasons={
        "triton": _triton.reasons(_float32_clips, floats=_ANY),
        "native": _native.reasons(_on_a_gpu, floats=_ANY),
    },
)
