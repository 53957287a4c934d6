"""From a config and a layout to how clips are made, and what a network is shown of their coordinates."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.config import DataConfig
from s2vfast.data.augment import Compose
from s2vfast.data.layout import Layout
from s2vfast.data.streams import Stream
from s2vfast.ops.clip_sample import ClipSpec, body_rows
from s2vfast.ops.point_sample import PointSpec
from s2vfast.reference import philox
from s2vfast.reference.clip_sample import rotation


def clip_spec(data: DataConfig, layout: Layout) -> ClipSpec:
    """How clips of skeletons of ``layout`` are made by `s2vfast.ops.clip_sample`.

    Recordings of 2 coordinates turn in their plane alone, about z. Another rotation would squeeze bodies as no camera
    does, and a turn about the vertical needs a depth.

    Raises:
        ConfigError: data.sampling or data.shift is of point clouds, data.align is "yaw" and the layout's vertical is no
            coordinate axis, or one of 2-D recordings is turned about x or y.
    """
    if data.sampling == "window" or data.shift:
        raise errors.ConfigError("data.sampling: window, data.shift: for point clouds; the store holds skeletons")
    if layout.planar and (data.align == "yaw" or any(data.rotate[:2])):
        raise errors.ConfigError(
            "data.rotate, data.align: the recordings have 2 coordinates a joint, which turn in their plane alone; set "
            "data.align none and data.rotate (of a recipe of fine-tuning finetune.rotate) [0, 0, angle]"
        )
    up = max(range(3), key=lambda axis: abs(layout.up[axis]))
    if data.align == "yaw" and abs(abs(layout.up[up]) - 1.0) > 1e-3:
        raise errors.ConfigError(
            f"data.align: yaw needs a coordinate axis as the vertical; layout {layout.name} has up = {layout.up}"
        )
    return ClipSpec(
        frames=data.frames,
        sampling=data.sampling,
        crop_min=data.crop_min,
        center=data.center,
        scale=data.scale,
        align=data.align,
        rotate=tuple(data.rotate),
        scale_jitter=data.scale_jitter,
        velocity=data.velocity if data.stream == "joint" else 0.0,
        root=layout.root,
        torso=layout.torso,
        sides=layout.sides,
        up=up,
    )


def point_spec(data: DataConfig) -> PointSpec:
    """How clips of point clouds are made by `s2vfast.ops.point_sample`.

    Raises:
        ConfigError: names the fields that ask for what only skeletons have.
    """
    usual = DataConfig()
    for field in ("scale", "align", "train_steps", "stream", "velocity", "confidence"):
        if getattr(data, field) != getattr(usual, field):
            raise errors.ConfigError(f"data.{field}: of skeletons; the store holds point clouds, leave it out")
    for field, value, expected in (
        ("bodies", data.bodies != 1, "1: points are not told apart into bodies"),
        ("sampling", data.sampling == "crop", "bins or window: there is nothing between two frames of points"),
        ("center", data.center == "frame", "first or none: a frame has no joint"),
    ):
        if value:
            raise errors.ConfigError(f"data.{field}: {getattr(data, field)}; of point clouds {expected}")
    return PointSpec(data.frames, data.points, data.stride, "even" if data.sampling == "bins" else "window")


def moved_points(clips: Tensor, data: DataConfig, ids: Tensor, seed: int, epoch: int) -> Tensor:
    """Clips of point clouds turned about their origin, scaled and shifted, as training sees them.

    A clip is moved as a whole: a person's path through space stays one.

    Args:
        clips: [N, T, P, 3].
        data: rotate, scale_jitter and shift.
        ids: int64 [N], sequences. The draws are functions of seed, epoch and these: 0 to 2 of the stream POINT_MOVE are
            angles about x, y and z, 3 to 5 factors, 6 to 8 shifts.
        seed: of the draws.
        epoch: of the draws.

    Returns:
        [N, T, P, 3].
    """
    if not (any(data.rotate) or data.scale_jitter or data.shift):
        return clips
    u = (
        2.0 * philox.uniform(philox.random_bits(seed, epoch, ids.to(clips.device), philox.POINT_MOVE, 9)) - 1.0
    )  # [N, 9]
    turn = rotation(u[:, :3] * torch.tensor(data.rotate, device=u.device))  # [N, 3, 3]
    turn = turn * (1.0 + data.scale_jitter * u[:, 3:6])[:, :, None]
    return torch.einsum("nij,ntpj->ntpi", turn, clips) + data.shift * u[:, None, None, 6:9]


def unmoved(spec: ClipSpec) -> ClipSpec:
    """The frames that ``spec`` chooses, as they were recorded."""
    return replace(spec, center="none", scale="none", align="none", rotate=(0.0,) * 3, scale_jitter=0.0, velocity=0.0)


def view_steps(data: DataConfig, layout: Layout) -> tuple[Compose, Compose] | None:
    """data.train_steps and data.test_steps for skeletons of ``layout``; None where there are none.

    Raises:
        ConfigError: unknown or impossible steps, or other than data.frames frames come out.
    """
    if not data.train_steps:
        return None
    if data.confidence:
        raise errors.ConfigError("data.confidence: data.train_steps make clips of coordinates alone; give false")
    pair = []
    for field in ("train_steps", "test_steps"):
        steps = Compose(getattr(data, field), layout, f"data.{field}")
        # Of recordings of any length.
        counts = {steps.frames_out(data.frames), steps.frames_out(3 * data.frames + 1)}
        if counts != {data.frames}:
            expected = f"data.frames = {data.frames} must come out, whatever the recording's length"
            raise errors.ConfigError(f"data.{field}: {' or '.join(map(str, sorted(counts)))} frames; {expected}")
        pair.append(steps)
    return pair[0], pair[1]


def whole_recordings(
    frames: Tensor, frame_index: Tensor, row: Tensor, count: Tensor, ids: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    """Sequences in the frames of their main body, one after the other.

    Args:
        frames: as the tables that follow, see `s2vfast.ops.clip_sample`.
        frame_index: int32 [R].
        row: int64 [Q, M].
        count: int32 [Q, M].
        ids: int64 [B].
        longest: F, at least the frames of any of these sequences.

    Returns:
        (float32 [B, M, F, V, 3], int64 [B]: frames of each, after which there are zeros).
    """
    row, count = row[ids], count[ids].long()
    lengths = count[:, 0]
    steps = torch.arange(longest, device=row.device)
    clips = body_rows(frames, frame_index, row, count, torch.minimum(steps, lengths[:, None] - 1))
    return clips.masked_fill(~(steps < lengths[:, None])[:, None, :, None, None], 0.0), lengths


def shown(clips: Tensor, data: DataConfig, layout: Layout) -> Tensor:
    """What a network is shown of coordinates: data.stream, and its velocities where data.velocity asks for them.

    Args:
        clips: [N, T, V, 3], zeros where a joint is not seen.
        data: the config's section.
        layout: the skeleton, V joints.

    Returns:
        [N, T, V, 3], or [N, T, V, 6] with velocities, times data.velocity: 0 in the last frame, and where a joint is
        not seen in both frames.
    """
    if data.stream != "joint":
        clips = Stream(data.stream)(clips[:, None], layout)[:, 0]
    if not data.velocity:
        return clips
    seen = (clips != 0).any(-1, keepdim=True)
    velocity = torch.zeros_like(clips)
    velocity[:, :-1] = torch.where(seen[:, 1:] & seen[:, :-1], clips[:, 1:] - clips[:, :-1], 0.0)
    return torch.cat([clips, data.velocity * velocity], dim=-1)
