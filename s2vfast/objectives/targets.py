"""Targets that are read off the clips: coordinates and motion of tokens.

Where velocities are input channels too, the targets are of the coordinates alone: velocities are their differences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

COORDINATES = 3


def token_numbers(segment_frames: int) -> int:
    """Numbers of a token's target."""
    return segment_frames * COORDINATES


def coordinates(clips: Tensor, masked: Tensor | None, segment_frames: int) -> Tensor:
    """The coordinates of tokens (SkeletonMAE, arXiv 2209.02399).

    Args:
        clips: [N, T, V, C], coordinates first.
        masked: int32 [r * N, U], the tokens to predict, mask after mask; None for all L.
        segment_frames: s, frames a token.

    Returns:
        [r * N, U, s * 3] or [N, L, s * 3], a token's numbers frame by frame.
    """
    return _tokens(clips[..., :COORDINATES], masked, segment_frames)


def motion(clips: Tensor, masked: Tensor | None, segment_frames: int, eps: float = 1e-6) -> Tensor:
    """x[t + 1] - x[t] (0 in the last frame) of tokens, each normalised by its own mean and variance (MAMP, ICCV 2023).

    Args:
        clips: [N, T, V, C], coordinates first.
        masked: int32 [r * N, U], the tokens to predict, mask after mask; None for all L.
        segment_frames: s, frames a token.
        eps: added to the variance, which is the unbiased one.

    Returns:
        [r * N, U, s * 3] or [N, L, s * 3], a token's numbers frame by frame.
    """
    joints = clips[..., :COORDINATES]
    moved = torch.cat([joints[:, 1:] - joints[:, :-1], torch.zeros_like(joints[:, :1])], dim=1)
    tokens = _tokens(moved, masked, segment_frames)
    variance, mean = torch.var_mean(tokens, dim=-1, correction=1, keepdim=True)
    return (tokens - mean) / torch.sqrt(variance + eps)


def motion_weights(clips: Tensor, masked: Tensor, segment_frames: int, mix: float) -> Tensor:
    """Weights of tokens by their motion energy: 1 - mix + mix * energy / mean energy of the track's masked tokens.

    After AMR (arXiv 2606.11450), which looks at what moves more. Energy is the mean square of x[t + 1] - x[t]; a joint
    that is not seen in both frames, where its numbers are all zero, does not move. What does not move at all, as an
    empty track, has weights of 1.

    Args:
        clips: [N, T, V, C], coordinates first.
        masked: int32 [r * N, U], the tokens to predict, mask after mask.
        segment_frames: s, frames a token.
        mix: in [0, 1]; 0 weighs all alike.

    Returns:
        [r * N, U], of mean 1 in every row.
    """
    joints = clips[..., :COORDINATES]
    seen = (joints != 0).any(-1, keepdim=True)
    squares = torch.zeros_like(joints)
    squares[:, :-1] = torch.where(seen[:, 1:] & seen[:, :-1], (joints[:, 1:] - joints[:, :-1]).square(), 0.0)
    energy = _tokens(squares, masked, segment_frames).mean(-1) + 1e-12
    return 1.0 - mix + mix * energy / energy.mean(-1, keepdim=True)


TARGETS: dict[str, Callable[[Tensor, Tensor | None, int], Tensor]] = {"coordinates": coordinates, "motion": motion}
"""By the names that objective.auxiliary has for them."""


def _tokens(x: Tensor, masked: Tensor | None, segment_frames: int) -> Tensor:
    N, T, V, C = x.shape
    tokens = x.reshape(N, T // segment_frames, segment_frames, V, C).transpose(2, 3)
    tokens = tokens.reshape(N, -1, segment_frames * C)  # [N, L, s * C]
    if masked is None:
        return tokens
    if masked.shape[0] > N:
        tokens = tokens.repeat(masked.shape[0] // N, 1, 1)
    return tokens.gather(1, masked.long()[..., None].expand(-1, -1, tokens.shape[-1]))
