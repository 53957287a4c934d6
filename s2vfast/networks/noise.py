"""Dropout as Philox draws it: which numbers stay, a few random bits each."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Random words, functions of seed, epoch, sample and what they are for."""

    def __call__(self, count: int, tracks: Tensor | None = None, parts: Tensor | None = None) -> Tensor:
        """int64 [R, count], uniform in [0, 2**32).

        Args:
            count: words a row.
            tracks: int64 [R], number of each row's track in the micro-batch; None: a row for every track.
            parts: int64 [R], in [0, 2**14): which of its rows. Rows of one track and part are the same.
        """


def bits_of(rate: float) -> int:
    """Random bits a number: as few as the rate needs, at most 8."""
    return next(bits for bits in (1, 2, 4, 8) if bits == 8 or (rate * 2**bits).is_integer())


def word_count(count: int, rate: float) -> int:
    """Words that decide for ``count`` numbers."""
    return -(-count * bits_of(rate) // 32)


def dropout_keep(words: Tensor, count: int, rate: float) -> Tensor:
    """What dropout keeps, uint8 [R, count], 0 or 1; ``rate`` is met to 1/256.

    Args:
        words: of `Draws`, [R, word_count].
        count: numbers a row.
        rate: share that is dropped.
    """
    bits = bits_of(rate)
    numbers = (words - 2**31).to(torch.int32).view(torch.uint8)  # the same bits but one
    if bits < 8:
        numbers = torch.cat([numbers >> bits * at & 2**bits - 1 for at in range(8 // bits)], dim=1)
    numbers = numbers[:, :count]
    return numbers if bits == 1 else (numbers >= round(rate * 2**bits)).to(torch.uint8)
