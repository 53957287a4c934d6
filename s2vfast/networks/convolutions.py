"""Dilated convolutions over time of joints, bones and motion, what they reach pooled, and one embedding a clip.

The kernels begin as those of ROCKET (Dempster, Petitjean and Webb, 2020), which need no training to tell actions apart:
each looks at a few channels of one dilation, its weights have no mean. Here they learn. As there, of a kernel's output
over time the share of positive values and the maximum count, and the deviation besides; the share is that of a steep
sigmoid, which has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from s2vfast.config.fields import option
from s2vfast.data.streams import Stream
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, register
from s2vfast.networks.norm import normalise
from s2vfast.networks.rocket import draw_kernel

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

STEEPNESS = 4.0
"""Of the sigmoid that stands for the share of positive values."""
STATISTICS = 3
"""Numbers that are pooled of every kernel."""
UNITS = {"joint": 3.0, "bone": 1.0, "motion": 0.25, "bone_motion": 0.1}
"""What is usual for the numbers of a stream, in `body_size`: divided by it, streams count alike before training."""
COLLAPSED = 0.01
"""Least size of a body, in root mean squares of its joints' coordinates: joints that lie at one point have no bones."""


@dataclass
class ConvolutionsConfig:
    """Streams, kernels and embedding."""

    streams: tuple[Literal["joint", "bone", "motion", "bone_motion"], ...] = ("joint", "bone", "motion")
    """What kernels see of a clip (`s2vfast.data.streams`), side by side."""
    kernels: int = option(1536, ge=1)
    """K: a multiple of how many dilations there are."""
    length: int = option(9, ge=1)
    """Taps of a kernel, an odd number."""
    dilations: tuple[int, ...] = (1, 2, 4, 6)
    """Frames from one tap to the next, of an equal share of the kernels each."""
    first_channels: int = option(9, ge=0)
    """Most channels that a kernel looks at in the beginning, drawn as by ROCKET; all others begin at 0. 0: it looks at
    all."""
    dim: int = option(512, ge=1)
    """D: numbers of the embedding."""


@register("convolutions")
class Convolutions(Network):
    """A bank of kernels, pooling over time, a batch norm and a linear map.

    Layer 1 has a token [K] a frame, layer 2 the embedding, which is the one token of a clip.

    Args:
        options: the section.
        channels: C of clips, 3 where they are coordinates alone.
        layout: the skeleton.
    """

    Section = ConvolutionsConfig
    any_frames = True
    depth = 2

    def __init__(self, options: ConvolutionsConfig, channels: int, layout: Layout) -> None:
        super().__init__()
        self.width, self.layout = options.dim, layout
        self.streams = [Stream(name) for name in options.streams]
        inputs = len(self.streams) * layout.num_joints * channels
        each = options.kernels // len(options.dilations)
        self.input_norm = nn.BatchNorm1d(inputs, affine=False)
        self.kernels = nn.ModuleList(
            nn.Conv1d(inputs, each, options.length, padding=dilation * (options.length // 2), dilation=dilation)
            for dilation in options.dilations
        )
        for bank in self.kernels:
            draw(bank, options.first_channels or inputs)
        self.norm = nn.BatchNorm1d(STATISTICS * options.kernels)
        self.embedding = nn.Linear(STATISTICS * options.kernels, options.dim, bias=False)

    @classmethod
    def build(cls, config: Config, layout: Layout) -> Convolutions:
        """Of the config's model section."""
        return cls(config.model, config.channels, layout)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Kernels that can be dealt out, with a middle tap, and clips of which bones and motion can be made."""
        model = config.model
        if not model.streams or not model.dilations or min(model.dilations) < 1:
            raise ConfigError("model: streams and dilations need an entry each, and dilations are 1 or more")
        if model.kernels % len(model.dilations):
            raise ConfigError(
                f"model.kernels: {model.kernels} is no multiple of the {len(model.dilations)} model.dilations"
            )
        if model.length % 2 == 0:
            raise ConfigError(f"model.length: {model.length} has no middle; an odd number is expected")
        if config.data.stream != "joint" or config.data.velocity:
            raise ConfigError(
                "data: convolutions make their own streams (model.streams); data.stream joint and data.velocity 0 are "
                "expected"
            )

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """The embedding [N, 1, D] of clips float32 [N, T, V, C]."""
        return self._embedding(self._responses(clips))

    def hidden(self, clips: Tensor, last: int) -> list[Tensor]:
        """What kernels respond [N, T, K], then the embedding [N, 1, D]; the last ``last`` of them."""
        responses = self._responses(clips)
        return [responses.transpose(1, 2), self._embedding(responses)][2 - last :]

    def layer_of(self, name: str) -> int:
        """1: kernels; 2: the norm and the embedding."""
        return 1 if name.startswith("kernels") else 2

    def activation_numbers(self) -> int:
        """Numbers a track of the kernels' responses to as many frames as 64."""
        return 64 * sum(bank.out_channels for bank in self.kernels)

    def _responses(self, clips: Tensor) -> Tensor:
        """[N, K, T] of clips [N, T, V, C]."""
        tracks = clips[:, None]  # [N, 1, T, V, C]
        streams = [stream(tracks, self.layout)[:, 0].flatten(2) for stream in self.streams]  # [N, T, V * C]
        size = body_size(tracks, self.layout)
        present = (size > 0).to(size.dtype)
        size = size + (1.0 - present)  # all that is divided by it is zero
        streams = [stream / (UNITS[of.name] * size) for of, stream in zip(self.streams, streams, strict=True)]
        x = torch.cat(streams, dim=2).transpose(1, 2)
        # Joints that move little say as much as those that move most. A body that is not there says nothing, though its
        # zeros count in the norm's statistics: to leave them out, the sizes of tensors would depend on the clips.
        x = self.input_norm(x) * present
        return torch.cat([bank(x) for bank in self.kernels], dim=1)

    def _embedding(self, responses: Tensor) -> Tensor:
        positive = torch.sigmoid(STEEPNESS * responses).mean(2)
        pooled = torch.cat([positive, responses.amax(2), responses.std(2, correction=0)], dim=1)
        return self.embedding(normalise(self.norm, pooled))[:, None]


def body_size(tracks: Tensor, layout: Layout) -> Tensor:
    """Root mean square [N, 1, 1] of the bones' coordinates in clips [N, 1, T, V, C]; 0 where nobody is there."""
    bones, joints = (points.square().mean((1, 2, 3, 4)).sqrt() for points in (Stream("bone")(tracks, layout), tracks))
    return torch.maximum(bones, COLLAPSED * joints)[:, None, None]


def draw(bank: nn.Conv1d, most: int) -> None:
    """Let kernels begin as ROCKET's, each with ``most`` channels at most; the others begin at 0."""
    kernels, channels, length = bank.weight.shape
    numbers = np.random.Generator(np.random.Philox(int(torch.randint(2**63 - 1, ()))))  # of the network's own seed
    with torch.no_grad():
        bank.weight.zero_()
        for kernel in range(kernels):
            picked, weight, bias = draw_kernel(numbers, channels, length, min(most, channels))
            bank.weight[kernel, picked] = torch.from_numpy(weight).to(bank.weight)
            bank.bias[kernel] = bias
