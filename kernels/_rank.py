"""The place of every element of a vector among all of them. Nothing is read or written."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ranks(key, BLOCK: tl.constexpr):
    """How many elements of ``key`` are smaller, int32 [BLOCK].

    Every element is compared with every other, up to 32 at a time: for the few dozen to few hundred elements there are,
    that is less work than to sort them, and each lane keeps its own element.

    Args:
        key: int64 [BLOCK], all different.
        BLOCK: a power of two.
    """
    # Few enough that a tile of comparisons stays in registers.
    AT_ONCE: tl.constexpr = max(2, min(BLOCK, 32, 8192 // BLOCK))
    if BLOCK == AT_ONCE:
        rank = tl.sum((key[None, :] < key[:, None]).to(tl.int32), axis=1)
    else:
        rank = tl.zeros([BLOCK], dtype=tl.int32)
        for start in range(0, BLOCK, AT_ONCE):
            chunk = tl.gather(key, start + tl.arange(0, AT_ONCE), 0)
            rank += tl.sum((chunk[None, :] < key[:, None]).to(tl.int32), axis=1)
    return rank
