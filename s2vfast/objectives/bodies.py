"""The tracks of a sample: which of them hold a body, as one person leaves the second empty, and their mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bodies:
    """The tracks of a batch, those with a body first."""

    order: Tensor  # int64 [N]
    rank: Tensor  # int64 [N], each track's position in `order`, which for all empty ones is that of the first of them
    capacity: int  # tracks that there is room for: no fewer than have a body

    @classmethod
    def from_clips(cls, clips: Tensor) -> Bodies:
        """Look for them in clips [N, T, V, C], which makes the host wait for the device."""
        return cls.from_mask(has_body(clips))

    @classmethod
    def from_mask(cls, present: Tensor, capacity: int | None = None) -> Bodies:
        """From bool [N], which may say of an empty track that it is none: it is then one of its own.

        Args:
            present: on the device of the result.
            capacity: if it is to be more than there are: shapes depend on it.
        """
        count = torch.cumsum(present, 0)
        bodies = int(count[-1]) if len(count) else 0
        rank = torch.where(present, count - 1, bodies)
        order = torch.argsort((~present).to(torch.uint8), stable=True)
        return cls(order, rank, bodies if capacity is None else capacity)


def has_body(clips: Tensor) -> Tensor:
    """bool [N]: whether a track of clips [N, T, V, C] holds anything."""
    return (clips != 0).flatten(1).any(dim=1)


def mean_over_tracks(tokens: Tensor, count: int) -> Tensor:
    """[n, D] of tokens [n * M, L, D]: means over the tokens of a track, then over the M = ``count`` of a sample."""
    # Reshaped rather than unflattened: n is left over, so that an exported network takes any.
    return tokens.mean(dim=1).reshape(-1, count, tokens.shape[2]).mean(dim=1)
