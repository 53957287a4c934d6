"""A Triton kernel of exponentials that no memory keeps waiting, for `benchmarks._ceilings`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK, UNROLLED = 1024, 16


def exponentials(values: Tensor, rounds: int) -> int:
    """How many `chain` computes."""
    return values.numel() * UNROLLED * rounds


def chain(values: Tensor, out: Tensor, rounds: int) -> None:
    """out = exp2(-exp2(-… values)), each of the ``UNROLLED * rounds`` needing the one before: none can be left out.

    Args:
        values: float32 [n], n a multiple of `BLOCK`.
        out: float32 [n].
        rounds: passes of the kernel's loop.
    """
    _chain_kernel[(values.numel() // BLOCK,)](values, out, rounds, BLOCK=BLOCK, UNROLLED=UNROLLED, num_warps=4)


@triton.jit
def _chain_kernel(values, out, rounds, BLOCK: tl.constexpr, UNROLLED: tl.constexpr):
    """One load and one store for all exponentials of an element; eight elements a thread hide their latency."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(values + at)
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):
            x = tl.exp2(-x)
    tl.store(out + at, x)
