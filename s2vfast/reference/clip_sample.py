"""From ragged recordings to clips: which frames, how they are centred, scaled and turned.

The published pipeline (arXiv 2401.00921, section 4.2) is sampling="bins", center="first", three random angles; the
other choices are for small sets of short recordings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from s2vfast.reference import philox

# Draws of the stream CLIP, shared by the bodies of a sequence.
START, ANGLE, SIZE, STRETCH = 0, 1, 4, 5
CLIP_DRAWS = 6
AT_ORIGIN = 1e-30
"""x of a joint that was seen and is at the origin, as a centred root is: zeros are a joint that was not seen. Beside
any other number it is nothing, and no float32 arithmetic takes it for 0."""


@dataclass(frozen=True)
class ClipSpec:
    """How a clip is made. The fields are those of `s2vfast.config.DataConfig`, the joints those of the layout."""

    frames: int
    sampling: str = "bins"
    crop_min: float = 0.5
    center: str = "first"
    scale: str = "none"
    align: str = "none"
    rotate: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale_jitter: float = 0.0
    velocity: float = 0.0
    root: int | tuple[int, ...] = 0
    torso: tuple[int | tuple[int, ...], int | tuple[int, ...]] = (0, 1)
    sides: tuple[int, int] = (0, 1)
    up: int = 1

    def __post_init__(self) -> None:
        # The root and an end of the torso are joints whose mean counts; one joint may be written as its number.
        object.__setattr__(self, "root", _joints(self.root))
        object.__setattr__(self, "torso", tuple(map(_joints, self.torso)))

    @property
    def channels(self) -> int:
        """C: 3, or 6 with velocities."""
        return 6 if self.velocity else 3


def _joints(anchor: int | tuple[int, ...]) -> tuple[int, ...]:
    return (anchor,) if isinstance(anchor, int) else tuple(anchor)


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
) -> Tensor:
    """Clips of the sequences ``ids``, one after the other.

    A frame counts where the main body (slot 0) has a row. Another body is looked up by its frame number and is zero
    where it was not seen; a joint of zeros is a missing joint and stays zero. No other joint is all zeros in a clip:
    one at the origin has x = `AT_ORIGIN`.

    A missing joint measures nothing. Where the root or an end of the torso is several joints, it is the mean of those
    that the frame has, and missing where it has none of them. Centred by frame, the root's place is that of the nearest
    frame of the clip that has it, the earlier of two; centred first, where the recording's first frame lacks it, that
    of the earliest frame of the clip that has it. The torso's length and the line of the sides are means over the
    frames that have both ends. A clip without the root is not moved, without a torso not scaled, without a side not
    turned.

    Args:
        frames: [R, V, 3], rows of all tracks, metres; any float dtype.
        frame_index: int32 [R], a row's frame number in its sequence, ascending in a track.
        row: int64 [Q, M], first row of the track of a sequence's body.
        count: int32 [Q, M], rows of that track; 0 where the body is absent.
        ids: int64 [B], sequences.
        spec: what a clip is.
        seed: seed of the draws.
        epoch: epoch of the draws.
        training: False: no random draw, the same clip every time.

    Returns:
        float32 [B * M, T, V, C], bodies of a sequence next to each other.
    """
    clips = [_clip(frames, frame_index, row[i], count[i], int(i), spec, seed, epoch, training) for i in ids]
    return torch.cat(clips) if clips else torch.zeros(0, spec.frames, frames.shape[1], spec.channels)


def picks(count: int, sample: int, spec: ClipSpec, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
    """Which of ``count`` frames make the clip: lower frame int64 [T] and the weight float32 [T] of the next one."""
    T = spec.frames
    steps = torch.arange(T)
    if spec.sampling == "crop":
        return _crop(count, sample, spec, seed, epoch, training)
    if count < T:  # consecutive frames from a random start, wrapping round
        start = int(philox.randint(_clip_draws(sample, seed, epoch)[START], count)) if training else 0
        index = (start + steps) % count
    elif not training:
        index = (2 * steps + 1) * count // (2 * T)  # the middles of T equal bins
    elif count < 2 * T:  # T consecutive picks with count - T random skips
        draws = philox.random_bits(seed, epoch, torch.tensor([sample]), philox.FRAMES, T + 1)[0]
        skipped = torch.zeros(T + 1, dtype=torch.int64)
        skipped[torch.argsort(draws, stable=True)[: count - T]] = 1
        index = steps + torch.cumsum(skipped, 0)[:T]
    else:  # one frame of each of T equal bins
        draws = philox.random_bits(seed, epoch, torch.tensor([sample]), philox.FRAMES, T)[0]
        low, high = steps * count // T, (steps + 1) * count // T
        index = low + philox.randint(draws, high - low)
    return index, torch.zeros(T)


def _crop(count: int, sample: int, spec: ClipSpec, seed: int, epoch: int, training: bool) -> tuple[Tensor, Tensor]:
    """A stretch of at least crop_min of the frames, resampled evenly, both ends included."""
    last = torch.tensor(float(count - 1))
    start, length = torch.tensor(0.0), last
    if training:
        u = philox.uniform(_clip_draws(sample, seed, epoch))
        length = last * (spec.crop_min + (1.0 - spec.crop_min) * u[STRETCH])
        start = (last - length) * u[START]
    position = start + length * (torch.arange(spec.frames, dtype=torch.float32) / max(spec.frames - 1, 1))
    position = position.clamp(max=last)
    index = position.floor()
    return index.long(), position - index


def _clip_draws(sample: int, seed: int, epoch: int) -> Tensor:
    return philox.random_bits(seed, epoch, torch.tensor([sample]), philox.CLIP, CLIP_DRAWS)[0]


def _clip(
    frames: Tensor,
    frame_index: Tensor,
    row: Tensor,
    count: Tensor,
    sample: int,
    spec: ClipSpec,
    seed: int,
    epoch: int,
    training: bool,
) -> Tensor:
    """One sequence: float32 [M, T, V, C]."""
    lower, weight = picks(int(count[0]), sample, spec, seed, epoch, training)
    upper = torch.minimum(lower + 1, count[0] - 1)
    numbers = frame_index[int(row[0]) : int(row[0]) + int(count[0])]  # frame numbers of the main body
    bodies = []
    for first, length in zip(row.tolist(), count.tolist(), strict=True):
        own = frame_index[first : first + length].tolist()
        at = {number: first + k for k, number in enumerate(own)}
        x0 = _rows(frames, [at.get(int(n)) for n in numbers[lower]])
        x1 = _rows(frames, [at.get(int(n)) for n in numbers[upper]])
        bodies.append(_blend(x0, x1, weight[:, None, None]))
    x = torch.stack(bodies)  # [M, T, V, 3]
    seen = (x != 0).any(dim=-1, keepdim=True)  # [M, T, V, 1]

    main_seen = seen[0, ..., 0]  # [T, V]
    root, has_root = anchor(x[0], main_seen, spec.root)  # [T, 3], [T]
    if spec.center == "first":
        pose = frames[int(row[0])].float()
        first, has_first = anchor(pose, (pose != 0).any(dim=-1), spec.root)
        x = x - (first if has_first else _earliest(root, has_root, lower))
    elif spec.center == "frame":
        x = x - _nearest(root, has_root)[:, None]
    main = x[0]
    if spec.scale == "torso":
        (low, has_low), (high, has_high) = (anchor(main, main_seen, end) for end in spec.torso)
        length = _mean((high - low).square().sum(-1).sqrt(), has_low & has_high)
        x = x / length if length > 1e-6 else x
    if spec.align == "yaw":
        both = main_seen[:, spec.sides[0]] & main_seen[:, spec.sides[1]]
        x = _face_forward(x, _mean(main[:, spec.sides[0]] - main[:, spec.sides[1]], both), spec.up)
    if training:
        u = philox.uniform(_clip_draws(sample, seed, epoch))
        angles = (2.0 * u[ANGLE : ANGLE + 3] - 1.0) * torch.tensor(spec.rotate)
        x = x @ rotation(angles).T
        x = x * (1.0 + spec.scale_jitter * (2.0 * u[SIZE] - 1.0))
    x = mark_origin(torch.where(seen, x, 0.0), seen)
    if spec.velocity:
        step = torch.zeros_like(x)
        step[:, :-1] = torch.where(seen[:, 1:] & seen[:, :-1], x[:, 1:] - x[:, :-1], 0.0)
        x = torch.cat([x, spec.velocity * step], dim=-1)
    return x


def _rows(frames: Tensor, rows: list[int | None]) -> Tensor:
    """[T, V, 3] float32, zeros where there is no row."""
    missing = torch.zeros(frames.shape[1:])
    return torch.stack([missing if r is None else frames[r].float() for r in rows])


def _blend(x0: Tensor, x1: Tensor, weight: Tensor) -> Tensor:
    """Between two frames; where a joint is missing in one, the other's."""
    seen0, seen1 = (x0 != 0).any(-1, keepdim=True), (x1 != 0).any(-1, keepdim=True)
    between = x0 + weight * (x1 - x0)
    # A weight of 0 names one frame: a joint missing there is missing.
    alone = torch.where(seen0 | (weight == 0), x0, x1)
    return torch.where(seen0 & seen1, between, alone)


def anchor(x: Tensor, seen: Tensor, joints: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean of those of some joints that were seen.

    Args:
        x: [..., V, 3].
        seen: bool [..., V].
        joints: one or several.

    Returns:
        ([..., 3], zeros where none was seen; bool [...], whether one was).
    """
    total = torch.zeros_like(x[..., 0, :])
    number = torch.zeros_like(seen[..., 0], dtype=x.dtype)
    for joint in _joints(joints):  # in their order: a sum of floats depends on it
        total = total + torch.where(seen[..., joint, None], x[..., joint, :], 0.0)
        number = number + seen[..., joint]
    return total / number.clamp(min=1.0)[..., None], number > 0


def mark_origin(x: Tensor, seen: Tensor) -> Tensor:
    """Joints [..., V, 3] with `AT_ORIGIN` in those of zeros that were seen, bool [..., V, 1]."""
    marked = torch.tensor([AT_ORIGIN, 0.0, 0.0], dtype=x.dtype, device=x.device)
    return torch.where(seen & (x == 0).all(dim=-1, keepdim=True), marked, x)


def _earliest(root: Tensor, seen: Tensor, lower: Tensor) -> Tensor:
    """The root [T, 3] in the clip's earliest frame that has it: [3]; zeros where none has."""
    frames = [t for t in range(len(root)) if seen[t]]
    return root[min(frames, key=lambda t: int(lower[t]))] if frames else torch.zeros(3)


def _nearest(root: Tensor, seen: Tensor) -> Tensor:
    """The root [T, 3] with the nearest frame's that has it where it is missing; zeros where none has."""
    frames = [t for t in range(len(root)) if seen[t]]
    if not frames:
        return torch.zeros_like(root)
    return torch.stack([root[min(frames, key=lambda other, t=t: abs(other - t))] for t in range(len(root))])


def _mean(values: Tensor, seen: Tensor) -> Tensor:
    """Mean over the frames [T, ...] that were seen; zeros where none was."""
    number = int(seen.sum())
    return values[seen].sum(dim=0) / number if number else torch.zeros(values.shape[1:])


def _face_forward(x: Tensor, mean: Tensor, up: int) -> Tensor:
    """Turn about the vertical until the mean line from right to left lies along the first horizontal axis."""
    a, b = (axis for axis in range(3) if axis != up)
    size = torch.sqrt(mean[a] ** 2 + mean[b] ** 2)
    if size < 1e-6:
        return x
    c, s = mean[a] / size, mean[b] / size
    turned = x.clone()
    turned[..., a] = c * x[..., a] + s * x[..., b]
    turned[..., b] = c * x[..., b] - s * x[..., a]
    return turned


def rotation(angles: Tensor) -> Tensor:
    """Rz Ry Rx for angles [..., 3] in radians: [..., 3, 3]."""
    (sx, sy, sz), (cx, cy, cz) = torch.sin(angles).unbind(-1), torch.cos(angles).unbind(-1)
    rows = [
        [cy * cz, sx * sy * cz - cx * sz, cx * sy * cz + sx * sz],
        [cy * sz, sx * sy * sz + cx * cz, cx * sy * sz - sx * cz],
        [-sy, sx * cy, cx * cy],
    ]
    return torch.stack([torch.stack(r, dim=-1) for r in rows], dim=-2)
