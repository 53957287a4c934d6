"""Where tokens stand in a track's list of visible tokens. Reads the list, writes nothing."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def places(visible_ptr, K, tokens, BLOCK_K: tl.constexpr):
    """For ``tokens`` [BLOCK_L] their places in visible [K], in any order, each at most once; -1 for those not in it.

    Every token is compared with the whole list: for some dozens of them less work than to write a map and read it.
    """
    found = tl.full(tokens.shape, -1, dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        listed = tl.load(visible_ptr + k, mask=k < K, other=-1)
        same = listed[None, :] == tokens[:, None]  # [l, k]
        found = tl.maximum(found, tl.max(tl.where(same, k[None, :], -1), axis=1))
    return found
