"""The order of shuffled clips, after 4D clip order prediction (Wang et al., WACV 2021) and VCOP (Xu et al., CVPR 2019).

Some clips are cut out of one stretch of a sequence, shuffled, and a head on their features says which of the n! orders
it is. VCOP published the head ``pairs`` and its settings for video; a survey says of the method on point clouds that
its head is an LSTM. What else that paper set is not known here: all defaults below are this project's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, build_network, linear_weights
from s2vfast.networks.clip_encoder import ClipEncoder
from s2vfast.objectives.base import Draw, Loss, MicroBatch, Objective, register
from s2vfast.objectives.classify import operand_linear, top1
from s2vfast.reference import philox

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout


@dataclass
class ClipOrderConfig:
    """The clips, and the head that orders them. data.frames is clips * frames + (clips - 1) * gap."""

    clips: int = option(3, ge=2, le=5)
    """n: clips of a tuple, of which there are n! orders (VCOP: 3)."""
    frames: int = option(8, ge=1)
    """Frames of a clip."""
    gap: int = option(4, ge=0)
    """Frames between two clips. Without any, the last frame of a clip and the first of the next are almost the same."""
    head: Literal["pairs", "lstm"] = "pairs"
    """``pairs``: every two clips by one linear map and a ReLU, all pairs by another (VCOP). ``lstm``: an LSTM over the
    clips as they were shuffled, a linear map of its last state."""
    hidden: int = option(256, ge=1)
    """Width of a pair, or of the LSTM's state (VCOP, pairs: 512)."""
    dropout: float = option(0.0, ge=0, lt=1)
    """Share of the numbers before the last linear map that are dropped (VCOP, pairs: 0.5)."""
    orders: int | None = option(None, ge=1)
    """Different orders that are drawn of each tuple, at most n! (VCOP: 1). Clips are encoded once for all of them.
    null: all n!."""


class PairsHead(nn.Module):
    """Features of shuffled clips to logits of their orders, pair by pair (VCOP)."""

    def __init__(self, width: int, clips: int, hidden: int) -> None:
        super().__init__()
        self.pairs = tuple(itertools.combinations(range(clips), 2))
        self.features = hidden * len(self.pairs)
        """Numbers before the last map."""
        self.fc1 = nn.Linear(2 * width, hidden)
        self.fc2 = nn.Linear(self.features, math.factorial(clips))

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self.fc1, self.fc2)

    def forward(self, features: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Logits [N, n!] of features [N, n, D]; dropout [N, `features`] are factors, None: one."""
        pairs = [torch.cat([features[:, i], features[:, j]], dim=1) for i, j in self.pairs]
        x = torch.cat([F.relu(operand_linear(self.fc1, pair)) for pair in pairs], dim=1)
        return operand_linear(self.fc2, x if dropout is None else x * dropout)


class LSTMHead(nn.Module):
    """Features of shuffled clips to logits of their orders, by an LSTM that reads one after the other."""

    def __init__(self, width: int, clips: int, hidden: int) -> None:
        super().__init__()
        self.features = hidden
        """Numbers before the last map."""
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, math.factorial(clips))

    def forward(self, features: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Arguments and result as of `PairsHead`."""
        _, (state, _) = self.lstm(features)  # [1, N, hidden]
        return self.fc(state[0] if dropout is None else state[0] * dropout)


HEADS = {"pairs": PairsHead, "lstm": LSTMHead}


@dataclass(frozen=True)
class ClipOrderInputs:
    """What the loss needs beside the view: m orders of each of n tuples."""

    orders: Tensor  # int64 [n, m], numbers of the permutations
    shuffled: Tensor  # int64 [n, m, clips], the permutations
    dropout: Tensor | None  # float32 [n * m, features], factors


@register("clip_order")
class ClipOrder(Objective):
    """A network of clips and a head that orders them; the view is the stretch that all clips of a tuple are cut from.

    All clips of a tuple have the stretch's one centre and its one augmentation: where a body is in space, and how it
    moves from clip to clip, is part of the question.

    Args:
        encoder: the network.
        options: the section.
    """

    Section = ClipOrderConfig
    terms = ("top1",)

    def __init__(self, encoder: Network, options: ClipOrderConfig) -> None:
        super().__init__(encoder)
        self.options = options
        self.head = HEADS[options.head](encoder.width, options.clips, options.hidden)

    @classmethod
    def build(cls, config: Config, layout: Layout, classes: Sequence[str] = ()) -> ClipOrder:
        """The objective of a config, as it stands before the first step."""
        return cls(build_network(config, layout), config.objective)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """A network of clips of any length, a stretch that holds them, and one body."""
        options, data = config.objective, config.data
        if not issubclass(config.network_class, ClipEncoder):
            raise ConfigError(
                f"objective.name: clip_order encodes clips one by one; model.name: {config.model.name} takes clips of "
                f"data.frames alone"
            )
        if options.frames < config.model.segment_frames:
            raise ConfigError(
                f"objective.frames: {options.frames} is less than model.segment_frames = {config.model.segment_frames}"
            )
        if data.frames != (frames := span(options)):
            raise ConfigError(
                f"data.frames: {data.frames}; {options.clips} clips of {options.frames} frames and gaps of "
                f"{options.gap} take {frames}"
            )
        if data.bodies != 1:
            raise ConfigError(f"data.bodies: {data.bodies}; clip_order shuffles the clips of one track, give 1")
        if options.orders is not None and options.orders > (most := math.factorial(options.clips)):
            raise ConfigError(f"objective.orders: {options.orders}; {options.clips} clips have {most} orders")

    def prepare(self, views: tuple[Tensor, ...], draw: Draw) -> ClipOrderInputs:
        """Orders and drops."""
        options = self.options
        ids, most = draw.sample_ids.to(views[0].device, non_blocking=True), math.factorial(options.clips)
        bits = philox.random_bits(draw.seed, draw.epoch, ids, philox.CLIP_ORDER, most)
        orders = torch.argsort(bits, dim=1, stable=True)[:, : options.orders]
        dropout = None
        if options.dropout:
            count = orders.shape[1] * self.head.features
            bits = philox.random_bits(draw.seed, draw.epoch, ids, philox.CLIP_ORDER_DROPOUT, count)
            dropout = (philox.uniform(bits) >= options.dropout) / (1.0 - options.dropout)
            dropout = dropout.view(orders.numel(), -1)
        return ClipOrderInputs(orders, permutations(options.clips).to(orders.device)[orders], dropout)

    def features(self, view: Tensor, gap: int | None = None) -> Tensor:
        """Features [n, clips, D] of a tuple's clips, in the order of time.

        Args:
            view: [n, T, P, 3], the stretch.
            gap: frames between two clips; None: the objective's.
        """
        clips = cut(view, self.options, gap)
        return self.encoder(clips.flatten(0, 1)).mean(dim=1).unflatten(0, (len(view), -1))

    def logits(self, features: Tensor, shuffled: Tensor, dropout: Tensor | None = None) -> Tensor:
        """[n * m, clips!] of features [n, clips, D], each tuple in m permutations, int64 [n, m, clips]."""
        tuples = torch.arange(len(features), device=features.device)[:, None, None]
        return self.head(features[tuples, shuffled].flatten(0, 1), dropout)

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """Cross-entropy, and ``top1``: per cent of the orders that were told."""
        inputs = batch.inputs
        logits = self.logits(self.features(batch.clips).float(), inputs.shuffled, inputs.dropout)
        orders = inputs.orders.flatten()
        return Loss(F.cross_entropy(logits, orders), len(logits), terms={"top1": top1(logits, orders)})


def span(options: ClipOrderConfig, gap: int | None = None) -> int:
    """Frames of the stretch that holds the clips and the gaps between them."""
    gap = options.gap if gap is None else gap
    return options.clips * options.frames + (options.clips - 1) * gap


def cut(view: Tensor, options: ClipOrderConfig, gap: int | None = None) -> Tensor:
    """The clips [n, clips, frames, P, 3] of stretches [n, T, P, 3]; ``gap`` as of `span`."""
    step = options.frames + (options.gap if gap is None else gap)
    return torch.stack([view[:, at : at + options.frames] for at in range(0, options.clips * step, step)], dim=1)


def permutations(clips: int) -> Tensor:
    """int64 [clips!, clips], in lexicographic order: order i shows clip ``permutations(clips)[i, j]`` at place j."""
    return torch.tensor(list(itertools.permutations(range(clips))))
