"""ST-GCN: graph convolutions over joints, convolutions over frames (Yan et al., AAAI 2018), with SkeAttnCLR's sizes.

Activations are [T, N, V, C], frames first and channels last: a graph convolution is then two matrix products, and a
convolution over frames is `s2vfast.ops.temporal_conv`, without a copy between them. Bodies of a sample are tracks of
their own, and share the statistics of the batch norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config.fields import option
from s2vfast.data.layout import Layout
from s2vfast.data.streams import Stream
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, register
from s2vfast.networks.graph import spatial_graph
from s2vfast.networks.noise import Draws, dropout_keep, word_count
from s2vfast.networks.norm import normalise
from s2vfast.ops._linear import linear

if TYPE_CHECKING:
    from s2vfast.config import Config


@dataclass
class STGCNConfig:
    """Channels, strides and input of ST-GCN."""

    stream: Literal["joint", "bone", "motion", "bone_motion"] = "joint"
    """What of a clip the network sees (docs/views.md)."""
    channels: tuple[int, ...] = (64, 64, 64, 64, 128, 128, 128, 256, 256, 256)
    """Channels of each block; their number is that of the blocks."""
    strides: tuple[int, ...] = (1, 1, 1, 1, 2, 1, 1, 2, 1, 1)
    """Frames from one result of a block to the next. Their product divides data.frames, and is the frames of a
    segment."""
    kernel: int = option(9, ge=1)
    """Frames that a convolution over time looks at; odd."""
    dropout: float = option(0.5, ge=0, lt=1)
    """Of the numbers after the convolution over time, in all blocks but the first, to 1/256. Objectives that draw it
    for their networks: skeattnclr."""
    importance: bool = True
    """Whether every edge of the graph has a learned factor in every block, 1 at first."""
    init_std: float = option(0.02, gt=0)
    """Standard deviation of the normal numbers that maps and convolutions start from (0 their biases), and that batch
    norms' weights start with about 1, as published for SkeAttnCLR."""


class GraphConv(nn.Module):
    """y[w] = sum over k, v of graph[k, v, w] (x[v] @ weight[k] + bias[k])."""

    def __init__(self, subsets: int, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(subsets, channels, width))
        self.bias = nn.Parameter(torch.zeros(subsets, width))

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """[T, N, V, D] of x [T, N, V, C] and a graph [K, V, V]."""
        # Neighbours first: they are fewer numbers than the K * D that would follow, and one product does the maps.
        mixed = ops.graph_mix(x, graph).flatten(3)  # [T, N, V, K * (C + 1)]
        weight = torch.cat([self.weight, self.bias[:, None]], 1).flatten(0, 1)
        return linear(mixed, weight.t().contiguous(), None)


class TemporalConv(nn.Module):
    """A convolution over frames, each joint by itself, but for its bias, which the norm after it adds."""

    def __init__(self, kernel: int, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(kernel, channels, width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[T / stride, N, V, D] of x [T, N, V, C]."""
        T, N, V, C = x.shape
        y = ops.temporal_conv(x.reshape(T, N * V, C), self.weight, stride=self.stride)
        return y.view(-1, N, V, y.shape[-1])


class Block(nn.Module):
    """Graph convolution, norm, ReLU, convolution over time, norm, dropout, what is left of the input, ReLU."""

    def __init__(
        self,
        joints: int,
        subsets: int,
        channels: int,
        width: int,
        kernel: int,
        stride: int,
        residual: bool,
        learn: bool,
    ) -> None:
        super().__init__()
        self.stride, self.width, self.residual = stride, width, residual
        self.importance = nn.Parameter(torch.ones(subsets, joints, joints)) if learn else None
        self.graph_conv = GraphConv(subsets, channels, width)
        self.norm1 = nn.BatchNorm1d(width)
        self.temporal = TemporalConv(kernel, width, width, stride)
        self.norm2 = nn.BatchNorm1d(width)
        projects = residual and (channels != width or stride != 1)
        self.shortcut = nn.Linear(channels, width) if projects else None
        self.shortcut_norm = nn.BatchNorm1d(width) if projects else None

    def forward(self, x: Tensor, graph: Tensor, keep: Tensor | None = None) -> Tensor:
        """[T / stride, N, V, D].

        Args:
            x: [T, N, V, C].
            graph: [K, V, V].
            keep: [T / stride, N, V, D], what the branch is multiplied by (dropout); None: one.
        """
        edges = graph if self.importance is None else graph * self.importance
        y = self.temporal(normalise(self.norm1, self.graph_conv(x, edges), relu=True))
        if not self.residual:
            shortcut = None
        elif self.shortcut is None:
            shortcut = x
        else:
            rows = F.linear(x[:: self.stride], self.shortcut.weight)
            shortcut = normalise(self.shortcut_norm, rows, shift=self.shortcut.bias)
        if keep is None:
            return normalise(self.norm2, y, shortcut, relu=True, shift=self.temporal.bias)
        y = normalise(self.norm2, y, shift=self.temporal.bias) * keep
        return F.relu(y if shortcut is None else y + shortcut)


@register("stgcn")
class STGCN(Network):
    """A batch norm of the input, blocks, tokens of one joint over the frames that the strides leave apart.

    Args:
        options: the section.
        layout: the skeleton.
        frames: T of clips.
        channels: C of clips.
    """

    Section = STGCNConfig

    def __init__(self, options: STGCNConfig, layout: Layout, frames: int, channels: int) -> None:
        super().__init__()
        self.input_stream, self.layout = Stream(options.stream), layout
        self.width, self.depth = options.channels[-1], len(options.channels)
        self.segment_frames = math.prod(options.strides)
        self.grid = (frames // self.segment_frames, layout.num_joints)
        self.dropout = options.dropout
        graph = spatial_graph(layout.bone_parents)
        self.register_buffer("graph", graph, persistent=False)  # the layout's, not learned
        self.norm = nn.BatchNorm1d(layout.num_joints * channels)
        self.blocks = nn.ModuleList()
        for number, (width, stride) in enumerate(zip(options.channels, options.strides, strict=True)):
            before = options.channels[number - 1] if number else channels
            sizes = (layout.num_joints, len(graph), before, width, options.kernel, stride)
            self.blocks.append(Block(*sizes, residual=number > 0, learn=options.importance))
        initialise(self, options.init_std)

    @classmethod
    def build(cls, config: Config, layout: Layout) -> STGCN:
        """Of the config's model section."""
        return cls(config.model, layout, config.data.frames, config.channels)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Blocks that fit together and whole segments."""
        model, frames = config.model, config.data.frames
        for name in ("channels", "strides"):
            values = getattr(model, name)
            if not values or any(type(value) is not int or value < 1 for value in values):
                raise ConfigError(f"model.{name}: {list(values)}; whole numbers from 1 on are expected")
        if len(model.channels) != len(model.strides):
            raise ConfigError(
                f"model.strides: {len(model.strides)} for the {len(model.channels)} blocks of model.channels; one a "
                f"block is expected"
            )
        if model.kernel % 2 == 0:
            raise ConfigError(f"model.kernel: {model.kernel}; an odd number is expected")
        if frames % math.prod(model.strides):
            raise ConfigError(
                f"data.frames: {frames} is no multiple of {math.prod(model.strides)}, the product of model.strides"
            )

    @classmethod
    def segments(cls, config: Config) -> int:
        """S: steps of time that are left of a clip."""
        return config.data.frames // math.prod(config.model.strides)

    def tokens(self, clips: Tensor, visible: None = None) -> Tensor:
        """Features [N, L, D] of clips [N, T, V, C], without dropout."""
        return _tokens(self._states(clips)[-1])

    def hidden(self, clips: Tensor, last: int) -> list[Tensor]:
        """Outputs of the last ``last`` blocks, those that have the last one's grid."""
        states = self._states(clips)[-last:]
        if any(state.shape[0] != self.grid[0] for state in states):
            raise NotImplementedError(f"STGCN.hidden: blocks before the last stride have another grid; last = {last}")
        return [_tokens(state) for state in states]

    def draw_noise(self, clips: Tensor, draws: Draws) -> tuple[Tensor, ...] | None:
        """What dropout keeps: for every block but the first uint8 [N, T', V, D], 0 or 1; None: nothing is dropped."""
        if not self.dropout:
            return None
        segments, joints = self.grid
        frames, shapes = segments * self.segment_frames, []
        for block in self.blocks:
            frames //= block.stride
            shapes.append((frames, joints, block.width))
        sizes = [math.prod(shape) for shape in shapes[1:]]
        keep = dropout_keep(draws(word_count(sum(sizes), self.dropout)), sum(sizes), self.dropout)
        parts = keep.split(sizes, dim=1)
        return tuple(part.unflatten(1, shape) for part, shape in zip(parts, shapes[1:], strict=True))

    def with_noise(self, clips: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """Tokens with dropout, what it keeps being `draw_noise`'s."""
        return _tokens(self._states(clips, noise)[-1])

    def layer_of(self, name: str) -> int:
        """0: the norm of the input; i + 1: block i."""
        first, _, inner = name.partition(".")
        return int(inner.partition(".")[0]) + 1 if first == "blocks" else 0

    def activation_numbers(self) -> int:
        """Of the widest block, whose neighbours' numbers stand side by side."""
        segments, joints = self.grid
        return len(self.graph) * max(block.width for block in self.blocks) * segments * self.segment_frames * joints

    def _states(self, clips: Tensor, noise: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Outputs of all blocks, [T', N, V, D] each."""
        x = self.input_stream(clips[None], self.layout)[0].transpose(0, 1)  # [T, N, V, C]
        T, N, V, C = x.shape
        x = self.norm(x.reshape(T * N, V * C)).view(T, N, V, C)
        states = []
        for number, block in enumerate(self.blocks):
            keep = None
            if noise is not None and number:
                keep = noise[number - 1].transpose(0, 1).contiguous().to(x.dtype).mul_(1.0 / (1.0 - self.dropout))
            x = block(x, self.graph, keep)
            states.append(x)
        return states


def _tokens(state: Tensor) -> Tensor:
    """[N, S * V, D] of [S, N, V, D]."""
    return state.transpose(0, 1).flatten(1, 2)


def initialise(module: nn.Module, std: float) -> None:
    """SkeAttnCLR's start: maps and convolutions N(0, std), their biases 0, weights of batch norms N(1, std)."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Linear, GraphConv, TemporalConv)):
                part.weight.normal_(0.0, std)
                if part.bias is not None:
                    part.bias.zero_()
            elif isinstance(part, nn.BatchNorm1d):
                part.weight.normal_(1.0, std)
