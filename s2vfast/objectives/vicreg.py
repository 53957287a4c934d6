"""VICReg: two views of a clip are to have the same embedding, whose numbers vary and say different things.

Bardes, Ponce and LeCun, ICLR 2022 (arXiv 2105.04906). Nothing is masked, there are no negatives and no average of the
network: variance and covariance over the batch keep embeddings from becoming one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.config.fields import option
from s2vfast.errors import ConfigError
from s2vfast.networks.base import Network, build_network
from s2vfast.objectives.base import Loss, MicroBatch, Objective, register
from s2vfast.objectives.bodies import mean_over_tracks

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.layout import Layout

EPS = 1e-4
"""Added to variances before their root (published)."""


@dataclass
class VICRegConfig:
    """Embedding and weights of the three terms."""

    expander: tuple[int, ...] = (512, 512, 512)
    """Widths of the maps between the network's features and the loss, batch norm and ReLU between them (published:
    8192 three times). None: the loss is of the network's own features, which it then makes alike."""
    invariance: float = option(25.0, ge=0)
    """Weight of the mean squared difference of two views' embeddings."""
    variance: float = option(25.0, ge=0)
    """Weight of what each number's deviation over the batch lacks to 1."""
    covariance: float = option(1.0, ge=0)
    """Weight of the squared covariances of different numbers, summed and divided by how many numbers there are."""


@register("vicreg")
class VICReg(Objective):
    """A network and its expander.

    Args:
        encoder: the network.
        options: the section.
        bodies: M, tracks a sample.
    """

    Section = VICRegConfig
    gathers = True
    views = 2
    terms = ("invariance", "variance", "covariance")

    def __init__(self, encoder: Network, options: VICRegConfig, bodies: int) -> None:
        super().__init__(encoder)
        self.options, self.bodies = options, bodies
        layers: list[nn.Module] = []
        width = encoder.width
        for out in options.expander[:-1]:
            layers += [nn.Linear(width, out), nn.BatchNorm1d(out), nn.ReLU()]
            width = out
        layers += [nn.Linear(width, out, bias=False) for out in options.expander[-1:]]
        self.expander = nn.Sequential(*layers)

    @classmethod
    def build(cls, config: Config, layout: Layout, classes: Sequence[str] = ()) -> VICReg:
        """The objective of a config, as it stands before the first step."""
        return cls(build_network(config, layout), config.objective, config.data.bodies)

    @classmethod
    def check(cls, config: Config, layout: Layout | None) -> None:
        """Variances need a batch, and an expander widths."""
        samples = config.train.batch // (config.train.accumulate or 1)
        if samples < 2:
            raise ConfigError(
                f"train.batch: {config.train.batch} is {samples} sample at a time; 2 or more are expected: variances"
            )
        widths = list(config.objective.expander)
        if min(widths, default=1) < 1:
            raise ConfigError(f"objective.expander: {widths}; widths of 1 or more are expected")

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """The three terms, weighed; variance and covariance are over the samples of all ranks."""
        first, second = (self.ranks.all_gather(self.embed(view)) for view in batch.views)
        terms = {
            "invariance": F.mse_loss(first, second),
            "variance": (lack_of_variance(first) + lack_of_variance(second)) / 2.0,
            "covariance": covariance(first) + covariance(second),
        }
        weighed = [getattr(self.options, name) * value for name, value in terms.items()]
        return Loss(
            sum(weighed[1:], weighed[0]),
            len(batch.clips) // self.bodies,
            terms={name: value.detach() for name, value in terms.items()},
        )

    def embed(self, clips: Tensor) -> Tensor:
        """[n, D] of clips [n * M, T, V, C]: means over tokens and bodies, through the expander."""
        return self.expander(mean_over_tracks(self.encoder(clips), self.bodies))


def lack_of_variance(z: Tensor) -> Tensor:
    """Mean over numbers of max(0, 1 - deviation), of embeddings [n, D]."""
    return F.relu(1.0 - (z.var(0) + EPS).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Sum of squared covariances of different numbers over how many numbers there are, of embeddings [n, D]."""
    centred = z - z.mean(0)
    matrix = centred.T @ centred / (len(z) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]
