"""Supervised training of any network, from its first weights or from pretrained ones, with the published head.

Everything that is left out at random is a function of (seed, epoch, sample), so that it is the same on any device and
at any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, build_network, linear_weights
from s2vfast.objectives.base import Draw, Loss, MicroBatch, Objective, register
from s2vfast.objectives.bodies import mean_over_tracks
from s2vfast.reference import philox

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

_INIT_STD = 0.02


@dataclass
class ClassifyConfig:
    """The head, and what is left out of the network while it learns."""

    head: Literal["mlp", "linear", "segments"] = "mlp"
    """``mlp``: means of every joint, linear, batch norm, ReLU, linear (published for Skeleton2vec). ``linear``: one
    linear map of the mean over all tokens (published for graph convolutions). ``segments``: one linear map of the means
    of every segment, one after the other in time (for clips of points)."""
    hidden: int = option(2048, ge=1)
    """Width of the head between its two linear maps (mlp; published)."""
    dropout: float = option(0.3, ge=0, lt=1)
    """Share of the head's inputs that are dropped (published)."""
    drop_path: float = option(0.3, ge=0, lt=1)
    """Stochastic depth: how often a branch of the last layer is left out; linearly less below, never in the first
    layer (published). For networks with residual branches."""
    label_smoothing: float = option(0.1, ge=0, lt=1)
    """The fraction of the target that all classes get in equal parts: label smoothing (published)."""
    noise: bool = False
    """Whether the network has the noise of its training passes: dropout by model.dropout (published for Hi-TRS). In
    place of drop_path."""
    frozen_norms: bool = False
    """Whether the network stays in evaluation mode, and with it the statistics of its batch norms (published for
    SkeAttnCLR)."""


class Head(nn.Module):
    """Features of a sequence -> linear -> batch norm -> ReLU -> linear."""

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

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self.fc1, self.fc2)

    def forward(self, pooled: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            pooled: float32 [B, features], a row a sequence.
            dropout: [B, features], factors of the inputs; None: one.

        Returns:
            float32 [B, classes].
        """
        x = pooled if dropout is None else pooled * dropout
        return operand_linear(self.fc2, F.relu(self.norm(operand_linear(self.fc1, x))))


class LinearHead(nn.Linear):
    """Features of a sequence -> linear.

    Args:
        features: F.
        classes: number of classes.
        seed: of the first weights.
        std: of the first weights; None: that which graph convolutions were published with.
    """

    def __init__(self, features: int, classes: int, seed: int = 0, std: float | None = None) -> None:
        super().__init__(features, classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.weight, std=(2.0 / classes) ** 0.5 if std is None else std, generator=generator)
        nn.init.uniform_(self.bias, -(features**-0.5), features**-0.5, generator=generator)

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self)

    def forward(self, pooled: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Logits, arguments as of `Head`."""
        return operand_linear(self, pooled if dropout is None else pooled * dropout)


@dataclass(frozen=True)
class ClassifyInputs:
    """What the loss needs beside the clips."""

    labels: Tensor  # int64 [n]
    paths: Tensor | None  # float32 [n * M, depth, branches], factors of stochastic depth
    dropout: Tensor | None  # float32 [n, features], factors of the head's inputs
    noise: Any = None  # see `Network.draw_noise`


class Supervised(Objective):
    """A network, a head on what its tokens are pooled to, labels. A subclass makes the head and says what is lost.

    Args:
        encoder: the network.
        head: features [B, F] to logits [B, classes], in evaluation mode.
        features: F: the network's width times the parts of ``pool``.
        bodies: M, tracks a sample.
        pool: what the head sees, as `s2vfast.evaluate.features` calls it: means over all tokens, over those of a joint,
            or over those of a segment.
    """

    needs_labels = True
    terms = ("top1",)

    def __init__(
        self,
        encoder: Network,
        head: nn.Module,
        features: int,
        bodies: int,
        pool: Literal["mean", "joint", "segment"] = "mean",
    ) -> None:
        super().__init__(encoder)
        self.head, self.features, self.bodies, self.head_pool = head, features, bodies, pool

    @classmethod
    def build(cls, config: Config, layout: Layout, classes: Sequence[str] = ()) -> Supervised:
        """The objective of a config, as it stands before the first step."""
        if not classes:
            raise ConfigError(f"objective.name: {config.objective.name} needs a store with classes")
        return cls(build_network(config, layout), config.objective, config.data.bodies, classes, config.train.seed)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits [B, classes] of clips [B, M, T, V, C]."""
        return self.head(self.pool(self.encoder(clips.flatten(0, 1)), clips.shape[1]))

    def pool(self, tokens: Tensor, bodies: int) -> Tensor:
        """What the head sees of tokens [B * M, L, D]: means over bodies and what is not told apart, [B, features]."""
        _, L, D = tokens.shape
        parts = self.features // D
        if self.head_pool == "segment":  # [B * M, joints, segments * D]
            return mean_over_tracks(tokens.reshape(-1, parts, L // parts, D).transpose(1, 2).flatten(2), bodies)
        return mean_over_tracks(tokens.reshape(-1, L // parts, parts * D), bodies)


@register("classify")
class Classify(Supervised):
    """A network, the published head, cross-entropy.

    Args:
        encoder: the network.
        options: the section.
        bodies: M, tracks a sample.
        classes: names of the classes.
        seed: of the head's first weights.
    """

    Section = ClassifyConfig

    def __init__(
        self, encoder: Network, options: ClassifyConfig, bodies: int, classes: Sequence[str], seed: int = 0
    ) -> None:
        segments, joints = encoder.grid or (1, 1)
        pool = {"mlp": "joint", "segments": "segment"}.get(options.head, "mean") if encoder.grid else "mean"
        features = {"mean": 1, "joint": joints, "segment": segments}[pool] * encoder.width
        head: Head | LinearHead
        if options.head == "mlp":
            head = Head(features, options.hidden, len(classes), seed)
        else:
            std = _INIT_STD if options.head == "segments" else None
            head = LinearHead(features, len(classes), seed, std)
        super().__init__(encoder, head, features, bodies, pool)
        self.options = options
        self.rates = drop_rates(encoder.depth, options.drop_path)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Stochastic depth of a network that has branches to leave out, and two samples for the batch norm."""
        if config.objective.drop_path and not config.network_class.branches:
            raise ConfigError(
                f"objective.drop_path: {config.objective.drop_path}; model.name: {config.model.name} has no residual "
                f"branches to leave out, give 0"
            )
        if config.objective.head == "segments" and not config.network_class.segments(config):
            raise ConfigError(
                f"objective.head: segments; model.name: {config.model.name} has tokens of no segments, give linear"
            )
        if config.objective.drop_path and config.objective.noise:
            raise ConfigError("objective.noise: true takes the place of objective.drop_path, give 0 there")
        if config.train.batch < 2:
            raise ConfigError(f"train.batch: {config.train.batch}; 2 or more is expected, for the head's batch norm")

    def train(self, mode: bool = True) -> Classify:
        """As of `torch.nn.Module`; the network stays in evaluation mode where its norms are frozen."""
        super().train(mode)
        if self.options.frozen_norms:
            self.encoder.eval()
        return self

    def prepare(self, views: tuple[Tensor, ...], draw: Draw) -> ClassifyInputs:
        """Labels and drops."""
        ids = draw.sample_ids.to(views[0].device, non_blocking=True)
        paths = None
        if self.options.drop_path:
            paths = draw_paths(self.rates, self.encoder.branches, draw.seed, draw.epoch, ids, self.bodies)
        dropout = draw_dropout(self.options.dropout, draw.seed, draw.epoch, ids, self.features)
        noise = None
        if self.options.noise:
            noise = self.encoder.draw_noise(views[0], draw.words(philox.NETWORK_NOISE, self.bodies, ids.device))
        return ClassifyInputs(draw.labels, paths, dropout, noise)

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """Cross-entropy, and ``top1``: per cent that was right, clips and network being those of training."""
        inputs = batch.inputs
        if inputs.noise is not None:
            tokens = self.encoder.with_noise(batch.clips, inputs.noise)
        elif inputs.paths is not None:
            tokens = self.encoder.with_drop_path(batch.clips, inputs.paths, self.rates)
        else:
            tokens = self.encoder(batch.clips)
        logits = self.head(self.pool(tokens, self.bodies).float(), inputs.dropout)
        loss = F.cross_entropy(logits, inputs.labels, label_smoothing=self.options.label_smoothing)
        return Loss(loss, len(logits), terms={"top1": top1(logits, inputs.labels)})


def top1(logits: Tensor, labels: Tensor) -> Tensor:
    """Per cent of the rows of logits [n, classes] whose largest is the label's."""
    return 100.0 * (logits.detach().argmax(dim=1) == labels).float().mean()


def drop_rates(depth: int, last: float) -> list[float]:
    """How often a branch of each layer is left out: from 0 in the first layer, linearly, to ``last`` in the last.

    Stochastic depth: Huang et al., ECCV 2016, with the linear rule.
    """
    return [last * i / (depth - 1) if depth > 1 else last for i in range(depth)]


def draw_paths(rates: list[float], branches: int, seed: int, epoch: int, sample_ids: Tensor, bodies: int) -> Tensor:
    """What the branches of every layer are multiplied by: 0, or 1 / (1 - rate), for every track by itself.

    Args:
        rates: of `drop_rates`.
        branches: residual branches a layer.
        seed: of the run.
        epoch: pass over the data.
        sample_ids: int64 [B].
        bodies: M, tracks a sample.

    Returns:
        float32 [B * M, layers, branches].
    """
    ids = philox.track_ids(sample_ids, bodies)
    draws = philox.uniform(philox.random_bits(seed, epoch, ids, philox.DROP_PATH, branches * len(rates)))
    rate = torch.tensor(rates, device=draws.device)[:, None]
    return (draws.unflatten(1, (-1, branches)) >= rate) / (1.0 - rate)


def draw_dropout(rate: float, seed: int, epoch: int, sample_ids: Tensor, features: int) -> Tensor | None:
    """Factors of the head's inputs: 0, or 1 / (1 - rate); float32 [B, features], or None where nothing is dropped."""
    if not rate:
        return None
    draws = philox.uniform(philox.random_bits(seed, epoch, sample_ids, philox.DROPOUT, features))
    return (draws >= rate) / (1.0 - rate)


def operand_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """In the dtype of the matrix, which may be narrower than the bias; the result is float32."""
    weight, bias = linear.weight, linear.bias
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).to(x.dtype)
