"""Ridge regression on ±1 targets as a classifier: one solution, no steps, and a penalty chosen by folds.

What scikit-learn's RidgeClassifier computes on standardised features. Sums are in double precision, and the smaller of
the two systems is solved: that of rows, or that of features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.evaluate import knn

PENALTIES: tuple[float, ...] = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Penalties that are compared, the strongest first; times n, scikit-learn's alpha."""
FOLDS = 5
LARGEST = 8192
"""Most unknowns that are reasonable to solve for here, see `unknowns`."""
# Rows that are held in double precision at a time.
_ROWS = 4096


@dataclass(frozen=True)
class Ridge:
    """A fitted classifier: scores = (x - mean) / deviation @ weight.T + bias."""

    mean: Tensor
    """[F]."""
    deviation: Tensor
    """[F], 1 where a feature never changes; one number for all where they were not standardised."""
    weight: Tensor
    """[classes, F]."""
    bias: Tensor
    """[classes]."""
    penalty: float
    """Of squared weights, against the mean squared error."""
    validation: float | None
    """Top-1 accuracy in per cent over the folds; None where one penalty was given."""

    def scores(self, features: Tensor) -> Tensor:
        """[n, classes] of features [n, F]; the largest is the class."""
        return F.linear((features - self.mean) / self.deviation, self.weight, self.bias)


def fold_numbers(labels: Tensor) -> Tensor:
    """int64 [n]: rows of a class go round the folds in their order, so that every fold has some of each."""
    numbers = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        numbers[rows] = (torch.arange(len(rows), device=labels.device) + label) % FOLDS
    return numbers


def fit(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    standardize: bool = True,
) -> Ridge:
    """Fit a classifier to all rows, its penalty chosen by five folds; of equal accuracies the strongest.

    Args:
        features: float [n, F], or [A, n, F]: A copies of n sequences, which share their folds. Folds are measured on
            the first copy.
        labels: int64 [n], in [0, classes).
        classes: number of classes.
        penalties: to compare, positive.
        standardize: whether every feature is divided by its own deviation. False: all by one number, so that features
            that hardly change count little.

    Raises:
        DataError: fewer than two sequences.
    """
    if len(labels) < 2:
        raise errors.DataError(f"ridge regression: {len(labels)} training sequence(s); 2 or more are needed")
    copies = features if features.ndim == 3 else features[None]
    mean, deviation = knn.mean_and_deviation(copies.flatten(0, 1))
    if not standardize:
        deviation = (copies - mean).square().mean().sqrt().expand_as(deviation).contiguous()
    path, fold = sorted(penalties, reverse=True), fold_numbers(labels)
    solver = (_Dual if copies[..., 0].numel() <= copies.shape[2] else _Primal)(copies, labels, classes, mean, deviation)
    penalty, accuracy = path[0], None
    if len(path) > 1:
        right = [0] * len(path)
        for number in fold.unique().tolist():
            held = fold == number
            if held.all():
                continue
            x = (copies[0][held] - mean) / deviation
            for at, (weight, bias) in enumerate(solver(~held, path)):
                right[at] += int((F.linear(x, weight, bias).argmax(dim=1) == labels[held]).sum())
        accuracy = 100.0 * max(right) / len(labels)
        penalty = path[right.index(max(right))]
    ((weight, bias),) = solver(torch.ones_like(fold, dtype=torch.bool), [penalty])
    return Ridge(mean, deviation, weight, bias, penalty, accuracy)


def unknowns(features: Tensor) -> int:
    """Size of the system that `fit` solves for features [n, F] or [A, n, F]: all rows, or features if these are fewer.

    The time grows with its cube, for every fold and penalty.
    """
    return min(features[..., 0].numel(), features.shape[-1])


def _targets(labels: Tensor, classes: int) -> Tensor:
    return 2.0 * F.one_hot(labels, classes).double() - 1.0


class _Dual:
    """Solutions by products of rows: no more rows than features."""

    def __init__(self, copies: Tensor, labels: Tensor, classes: int, mean: Tensor, deviation: Tensor) -> None:
        self._x = ((copies - mean) / deviation).double()  # [A, n, F]
        self._targets, self._dtype = _targets(labels, classes), copies.dtype

    def __call__(self, rows: Tensor, penalties: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
        """Weight [classes, F] and bias [classes] of the rows, bool [n], of all copies, for every penalty."""
        x, targets = self._x[:, rows].flatten(0, 1), self._targets[rows].repeat(len(self._x), 1)
        centre, bias = x.mean(dim=0), targets.mean(dim=0)
        x = x - centre
        gram = x @ x.T
        for penalty in penalties:
            weight = (x.T @ _solve(gram, penalty * len(x), targets - bias)).T
            yield weight.to(self._dtype), (bias - weight @ centre).to(self._dtype)


class _Primal:
    """Solutions by products of features, which are summed up once for every fold."""

    def __init__(self, copies: Tensor, labels: Tensor, classes: int, mean: Tensor, deviation: Tensor) -> None:
        self._dtype, self._fold = copies.dtype, fold_numbers(labels)
        self._sums: dict[int, list[Tensor]] = {}
        targets = _targets(labels, classes)
        for number in self._fold.unique().tolist():
            in_fold = self._fold == number
            sums: list[Tensor] | None = None
            for copy in copies:
                for part, y in zip(copy[in_fold].split(_ROWS), targets[in_fold].split(_ROWS), strict=True):
                    x = ((part - mean) / deviation).double()
                    n = torch.tensor(float(len(x)), dtype=x.dtype, device=x.device)
                    terms = [n, x.sum(dim=0), y.sum(dim=0), x.T @ x, x.T @ y]
                    sums = terms if sums is None else [a.add_(b) for a, b in zip(sums, terms, strict=True)]
            self._sums[number] = sums or []

    def __call__(self, rows: Tensor, penalties: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
        """As of `_Dual`; the rows are whole folds."""
        n, x, y, xx, xy = map(
            sum, zip(*(self._sums[number] for number in self._fold[rows].unique().tolist()), strict=True)
        )
        centre, bias = x / n, y / n
        gram, right = xx - n * torch.outer(centre, centre), xy - n * torch.outer(centre, bias)
        for penalty in penalties:
            weight = _solve(gram, penalty * float(n), right).T
            yield weight.to(self._dtype), (bias - weight @ centre).to(self._dtype)


def _solve(gram: Tensor, shift: float, right: Tensor) -> Tensor:
    shifted = gram.clone()
    shifted.diagonal().add_(shift)
    return torch.cholesky_solve(right, torch.linalg.cholesky(shifted))
