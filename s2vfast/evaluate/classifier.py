"""An encoder with the published head, and what is left out of it at random while it learns.

Every drop is a function of (seed, epoch, sample), so that it is the same on any device and at any number of ranks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.nn import Encoder
from s2vfast.reference import philox

DROP_PATH, DROPOUT = 32, 33
"""What the draws are for: streams of `philox.random_bits`."""
_INIT_STD = 0.02


class Head(nn.Module):
    """Per-joint means of all bodies and frames -> linear -> batch norm -> ReLU -> linear."""

    def __init__(self, features: int, hidden: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        # A bias before a batch norm changes nothing; its gradient is rounding alone, which AdamW would blow up.
        self.fc1 = nn.Linear(features, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, classes)
        # On the CPU, so that a run starts from the same weights on any device.
        generator = torch.Generator().manual_seed(seed)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=_INIT_STD, a=-2 * _INIT_STD, b=2 * _INIT_STD, generator=generator)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, pooled: Tensor, kept: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            pooled: float32 [B, features], a row a sequence.
            kept: [B, features], factors of dropout; None: none.

        Returns:
            float32 [B, classes].
        """
        x = pooled if kept is None else pooled * kept
        return _linear(self.fc2, F.relu(self.norm(_linear(self.fc1, x))))


class Classifier(nn.Module):
    """Clips to logits."""

    def __init__(self, encoder: Encoder, head: Head, joints: int) -> None:
        super().__init__()
        self.encoder, self.head, self.joints = encoder, head, joints

    def forward(self, clips: Tensor) -> Tensor:
        """Logits [B, classes] of clips [B, M, T, V, C]."""
        return self.head(self.pool(self.encoder(clips.flatten(0, 1)), clips.shape[1]))

    def pool(self, tokens: Tensor, bodies: int) -> Tensor:
        """Per-joint means over segments and bodies: [B, V * D] of tokens [B * M, L, D]."""
        grid = tokens.reshape(-1, bodies, tokens.shape[1] // self.joints, self.joints, tokens.shape[2])
        return grid.mean(dim=(1, 2)).flatten(1)


def drop_rates(depth: int, last: float) -> list[float]:
    """How often a branch of each block is left out: from 0 in the first block, linearly, to ``last`` in the last.

    Stochastic depth: Huang et al., ECCV 2016, with the linear rule.
    """
    return [last * i / (depth - 1) if depth > 1 else last for i in range(depth)]


def draw_paths(rates: list[float], seed: int, epoch: int, sample_ids: Tensor, bodies: int) -> Tensor:
    """What both branches of every block are multiplied by: 0, or 1 / (1 - rate), for every track by itself.

    Args:
        rates: of `drop_rates`.
        seed: of the run.
        epoch: pass over the data.
        sample_ids: int64 [B].
        bodies: M, tracks a sample.

    Returns:
        float32 [B * M, blocks, 2].
    """
    ids = philox.track_ids(sample_ids, bodies)
    draws = philox.uniform(philox.random_bits(seed, epoch, ids, DROP_PATH, 2 * len(rates))).unflatten(1, (-1, 2))
    rate = torch.tensor(rates, device=draws.device)[:, None]
    return (draws >= rate) / (1.0 - rate)


def draw_dropout(rate: float, seed: int, epoch: int, sample_ids: Tensor, features: int) -> Tensor | None:
    """Factors of the head's inputs: 0, or 1 / (1 - rate); float32 [B, features], or None where nothing is dropped."""
    if not rate:
        return None
    draws = philox.uniform(philox.random_bits(seed, epoch, sample_ids, DROPOUT, features))
    return (draws >= rate) / (1.0 - rate)


def encode(encoder: Encoder, clips: Tensor, paths: Tensor, rates: list[float]) -> Tensor:
    """The encoder's tokens, with branches left out.

    Args:
        encoder: whose operations run as they always do.
        clips: [N, T, V, C].
        paths: [N, blocks, 2] of `draw_paths`.
        rates: of `drop_rates`; blocks that are never left out run as they are.

    Returns:
        [N, L, D].
    """
    x = encoder.embedding(clips)
    for i, (block, rate) in enumerate(zip(encoder.blocks, rates, strict=True)):
        x = block(x, factors=None if rate == 0 else paths[:, i].to(x.dtype))
    return ops.add_norm(x, None, None, encoder.norm.weight, encoder.norm.bias, encoder.norm.eps)[1]


def _linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """In the dtype of the matrix, which may be narrower than the bias; the result is float32."""
    weight, bias = linear.weight, linear.bias
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).to(x.dtype)
