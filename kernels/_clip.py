"""Parts of the kernels of clip_sample: frames, rows of a body, a joint between two frames, sine and cosine."""

from __future__ import annotations

import triton
import triton.language as tl

from s2vfast.kernels._philox import randint, random_bits, uniform
from s2vfast.kernels._rank import ranks
from s2vfast.reference import clip_sample as reference
from s2vfast.reference import philox

_CLIP, _FRAMES = tl.constexpr(philox.CLIP), tl.constexpr(philox.FRAMES)
_START, _STRETCH = tl.constexpr(reference.START), tl.constexpr(reference.STRETCH)


@triton.jit
def binned(count, key, epoch, sample, T: tl.constexpr, TRAINING: tl.constexpr, T_BLOCK: tl.constexpr):
    """Frames of a clip by the published rule: int32 [T_BLOCK] in [0, count)."""
    t = tl.arange(0, T_BLOCK)
    wide = count.to(tl.int64)
    if count < T:
        start = tl.cast(0, tl.int32)
        if TRAINING:
            start = randint(random_bits(key, epoch, sample, _START, _CLIP), wide).to(tl.int32)
        index = (start + t) % count
    elif not TRAINING:
        index = ((2 * t + 1) * wide // (2 * T)).to(tl.int32)
    else:
        draws = random_bits(key, epoch, sample, t, _FRAMES)
        if count < 2 * T:
            # T consecutive frames with skips before the lowest count - T of T + 1 draws; equal draws: the first one.
            order = tl.where(t <= T, draws.to(tl.int64), 0x100000000) << 24 | t
            skipped = ranks(order, T_BLOCK) < count - T
            index = t + tl.cumsum(skipped.to(tl.int32), axis=0)
        else:
            low, high = t * wide // T, (t + 1) * wide // T
            index = (low + randint(draws, high - low)).to(tl.int32)
    return index


@triton.jit
def cropped(
    count, key, epoch, sample, crop_min, crop_rest, T: tl.constexpr, TRAINING: tl.constexpr, T_BLOCK: tl.constexpr
):
    """A stretch resampled evenly: lower frames int32 [T_BLOCK], and weights of the next ones."""
    last = (count - 1).to(tl.float32)
    start, length = last * 0.0, last
    if TRAINING:
        length = last * (crop_min + crop_rest * uniform(random_bits(key, epoch, sample, _STRETCH, _CLIP)))
        start = (last - length) * uniform(random_bits(key, epoch, sample, _START, _CLIP))
    grid = tl.div_rn(tl.arange(0, T_BLOCK).to(tl.float32), float(max(T - 1, 1)))
    position = tl.minimum(start + length * grid, last)
    lower = tl.floor(position)
    return lower.to(tl.int32), position - lower


@triton.jit
def find(frame_index_ptr, first, length, number, inside):
    """Rows in [first, first + length) of these frame numbers, int64; -1 where there is none."""
    low, high = tl.zeros_like(number), tl.zeros_like(number) + length
    span = length
    while span > 0:
        middle = (low + high) // 2
        open_ = inside & (low < high)
        right = open_ & (tl.load(frame_index_ptr + first + middle, mask=open_, other=0) < number)
        high = tl.where(open_ & (right == 0), middle, high)
        low = tl.where(right, middle + 1, low)
        span = span // 2
    within = inside & (low < length)
    same = tl.load(frame_index_ptr + first + low, mask=within, other=0) == number
    return tl.where(within & same, first + low, -1)


@triton.jit
def seen(x, y, z):
    return (x != 0.0) | (y != 0.0) | (z != 0.0)


@triton.jit
def between(a, b, weight, seen_a, seen_b):
    """a + weight * (b - a); where a joint is missing in one frame, the other's. A weight of 0 names one frame."""
    alone = tl.where(seen_a | (weight == 0.0), a, b)
    return tl.where(seen_a & seen_b, a + weight * (b - a), alone)


@triton.jit
def joint_at(frames_ptr, lower, upper, weight, joint, inside, V: tl.constexpr, CROP: tl.constexpr):
    """Coordinates of a joint, float32 in the shape of ``lower``; zeros where the row is -1."""
    here = frames_ptr + (lower * V + joint) * 3
    good = inside & (lower >= 0)
    x = tl.load(here, mask=good, other=0.0).to(tl.float32)
    y = tl.load(here + 1, mask=good, other=0.0).to(tl.float32)
    z = tl.load(here + 2, mask=good, other=0.0).to(tl.float32)
    if CROP:
        here = frames_ptr + (upper * V + joint) * 3
        good = inside & (upper >= 0)
        x1 = tl.load(here, mask=good, other=0.0).to(tl.float32)
        y1 = tl.load(here + 1, mask=good, other=0.0).to(tl.float32)
        z1 = tl.load(here + 2, mask=good, other=0.0).to(tl.float32)
        a, b = seen(x, y, z), seen(x1, y1, z1)
        x, y, z = between(x, x1, weight, a, b), between(y, y1, weight, a, b), between(z, z1, weight, a, b)
    return x, y, z


@triton.jit
def anchor_at(frames_ptr, lower, upper, weight, JOINTS: tl.constexpr, inside, V: tl.constexpr, CROP: tl.constexpr):
    """Mean of those of some joints that the frame has, as `joint_at`, and whether it has one."""
    x, y, z = joint_at(frames_ptr, lower, upper, weight, JOINTS[0], inside, V, CROP)
    any_seen = seen(x, y, z)
    if len(JOINTS) > 1:
        number = any_seen.to(tl.float32)
        for i in tl.static_range(1, len(JOINTS)):
            next_x, next_y, next_z = joint_at(frames_ptr, lower, upper, weight, JOINTS[i], inside, V, CROP)
            number += seen(next_x, next_y, next_z).to(tl.float32)
            x, y, z = x + next_x, y + next_y, z + next_z  # a missing joint is zeros
        any_seen = number > 0.0
        number = tl.maximum(number, 1.0)
        x, y, z = tl.div_rn(x, number), tl.div_rn(y, number), tl.div_rn(z, number)
    return x, y, z, any_seen


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def nearest(good, t, BLOCK: tl.constexpr):
    """The nearest place of ``good`` [BLOCK] of every place t, the earlier of two; t where there is none."""
    before = tl.associative_scan(tl.where(good, t, -BLOCK), 0, _larger)
    after = tl.associative_scan(tl.where(good, t, 2 * BLOCK), 0, _smaller, reverse=True)
    at = tl.where(t - before <= after - t, before, after)
    return tl.where((at >= 0) & (at < BLOCK), at, t)


@triton.jit
def sincos(angle):
    """Sine and cosine in float64, better than float32 needs, for angles up to thousands of turns.

    The library's functions carry a path for huge angles that needs stack.
    """
    x = angle.to(tl.float64)
    quarter = tl.floor(x * 0.6366197723675814 + 0.5)
    r = (x - quarter * 1.5707963267948966) - quarter * 6.123233995736766e-17
    q = r * r
    s = 1.0 + q * (-1.0 / 6 + q * (1.0 / 120 + q * (-1.0 / 5040 + q * (1.0 / 362880 + q * (-1.0 / 39916800)))))
    s = r * (s + q * q * q * q * q * q * (1.0 / 6227020800))
    c = 1.0 + q * (-0.5 + q * (1.0 / 24 + q * (-1.0 / 720 + q * (1.0 / 40320 + q * (-1.0 / 3628800)))))
    c = c + q * q * q * q * q * q * (1.0 / 479001600 - q * (1.0 / 87178291200))
    turn = quarter.to(tl.int64) & 3
    sine = tl.where(turn % 2 == 0, s, c)
    cosine = tl.where(turn % 2 == 0, c, s)
    return tl.where(turn >= 2, -sine, sine), tl.where((turn == 1) | (turn == 2), -cosine, cosine)


@triton.jit
def column(a, b, c):
    """A vector [4] of three numbers."""
    i = tl.arange(0, 4)
    return tl.where(i == 0, a, tl.where(i == 1, b, c))
