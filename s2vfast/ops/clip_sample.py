"""From ragged recordings to clips. Contract: `s2vfast.reference.clip_sample`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.errors import ShapeError
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, fake, operator, signed
from s2vfast.ops._dispatch import register, require
from s2vfast.reference import philox
from s2vfast.reference.clip_sample import ANGLE, AT_ORIGIN, CLIP_DRAWS, SIZE, START, STRETCH, ClipSpec, anchor, rotation
from s2vfast.reference.clip_sample import clip_sample as _reference

__all__ = ["ClipSpec", "clip_sample"]


def clip_sample(
    frames: Tensor,
    frame_index: Tensor,
    row: Tensor,
    count: Tensor,
    ids: Tensor,
    spec: ClipSpec,
    *,
    seed: int = 0,
    epoch: int = 0,
    training: bool = True,
    impl: str | None = None,
) -> Tensor:
    """Clips of the sequences ``ids``: frames chosen, centred, scaled, turned (see the reference for the rules).

    Args:
        frames: [R, V, 3], rows of all tracks, metres; any float dtype.
        frame_index: int32 [R], a row's frame number in its sequence, ascending in a track.
        row: int64 [Q, M], first row of the track of a sequence's body.
        count: int32 [Q, M], rows of that track; 0 where the body is absent, at least 1 in slot 0.
        ids: int64 [B], sequences.
        spec: what a clip is.
        seed: seed of the draws.
        epoch: epoch of the draws.
        training: False: no random draw, the same clip every time.
        impl: implementation; None: see `use_impl`.

    Returns:
        float32 [B * M, T, V, C], bodies of a sequence next to each other.
    """
    require(frames.ndim == 3 and frames.shape[2] == 3, "clip_sample", "frames", "[R, V, 3]", frames)
    require(frame_index.shape == frames.shape[:1], "clip_sample", "frame_index", f"[{frames.shape[0]}]", frame_index)
    require(row.ndim == 2, "clip_sample", "row", "[Q, M]", row)
    require(count.shape == row.shape, "clip_sample", "count", str(list(row.shape)), count)
    require(ids.ndim == 1, "clip_sample", "ids", "[B]", ids)
    return _op(
        impl, frames.device, frames, frame_index, row, count, ids, spec, seed=seed, epoch=epoch, training=training
    )


def _torch(
    frames: Tensor,
    frame_index: Tensor,
    row: Tensor,
    count: Tensor,
    ids: Tensor,
    spec: ClipSpec,
    *,
    seed: int,
    epoch: int,
    training: bool,
) -> Tensor:
    """All sequences of the batch at once."""
    row, count = row[ids], count[ids].long()  # [B, M]
    (B, M), T, V = row.shape, spec.frames, frames.shape[1]
    if B == 0:
        return torch.zeros(0, T, V, spec.channels, device=frames.device)
    draws = philox.random_bits(seed, epoch, ids, philox.CLIP, CLIP_DRAWS)
    u = philox.uniform(draws)  # [B, 6]
    if spec.sampling == "crop":
        lower, weight = _crop(count[:, 0], u, spec, training)
    else:
        lower, weight = _bins(count[:, 0], ids, draws, spec, seed, epoch, training), None

    x = body_rows(frames, frame_index, row, count, lower)  # [B, M, T, V, 3]
    if weight is not None:
        upper = torch.minimum(lower + 1, count[:, :1] - 1)
        x1 = body_rows(frames, frame_index, row, count, upper)
        w = weight[:, None, :, None, None]
        seen0, seen1 = (x != 0).any(-1, keepdim=True), (x1 != 0).any(-1, keepdim=True)
        between = x + w * (x1 - x)
        x = torch.where(seen0 & seen1, between, torch.where(seen0 | (w == 0), x, x1))
    seen = (x != 0).any(-1, keepdim=True)

    main_seen = seen[:, 0, ..., 0]  # [B, T, V]
    root, has_root = anchor(x[:, 0], main_seen, spec.root)  # [B, T, 3], [B, T]
    if spec.center == "first":
        pose = frames[row[:, 0]].float()  # [B, V, 3]
        first, has_first = anchor(pose, (pose != 0).any(-1), spec.root)
        x = x - torch.where(has_first[:, None], first, _earliest(root, has_root, lower))[:, None, None, None]
    elif spec.center == "frame":
        x = x - _nearest(root, has_root)[:, None, :, None]
    x = _transform(x, main_seen, spec, u if training else None)
    x = torch.where(seen, x, 0.0)
    at_origin = seen & (x == 0).all(-1, keepdim=True)  # [B, M, T, V, 1]
    x[..., :1].masked_fill_(at_origin, AT_ORIGIN)
    if spec.velocity:
        step = torch.zeros_like(x)
        step[:, :, :-1] = torch.where(seen[:, :, 1:] & seen[:, :, :-1], x[:, :, 1:] - x[:, :, :-1], 0.0)
        x = torch.cat([x, spec.velocity * step], dim=-1)
    return x.reshape(B * M, T, V, spec.channels)


def _bins(count: Tensor, ids: Tensor, draws: Tensor, spec: ClipSpec, seed: int, epoch: int, training: bool) -> Tensor:
    """The published frame numbers for every length: int64 [B, T]."""
    T = spec.frames
    steps = torch.arange(T, device=count.device)[None]
    F = count[:, None]  # [B, 1]
    if not training:
        return torch.where(F < T, steps % F, (2 * steps + 1) * F // (2 * T))
    wrapped = (philox.randint(draws[:, START : START + 1], F) + steps) % F
    frame_draws = philox.random_bits(seed, epoch, ids, philox.FRAMES, T + 1)  # [B, T + 1]
    rank = torch.argsort(torch.argsort(frame_draws, dim=1, stable=True), dim=1)
    skips = torch.cumsum(rank < F - T, dim=1)[:, :T]
    low, high = steps * F // T, (steps + 1) * F // T
    binned = low + philox.randint(frame_draws[:, :T], high - low)
    return torch.where(F < T, wrapped, torch.where(F < 2 * T, steps + skips, binned))


def _crop(count: Tensor, u: Tensor, spec: ClipSpec, training: bool) -> tuple[Tensor, Tensor]:
    """A stretch resampled evenly: lower frames int64 [B, T] and weights of the next float32 [B, T]."""
    last = (count - 1).float()[:, None]  # [B, 1]
    start, length = torch.zeros_like(last), last
    if training:
        length = last * (spec.crop_min + (1.0 - spec.crop_min) * u[:, STRETCH, None])
        start = (last - length) * u[:, START, None]
    grid = torch.arange(spec.frames, dtype=torch.float32, device=count.device) / max(spec.frames - 1, 1)
    position = torch.minimum(start + length * grid, last)
    index = position.floor()
    return index.long(), position - index


def body_rows(frames: Tensor, frame_index: Tensor, row: Tensor, count: Tensor, lower: Tensor) -> Tensor:
    """Joints of every body in the main body's frames ``lower`` [B, T]: float32 [B, M, T, V, 3], zeros where unseen."""
    main = row[:, :1] + lower  # [B, T]
    bodies = [frames[main].float()]
    numbers = frame_index[main]  # [B, T]
    # To ask a GPU for the longest track would make the host wait for it.
    longest = frame_index.shape[0] if count.is_cuda else int(count.max())
    for m in range(1, row.shape[1]):
        first, length = row[:, m : m + 1], count[:, m : m + 1]
        low, high = torch.zeros_like(main), length.expand_as(main).clone()
        # Binary search of each frame number in the body's own ascending numbers.
        for _ in range(longest.bit_length()):
            middle = (low + high) // 2
            at = frame_index[(first + middle).clamp_(max=frame_index.shape[0] - 1)]
            right = (middle < high) & (at < numbers)
            low = torch.where(right, middle + 1, low)
            high = torch.where(right | (middle >= high), high, middle)
        here = (first + low).clamp_(max=frame_index.shape[0] - 1)
        present = (low < length) & (frame_index[here] == numbers)
        bodies.append(torch.where(present[..., None, None], frames[here].float(), 0.0))
    return torch.stack(bodies, dim=1)


def _earliest(root: Tensor, seen: Tensor, lower: Tensor) -> Tensor:
    """The root [B, T, 3] in the earliest frame that has it: [B, 3]; zeros where none has."""
    T = root.shape[1]
    order = lower * T + torch.arange(T, device=root.device)
    at = torch.where(seen, order, torch.iinfo(torch.int64).max).argmin(dim=1)
    return root.gather(1, at[:, None, None].expand(-1, 1, 3))[:, 0]


def _nearest(root: Tensor, seen: Tensor) -> Tensor:
    """The root [B, T, 3] with the nearest frame's that has it where it is missing; zeros where none has."""
    T = root.shape[1]
    t = torch.arange(T, device=root.device)
    before = torch.where(seen, t, -T).cummax(dim=1).values
    after = torch.where(seen, t, 2 * T).flip(1).cummin(dim=1).values.flip(1)
    at = torch.where(t - before <= after - t, before, after)
    return root.gather(1, (at % T)[..., None].expand(-1, -1, 3))


def _mean(values: Tensor, seen: Tensor) -> Tensor:
    """Mean over the frames of [B, T, n] that were seen: [B, n]; zeros where none was."""
    return torch.where(seen[..., None], values, 0.0).sum(dim=1) / seen.sum(dim=1, keepdim=True).clamp(min=1)


def _transform(x: Tensor, seen: Tensor, spec: ClipSpec, u: Tensor | None) -> Tensor:
    """Scale and turn [B, M, T, V, 3] by the measures of the main body, seen [B, T, V], and, in training, u [B, 6]."""
    main = x[:, 0]  # [B, T, V, 3]
    turn = torch.eye(3, device=x.device).expand(x.shape[0], 3, 3)
    if spec.align == "yaw":
        both = seen[:, :, spec.sides[0]] & seen[:, :, spec.sides[1]]
        side = _mean(main[:, :, spec.sides[0]] - main[:, :, spec.sides[1]], both)  # [B, 3]
        a, b = (axis for axis in range(3) if axis != spec.up)
        size = torch.sqrt(side[:, a] ** 2 + side[:, b] ** 2)
        turns = size >= 1e-6
        size = size.clamp(min=1e-6)
        c = torch.where(turns, side[:, a] / size, 1.0)
        s = torch.where(turns, side[:, b] / size, 0.0)
        turn = turn.clone()
        turn[:, a, a], turn[:, a, b], turn[:, b, a], turn[:, b, b] = c, s, -s, c
    if u is not None and any(spec.rotate):
        angles = (2.0 * u[:, ANGLE : ANGLE + 3] - 1.0) * _limits(spec.rotate, x.device)
        turn = rotation(angles) @ turn
    factor = torch.ones(x.shape[0], device=x.device)
    if spec.scale == "torso":
        (low, has_low), (high, has_high) = (anchor(main, seen, end) for end in spec.torso)
        length = _mean((high - low).square().sum(-1, keepdim=True).sqrt(), has_low & has_high)[:, 0]
        factor = torch.where(length > 1e-6, 1.0 / length.clamp(min=1e-6), 1.0)
    if u is not None:
        factor = factor * (1.0 + spec.scale_jitter * (2.0 * u[:, SIZE] - 1.0))
    # One matrix for all of it: x' = x (factor * turn)^T.
    matrix = (turn * factor[:, None, None]).transpose(1, 2)
    return (x.reshape(x.shape[0], -1, 3) @ matrix).reshape(x.shape)


@functools.lru_cache(maxsize=16)
def _limits(rotate: tuple[float, ...], device: torch.device) -> Tensor:
    """[3], made once: to send numbers to a GPU, the host waits for it."""
    return torch.tensor(rotate, device=device)


# A schema knows no dataclass: a ClipSpec travels as its fields in their order.
_ARGUMENTS = (
    "(Tensor frames, Tensor frame_index, Tensor row, Tensor count, Tensor ids, int length, str sampling, "
    "float crop_min, str center, str scale, str align, float[] rotate, float scale_jitter, float velocity, int[] root, "
    "int[][] torso, int[] sides, int up, int seed, int epoch, bool training) -> Tensor"
)


def _spec(values: tuple[Any, ...]) -> ClipSpec:
    plain: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
    return ClipSpec(*plain)


@operator(f"clip_sample_triton{_ARGUMENTS}")
def _triton_op(frames, frame_index, row, count, ids, *spec_and_draws):
    *spec, seed, epoch, training = spec_and_draws
    tensors = contiguous((frames, frame_index, row, count, ids))
    return _triton.kernels("clip_sample").forward(*tensors, _spec(spec), seed, epoch, training)


@operator(f"clip_sample_native{_ARGUMENTS}")
def _native_op(frames, frame_index, row, count, ids, *spec_and_draws):
    *spec, seed, epoch, training = spec_and_draws
    spec, (Q, bodies), joints = _spec(spec), row.shape, frames.shape[1]
    out = frames.new_empty((len(ids) * bodies, spec.frames, joints, spec.channels), dtype=torch.float32)
    names = ("frames", "frame_index", "row", "count", "ids")
    tensors = contiguous((frames, frame_index.int(), row.long(), count.int(), ids.long()))
    try:
        _extension.load().clip_sample(
            **_native.addresses(**dict(zip(names, tensors, strict=True)), out=out),
            **_native.place(frames),
            kind=_KINDS.index(frames.dtype),
            samples=len(ids),
            sequences=Q,
            rows=len(frames),
            bodies=bodies,
            joints=joints,
            length=spec.frames,
            crop=spec.sampling == "crop",
            crop_min=spec.crop_min,
            center=spec.center,
            torso=spec.scale == "torso",
            yaw=spec.align == "yaw",
            rotate=list(spec.rotate),
            scale_jitter=spec.scale_jitter,
            velocity=spec.velocity,
            root=list(spec.root),
            # Joints that are not looked at may be those of another skeleton.
            ends=[list(end) for end in spec.torso] if spec.scale == "torso" else [[0], [0]],
            sides=list(spec.sides) if spec.align == "yaw" else [0, 0],
            up=spec.up,
            seed=seed % 2**64,
            epoch=epoch,
            training=training,
        )
    except ValueError as error:  # ids or tables that would lead out of the frames
        raise ShapeError(str(error)) from None
    return out


@fake(_native_op)
@fake(_triton_op)
def _(frames, frame_index, row, count, ids, *spec_and_draws):
    spec = _spec(spec_and_draws[:-3])
    tracks = ids.shape[0] * row.shape[1]
    return frames.new_empty((tracks, spec.frames, frames.shape[1], spec.channels), dtype=torch.float32)


def _with_flat_spec(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any, seed: int, epoch: int, training: bool) -> Tensor:
        *tensors, spec = args
        return op(*tensors, *(getattr(spec, field.name) for field in fields(spec)), signed(seed), epoch, training)

    return run


_KINDS = (torch.float32, torch.float16, torch.bfloat16)  # in the order of FrameKind in csrc/clip_sample.h
_op = register(
    "clip_sample",
    reference=_reference,
    torch=_torch,
    triton=_with_flat_spec(_triton_op),
    native=_with_flat_spec(_native_op),
    reasons={"triton": _triton.reasons(floats=_KINDS), "native": _native.reasons(floats=_KINDS)},
)
