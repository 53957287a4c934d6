"""The draws of masks of tokens, segments and joints: what PyTorch's integers need 130 launches for, in one.

Memory: writes each draw once, four of a Philox block side by side; reads the ids of the tracks. What is chosen by them
is sorted by PyTorch (`s2vfast.ops.token_mask`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, launch
from s2vfast.kernels._philox import key_and_epoch, random_bits4, uniform
from s2vfast.reference import philox

_TOKEN_MASK = tl.constexpr(philox.TOKEN_MASK)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "epoch"])
def _forward_kernel(ids_ptr, noise_ptr, seed_low, seed_high, epoch, count, BLOCK: tl.constexpr):
    """``BLOCK`` blocks of four draws of one track."""
    track = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = random_bits4((seed_low, seed_high), epoch, tl.load(ids_ptr + track), block, _TOKEN_MASK)
    first = 4 * block
    row = noise_ptr + track * count + first
    tl.store(row, uniform(w0), mask=first < count)
    tl.store(row + 1, uniform(w1), mask=first + 1 < count)
    tl.store(row + 2, uniform(w2), mask=first + 2 < count)
    tl.store(row + 3, uniform(w3), mask=first + 3 < count)


def forward(ids: Tensor, count: int, seed: int, epoch: int) -> Tensor:
    """u in [0, 1), float32 [N, count].

    Args:
        ids: int64 [N], contiguous.
        count: draws a track.
        seed: seed of the draws; a negative number stands for its 64 bits.
        epoch: epoch of the draws.
    """
    noise = torch.empty((len(ids), count), dtype=torch.float32, device=ids.device)
    options = configuration("token_mask", "forward", ids.device, L=count)
    grid = (len(ids), cdiv(cdiv(count, 4), options["BLOCK"]))
    launch(_forward_kernel, grid, ids, noise, *key_and_epoch(seed, epoch), count, **options)
    return noise
