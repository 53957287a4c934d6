"""Masks of single tokens, of segments and joints. Contract: `s2vfast.reference.token_mask`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._custom import fake, operator, signed
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.token_mask import KINDS, draws
from s2vfast.reference.token_mask import token_mask as _reference


def token_mask(
    clips: Tensor,
    *,
    kind: str,
    segment_frames: int,
    keep: int,
    tau: float = 0.8,
    whole_segments: int = 0,
    per_segment: bool = False,
    parts: Tensor | None = None,
    masked_parts: int = 0,
    noise: Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    ids: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Visible and masked tokens, chosen token by token, or segments and joints whole.

    ``random``: any tokens. ``motion_token``: those that move are masked more often, by Gumbel noise on the softmax of
    their motion (MAMP). ``frame_joint``: some segments are masked whole, in the others some joints, or the joints of
    some body parts and of others as many as they lack (SkeletonMAE).

    Args:
        clips: [N, T, V, C], float32 or float64.
        kind: one of the three.
        segment_frames: s, frames a token; T = S * s.
        keep: visible tokens a track; of ``frame_joint`` visible joints of a segment that is not masked whole.
        tau: temperature of the softmax of ``motion_token``.
        whole_segments: segments that ``frame_joint`` masks whole, fewer than S.
        per_segment: whether it chooses joints for every segment anew; else once a track.
        parts: bool [P, V], the joints of each body part, for ``masked_parts``; no joint is in two.
        masked_parts: body parts it masks whole; no so many have more than V - keep joints.
        noise: u in [0, 1): [N, S * V] of ``random`` and ``motion_token``; of ``frame_joint`` as
            `s2vfast.reference.token_mask.draws` counts. None draws it from (seed, epoch, ids).
        seed: seed of the draws.
        epoch: epoch of the draws.
        ids: int64 [N], ids of the tracks (`s2vfast.reference.philox.track_ids`).
        impl: implementation; None: see `use_impl`.

    Returns:
        visible int32 [N, K] and masked int32 [N, S * V - K], token ids (segment * V + joint) in ascending order;
        K = keep, and (S - whole_segments) * keep of ``frame_joint``. All implementations choose the same tokens.
    """
    name = "token_mask"
    require(kind in KINDS, name, "kind", f"one of {', '.join(KINDS)}", kind)
    require(clips.ndim == 4, name, "clips", "[N, T, V, C]", clips)
    require(clips.dtype in (torch.float32, torch.float64), name, "clips", "float32 or float64", clips)
    N, T, V, _ = clips.shape
    require(segment_frames >= 1, name, "segment_frames", "1 or more", segment_frames)
    require(T % segment_frames == 0, name, "clips", f"a multiple of {segment_frames} frames", clips)
    S, P = T // segment_frames, 0 if parts is None else len(parts)
    most = V if kind == "frame_joint" else S * V
    require(1 <= keep <= most, name, "keep", f"1 to {most}", keep)
    require(tau > 0, name, "tau", "a positive number", tau)
    require(0 <= whole_segments < max(S, 1), name, "whole_segments", f"0 to {S - 1}", whole_segments)
    good = parts is None or (parts.shape == (P, V) and parts.dtype == torch.bool)
    require(good, name, "parts", f"bool [P, {V}]", parts)
    require(0 <= masked_parts <= P, name, "masked_parts", f"0 to {P}", masked_parts)
    count = draws(kind, S, V, per_segment, P)
    if noise is None:
        good = ids is not None and ids.shape == (N,) and ids.dtype == torch.int64
        require(good, name, "ids", f"int64 [{N}] where no noise is given", ids)
    else:
        require(noise.shape == (N, count), name, "noise", f"[{N}, {count}]", noise)
    options = {"kind": kind, "segment_frames": segment_frames, "keep": keep, "tau": tau}
    options |= {"whole_segments": whole_segments, "per_segment": per_segment, "parts": parts}
    options |= {"masked_parts": masked_parts, "noise": noise, "seed": seed, "epoch": epoch, "ids": ids}
    return _op(impl, clips.device, clips, **options)


@operator("token_mask_triton(Tensor ids, int count, int seed, int epoch) -> Tensor")
def _draws(ids, count, seed, epoch):
    return _triton.kernels("token_mask").forward(ids.contiguous(), count, seed, epoch)


@fake(_draws)
def _(ids, count, *_):
    return ids.new_empty((len(ids), count), dtype=torch.float32)


def _run_triton(
    clips: Tensor, *, noise: Tensor | None, seed: int, epoch: int, ids: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The draws in one launch; they are sorted by PyTorch."""
    if noise is None:
        V, S, parts = clips.shape[2], clips.shape[1] // options["segment_frames"], options["parts"]
        count = draws(options["kind"], S, V, options["per_segment"], 0 if parts is None else len(parts))
        noise = _draws(ids, count, signed(seed), epoch)
    return _reference(clips, noise=noise, **options)


_ANY = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # the kernel sees none of them
# A stable sort is the best that PyTorch offers for this, so its own implementation is the reference.
_op = register(
    "token_mask",
    reference=_reference,
    torch=_reference,
    triton=_run_triton,
    reasons={"triton": _triton.reasons(floats=_ANY)},
)
