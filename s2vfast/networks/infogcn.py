"""InfoGCN: attention between the joints of a frame, convolutions over time (Chi et al., CVPR 2022).

Tensors are [n, T, V, C], channels last: the maps over channels are matrix products of their rows. The published class,
[n, C, T, V], is `s2vfast.reference.infogcn`; `s2vfast.compat.infogcn` has its names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config.fields import Section, option
from s2vfast.errors import ConfigError
from s2vfast.networks import graph
from s2vfast.networks.base import Network, register
from s2vfast.networks.norm import normalise
from s2vfast.networks.stem import Stem
from s2vfast.networks.temporal import Branch, TemporalBranches
from s2vfast.ops._linear import linear

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

_BRANCHES = 4
"""Branches of a temporal module: two dilated convolutions, a maximum, a plain map."""
_DILATIONS = (1, 2)


@dataclass
class InfoGCNConfig(Section):
    """Blocks of InfoGCN."""

    base: int = option(64, ge=1)
    """Width of the first stage; each stage after it is twice as wide and has half the frames."""
    stages: tuple[int, ...] = (3, 3, 3)
    """Blocks of each stage."""
    heads: int = option(3, ge=1)
    """H: attention heads."""
    head_ratio: int = option(8, ge=1)
    """Width of a block as a multiple of a head's queries and keys. Divides base."""
    kernel: int = option(5, ge=1)
    """Frames that a dilated convolution looks at. Odd."""
    k: int = option(1, ge=0)
    """The network sees (I - P^k) x: each joint without its k-th ancestor; those with fewer ancestors stay raw.
    1: bones. 8: plain joints on NTU and NW-UCLA. 0, the default of the published code, shows nothing: it is refused."""
    graph: Literal["right", "published"] = "right"
    """Whose edges k counts along. ``published`` has NW-UCLA's the other way round: the sum of a joint's k-th
    descendants is subtracted, and 7 gives plain joints."""
    attention_init: Literal["linear", "published"] = "linear"
    """Where queries and keys start: as other linear maps do; or normal with deviation 1 (``published``), by which
    attention starts as nearly one joint with nearly no gradient."""


@register("infogcn")
class InfoGCN(Network):
    """Joint embedding, batch norm of every body, joint and channel, blocks. Tokens are joints in segments of frames.

    Args:
        section: the sizes.
        mode: [V, V], the map over joints that clips go through first (`s2vfast.networks.graph.mode`).
        frames: T of clips.
        bodies: M, tracks of a sample.
        channels: of clips.
    """

    Section = InfoGCNConfig
    # The batch norm of the embedding tells the bodies of a sample apart.
    independent_tracks = False

    def __init__(self, section: InfoGCNConfig, mode: Tensor, frames: int, bodies: int, channels: int = 3) -> None:
        super().__init__()
        V, width = len(mode), section.base
        self.depth = sum(section.stages)
        self.stem = Stem(mode, bodies, channels, width)
        self.blocks = nn.ModuleList()
        for stage, count in enumerate(section.stages):
            for i in range(count):
                out, stride = section.base * 2**stage, 2 if stage and i == 0 else 1
                self.blocks.append(Block(width, out, V, section, stride))
                width = out
        self.width = width
        stride = 2 ** (len(section.stages) - 1)
        # The last segment of a clip whose length is no multiple of the stride would be shorter than the others.
        self.grid = None if frames % stride else (frames // stride, V)
        self.segment_frames = None if frames % stride else stride

    @classmethod
    def build(cls, config: Config, layout: Layout) -> InfoGCN:
        """Of the config's model section, with the published start."""
        section = config.model
        mode = graph.mode(layout, section.k, section.graph)
        return cls(section, mode, config.data.frames, config.data.bodies, config.channels)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Whole heads and branches, and a mode that shows something."""
        model = config.model
        if not model.stages or min(model.stages) < 1:
            raise ConfigError(f"model.stages: {list(model.stages)}; a number above 0 for each stage is expected")
        for name, divisor in (("head_ratio", model.head_ratio), ("branches of a temporal module", _BRANCHES)):
            if model.base % divisor:
                raise ConfigError(f"model.base: {model.base} is no multiple of {divisor}, the {name}")
        if model.kernel % 2 == 0:
            raise ConfigError(f"model.kernel: {model.kernel}; an odd number is expected")
        graph.check_generations(model.k)

    @classmethod
    def segments(cls, config: Config) -> int | None:
        """Frames that are left after the last stage, where they are whole segments."""
        stride = 2 ** (len(config.model.stages) - 1)
        return None if config.data.frames % stride else config.data.frames // stride

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Outputs of the last block, [N, L, D]; arguments as of `Network.tokens`."""
        return self.hidden(clips, 1)[0]

    def hidden(self, clips: Tensor, last: int) -> list[Tensor]:
        """Outputs of the last ``last`` blocks, of those that are as wide as the last one, each [N, L, D]."""
        x, outputs = self.stem(clips), []
        for block in self.blocks:
            x = block(x)
            outputs = [*outputs, x][-last:]
        if any(output.shape != x.shape for output in outputs):
            raise NotImplementedError(f"InfoGCN.hidden: the last {last} blocks are of several widths")
        return [output.flatten(1, 2) for output in outputs]

    def layer_of(self, name: str) -> int:
        """0: the embedding; i + 1: block i."""
        first, _, remainder = name.partition(".")
        return int(remainder.partition(".")[0]) + 1 if first == "blocks" else 0

    def attention(self, clips: Tensor) -> Iterator[Tensor] | None:
        """Attention [N, H, L, L] of each block: maps of single frames, averaged over a segment's, zero elsewhere."""
        return None if self.grid is None else self._attention(clips)

    def _attention(self, clips: Tensor) -> Iterator[Tensor]:
        S, V = self.grid
        x = self.stem(clips)
        for block in self.blocks:
            maps = block.graph.maps(x)  # [N, T, H, V, V]
            maps = maps.unflatten(1, (S, -1)).mean(2)  # [N, S, H, V, V]
            blocks = maps.new_zeros(len(maps), maps.shape[2], S, V, S, V)
            segments = torch.arange(S, device=maps.device)
            blocks[:, :, segments, :, segments] = maps.transpose(0, 1)
            yield blocks.flatten(4, 5).flatten(2, 3)
            x = block(x)


class Block(nn.Module):
    """relu(relu(temporal(graph(x))) + residual(x)): [N, T, V, C] to [N, ceil(T / stride), V, out]."""

    def __init__(self, width: int, out: int, joints: int, section: InfoGCNConfig, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.graph = GraphAttention(width, out, joints, section)
        b = out // _BRANCHES
        self.temporal = TemporalBranches(out, b, section.kernel, _DILATIONS, stride, more=[Branch(out, b)])
        self.residual = None if width == out and stride == 1 else Projection(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        residual = x if self.residual is None else self.residual(x[:, :: self.stride])
        return self.temporal(self.graph(x), residual, relu_first=True)


class GraphAttention(nn.Module):
    """SAGC: attention of a frame's joints times a topology that all frames share, a linear map a head, batch norm."""

    def __init__(self, width: int, out: int, joints: int, section: InfoGCNConfig) -> None:
        super().__init__()
        self.heads = section.heads
        d = width // section.head_ratio
        self.norm = nn.LayerNorm(width)
        self.qk = nn.Linear(width, 2 * self.heads * d)
        if section.attention_init == "published":
            nn.init.normal_(self.qk.weight)
        self.topology = nn.Parameter(torch.eye(joints).repeat(self.heads, 1, 1))
        self.weight = nn.Parameter(torch.randn(self.heads, out, width) * math.sqrt(2.0 / (out * width * self.heads)))
        self.bias = nn.Parameter(torch.zeros(self.heads, out))
        self.batch_norm = nn.BatchNorm1d(out)
        # As published: a block starts as what `down` makes of its input.
        nn.init.constant_(self.batch_norm.weight, 1e-6)
        self.down = None if width == out else Projection(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, V, C] to [N, T, V, out]."""
        # The norm's own weight and bias are those of the linear map after it.
        qk_weight, qk_bias = self.qk.weight * self.norm.weight, self.qk.bias + self.qk.weight @ self.norm.bias
        y = ops.graph_attention(
            x.flatten(0, 1),
            qk_weight.view(2, self.heads, -1, x.shape[3]),
            qk_bias.view(2, self.heads, -1),
            self.topology,
            self.weight,
            None,
            eps=self.norm.eps,
        ).view(*x.shape[:3], -1)
        residual = x if self.down is None else self.down(x)
        return normalise(self.batch_norm, y, residual, relu=True, shift=self.bias.sum(0))

    def maps(self, x: Tensor) -> Tensor:
        """Attention before the topology, [N, T, H, V, V]; the weights of a joint's row sum to 1."""
        qk = self.qk(self.norm(x)).unflatten(3, (2, self.heads, -1))
        q, k = qk.permute(3, 0, 1, 4, 2, 5)
        return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)


class Projection(nn.Module):
    """A linear map and a batch norm, for widths and strides that change."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.norm = nn.BatchNorm1d(out)
        nn.init.normal_(self.linear.weight, std=math.sqrt(2.0 / out))  # Kaiming's, by what goes out
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., out]."""
        return normalise(self.norm, linear(x, self.linear.weight, None), shift=self.linear.bias)
