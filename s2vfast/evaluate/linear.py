"""The linear probe of the published evaluation, on features computed once.

Batch norm without affine, one linear layer, cross-entropy, SGD with momentum 0.9 and a learning rate that falls from
0.1 to 0 along a cosine over 100 epochs, batches of 128. The encoder is frozen, so that features are computed once;
several of the same sequences, from differently drawn clips, take turns by the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import s2vfast.errors as errors

RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    "skeattnclr": {"epochs": 150, "lr": 3.0, "milestones": (60, 100), "norm": False},
    "hitrs": {"epochs": 70, "lr": 0.01, "optimizer": "adamw", "milestones": (70,), "norm": False},
}
"""Settings of `fit` by the method that published them, as changes to its defaults."""
_NORM_EPS = 1e-6
# Of the running statistics that the probe uses once trained (PyTorch's own default).
_NORM_MOMENTUM = 0.1
_SGD_MOMENTUM = 0.9
_STEP = 0.1
_INIT_STD = 0.01


@dataclass(frozen=True)
class LinearProbe:
    """A trained probe: scores = (x - mean) / sqrt(var + 1e-6) @ weight.T + bias."""

    mean: Tensor
    """Running mean of the batch norm, float32 [F]; zeros where there was none."""
    var: Tensor
    """Running variance of the batch norm, float32 [F]; ones less 1e-6 where there was none."""
    weight: Tensor
    """float32 [classes, F]."""
    bias: Tensor
    """float32 [classes]."""

    def scores(self, features: Tensor) -> Tensor:
        """Logits, float32 [n, classes], of features float32 [n, F]."""
        normed = F.batch_norm(features, self.mean, self.var, training=False, eps=_NORM_EPS)
        return F.linear(normed, self.weight, self.bias)


def fit(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    epochs: int = 100,
    lr: float = 0.1,
    batch: int = 128,
    weight_decay: float = 0.0,
    norm: bool = True,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    milestones: Sequence[float] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LinearProbe:
    """Train a probe; the same seed, data, device and number of threads give the same bits.

    Args:
        features: float32 [n, F], n >= 2, or [A, n, F]: epoch e takes features[e % A].
        labels: int64 [n], in [0, classes).
        classes: number of classes.
        epochs: passes over the features.
        lr: first learning rate.
        batch: rows a step, 2 or more. A last batch of a single row joins the one before: it has no variance.
        weight_decay: L2 penalty on weight and bias.
        norm: a batch norm before the linear map.
        optimizer: SGD with momentum 0.9, or AdamW.
        milestones: epochs at which the rate falls to a tenth, in place of its cosine.
        seed: of the first weights and of the order.
        progress: called with (epochs done, epochs) after each epoch.

    Raises:
        DataError: fewer than two rows.
        ConfigError: a batch of one, no epoch, a learning rate that is not positive.
    """
    versions = features if features.ndim == 3 else features[None]  # [A, n, F]
    _, n, width = versions.shape
    _check(n, epochs, lr, batch, weight_decay)
    # Weights and order are drawn on the CPU so that they are the same on any device.
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(classes, width)
    torch.nn.init.trunc_normal_(weight, std=_INIT_STD, generator=generator)
    weight = weight.to(features.device).requires_grad_()  # [classes, F]
    bias = torch.zeros(classes, device=features.device, requires_grad=True)  # [classes]
    mean, var = features.new_zeros(width), features.new_ones(width)  # [F]
    if not norm:
        var -= _NORM_EPS
    parameters: dict[str, Any] = {"params": [weight, bias], "lr": lr, "weight_decay": weight_decay}
    descent: torch.optim.Optimizer
    if optimizer == "adamw":
        descent = torch.optim.AdamW(**parameters)
    else:
        descent = torch.optim.SGD(**parameters, momentum=_SGD_MOMENTUM)

    sizes = _batch_sizes(n, batch)
    steps, step = epochs * len(sizes), 0
    for epoch in range(epochs):
        order = torch.randperm(n, generator=generator).to(features.device)
        version = versions[epoch % len(versions)]  # [n, F]
        for rows in order.split(sizes):
            rate = 0.5 * lr * (1.0 + math.cos(math.pi * step / steps))
            if milestones:
                rate = lr * _STEP ** sum(epoch >= milestone for milestone in milestones)
            descent.param_groups[0]["lr"] = rate
            normed = F.batch_norm(
                version[rows], mean, var, training=norm, momentum=_NORM_MOMENTUM, eps=_NORM_EPS
            )  # [b, F]
            loss = F.cross_entropy(F.linear(normed, weight, bias), labels[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()
            step += 1
        if progress is not None:
            progress(epoch + 1, epochs)
    return LinearProbe(mean, var, weight.detach(), bias.detach())


def _check(rows: int, epochs: int, lr: float, batch: int, weight_decay: float) -> None:
    if rows < 2:
        raise errors.DataError(f"linear probe: {rows} training sequence(s); its batch norm needs 2 or more")
    if epochs < 1:
        raise errors.ConfigError(f"epochs: {epochs}; 1 or more is expected")
    if batch < 2:
        raise errors.ConfigError(f"batch: {batch}; 2 or more is expected, for the batch norm")
    if not (lr > 0 and math.isfinite(lr)):
        raise errors.ConfigError(f"lr: {lr}; a positive number is expected")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise errors.ConfigError(f"weight_decay: {weight_decay}; 0 or more is expected")


def _batch_sizes(rows: int, batch: int) -> list[int]:
    """Rows of each batch of an epoch, none of them a single row."""
    full, remainder = divmod(rows, batch)
    sizes = [batch] * full + [remainder] * (remainder > 0)
    if sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes
