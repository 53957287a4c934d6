"""The index of tokens in a track's list of visible tokens. Reads the list, writes nothing."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def visible_index(visible_ptr, K, tokens, BLOCK_K: tl.constexpr):
    """The index of each of ``tokens`` [BLOCK_L] in visible [K], which lists them in any order, at most once; else -1.

    Every token is compared with the whole list: for some dozens of them less work than to write a map and read it.
    """
    index = tl.full(tokens.shape, -1, dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        listed = tl.load(visible_ptr + k, mask=k < K, other=-1)
        same = listed[None, :] == tokens[:, None]  # [l, k]
        index = tl.maximum(index, tl.max(tl.where(same, k[None, :], -1), axis=1))
    return index
