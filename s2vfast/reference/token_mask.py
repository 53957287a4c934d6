"""Masks of single tokens (MAE, MAMP) and of whole segments and joints (SkeletonMAE)."""

from __future__ import annotations

import torch
from torch import Tensor

from s2vfast.reference import philox

KINDS = ("random", "motion_token", "frame_joint")


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
) -> tuple[Tensor, Tensor]:
    """Choose the visible tokens of every track.

    ``random`` (MAE): the ``keep`` tokens with the lowest draws. ``motion_token`` (MAMP, ICCV 2023): those with the
    lowest `gumbel_scores`. ``frame_joint`` (SkeletonMAE, arXiv 2209.02399): the ``whole_segments`` segments with the
    lowest draws are masked whole, in the others all joints but ``keep`` are: those of the ``masked_parts`` body parts
    with the lowest draws, and then those with the lowest draws of their own. Of equal draws the lower token, segment,
    part or joint comes first.

    Args:
        clips: [N, T, V, C], float32 or float64; what moves counts for ``motion_token`` alone.
        kind: one of `KINDS`.
        segment_frames: s, frames a token; T = S * s.
        keep: visible tokens a track; of ``frame_joint`` visible joints of a segment that is not masked whole.
        tau: temperature of the softmax of ``motion_token``.
        whole_segments: segments that ``frame_joint`` masks whole, fewer than S.
        per_segment: whether it chooses joints for every segment anew; else once a track.
        parts: bool [P, V], the joints of each body part, for ``masked_parts``.
        masked_parts: body parts it masks whole; no so many have more than V - keep joints.
        noise: [N, `draws`], u in [0, 1); None draws it from (seed, epoch, ids).
        seed: seed of the draws.
        epoch: epoch of the draws.
        ids: int64 [N], ids of the tracks (`philox.track_ids`).

    Returns:
        visible int32 [N, K] and masked int32 [N, S * V - K], token ids (segment * V + joint) in ascending order;
        K = keep, and (S - whole_segments) * keep of ``frame_joint``.
    """
    N, T, V, _ = clips.shape
    S = T // segment_frames
    if noise is None:
        count = draws(kind, S, V, per_segment, 0 if parts is None else len(parts))
        noise = philox.uniform(philox.random_bits(seed, epoch, ids, philox.TOKEN_MASK, count))
    if kind == "frame_joint":
        masked = _frame_joint(noise, S, V, keep, whole_segments, per_segment, parts, masked_parts)  # [N, S, V]
        visible = (S - whole_segments) * keep
    else:
        score = gumbel_scores(clips, segment_frames, tau, noise) if kind == "motion_token" else noise
        masked, visible = ~_lowest(score, keep), keep
    # A stable sort of the flags lists the tokens of each kind in ascending order.
    tokens = torch.argsort(masked.reshape(N, S * V).to(torch.uint8), dim=-1, stable=True).to(torch.int32)
    return tokens[:, :visible], tokens[:, visible:]


def draws(kind: str, segments: int, joints: int, per_segment: bool = False, parts: int = 0) -> int:
    """Numbers that a track's mask is drawn from.

    Of ``frame_joint`` one a segment; then, once or for every segment, one a body part and one a joint. Else one a
    token.
    """
    if kind != "frame_joint":
        return segments * joints
    return segments + (segments if per_segment else 1) * (parts + joints)


def gumbel_scores(clips: Tensor, segment_frames: int, tau: float, uniform: Tensor) -> Tensor:
    """Gumbel noise on the log-softmax of the tokens' motion: float64 [N, S * V].

    A token's intensity is the mean absolute difference of its numbers from those of the same joint one segment before;
    in the first segment it is that of the second. A joint whose numbers are all zero in a frame was not seen there: it
    does not move from or to that frame. In double precision and fixed order, so that no device's rounding
    changes what is chosen.

    Args:
        clips: [N, T, V, C].
        segment_frames: s, frames a token.
        tau: the softmax is of intensity / (largest intensity of the track * tau).
        uniform: [N, S * V], u in [0, 1).
    """
    N, T, V, C = clips.shape
    S = T // segment_frames
    frames = clips.to(torch.float64).reshape(N, S, segment_frames, V, C)
    intensity = clips.new_zeros((N, S, V), dtype=torch.float64)
    if S > 1:
        seen = (frames != 0).any(-1, keepdim=True)
        apart = torch.where(seen[:, 1:] & seen[:, :-1], (frames[:, 1:] - frames[:, :-1]).abs(), 0.0)
        for f in range(segment_frames):
            for c in range(C):
                intensity[:, 1:] += apart[:, :, f, :, c]
        intensity[:, 0] = intensity[:, 1]
    # A tensor, as CUDA multiplies with the reciprocal of a Python number.
    intensity = (intensity / torch.full_like(intensity, segment_frames * C)).reshape(N, S * V)
    logits = intensity / (intensity.amax(dim=1, keepdim=True) * tau + 1e-10)
    gumbel = -torch.log(-torch.log(uniform.to(torch.float64) + 1e-10) + 1e-10)
    return torch.log_softmax(logits, dim=1) + gumbel


def _frame_joint(
    noise: Tensor,
    S: int,
    V: int,
    keep: int,
    whole_segments: int,
    per_segment: bool,
    parts: Tensor | None,
    masked_parts: int,
) -> Tensor:
    """bool [N, S, V]: the masked tokens."""
    P = 0 if parts is None else len(parts)
    of_parts, score = noise[:, S:].reshape(len(noise), S if per_segment else 1, P + V).split([P, V], dim=-1)
    if masked_parts:
        first = (_lowest(of_parts, masked_parts)[..., None] & parts).any(dim=-2)  # [N, 1 or S, V]
        # Below every draw and in the order of the draws: 24 bits minus one are exact in float32.
        score = torch.where(first, score - 1.0, score)
    joints = _lowest(score, V - keep).expand(-1, S, V)
    return joints | _lowest(noise[:, :S], whole_segments)[..., None]


def _lowest(score: Tensor, count: int) -> Tensor:
    """bool like score: the ``count`` lowest of each row, the first of equal ones."""
    order = torch.argsort(score, dim=-1, stable=True)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, order[..., :count], True)
