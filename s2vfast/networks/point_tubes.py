"""Attention between tubes of points, after P4Transformer (Fan et al., CVPR 2021), on this project's blocks.

A tube is some frames long and lies about a point of its middle frame; what is seen of it are the nearest points of each
of its frames. Sizes are this project's own, and so is the choice of middles: every so many-th point of a frame, which
`s2vfast.ops.point_sample` gives in the order in which they were recorded, in place of farthest points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import register
from s2vfast.networks.block import BlockOptions, BlockStack
from s2vfast.networks.clip_encoder import ClipEncoder

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout


@dataclass
class PointTubesConfig:
    """Size of tubes and blocks."""

    segment_frames: int = option(8, ge=1)
    """Frames of a stretch, which is encoded by itself."""
    tube_frames: int = option(2, ge=1)
    """Frames of a tube. Divides segment_frames."""
    tubes: int = option(32, ge=1)
    """Tubes that begin in the same frame."""
    neighbors: int = option(16, ge=1)
    """Points of a frame that a tube looks at: those nearest to its middle."""
    dim: int = option(128, ge=1)
    """Width of a tube's token in the blocks. D is twice that: the mean and the maximum over the tubes of a stretch."""
    heads: int = option(4, ge=1)
    """H. Divides dim."""
    depth: int = option(4, ge=1)
    """Blocks."""
    mlp_ratio: float = option(2.0, gt=0)
    """Hidden width of a block's MLP as a multiple of dim."""
    layer_scale: float = option(0.1, gt=0)
    """First value of LayerScale's gamma."""


@register("point_tubes")
class PointTubes(ClipEncoder):
    """Tubes to tokens, blocks, mean and maximum of the tokens.

    Args:
        section: the section.
        frames: T of the config.
    """

    Section = PointTubesConfig

    def __init__(self, section: PointTubesConfig, frames: int) -> None:
        super().__init__(frames, section.segment_frames, 2 * section.dim)
        self.section, self.depth = section, section.depth
        dim = section.dim
        self.fc1, self.fc2 = nn.Linear(4, dim), nn.Linear(dim, dim)
        self.position = nn.Linear(4, dim)
        self.blocks = BlockStack(section.depth, BlockOptions.of(section))
        self.norm = nn.LayerNorm(dim)

    @classmethod
    def build(cls, config: Config, layout: Layout) -> PointTubes:
        """The network of a config."""
        return cls(config.model, config.data.frames)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Whole tubes and heads."""
        super().check(config, layout)
        model = config.model
        for name, divisor in (("segment_frames", "tube_frames"), ("dim", "heads")):
            if getattr(model, name) % getattr(model, divisor):
                raise ConfigError(
                    f"model.{name}: {getattr(model, name)} is no multiple of model.{divisor} = "
                    f"{getattr(model, divisor)}"
                )

    def encode(self, clips: Tensor) -> Tensor:
        """[N, D] of stretches [N, segment_frames, P, 3]. Points that are not finite are at the origin."""
        section, P = self.section, clips.shape[2]
        points = torch.nan_to_num(clips, 0.0, 0.0, 0.0).unflatten(1, (-1, section.tube_frames))  # [N, S, f, P, 3]
        numbers = torch.arange(section.tubes, device=clips.device) * P // section.tubes
        middles = points[:, :, section.tube_frames // 2, numbers]  # [N, S, A, 3]
        offsets = self._offsets(points, middles)
        seen = self.fc2(F.relu(self.fc1(offsets))).amax(dim=(2, 4))  # [N, S, A, dim]
        time = torch.arange(points.shape[1], device=clips.device) / points.shape[1] - 0.5
        time = time[:, None, None].expand(*middles.shape[:3], 1)
        x = (seen + self.position(torch.cat([time, middles], dim=3))).flatten(1, 2)
        x = self.norm(self.blocks(x))
        return torch.cat([x.mean(dim=1), x.amax(dim=1)], dim=1)

    def _offsets(self, points: Tensor, middles: Tensor) -> Tensor:
        """[N, S, f, A, k, 4]: time (in [-0.5, 0.5] of the tube) and place of neighbours, from the tube's middle."""
        N, S, f, P, _ = points.shape
        k = min(self.section.neighbors, P)
        middles = middles[:, :, None]  # [N, S, 1, A, 3]
        with torch.no_grad():
            distances = torch.cdist(middles.expand(-1, -1, f, -1, -1), points)  # [N, S, f, A, P]
            nearest = distances.topk(k, dim=4, largest=False, sorted=False).indices
        index = nearest.flatten(3)[..., None].expand(-1, -1, -1, -1, 3)
        near = points.gather(3, index).unflatten(3, (-1, k)) - middles[..., None, :]
        time = (torch.arange(f, device=points.device) - f // 2) / f
        return torch.cat([time[:, None, None, None].expand(*near.shape[:5], 1), near], dim=5)

    def layer_of(self, name: str) -> int:
        """0: tubes; i + 1: block i; depth + 1: what comes after the last."""
        first, _, remainder = name.partition(".")
        if first == "blocks":
            return int(remainder.partition(".")[0]) + 1
        return self.depth + 1 if first == "norm" else 0
