"""The transformer: tokens of one joint over one segment, pre-norm blocks, a final layer norm.

As published for Skeleton2vec (arXiv 2401.00921), SkeletonMAE (arXiv 2209.02399) and MAMP (ICCV 2023).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, register
from s2vfast.networks.block import BlockOptions, BlockStack

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout


@dataclass
class TransformerConfig:
    """Tokens and blocks of the transformer."""

    segment_frames: int = option(3, ge=1)
    """s: frames of one joint that make one token. Divides data.frames."""
    dim: int = option(256, ge=1)
    """D: width of tokens. A multiple of model.heads."""
    heads: int = option(8, ge=1)
    """H: attention heads."""
    depth: int = option(8, ge=1)
    """Blocks."""
    mlp_ratio: float = option(4.0, gt=0)
    """Hidden width of the MLP as a multiple of dim."""
    layer_scale: float | None = option(1e-4, ge=0)
    """First value of LayerScale's gamma; null: no LayerScale."""
    norm_eps: float = option(1e-6, gt=0)
    """Added to the variance by layer norms."""
    init: Literal["normal", "xavier"] = "normal"
    """Where matrices start: truncated normal of init_std (published), or Xavier uniform, which suits narrow models."""
    init_std: float = option(0.02, gt=0)
    """Standard deviation of the truncated normal that embeddings, mask token and (normal) matrices start from."""


def token_positions(segment: Tensor, joint: Tensor) -> Tensor:
    """Segment [S, D] plus joint [V, D] embeddings: [S * V, D], token ids segment * V + joint."""
    return (segment[:, None] + joint[None]).reshape(-1, joint.shape[-1])


class Embedding(nn.Module):
    """A linear map of s frames of one joint, a learned joint embedding and a learned segment embedding."""

    def __init__(self, joints: int, segments: int, segment_frames: int, channels: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, segment_frames * channels))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.joint = nn.Parameter(torch.zeros(joints, dim))
        self.segment = nn.Parameter(torch.zeros(segments, dim))

    def forward(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens [N, K, D] named by ``visible`` (int32 [N, K]), or all [N, L, D], of clips [N, T, V, C]."""
        positions = token_positions(self.segment, self.joint)
        return ops.embed_gather(clips, self.weight, self.bias, positions, visible)


@register("transformer")
class Transformer(Network):
    """Token embedding, blocks, a final layer norm."""

    Section = TransformerConfig
    accepts_visible = True
    branches = 2

    def __init__(
        self, joints: int, segments: int, segment_frames: int, channels: int, depth: int, blocks: BlockOptions
    ) -> None:
        super().__init__()
        self.width, self.depth = blocks.dim, depth
        self.grid, self.segment_frames = (segments, joints), segment_frames
        self.embedding = Embedding(joints, segments, segment_frames, channels, blocks.dim)
        self.blocks = BlockStack(depth, blocks)
        self.norm = nn.LayerNorm(blocks.dim, eps=blocks.norm_eps)

    @classmethod
    def build(cls, config: Config, layout: Layout) -> Transformer:
        """Of the config's model section, with the published start."""
        model, blocks = config.model, BlockOptions.of(config.model)
        network = cls(
            layout.num_joints, cls.segments(config), model.segment_frames, config.channels, model.depth, blocks
        )
        return initialise(network, model.init, model.init_std, seed=2 * config.train.seed)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Whole segments, and heads of one width."""
        model, frames = config.model, config.data.frames
        if frames % model.segment_frames:
            raise ConfigError(f"data.frames: {frames} is no multiple of model.segment_frames = {model.segment_frames}")
        if model.dim % model.heads:
            raise ConfigError(f"model.dim: {model.dim} is no multiple of model.heads = {model.heads}")

    @classmethod
    def segments(cls, config: Config) -> int:
        """S: segments in a clip."""
        return config.data.frames // config.model.segment_frames

    @property
    def final_norm(self) -> nn.LayerNorm:
        """The layer norm after the last block."""
        return self.norm

    def tokens(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Features after the final norm; arguments and shapes as of `Network.tokens`."""
        return self._normed(self.stream(clips, visible))

    def stream(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """The residual stream after the last block, before the final norm."""
        return self.blocks(self.embedding(clips, visible))

    def hidden(self, clips: Tensor, last: int) -> list[Tensor]:
        """Outputs of the last ``last`` blocks, before the final norm, each [N, L, D]."""
        return list(deque(self.blocks.states(self.embedding(clips)), maxlen=last))

    def with_drop_path(self, clips: Tensor, factors: Tensor, rates: list[float]) -> Tensor:
        """All tokens, attention and MLP of each block multiplied by their factors [N, depth, 2]."""
        x = self.embedding(clips)
        for i, (block, rate) in enumerate(zip(self.blocks, rates, strict=True)):
            x = block(x, factors=None if rate == 0 else factors[:, i].to(x.dtype))
        return self._normed(x)

    def layer_of(self, name: str) -> int:
        """0: the embedding; i + 1: block i; depth + 1: the final norm."""
        first, _, remainder = name.partition(".")
        if first == "blocks":
            return int(remainder.partition(".")[0]) + 1
        return 0 if first == "embedding" else self.depth + 1

    def attention(self, clips: Tensor) -> Iterator[Tensor]:
        """Attention weights [N, H, L, L] of each block."""
        x = self.embedding(clips)
        for block in self.blocks:
            yield block.attention_weights(x)
            x = block(x)

    def activation_numbers(self) -> int:
        """Queries, keys and values, or the MLP's hidden state, of all tokens."""
        segments, joints = self.grid
        return max(self.blocks[0].fc1.out_features, 3 * self.width) * segments * joints

    def _normed(self, stream: Tensor) -> Tensor:
        return ops.add_norm(stream, None, None, self.norm.weight, self.norm.bias, self.norm.eps)[1]


def initialise(module: nn.Module, init: str, std: float, seed: int) -> nn.Module:
    """The published start: matrices as ``init`` says, embeddings and mask token truncated normal, biases 0.

    Norms and LayerScale stay as they are. The generator runs on the CPU, so that a run starts from the same weights on
    any device.
    """
    generator = torch.Generator().manual_seed(seed)
    unchanged = ("norm", "gamma")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            owner, _, kind = name.rpartition(".")
            if kind == "bias" and "norm" not in owner:
                parameter.zero_()
            elif kind == "weight" and parameter.ndim == 2 and init == "xavier":
                nn.init.xavier_uniform_(parameter, generator=generator)
            elif not any(word in name for word in unchanged):
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)
    return module
