"""Sparse convolutions over the cells of space and time that hold points, after Choy et al. (CVPR 2019).

A stretch of frames is a grid of four dimensions of which few cells hold a point. `s2vfast.ops.voxelize` lists these at
three sizes, `s2vfast.ops.sparse_conv` convolves them. Norms are layer norms, a cell by itself: a cell's numbers depend
on no other stretch, and ranks and micro-batches need not agree on statistics of lists of any length. Sizes and norms
are this project's own; the network of "4D clip order prediction" was published without code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import register
from s2vfast.networks.clip_encoder import ClipEncoder
from s2vfast.ops.voxelize import KERNELS, Level

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

STRIDES = ((1, 2), (2, 2))
"""Frames and cells of a level that make one of the next: first twice as wide in space, then in time too."""
_POINT_FEATURES = 4


@dataclass
class Sparse4DConfig:
    """Size of the grid and of the network."""

    segment_frames: int = option(8, ge=1)
    """Frames of a stretch, which is encoded by itself; even."""
    voxel: float = option(0.08, gt=0)
    """Edge of a cell of the finest level, in metres. A cell lasts one frame."""
    kernel: Literal["cube", "hybrid", "cross"] = "hybrid"
    """Neighbours that a convolution looks at: ``cube``, all 81 of space and time; ``hybrid``, 29: a cube in space and a
    cross in time; ``cross``, 9."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Of the three levels. D is twice the last: the mean and the maximum over the cells of a stretch."""
    cells: int | None = option(None, ge=1)
    """Cells a frame that there is memory for on a GPU, on average over a batch; what is beyond is left out. null: as
    many as points. On a CPU there are as many as needed."""


class Convolution(nn.Module):
    """A sparse convolution and a layer norm. Rows without a cell stay zero."""

    def __init__(self, offsets: int, channels: int, width: int) -> None:
        super().__init__()
        # Kaiming's, as if every second neighbour were there.
        self.weight = nn.Parameter(torch.randn(offsets, channels, width) * math.sqrt(2.0 / (0.5 * offsets * channels)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None) -> Tensor:
        """[R', width] of x [R, channels], by a table int32 [offsets, R']; mask [R', 1], None: every row has a cell."""
        y = self.norm(ops.sparse_conv(x, self.weight, table))
        return y if mask is None else y * mask


class Block(nn.Module):
    """relu(x + conv(relu(conv(x)))) on one level."""

    def __init__(self, offsets: int, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (Convolution(offsets, width, width) for _ in range(2))

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None) -> Tensor:
        """Arguments as of `Convolution`."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x, table, mask)), table, mask))


@register("sparse4d")
class Sparse4D(ClipEncoder):
    """A stem, and at each of three levels a block; a linear map of where a cell is; mean and maximum of the cells.

    Args:
        section: the section.
        frames: T of the config.
    """

    Section = Sparse4DConfig
    depth = 3

    def __init__(self, section: Sparse4DConfig, frames: int) -> None:
        super().__init__(frames, section.segment_frames, 2 * section.channels[-1])
        self.section = section
        offsets, channels = len(KERNELS[section.kernel]), section.channels
        self.stem = Convolution(offsets, _POINT_FEATURES, channels[0])
        pairs = zip(STRIDES, channels[:-1], channels[1:], strict=True)
        self.down = nn.ModuleList(Convolution(st * ss**3, before, after) for (st, ss), before, after in pairs)
        self.blocks = nn.ModuleList(Block(offsets, width) for width in channels)
        self.position = nn.Linear(4, channels[-1])

    @classmethod
    def build(cls, config: Config, layout: Layout) -> Sparse4D:
        """The network of a config."""
        return cls(config.model, config.data.frames)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Three levels, the last of which halves the frames."""
        super().check(config, layout)
        model = config.model
        if len(model.channels) != len(STRIDES) + 1 or min(model.channels) < 1:
            raise ConfigError(
                f"model.channels: {list(model.channels)}; {len(STRIDES) + 1} numbers above 0 are expected, one a level"
            )
        if model.segment_frames % 2:
            raise ConfigError(f"model.segment_frames: {model.segment_frames}; an even number is expected")

    def encode(self, clips: Tensor) -> Tensor:
        """[N, D] of stretches [N, segment_frames, P, 3]; zeros of a stretch without any point."""
        N, T, P, _ = clips.shape
        on_host = clips.device.type == "cpu" and not torch.compiler.is_compiling()
        capacity = None if on_host else N * T * min(self.section.cells or P, P)
        voxels = ops.voxelize(clips, self.section.voxel, kernel=self.section.kernel, strides=STRIDES, capacity=capacity)
        levels = voxels.levels
        masks = [None if on_host else _mask(level) for level in levels]
        x = F.relu(self.stem(voxels.features, levels[0].neighbors, masks[0]))
        x = self.blocks[0](x, levels[0].neighbors, masks[0])
        for down, block, level, mask in zip(self.down, self.blocks[1:], levels[1:], masks[1:], strict=True):
            x = block(F.relu(down(x, level.children, mask)), level.neighbors, mask)
        x = F.relu(x + self.position(self._centres(levels[-1], T)))
        offsets = levels[-1].starts.long()
        # With `initial`, a stretch without cells is 0, as no number is below it.
        pooled = [
            torch.segment_reduce(x, reduce, offsets=offsets, axis=0, unsafe=True, initial=0.0)
            for reduce in ("mean", "max")
        ]
        return torch.cat(pooled, dim=1)

    def _centres(self, level: Level, frames: int) -> Tensor:
        """[R, 4], middles of the coarsest cells: of time in [-0.5, 0.5], of x, y and z in metres."""
        st, ss = (math.prod(factors) for factors in zip(*STRIDES, strict=True))
        time, xyz = level.coordinates[:, 1:2] + 0.5, level.coordinates[:, 2:] + 0.5
        return torch.cat([time * (st / frames) - 0.5, xyz * (ss * self.section.voxel)], dim=1)

    def layer_of(self, name: str) -> int:
        """0: the stem; i + 1: level i; 4: where cells are."""
        first, _, remainder = name.partition(".")
        if first == "stem":
            return 0
        if first in ("down", "blocks"):
            return int(remainder.partition(".")[0]) + (2 if first == "down" else 1)
        return self.depth + 1


def _mask(level: Level) -> Tensor:
    """float32 [R, 1]: 1 where a row has a cell."""
    rows = torch.arange(level.coordinates.shape[0], device=level.starts.device)
    return (rows < level.starts[-1])[:, None].float()
