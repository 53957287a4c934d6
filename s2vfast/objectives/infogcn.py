"""InfoGCN's objective: classification through an information bottleneck (Chi et al., CVPR 2022, section 4.1).

Features go to mean and log-variance of a Gaussian, and a sample of it to the classes. The loss is cross-entropy with
label smoothing; the squared distance of every class's mean sample from that class's row of a prior ("MMD", of first
moments alone); and the norm of the mean sample. Nothing ties the log-variance to 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.config.fields import Section, option
from s2vfast.networks.base import Network, linear_weights
from s2vfast.objectives.base import Draw, Loss, MicroBatch, register
from s2vfast.objectives.classify import Supervised, operand_linear, top1
from s2vfast.reference import philox

_LARGEST_DEVIATION = 100.0


@dataclass
class InfoGCNLossConfig(Section):
    """The bottleneck and the weights of the loss's terms."""

    noise_ratio: float = option(0.5, ge=0)
    """Deviation of the sample: exp(noise_ratio * log-variance). 0.5 is a Gaussian's; the published class has 0.1, its
    command line 0.5."""
    lambda_mmd: float = option(0.1, ge=0)
    """Weight of mmd (published: 0.1)."""
    lambda_l2: float = option(1e-4, ge=0)
    """Weight of l2 (published: 0.0001)."""
    prior_gain: float = option(3.0, gt=0)
    """Norm of the prior's rows, which are orthogonal where there are no more classes than features (published)."""
    label_smoothing: float = option(0.1, ge=0, lt=1)
    """The fraction of the target that all classes get in equal parts (published)."""


class BottleneckHead(nn.Module):
    """Features -> linear -> ReLU -> mean and log-variance -> (a sample) -> linear, all of them as wide as the features.

    Args:
        features: F.
        classes: how many.
        noise_ratio: of the section.
    """

    def __init__(self, features: int, classes: int, noise_ratio: float) -> None:
        super().__init__()
        self.noise_ratio = noise_ratio
        self.fc, self.fc_mu, self.fc_logvar = (nn.Linear(features, features) for _ in range(3))
        self.decoder = nn.Linear(features, classes)
        for linear in (self.fc, self.fc_mu, self.fc_logvar):
            nn.init.xavier_uniform_(linear.weight, gain=math.sqrt(2.0))
        nn.init.normal_(self.decoder.weight, std=math.sqrt(2.0 / classes))

    def operand_weights(self) -> Iterable[nn.Parameter]:
        """See `s2vfast.networks.base.operand_weights`."""
        return linear_weights(self.fc, self.fc_mu, self.fc_logvar, self.decoder)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits [B, classes] of the mean."""
        return operand_linear(self.decoder, operand_linear(self.fc_mu, self._hidden(pooled)))

    def sample(self, pooled: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, classes] of a sample, and the sample [B, F]; noise: standard normal [B, F]."""
        hidden = self._hidden(pooled)
        log_variance = operand_linear(self.fc_logvar, hidden)
        deviation = (self.noise_ratio * log_variance).exp().clamp(max=_LARGEST_DEVIATION)
        z = operand_linear(self.fc_mu, hidden) + noise * deviation
        return operand_linear(self.decoder, z), z

    def _hidden(self, pooled: Tensor) -> Tensor:
        return F.relu(operand_linear(self.fc, pooled))


@dataclass(frozen=True)
class BottleneckInputs:
    """What the loss needs beside the clips."""

    labels: Tensor  # int64 [n]
    noise: Tensor  # float32 [n, F]


@register("infogcn")
class InfoGCNLoss(Supervised):
    """A network, the bottleneck, its loss. Any network; features are means over all tokens and bodies.

    Args:
        encoder: the network.
        options: the section.
        bodies: M, tracks a sample.
        classes: names of the classes.
        seed: of the head's first weights, and of the prior, which is saved with the run and does not change.
    """

    Section = InfoGCNLossConfig
    gathers = True
    terms = ("top1", "cls", "mmd", "l2")

    def __init__(
        self, encoder: Network, options: InfoGCNLossConfig, bodies: int, classes: Sequence[str], seed: int = 0
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = BottleneckHead(encoder.width, len(classes), options.noise_ratio)
            prior = torch.empty(len(classes), encoder.width)
            nn.init.orthogonal_(prior, gain=options.prior_gain)
        super().__init__(encoder, head, encoder.width, bodies)
        self.options = options
        self.register_buffer("prior", prior)

    def prepare(self, views: tuple[Tensor, ...], draw: Draw) -> BottleneckInputs:
        """Labels and noise."""
        ids = draw.sample_ids.to(views[0].device, non_blocking=True)
        return BottleneckInputs(draw.labels, draw_noise(draw.seed, draw.epoch, ids, self.features))

    def step_loss(self, batch: MicroBatch, shared: Tensor | None = None) -> Loss:
        """``cls`` + lambda_mmd * ``mmd`` + lambda_l2 * ``l2``; and ``top1``: per cent that was right, of samples."""
        labels, noise = batch.inputs.labels, batch.inputs.noise
        pooled = self.pool(self.encoder(batch.clips), self.bodies)
        logits, z = self.head.sample(pooled, noise.to(pooled.dtype))
        cls = F.cross_entropy(logits, labels, label_smoothing=self.options.label_smoothing)
        # Means of classes and of the batch are those of all ranks.
        z, all_labels = self.ranks.all_gather(z), self.ranks.all_gather(labels)
        mmd, l2 = mean_discrepancy(z, all_labels, self.prior), z.mean(0).norm()
        loss = cls + self.options.lambda_mmd * mmd + self.options.lambda_l2 * l2
        terms = {"top1": top1(logits, labels), "cls": cls.detach(), "mmd": mmd.detach(), "l2": l2.detach()}
        return Loss(loss, len(logits), terms=terms)


def mean_discrepancy(z: Tensor, labels: Tensor, prior: Tensor) -> Tensor:
    """Mean over the classes that are there, and over features, of (the class's mean of z - its row of the prior)^2.

    Args:
        z: [n, F].
        labels: int64 [n].
        prior: [classes, F].
    """
    members = F.one_hot(labels, len(prior)).to(z.dtype)  # [n, classes]
    count = members.sum(0)[:, None]
    present = (count > 0).to(z.dtype)
    distance = members.T @ z / count.clamp(min=1.0) - prior
    return (distance.square() * present).mean(1).sum() / present.sum()


def draw_noise(seed: int, epoch: int, sample_ids: Tensor, features: int) -> Tensor:
    """Standard normal float32 [B, features]: Box and Muller's pairs of uniform draws, a function of the sample."""
    pairs = (features + 1) // 2
    draws = philox.random_bits(seed, epoch, sample_ids, philox.CODE_NOISE, 2 * pairs).unflatten(1, (2, pairs))
    radius = torch.sqrt(-2.0 * torch.log(1.0 - philox.uniform(draws[:, 0])))  # of (0, 1]
    angle = 2.0 * math.pi * philox.uniform(draws[:, 1])
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :features]
