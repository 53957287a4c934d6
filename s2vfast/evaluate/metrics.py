"""Accuracies from ranked predictions. A prediction is a list of classes, the best first."""

from __future__ import annotations

import torch
from torch import Tensor

ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class"}
"""What a result calls its accuracies, and what a table does. Results of five classes or fewer have no ``top5``."""


def rank_scores(scores: Tensor) -> Tensor:
    """Classes ordered by score, the highest first; equal scores: the lower class first.

    Args:
        scores: [n, classes] floating.

    Returns:
        int64 [n, classes].
    """
    return torch.sort(scores, dim=1, descending=True, stable=True).indices


def top_k(ranked: Tensor, labels: Tensor, k: int) -> float:
    """Per cent of the rows whose label is among the first min(k, R) ranked classes.

    Args:
        ranked: int64 [n, R], n >= 1, the best class first; -1 stands for "no class".
        labels: int64 [n].
        k: 1 or more.
    """
    hits = (ranked[:, :k] == labels[:, None]).any(dim=1)  # [n]
    return 100.0 * int(hits.sum()) / len(labels)


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts, int64 [classes, classes]: row = true class, column = predicted class.

    Args:
        predicted: int64 [n], in [0, classes).
        labels: int64 [n], in [0, classes).
        classes: number of classes.
    """
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """Per cent of each true class that was predicted right; None for a class without a test sample.

    Args:
        confusion: int64 [classes, classes], rows are true classes.
    """
    right, total = confusion.diagonal().tolist(), confusion.sum(dim=1).tolist()
    return [100.0 * r / t if t else None for r, t in zip(right, total, strict=True)]
