"""Philox4x32-10 in a kernel: the draws of `s2vfast.reference.philox`, bit for bit. Nothing is read or written."""

from __future__ import annotations

import triton
import triton.language as tl


def key_and_epoch(seed: int, epoch: int) -> tuple[int, int, int]:
    """Low and high word of the seed, and the epoch, as a launch passes them: signed, so that all have one type.

    Args:
        seed: in [-2**63, 2**64); a negative number stands for its 64 bits.
        epoch: in [0, 2**32).
    """
    return _signed(seed), _signed(seed >> 32), _signed(epoch)


def _signed(word: int) -> int:
    return (word + 2**31) % 2**32 - 2**31


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on a counter of four words and a key of two, all uint32 (Salmon et al., SC 2011)."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def random_bits4(seed, epoch, sample, block, STREAM: tl.constexpr):
    """Draws 4 * block ... 4 * block + 3 of a stream, each uint32 in the shape of ``block``.

    Args:
        seed: low and high word of the seed, 32 bits each.
        epoch: 32 bits.
        sample: int64, id of the sample or track.
        block: which four draws.
        STREAM: what the draws are for, a constant of the reference.
    """
    zero = tl.cast(block, tl.uint32) * 0
    c3 = ((sample >> 32) << 8) | STREAM
    return philox4x32(
        zero + tl.cast(block, tl.uint32),
        zero + sample.to(tl.uint32),
        zero + epoch.to(tl.uint32),
        zero + c3.to(tl.uint32),
        seed[0].to(tl.uint32),
        seed[1].to(tl.uint32),
    )


@triton.jit
def random_bits(seed, epoch, sample, index, STREAM: tl.constexpr):
    """The draws number ``index`` of a stream, uint32."""
    w0, w1, w2, w3 = random_bits4(seed, epoch, sample, index // 4, STREAM)
    low = tl.where(index % 2 == 0, w0, w1)
    high = tl.where(index % 2 == 0, w2, w3)
    return tl.where(index % 4 < 2, low, high)


@triton.jit
def uniform(draws):
    """Draws as float32 in [0, 1): the upper 24 bits, each value exact."""
    return (draws >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def randint(draws, limit):
    """Draws as int64 in [0, limit)."""
    return (draws.to(tl.int64) * limit) >> 32
