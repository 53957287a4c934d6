"""Philox4x32-10: random numbers as a function of a counter (Salmon et al., SC 2011, "Parallel random numbers").

Every draw of s2vfast is `random_bits(seed, epoch, ids, stream, count)`: it depends on the seed, the epoch, the sample
and what it is for, never on the device, the order of samples or the number of workers. The layout of the counter:

====  =====================================================
word  meaning
====  =====================================================
c0    block: draw i is word i % 4 of block i // 4
c1    low 32 bits of the id (the sample)
c2    epoch
c3    stream | high 32 bits of the id << 8 (body slot, mask)
====  =====================================================

The key is the 64-bit seed, low word first.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What draws are for, in one place: two that shared a number would draw the same. Augmentations have 16 to 31 and
# 40 to 69 (`s2vfast.data.augment.register_augmentation`).
ORDER, CLIP, FRAMES, MASK, WEIGHTS, TOKEN_MASK, VIEW, CAMERAS = range(8)
DROP_PATH, DROPOUT, LABELS, NETWORK_NOISE, CONTRAST_NOISE, SWAP, SPLIT, CODE_NOISE = range(32, 40)
HITRS_MASK, HITRS_ORDERS, HITRS_NOISE = range(70, 73)
CLIP_ORDER, CLIP_ORDER_DROPOUT = 76, 77
POINT_FRAMES, POINTS, POINT_MOVE = range(80, 83)

_LOW = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on int64 tensors that hold unsigned 32-bit words.

    Args:
        counter: four int64 tensors of one shape, values in [0, 2**32).
        seed: the key, in [0, 2**64).

    Returns:
        Four int64 tensors of that shape, values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        # The 64-bit product wraps round in int64; its two halves come out right all the same.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def random_bits(seed: int, epoch: int, ids: Tensor, stream: int, count: int) -> Tensor:
    """The first ``count`` draws of every id: int64 [N, count], uniform in [0, 2**32).

    Args:
        seed: seed of the run.
        epoch: pass over the data, in [0, 2**32).
        ids: int64 [N], see `track_ids`; plain sample ids are their own ids.
        stream: what the draws are for, one of the constants of this module.
        count: draws per id.
    """
    ids = ids.to(torch.int64)[:, None]
    blocks = torch.arange((count + 3) // 4, dtype=torch.int64, device=ids.device)[None, :]
    shape = (ids.shape[0], blocks.shape[1])
    counter = (
        blocks.expand(shape),
        (ids & _LOW).expand(shape),
        torch.full(shape, epoch & _LOW, dtype=torch.int64, device=ids.device),
        (((ids >> 32) << 8) | stream).expand(shape) & _LOW,
    )
    out = torch.stack(philox4x32(counter, seed), dim=-1)  # [N, blocks, 4]
    return out.flatten(1)[:, :count]


def uniform(draws: Tensor) -> Tensor:
    """Draws as float32 in [0, 1): the upper 24 bits, exactly representable."""
    return (draws >> 8).to(torch.float32) * 2.0**-24


def randint(draws: Tensor, limit: Tensor | int) -> Tensor:
    """Draws as int64 in [0, limit), for limits up to 2**31 (multiply and shift; bias below limit / 2**32)."""
    return draws * limit >> 32


def track_ids(sample_ids: Tensor, bodies: int, mask: int = 0) -> Tensor:
    """Ids of body tracks, samples major: int64 [B * bodies].

    Args:
        sample_ids: int64 [B], sequence numbers below 2**32.
        bodies: tracks a sample.
        mask: which of several masks of the same clip.
    """
    slots = torch.arange(bodies, dtype=torch.int64, device=sample_ids.device)
    return (sample_ids.to(torch.int64)[:, None] | slots << 32 | mask << 40).reshape(-1)
