"""From a config and a layout to how clips are made, and what a network is shown of their coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.config import DataConfig
from s2vfast.data.augment import Compose
from s2vfast.data.layout import Layout
from s2vfast.data.streams import Stream
from s2vfast.ops.clip_sample import ClipSpec, body_rows


def clip_spec(data: DataConfig, layout: Layout) -> ClipSpec:
    """How clips of skeletons of ``layout`` are made by `s2vfast.ops.clip_sample`.

    Recordings of 2 coordinates turn in their plane alone, about z. Another rotation would squeeze bodies as no camera
    does, and a turn about the vertical needs a depth.

    Raises:
        ConfigError: data.align is "yaw" and the layout's vertical is no coordinate axis, or one of 2-D recordings is
            turned about x or y.
    """
    if layout.planar and (data.align == "yaw" or any(data.rotate[:2])):
        raise errors.ConfigError(
            "data.rotate, data.align: the recordings have 2 coordinates a joint, which turn in their plane alone; set "
            "data.align none and data.rotate [0, 0, angle]"
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


def view_steps(data: DataConfig, layout: Layout) -> tuple[Compose, Compose] | None:
    """data.train_steps and data.test_steps for skeletons of ``layout``; None where there are none.

    Raises:
        ConfigError: unknown or impossible steps, or other than data.frames frames come out.
    """
    if not data.train_steps:
        return None
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
