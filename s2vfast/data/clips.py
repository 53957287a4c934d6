"""From a config and a layout to the spec of a clip, and what is appended to a clip once it has been augmented."""

from __future__ import annotations

import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.config import DataConfig
from s2vfast.data.layout import Layout
from s2vfast.ops.clip_sample import ClipSpec


def clip_spec(data: DataConfig, layout: Layout) -> ClipSpec:
    """How clips of skeletons of ``layout`` are made.

    Raises:
        ConfigError: data.align is "yaw" and the layout's vertical is no coordinate axis.
    """
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
        velocity=data.velocity,
        root=layout.root,
        torso=layout.torso,
        sides=layout.sides,
        up=up,
    )


def append_velocity(clips: Tensor, factor: float) -> Tensor:
    """Coordinates and, times ``factor``, their differences to the next frame, as `s2vfast.ops.clip_sample` has them.

    Args:
        clips: [N, T, V, 3], zeros where a joint is not seen.
        factor: data.velocity; 0: clips as they are.

    Returns:
        [N, T, V, 6]; 0 in the last frame, and where a joint is not seen in both frames.
    """
    if not factor:
        return clips
    seen = (clips != 0).any(-1, keepdim=True)
    velocity = torch.zeros_like(clips)
    velocity[:, :-1] = torch.where(seen[:, 1:] & seen[:, :-1], clips[:, 1:] - clips[:, :-1], 0.0)
    return torch.cat([clips, factor * velocity], dim=-1)
