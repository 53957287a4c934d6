"""From ragged recordings of points to clips: a program draws some points of one frame of one clip.

Reads the chosen points once, writes the clip once: bound by bandwidth, where points are chosen in the order in which
they lie. Frames and points are those of `s2vfast.reference.point_sample` bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._launch import cdiv, configuration, launch
from s2vfast.kernels._philox import key_and_epoch, randint, random_bits
from s2vfast.reference import philox
from s2vfast.reference.point_sample import BINS, START, PointSpec

_FRAMES, _POINTS = tl.constexpr(philox.POINT_FRAMES), tl.constexpr(philox.POINTS)
_START, _BINS = tl.constexpr(START), tl.constexpr(BINS)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "epoch", "window", "windows"])
def _sample_kernel(
    points_ptr,
    begin_ptr,
    size_ptr,
    row_ptr,
    count_ptr,
    origin_ptr,
    ids_ptr,
    out_ptr,
    seed_low,
    seed_high,
    epoch,
    window,
    windows,
    T,
    P,
    stride,
    EVEN: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Points [BLOCK] of frame t of clip b."""
    b, t = (tl.program_id(0) // T).to(tl.int64), (tl.program_id(0) % T).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = p < P
    sample = tl.load(ids_ptr + b)
    frames = tl.load(count_ptr + sample).to(tl.int64)
    key = (seed_low, seed_high)
    low = t * frames // T
    frame = low  # of a window that does not fit
    if EVEN:
        width = (t + 1) * frames // T - low
        if TRAINING:
            frame = low + randint(random_bits(key, epoch, sample, t + _BINS, _FRAMES), width)
        else:
            frame = low + width // 2
    else:
        starts = frames - (T - 1) * stride
        if starts > 0:
            if TRAINING:
                start = randint(random_bits(key, epoch, sample, _START, _FRAMES), starts)
            else:
                start = (2 * window + 1) * starts // (2 * windows)
            frame = start + t * stride
    at = tl.load(row_ptr + sample) + frame
    first, count = tl.load(begin_ptr + at), tl.load(size_ptr + at).to(tl.int64)
    point = p.to(tl.int64)
    low = point * count // P
    width = (point + 1) * count // P - low
    if TRAINING:
        index = low + randint(random_bits(key, epoch, sample, t.to(tl.int32) * P + p, _POINTS), width)
    else:
        index = low + width // 2
    present = inside & (count > 0)
    source = points_ptr + (first + index) * 3
    to = out_ptr + ((b * T + t) * P + point) * 3
    for axis in tl.static_range(3):
        number = tl.load(source + axis, mask=present, other=0.0).to(tl.float32)
        number -= tl.load(origin_ptr + sample * 3 + axis)
        tl.store(to + axis, tl.where(present, number, float("nan")), mask=inside)


def forward(
    points: Tensor,
    tables: tuple[Tensor, ...],
    ids: Tensor,
    spec: PointSpec,
    seed: int,
    epoch: int,
    training: bool,
    window: int,
    windows: int,
) -> Tensor:
    """Clips float32 [B, T, P, 3].

    Args:
        points: [K, 3], any float dtype.
        tables: begin int64 [F], size int32 [F], row int64 [Q], count int32 [Q], origin float32 [Q, 3].
        ids: int64 [B].
        spec: what a clip is.
        seed: of the draws.
        epoch: of the draws.
        training: whether anything is drawn.
        window: which of ``windows``.
        windows: how many there are.
    """
    T, P = spec.frames, spec.points
    out = torch.empty(len(ids), T, P, 3, device=points.device)
    options = configuration("point_sample", "sample", points.device)
    grid = (len(ids) * T, cdiv(P, options["BLOCK"]))
    numbers = (*key_and_epoch(seed, epoch), window, windows, T, P, spec.stride)
    choices = {"EVEN": spec.sampling == "even", "TRAINING": training}
    launch(_sample_kernel, grid, points, *tables, ids, out, *numbers, **choices, **options)
    return out
