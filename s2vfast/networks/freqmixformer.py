"""FreqMixFormer (Wu et al., ACM MM 2024): graph convolutions, with attention over joints and over their frequencies.

Activations are channels-last, [B, T, V, C]. The published code builds a map of joints for every channel. Of those of a
clip only ``subsets * units`` differ, and of the constant ones ``subsets * groups``. Here these alone are made, from
means over time that are taken before the linear map, and `s2vfast.ops.joint_mix` applies both. The published class is
`s2vfast.reference.freqmixformer`; `s2vfast.compat.freqmixformer` has its names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks import graph
from s2vfast.networks.base import Network, register
from s2vfast.networks.norm import normalise
from s2vfast.networks.stem import Stem
from s2vfast.networks.temporal import Branch, TemporalBranches, frames_after
from s2vfast.ops._linear import linear

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout


@dataclass
class FreqMixFormerConfig:
    """Size of FreqMixFormer, and what was published otherwise than described."""

    base: int = option(80, ge=1)
    """Channels of the first stage; each further stage has twice as many. A multiple of 2 * units, groups and branches,
    where branches are dilations and three more."""
    stages: tuple[int, ...] = (4, 3, 3)
    """Blocks of each stage. The first block of a stage, but of the first one, halves the frames."""
    k: int = option(1, ge=1)
    """Generations of the mode I - P^k: joints without their k-th ancestor. 1: bones; 8: NTU's joints as they are."""
    graph: Literal["right", "published"] = "right"
    """``right``: edges point from a joint to its parent. ``published``: as the authors list them, which on NW-UCLA is
    the other way round."""
    subsets: int = option(3, ge=1, le=3)
    """Maps that are added: the first of identity, inward and outward edges."""
    units: int = option(4, ge=1)
    """Groups of channels that share a map of their own clip."""
    groups: int = option(8, ge=1)
    """Learned maps a subset; channel c has number c mod groups."""
    low: float = option(0.5, ge=0)
    """Weight of low frequencies in the cross maps."""
    high: float = option(1.5, ge=0)
    """Weight of high frequencies in the cross maps."""
    split: int | None = option(None, ge=0)
    """First frequency that is high. null: 13 of 25, in proportion to the joints. The authors take 13 of 20 too."""
    kernel: int = option(5, ge=1)
    """Frames of a convolution over time; odd."""
    dilations: tuple[int, ...] = (1, 2)
    """Dilations of these convolutions, a branch each."""
    pool: int = option(3, ge=1)
    """Frames of the max pool over time; odd."""


class SpatialMixing(nn.Module):
    """Mixes joints by maps of the clip (over joints and over frequencies) and by learned ones.

    Args:
        channels_in: of the input.
        channels: C, of the result.
        graphs: float [subsets, V, V], which `constant` holds and `learned` starts from; [source, destination].
        section: the network's.
    """

    constant: Tensor
    to_frequencies: Tensor
    to_joints: Tensor
    weights: Tensor

    def __init__(self, channels_in: int, channels: int, graphs: Tensor, section: FreqMixFormerConfig) -> None:
        super().__init__()
        subsets, joints, _ = graphs.shape
        self.subsets, self.units, self.channels = subsets, section.units, channels
        self.linear = nn.Linear(channels_in, subsets * channels)
        self.within = nn.Linear(joints, joints)
        self.across = nn.Linear(joints, joints)
        maps = graphs[:, None].repeat(1, section.groups, 1, 1)
        self.learned = nn.Parameter(maps)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.down = None if channels_in == channels else Projection(channels_in, channels)
        split = 13 * joints // 25 if section.split is None else section.split
        weights = torch.where(torch.arange(joints) < split, section.low, section.high)
        to_frequencies, to_joints = cosine_transforms(joints)
        for name, buffer in (
            ("constant", maps.clone()),
            ("to_frequencies", to_frequencies),
            ("to_joints", to_joints),
            ("weights", weights),
        ):
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, V, C] of x [B, T, V, channels_in]."""
        pooled, static = _mean(x, (1,)), self.learned + self.constant
        dynamic = self._dynamic_maps(pooled)
        means = self._mixed_means(pooled, dynamic, static)
        gate = 1.0 + torch.sigmoid(self.gate(means[:, None])[:, 0])  # [B, C]
        rows = linear(x, self.linear.weight, None)
        mixed = ops.joint_mix(rows, dynamic, static, self.linear.bias, gate)
        residual = x if self.down is None else self.down(x)
        return normalise(self.norm, mixed, residual, relu=True)

    def dynamic_maps(self, x: Tensor) -> Tensor:
        """Maps of the clips, [B, subsets, units, V, V], half over joints and half over frequencies."""
        return self._dynamic_maps(_mean(x, (1,)))

    def _dynamic_maps(self, pooled: Tensor) -> Tensor:
        """Those of clips whose mean over time is ``pooled``, [B, V, channels_in]."""
        # Means over time and over half of a unit's channels are linear: they are taken of the map's input and rows.
        weight, bias = self._halves(self.linear.weight), self._halves(self.linear.bias)
        pooled = F.linear(pooled, weight, bias).transpose(1, 2)  # [B, subsets * units * 2, V]
        pooled = pooled.unflatten(1, (self.subsets, self.units, 2))
        joints = self._mixture(pooled, None)
        to_frequencies, to_joints = self.to_frequencies.to(pooled.dtype), self.to_joints.to(pooled.dtype)
        frequencies = self._mixture(pooled @ to_frequencies.T, self.weights) @ to_joints.T
        return 0.5 * (joints + frequencies)

    def _mixed_means(self, pooled: Tensor, dynamic: Tensor, static: Tensor) -> Tensor:
        """Means [B, C] over frames and joints of what the maps will give.

        They too are linear: of a map its mean over the joints that it goes to is enough, and what mixes the joints
        goes before the linear map, whose bias is one more column here.
        """
        pooled = F.pad(pooled, (0, 1), value=1.0)
        weight = torch.cat([self.linear.weight, self.linear.bias[:, None]], 1)
        groups = static.shape[1]
        own = dynamic.mean(-1).flatten(1, 2) @ pooled  # [B, subsets * units, channels_in + 1]
        common = static.mean(-1).flatten(0, 1) @ pooled  # [B, subsets * groups, channels_in + 1]
        by_unit = weight.unflatten(0, (self.subsets * self.units, -1))
        by_group = weight.unflatten(0, (self.subsets, -1, groups)).transpose(1, 2).flatten(0, 1)
        own = (own.transpose(0, 1) @ by_unit.transpose(1, 2)).unflatten(0, (self.subsets, -1)).sum(0)
        common = (common.transpose(0, 1) @ by_group.transpose(1, 2)).unflatten(0, (self.subsets, -1)).sum(0)
        # [units, B, C / units] and [groups, B, C / groups]: a unit's channels lie together, a group's apart.
        return own.transpose(0, 1).flatten(1) + common.permute(1, 2, 0).flatten(1)

    def _halves(self, rows: Tensor) -> Tensor:
        """Means [subsets * units * 2, ...] over the first and the second half of every unit's rows."""
        units = rows.unflatten(0, (self.subsets * self.units, -1))
        first = units.shape[1] // 2
        return torch.stack([units[:, :first].mean(1), units[:, first:].mean(1)], 1).flatten(0, 1)

    def _mixture(self, pooled: Tensor, weights: Tensor | None) -> Tensor:
        """Half of each unit's own map, and a quarter of those across to its neighbours: [B, subsets, units, V, V]."""
        query, key = F.relu(self.within(pooled)).unbind(3)  # each [B, subsets, units, V]
        maps = 0.5 * torch.softmax(query[..., :, None] * key[..., None, :], -1)
        query, key = F.relu(self.across(pooled)).unbind(3)
        cross = 0.25 * torch.softmax(key[:, :, :-1, :, None] * query[:, :, 1:, None, :], -1)
        if weights is not None:
            cross = cross * weights
        return maps + F.pad(cross, (0, 0, 0, 0, 0, 1)) + F.pad(cross, (0, 0, 0, 0, 1, 0))


class TemporalAttention(Branch):
    """Frames as sums of all frames, by a gate of every pair.

    Args:
        channels_in: of the input.
        channels: b, of the result.
        frames: T', of the result.
    """

    def __init__(self, channels_in: int, channels: int, frames: int) -> None:
        super().__init__(channels_in, channels)
        self.frames = nn.Linear(frames, frames)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T', V, b] of the product, and a shift of zero."""
        x = rows + self.bias
        half = x.shape[-1] // 2
        first, second = x.split([half, x.shape[-1] - half], -1)
        query, key = first.mean((2, 3)), second.amax((2, 3))  # [B, T']
        query, key = F.relu(self.frames(query)), F.relu(self.frames(key))
        gate = torch.sigmoid(key[:, :, None] * query[:, None, :])  # [B, to, from]
        return normalise(self.norm, (gate @ x.flatten(2)).view_as(x)), torch.zeros_like(self.bias)


class FrameGate(Branch):
    """Frames weighted by a gate of their mean and of their largest number."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__(channels_in, channels)
        self.gate = nn.Linear(2, 1)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T', V, b] of the product, and a shift of zero."""
        x = rows + self.bias
        gate = torch.sigmoid(self.gate(torch.stack([x.mean((2, 3)), x.amax((2, 3))], -1)))  # [B, T', 1]
        return x * gate[..., None], torch.zeros_like(self.bias)


class Projection(nn.Linear):
    """A 1x1 convolution with a stride in time, and a batch norm."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels)
        self.stride = stride
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """[B, T', V, channels] of x [B, T, V, channels_in]."""
        return normalise(self.norm, linear(x[:, :: self.stride], self.weight, None), relu=relu, shift=self.bias)


class Block(nn.Module):
    """Spatial mixing, temporal branches, a residual."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stride: int,
        frames: int,
        graphs: Tensor,
        section: FreqMixFormerConfig,
        residual: bool,
    ) -> None:
        super().__init__()
        self.spatial = SpatialMixing(channels_in, channels, graphs, section)
        width = channels // (len(section.dilations) + 3)
        more = [
            TemporalAttention(channels, width, frames_after(frames, stride)),
            FrameGate(channels, width),
        ]
        self.temporal = TemporalBranches(channels, width, section.kernel, section.dilations, stride, section.pool, more)
        self.has_residual = residual
        changes = channels_in != channels or stride != 1
        self.residual = Projection(channels_in, channels, stride) if residual and changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, T', V, channels] of x [B, T, V, channels_in]."""
        residual = x if self.residual is None else self.residual(x)
        return self.temporal(self.spatial(x), residual if self.has_residual else None)


class Skip(nn.Module):
    """A stage's result for the end: means over frames, a 1x1 convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.projection = Projection(channels_in, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T / frames, V, channels] of x [B, T, V, channels_in]."""
        return self.projection(x.unflatten(1, (-1, self.frames)).mean(2), relu=True)


@register("freqmixformer")
class FreqMixFormer(Network):
    """Stem, blocks, and skips of all stages but the last.

    Args:
        section: the config's.
        mode: [V, V] of the stem.
        graphs: [subsets, V, V] of the spatial parts.
        frames: T.
        channels: C of clips.
        bodies: M, tracks a sample.
    """

    Section = FreqMixFormerConfig
    independent_tracks = False  # the stem's norm is another one for each body of a sample

    def __init__(
        self, section: FreqMixFormerConfig, mode: Tensor, graphs: Tensor, frames: int, channels: int, bodies: int
    ) -> None:
        super().__init__()
        self.section, self.frames = section, frames
        widths = [section.base << stage for stage in range(len(section.stages))]
        self.width, self.depth = widths[-1], sum(section.stages)
        self.segment_frames = 1 << (len(widths) - 1)
        self.grid = (frames // self.segment_frames, len(mode))
        self.stem = Stem(mode, bodies, channels, section.base)
        self.blocks = nn.ModuleList()
        width = section.base
        for stage, (count, channels_out) in enumerate(zip(section.stages, widths, strict=True)):
            for number in range(count):
                stride = 2 if stage and not number else 1
                options = (stride, frames >> max(stage - (stride - 1), 0), graphs, section, bool(self.blocks))
                self.blocks.append(Block(width, channels_out, *options))
                width = channels_out
        self.skips = nn.ModuleList(
            Skip(channels_out, self.width, self.width // channels_out) for channels_out in widths[:-1]
        )
        self._initialise()

    @classmethod
    def build(cls, config: Config, layout: Layout) -> FreqMixFormer:
        """Of the config's model section, with the published start."""
        model = config.model
        return cls(
            model,
            graph.mode(layout, model.k, model.graph),
            graph.in_out_graph(layout, model.graph)[: model.subsets],
            config.data.frames,
            config.channels,
            config.data.bodies,
        )

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Channels in whole groups, frames that can be halved, windows with a middle."""
        model, frames = config.model, config.data.frames
        for name in ("stages", "dilations"):
            if not getattr(model, name) or min(getattr(model, name)) < 1:
                raise ConfigError(f"model.{name}: {list(getattr(model, name))}; whole numbers from 1 on are expected")
        for name in ("kernel", "pool"):
            if getattr(model, name) % 2 == 0:
                raise ConfigError(f"model.{name}: {getattr(model, name)}; an odd number is expected")
        branches = len(model.dilations) + 3
        for name, divisor in (("2 * model.units", 2 * model.units), ("model.groups", model.groups)):
            if model.base % divisor:
                raise ConfigError(f"model.base: {model.base} is no multiple of {name} = {divisor}")
        if model.base % branches:
            raise ConfigError(
                f"model.base: {model.base} is no multiple of {branches}, the branches over time: {branches - 3} of "
                f"model.dilations and 3 more"
            )
        halvings = 1 << (len(model.stages) - 1)
        if frames % halvings:
            raise ConfigError(
                f"data.frames: {frames} is no multiple of {halvings}, as each of model.stages but the first halves them"
            )

    @classmethod
    def segments(cls, config: Config) -> int:
        """S: frames that the last stage has."""
        return config.data.frames >> (len(config.model.stages) - 1)

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """[N, S * V, D] of clips [N, T, V, C]."""
        return self._tokens(list(self._states(clips)))

    def layer_of(self, name: str) -> int:
        """0: the stem; i + 1: block i; depth + 1: the skips."""
        first, _, remainder = name.partition(".")
        if first == "blocks":
            return int(remainder.partition(".")[0]) + 1
        return 0 if first == "stem" else self.depth + 1

    def attention(self, clips: Tensor) -> Iterator[Tensor]:
        """How much of a joint each joint takes, [N, units, L, L], block after block.

        Maps of the clip and of the graph are added over subsets; groups count as their mean. All frames are mixed
        alike, each by itself. Numbers are absolute values, divided by the sum of their row.
        """
        S, _ = self.grid
        x = self.stem(clips)
        for block in self.blocks:
            spatial = block.spatial
            static = (spatial.learned + spatial.constant).mean(1)[:, None]  # [subsets, 1, V, V]
            maps = (spatial.dynamic_maps(x) + static).sum(1).transpose(-1, -2).abs()  # [N, units, to, from]
            maps = maps / maps.sum(-1, keepdim=True)
            same = torch.eye(S, dtype=maps.dtype, device=maps.device)[:, None, :, None]
            yield (same * maps[:, :, None, :, None, :]).flatten(4, 5).flatten(2, 3)
            x = block(x)

    def activation_numbers(self) -> int:
        """The maps of the first stage's channels."""
        return self.section.subsets * self.section.base * self.frames * self.grid[1]

    def _states(self, clips: Tensor) -> Iterator[Tensor]:
        """The result of each stage, [N, T', V, channels]."""
        x = self.stem(clips)
        ends = [sum(self.section.stages[: stage + 1]) for stage in range(len(self.section.stages))]
        for begin, end in pairwise([0, *ends]):
            for block in self.blocks[begin:end]:
                x = block(x)
            yield x

    def _tokens(self, states: list[Tensor]) -> Tensor:
        out = states[-1]
        for skip, state in zip(self.skips, states[:-1], strict=True):
            out = out + skip(state)
        return out.flatten(1, 2)

    @torch.no_grad()
    def _initialise(self) -> None:
        """The published start: convolutions normal with variance 2 / (channels * kernel) of their result, biases 0.

        Linear maps of joints and frames, and the stem's, keep PyTorch's start.
        """
        for module in self.modules():
            if isinstance(module, TemporalBranches):
                nn.init.normal_(module.expand.weight, std=math.sqrt(2.0 / module.channels))
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / (module.channels * module.kernel)))
                nn.init.zeros_(module.expand.bias)
                nn.init.zeros_(module.bias)
            elif isinstance(module, SpatialMixing):
                _normal(module.linear)
            elif isinstance(module, (Branch, Projection)):
                _normal(module)
            if isinstance(module, FrameGate):
                _normal(module.gate)


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean, whose gradient, unlike that of PyTorch's, is not written out for every number of x."""
    return x.sum(axes) * (1.0 / math.prod(x.shape[axis] for axis in axes))


def _normal(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=math.sqrt(2.0 / linear.out_features))
    nn.init.zeros_(linear.bias)


def cosine_transforms(size: int) -> tuple[Tensor, Tensor]:
    """The unnormalised DCT-II and its inverse, float64 [size, size] each.

    Row f of the first is 2 cos(pi (2 v + 1) f / (2 size)).
    """
    index = torch.arange(size, dtype=torch.float64)
    forward = 2.0 * torch.cos(math.pi * (2.0 * index + 1.0) * index[:, None] / (2 * size))
    return forward, torch.linalg.inv(forward)
