"""Features in which what differs between clips of one recording counts little, learned without labels.

Within-class covariance normalisation (Hatch, Kajarekar and Stolcke, Interspeech 2006), where clips of a class are drawn
clips of one recording, or of one performance, which several cameras saw: distances are taken in units of the deviation
that such clips have from their mean. It is a linear map in closed form, fitted to the training part alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.data.performances import performances
from s2vfast.data.store import Store
from s2vfast.evaluate import knn, ridge

Whiten = Literal["none", "sequence", "performance"]
DRAWS = 5
"""Drawn clips of every training sequence, beside the one that is not drawn."""
SHRINKAGE = 0.1
"""Of the covariance towards its mean variance, as a share of that: there are fewer clips than covariances."""
# Rows that are multiplied at a time, and then summed up in double precision.
_ROWS = 1024


@dataclass(frozen=True)
class Whitening:
    """A linear map of features."""

    mean: Tensor
    """[F]."""
    deviation: Tensor
    """[F], of all clips."""
    factor: Tensor
    """[F, F], lower triangular: the Cholesky factor of the covariance within groups, of standardised features."""

    def __call__(self, features: Tensor) -> Tensor:
        """[n, F] of features [n, F]."""
        rows = (features - self.mean) / self.deviation
        return torch.linalg.solve_triangular(self.factor, rows.T, upper=False).T.contiguous()


def fit(features: Tensor, groups: Tensor) -> Whitening:
    """The map of clips of known groups.

    Args:
        features: float32 [A, n, F], A clips of n sequences.
        groups: int64 [n], numbers from 0: sequences of one number are one group.

    Raises:
        DataError: every group is one clip, or there are too many features.
    """
    copies, n, F = features.shape
    if F > ridge.LARGEST:
        raise errors.DataError(
            f"--whiten: {F:,} features, and at most {ridge.LARGEST:,} can be whitened; choose another --pool"
        )
    rows, groups = features.flatten(0, 1), groups.to(features.device).repeat(copies)
    count = torch.bincount(groups)
    free = len(rows) - len(count)
    if not free:
        raise errors.DataError(f"--whiten: {n} groups of one clip each; nothing differs within a group")
    mean, deviation = knn.mean_and_deviation(rows)
    rows = (rows - mean) / deviation
    means = torch.zeros(len(count), F, dtype=rows.dtype, device=rows.device).index_add_(0, groups, rows)
    rows = rows - (means / count[:, None])[groups]
    covariance = torch.zeros(F, F, dtype=torch.float64, device=rows.device)
    for part in rows.split(_ROWS):
        covariance += part.T @ part
    covariance /= free
    variance = covariance.diagonal().mean()
    if variance <= 0:
        raise errors.DataError("--whiten: drawn clips of a sequence have the same features; nothing differs within one")
    covariance.diagonal().add_(SHRINKAGE * variance)
    return Whitening(mean, deviation, torch.linalg.cholesky(covariance).to(rows.dtype))


def groups_of(store: Store, ids: np.ndarray, by: Whiten) -> Tensor:
    """int64 [n]: number of the group of each of n sequences.

    Args:
        store: of the sequences.
        ids: int64 [n].
        by: "sequence": each is one. "performance": as of `s2vfast.data.performances`.

    Raises:
        DataError: the store does not say what several cameras saw, see `s2vfast.data.performances.performances`.
    """
    if by == "sequence":
        return torch.arange(len(ids))
    return torch.from_numpy(performances(store, ids, "--whiten performance", "choose sequence"))
