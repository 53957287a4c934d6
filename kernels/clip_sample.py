"""From ragged recordings to clips, in two launches: which rows and how they are turned, then the joints themselves.

`_picks_kernel`, a program a body of a sequence, draws the frames of the clip, finds their rows by binary search of the
body's frame numbers, and reduces what turns and scales the whole clip to one matrix. It reads a few joints a frame and
writes 8 bytes a frame; its time is the latency of dependent loads. `_values_kernel` reads each row once and writes the
clip once: bound by bandwidth. A lane holds one number of the output, so that stores are contiguous; the three
coordinates that it needs are shared with its neighbours through the cache.

Frames and weights are those of `s2vfast.reference.clip_sample` bit for bit: the launches forbid fused multiply-adds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s2vfast.kernels._clip import anchor_at, binned, column, cropped, find, joint_at, nearest, seen, sincos
from s2vfast.kernels._launch import cdiv, configuration, launch, next_power_of_2
from s2vfast.kernels._philox import key_and_epoch, random_bits, uniform
from s2vfast.reference import philox
from s2vfast.reference.clip_sample import ANGLE, AT_ORIGIN, SIZE, ClipSpec

_CLIP, _ANGLE, _SIZE = tl.constexpr(philox.CLIP), tl.constexpr(ANGLE), tl.constexpr(SIZE)
_AT_ORIGIN = tl.constexpr(AT_ORIGIN)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "epoch"])
def _picks_kernel(
    frames_ptr,
    frame_index_ptr,
    row_ptr,
    count_ptr,
    ids_ptr,
    rows_ptr,
    weights_ptr,
    offsets_ptr,
    matrices_ptr,
    seed_low,
    seed_high,
    epoch,
    crop_min,
    crop_rest,
    rotate_x,
    rotate_y,
    rotate_z,
    scale_jitter,
    T: tl.constexpr,
    V: tl.constexpr,
    M: tl.constexpr,
    CROP: tl.constexpr,
    CENTER: tl.constexpr,
    TORSO: tl.constexpr,
    YAW: tl.constexpr,
    TRAINING: tl.constexpr,
    ROOT: tl.constexpr,
    LOWER: tl.constexpr,
    UPPER: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    UP: tl.constexpr,
    T_BLOCK: tl.constexpr,
):
    """Rows of the clip of one body and, by the main body's program, weights, offsets and matrix of its sequence."""
    sequence, body = (tl.program_id(0) // M).to(tl.int64), tl.program_id(0) % M
    sample = tl.load(ids_ptr + sequence).to(tl.int64)
    first, length = tl.load(row_ptr + sample * M), tl.load(count_ptr + sample * M).to(tl.int32)
    key = (seed_low, seed_high)
    t = tl.arange(0, T_BLOCK)
    inside = t < T
    weight = tl.zeros([T_BLOCK], dtype=tl.float32)
    if CROP:
        lower, weight = cropped(length, key, epoch, sample, crop_min, crop_rest, T, TRAINING, T_BLOCK)
    else:
        lower = binned(length, key, epoch, sample, T, TRAINING, T_BLOCK)
    # Without a crop, there is one row a frame, and what is said of the second is never used.
    row0 = first + lower
    row1 = first + tl.minimum(lower + 1, length - 1)
    out0_ptr = rows_ptr + (sequence * M + body) * (T * (1 + CROP)) + t
    out1_ptr = out0_ptr + T

    if body != 0:
        own, rows_of_it = tl.load(row_ptr + sample * M + body), tl.load(count_ptr + sample * M + body).to(tl.int32)
        number = tl.load(frame_index_ptr + row0, mask=inside, other=0)
        tl.store(out0_ptr, find(frame_index_ptr, own, rows_of_it, number, inside), mask=inside)
        if CROP:
            number = tl.load(frame_index_ptr + row1, mask=inside, other=0)
            tl.store(out1_ptr, find(frame_index_ptr, own, rows_of_it, number, inside), mask=inside)
    else:
        tl.store(out0_ptr, row0, mask=inside)
        if CROP:
            tl.store(out1_ptr, row1, mask=inside)
            tl.store(weights_ptr + sequence * T + t, weight, mask=inside)

        x, y, z = 0.0, 0.0, 0.0
        if CENTER == "first":
            x, y, z, has_root = anchor_at(frames_ptr, first, first, 0.0, ROOT, True, V, False)
            # Where the first frame lacks the root, the earliest frame of the clip that has it.
            missing = inside & (has_root == 0)
            rx, ry, rz, has_root = anchor_at(frames_ptr, row0, row1, weight, ROOT, missing, V, CROP)
            has_root = missing & has_root
            order = tl.where(has_root, lower.to(tl.int64) * T_BLOCK + t, 0x7FFFFFFFFFFFFFFF)
            earliest = (order == tl.min(order, axis=0)) & has_root
            # One summand is not zero at most, and it is added to zeros.
            x += tl.sum(tl.where(earliest, rx, 0.0), axis=0)
            y += tl.sum(tl.where(earliest, ry, 0.0), axis=0)
            z += tl.sum(tl.where(earliest, rz, 0.0), axis=0)
            i = tl.arange(0, 4)
            tl.store(offsets_ptr + sequence * 3 + i, column(x, y, z), mask=i < 3)
        elif CENTER == "frame":
            x, y, z, has_root = anchor_at(frames_ptr, row0, row1, weight, ROOT, inside, V, CROP)
            at = nearest(inside & has_root, t, T_BLOCK)
            x, y, z = tl.gather(x, at, 0), tl.gather(y, at, 0), tl.gather(z, at, 0)
            out_ptr = offsets_ptr + (sequence * T + t) * 3
            tl.store(out_ptr, x, mask=inside)
            tl.store(out_ptr + 1, y, mask=inside)
            tl.store(out_ptr + 2, z, mask=inside)

        if TORSO or YAW or TRAINING:
            factor = tl.full([4], 1.0, dtype=tl.float64)
            if TORSO:
                ax, ay, az, has_lower = anchor_at(frames_ptr, row0, row1, weight, LOWER, inside, V, CROP)
                bx, by, bz, has_upper = anchor_at(frames_ptr, row0, row1, weight, UPPER, inside, V, CROP)
                dx, dy, dz = (bx - x) - (ax - x), (by - y) - (ay - y), (bz - z) - (az - z)
                torso = tl.sqrt_rn(dx * dx + dy * dy + dz * dz)
                both = inside & has_lower & has_upper
                frames_with = tl.maximum(tl.sum(both.to(tl.int32), axis=0), 1).to(tl.float32)
                mean = tl.div_rn(tl.sum(tl.where(both, torso, 0.0), axis=0), frames_with)
                factor = tl.where(mean > 1e-6, 1.0 / mean.to(tl.float64), factor)
            # The columns of the matrix that turns a joint: first the yaw, then the random rotation.
            c0, c1, c2 = column(1.0, 0.0, 0.0), column(0.0, 1.0, 0.0), column(0.0, 0.0, 1.0)
            if TRAINING:
                u = 2.0 * uniform(random_bits(key, epoch, sample, _SIZE, _CLIP)) - 1.0
                factor *= (1.0 + scale_jitter * u).to(tl.float64)
                sx, cx = sincos((2.0 * uniform(random_bits(key, epoch, sample, _ANGLE, _CLIP)) - 1.0) * rotate_x)
                sy, cy = sincos((2.0 * uniform(random_bits(key, epoch, sample, _ANGLE + 1, _CLIP)) - 1.0) * rotate_y)
                sz, cz = sincos((2.0 * uniform(random_bits(key, epoch, sample, _ANGLE + 2, _CLIP)) - 1.0) * rotate_z)
                c0 = column(cy * cz, cy * sz, -sy)
                c1 = column(sx * sy * cz - cx * sz, sx * sy * sz + cx * cz, sx * cy)
                c2 = column(cx * sy * cz + sx * sz, cx * sy * sz - sx * cz, cx * cy)
            if YAW:
                lx, ly, lz = joint_at(frames_ptr, row0, row1, weight, LEFT, inside, V, CROP)
                rx, ry, rz = joint_at(frames_ptr, row0, row1, weight, RIGHT, inside, V, CROP)
                both = inside & seen(lx, ly, lz) & seen(rx, ry, rz)
                frames_with = tl.maximum(tl.sum(both.to(tl.int32), axis=0), 1).to(tl.float32)
                side_x = tl.div_rn(tl.sum(tl.where(both, (lx - x) - (rx - x), 0.0), axis=0), frames_with)
                side_y = tl.div_rn(tl.sum(tl.where(both, (ly - y) - (ry - y), 0.0), axis=0), frames_with)
                side_z = tl.div_rn(tl.sum(tl.where(both, (lz - z) - (rz - z), 0.0), axis=0), frames_with)
                a = side_y if UP == 0 else side_x
                b = side_y if UP == 2 else side_z
                size = tl.sqrt_rn(a * a + b * b)
                c = tl.where(size < 1e-6, 1.0, a / size.to(tl.float64))
                s = tl.where(size < 1e-6, 0.0, b / size.to(tl.float64))
                if UP == 0:
                    c1, c2 = c1 * c - c2 * s, c1 * s + c2 * c
                elif UP == 1:
                    c0, c2 = c0 * c - c2 * s, c0 * s + c2 * c
                else:
                    c0, c1 = c0 * c - c1 * s, c0 * s + c1 * c
            i = tl.arange(0, 4)
            out_ptr = matrices_ptr + sequence * 9 + i * 3
            tl.store(out_ptr, (c0 * factor).to(tl.float32), mask=i < 3)
            tl.store(out_ptr + 1, (c1 * factor).to(tl.float32), mask=i < 3)
            tl.store(out_ptr + 2, (c2 * factor).to(tl.float32), mask=i < 3)


@triton.jit
def _moved(
    frames_ptr,
    rows_ptr,
    weights_ptr,
    offsets_ptr,
    m0,
    m1,
    m2,
    t,
    joint,
    axis,
    inside,
    T: tl.constexpr,
    V: tl.constexpr,
    CROP: tl.constexpr,
    CENTER: tl.constexpr,
    TURNED: tl.constexpr,
):
    """Coordinate ``axis`` of a joint of frame t as the clip has it, and whether the joint was seen."""
    row0 = tl.load(rows_ptr + t, mask=inside, other=-1)
    row1 = row0
    weight = tl.zeros_like(m0)
    if CROP:
        row1 = tl.load(rows_ptr + T + t, mask=inside, other=-1)
        weight = tl.load(weights_ptr + t, mask=inside, other=0.0)
    x, y, z = joint_at(frames_ptr, row0, row1, weight, joint, inside, V, CROP)
    recorded = seen(x, y, z)
    if CENTER == "first":
        x -= tl.load(offsets_ptr)
        y -= tl.load(offsets_ptr + 1)
        z -= tl.load(offsets_ptr + 2)
    elif CENTER == "frame":
        x -= tl.load(offsets_ptr + t * 3, mask=inside, other=0.0)
        y -= tl.load(offsets_ptr + t * 3 + 1, mask=inside, other=0.0)
        z -= tl.load(offsets_ptr + t * 3 + 2, mask=inside, other=0.0)
    value = tl.where(axis == 0, x, tl.where(axis == 1, y, z))
    if TURNED:
        value = m0 * x + m1 * y + m2 * z
    value = tl.where(seen(x, y, z) | (axis != 0), value, _AT_ORIGIN)
    return tl.where(recorded, value, 0.0), recorded


@triton.jit
def _values_kernel(
    frames_ptr,
    rows_ptr,
    weights_ptr,
    offsets_ptr,
    matrices_ptr,
    clips_ptr,
    velocity,
    T: tl.constexpr,
    V: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    CROP: tl.constexpr,
    CENTER: tl.constexpr,
    TURNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK numbers of the clip of one body."""
    track = tl.program_id(0).to(tl.int64)
    sequence = track // M
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < T * V * C
    channel, joint, t = at % C, at // C % V, at // (C * V)
    axis = channel % 3

    m0, m1, m2 = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if TURNED:
        m = matrices_ptr + sequence * 9
        m0 = tl.where(axis == 0, tl.load(m), tl.where(axis == 1, tl.load(m + 3), tl.load(m + 6)))
        m1 = tl.where(axis == 0, tl.load(m + 1), tl.where(axis == 1, tl.load(m + 4), tl.load(m + 7)))
        m2 = tl.where(axis == 0, tl.load(m + 2), tl.where(axis == 1, tl.load(m + 5), tl.load(m + 8)))
    rows_ptr += track * (T * (1 + CROP))
    if CROP:
        weights_ptr += sequence * T
    if CENTER != "none":
        offsets_ptr += sequence * (T * 3 if CENTER == "frame" else 3)
    value, recorded = _moved(
        frames_ptr, rows_ptr, weights_ptr, offsets_ptr, m0, m1, m2, t, joint, axis, inside, T, V, CROP, CENTER, TURNED
    )
    if C == 6:
        moving = inside & (channel >= 3) & (t + 1 < T)
        after, still = _moved(
            frames_ptr,
            rows_ptr,
            weights_ptr,
            offsets_ptr,
            m0,
            m1,
            m2,
            t + 1,
            joint,
            axis,
            moving,
            T,
            V,
            CROP,
            CENTER,
            TURNED,
        )
        step = tl.where(recorded & still, after - value, 0.0)
        value = tl.where(channel < 3, value, velocity * step)
    tl.store(clips_ptr + track * (T * V * C) + at, value, mask=inside)


def forward(
    frames: Tensor,
    frame_index: Tensor,
    row: Tensor,
    count: Tensor,
    ids: Tensor,
    spec: ClipSpec,
    seed: int,
    epoch: int,
    training: bool,
) -> Tensor:
    """Clips float32 [B * M, T, V, C].

    Args:
        frames: [R, V, 3], float16, bfloat16 or float32, contiguous like all of these.
        frame_index: int32 [R].
        row: int64 [Q, M].
        count: int32 [Q, M], at least 1 in slot 0.
        ids: int64 [B].
        spec: what a clip is.
        seed: seed of the draws; a negative number stands for its 64 bits.
        epoch: epoch of the draws.
        training: whether anything is drawn.
    """
    (B, M), T, V, C = (len(ids), row.shape[1]), spec.frames, frames.shape[1], spec.channels
    crop, turned = spec.sampling == "crop", training or spec.scale == "torso" or spec.align == "yaw"
    clips = frames.new_empty((B * M, T, V, C), dtype=torch.float32)
    rows = row.new_empty((B * M, 2 if crop else 1, T))
    weights = clips.new_empty((B, T)) if crop else None
    offsets = {"first": (B, 1, 3), "frame": (B, T, 3)}.get(spec.center)
    offsets = clips.new_empty(offsets) if offsets else None
    matrices = clips.new_empty((B, 3, 3)) if turned else None
    shape = {"T": T, "V": V, "M": M, "CROP": crop, "CENTER": spec.center, "enable_fp_fusion": False}
    launch(
        _picks_kernel,
        (B * M,),
        frames,
        frame_index,
        row,
        count,
        ids,
        rows,
        weights,
        offsets,
        matrices,
        *key_and_epoch(seed, epoch),
        float(spec.crop_min),
        1.0 - spec.crop_min,
        *(float(angle) for angle in spec.rotate),
        float(spec.scale_jitter),
        TORSO=spec.scale == "torso",
        YAW=spec.align == "yaw",
        TRAINING=training,
        ROOT=spec.root,
        LOWER=spec.torso[0],
        UPPER=spec.torso[1],
        LEFT=spec.sides[0],
        RIGHT=spec.sides[1],
        UP=spec.up,
        T_BLOCK=next_power_of_2(T + 1),
        **shape,
        **configuration("clip_sample", "picks", frames.device, T=T),
    )
    options = configuration("clip_sample", "values", frames.device, C=C)
    grid = (B * M, cdiv(T * V * C, options["BLOCK"]))
    tensors = (frames, rows, weights, offsets, matrices, clips)
    launch(_values_kernel, grid, *tensors, float(spec.velocity), C=C, TURNED=turned, **shape, **options)
    return clips
