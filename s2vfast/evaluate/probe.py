"""The fast linear probe: multinomial logistic regression on cached features, by full-batch L-BFGS.

Features are standardised by the training part. The L2 penalty is chosen on a fixed validation share of the training
part, one fifth of each class, and the regression is then fitted to the whole of it. Nothing depends on chance or order
but rounding; the published recipe (`s2vfast.evaluate.linear`) has a learning rate, a length and a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.evaluate import knn

PENALTIES: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""L2 penalties that are compared, the strongest first."""
_FOLD = 5
# Steps of a fit; the fits of a path begin where the one before it ended.
_STEPS = 200


@dataclass(frozen=True)
class Regression:
    """A fitted regression: scores = (x - mean) / deviation @ weight.T + bias."""

    mean: Tensor
    """[F]."""
    deviation: Tensor
    """[F], 1 where a feature never changes."""
    weight: Tensor
    """[classes, F]."""
    bias: Tensor
    """[classes]."""
    penalty: float
    """The L2 penalty."""
    validation: float | None = None
    """Top-1 accuracy in per cent by which the penalty was chosen; None where it was given."""

    def scores(self, features: Tensor) -> Tensor:
        """Logits [n, classes] of features [n, F]."""
        return F.linear((features - self.mean) / self.deviation, self.weight, self.bias)


def fit(
    features: Tensor, labels: Tensor, *, classes: int, penalties: Sequence[float] = PENALTIES, steps: int = _STEPS
) -> Regression:
    """Fit a regression, its penalty chosen on a validation share of the rows.

    The loss is the mean cross-entropy plus penalty / 2 times the sum of squared weights (scikit-learn's C is
    1 / (n * penalty)). Of penalties with equal accuracy the strongest is taken; where no class has two rows there is no
    validation share, and the middle one is taken.

    Args:
        features: float [n, F], n >= 2; computed in their dtype.
        labels: int64 [n], in [0, classes).
        classes: number of classes.
        penalties: to compare, positive.
        steps: most steps of a fit.

    Raises:
        DataError: fewer than two rows.
        ConfigError: no penalty, or one that is not positive.
    """
    if len(features) < 2:
        raise errors.DataError(f"linear probe: {len(features)} training sequence(s); 2 or more are needed")
    if not penalties or not all(value > 0 and math.isfinite(value) for value in penalties):
        raise errors.ConfigError(f"penalties: {list(penalties)}; positive numbers are expected")
    path = sorted(penalties, reverse=True)
    held = validation_rows(labels)
    accuracy = None
    penalty = path[0] if len(path) == 1 else path[len(path) // 2]
    if len(path) > 1 and bool(held.any()):
        accuracies = []
        for regression in _path(features[~held], labels[~held], classes, path, steps):
            right = regression.scores(features[held]).argmax(dim=1) == labels[held]
            accuracies.append(100.0 * float(right.double().mean()))
        accuracy = max(accuracies)
        penalty = path[accuracies.index(accuracy)]
    # Along the path once more: each fit begins close to its end.
    *_, last = _path(features, labels, classes, [p for p in path if p >= penalty], steps)
    return Regression(last.mean, last.deviation, last.weight, last.bias, penalty, accuracy)


def validation_rows(labels: Tensor) -> Tensor:
    """bool [n]: of each class every fifth row, counted from its second, so that no class is left without one to fit."""
    held = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        held[rows[1::_FOLD]] = True
    return held


def _path(features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], steps: int):
    mean, deviation = knn.mean_and_deviation(features)
    x = (features - mean) / deviation  # [n, F]
    weight = x.new_zeros(classes, x.shape[1]).requires_grad_()
    bias = x.new_zeros(classes).requires_grad_()
    for penalty in penalties:
        _minimise(x, labels, weight, bias, penalty, steps)
        yield Regression(mean, deviation, weight.detach().clone(), bias.detach().clone(), penalty)


def _minimise(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, penalty: float, steps: int) -> None:
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + 0.5 * penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
