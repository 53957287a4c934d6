"""k nearest neighbours by cosine similarity: what the features tell without any training."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities held at a time. Chunks of test rows keep a pass over a large training part within memory.
_CHUNK_ENTRIES = 1 << 24
# Deviations from the mean that are none: what an encoder always says may differ by one or two from batch to batch.
_ROUNDINGS = 4

Transform = Literal["none", "center", "standardize"]
TRANSFORMS: tuple[str, ...] = ("none", "center", "standardize")
DEFAULT_TRANSFORM: Transform = "center"
"""Cosine similarity around the training part's mean: part of every feature is common to all sequences and says nothing.
Chosen on NW-UCLA's training views, where it gained about a point over "none" on pretrained encoders; "none" is what
papers mostly use."""


def rank(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    classes: int,
    k: int = 1,
    transform: Transform = "none",
    chunk_entries: int = _CHUNK_ENTRIES,
) -> Tensor:
    """Classes for every test row, ordered by the votes of its k nearest training rows.

    Each of the k most similar training rows has one vote (equal similarity: the lower training row votes). Classes
    are ordered by votes, equal votes by their nearest training row, equal similarity by the lower class. Classes
    without a vote follow by their nearest training row, so that the first five are five distinct classes.

    Args:
        train: [n, F] floating; similarities are computed in this dtype.
        train_labels: int64 [n], in [0, classes).
        test: [m, F], same dtype and device.
        classes: number of classes.
        k: voters; at most n are used.
        transform: applied to both parts with the training part's statistics: "none", "center" (subtract the mean) or
            "standardize" (also divide by the standard deviation).
        chunk_entries: similarities held at a time.

    Returns:
        int64 [m, classes], the best class first; classes that no training row has are -1, at the end.
    """
    train, test = normalised(train, test, transform)
    k = min(k, len(train))
    rows = max(1, chunk_entries // len(train))
    return torch.cat([_rank_chunk(train, train_labels, part, classes, k) for part in test.split(rows)])


def normalised(train: Tensor, test: Tensor, transform: Transform) -> tuple[Tensor, Tensor]:
    """Both parts as rows of length 1, so that a product of two is the cosine similarity that `rank` goes by.

    Args:
        train: [n, F] floating.
        test: [m, F], same dtype and device.
        transform: as in `rank`.

    Returns:
        [n, F] and [m, F].
    """
    if transform != "none":
        mean, deviation = mean_and_deviation(train)
        train, test = train - mean, test - mean
    if transform == "standardize":
        train, test = train / deviation, test / deviation
    return F.normalize(train, dim=1), F.normalize(test, dim=1)


def mean_and_deviation(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the deviation that features are standardised by.

    A feature that never changes carries nothing; divided by its deviation, which is 0 or rounding, it would be noise of
    the size of all others. One that deviates by no more than rounding of its mean counts as such.

    Args:
        features: [n, F] floating.

    Returns:
        Mean and standard deviation [F], the latter 1 where a feature never changes; in the features' dtype, summed up
        in double precision.
    """
    mean = features.mean(dim=0, dtype=torch.float64)
    rounding = _ROUNDINGS * torch.finfo(features.dtype).eps * mean.abs()
    mean = mean.to(features.dtype)
    deviation = (features - mean).square().mean(dim=0, dtype=torch.float64).sqrt()
    deviation = torch.where(deviation > rounding, deviation, torch.ones_like(deviation))
    return mean, deviation.to(features.dtype)


def _rank_chunk(train: Tensor, train_labels: Tensor, test: Tensor, classes: int, k: int) -> Tensor:
    similarity = test @ train.T  # [c, n]
    owner = train_labels.expand_as(similarity)  # [c, n]
    nearest = similarity.new_full((len(test), classes), -torch.inf)
    nearest.scatter_reduce_(1, owner, similarity, "amax")  # [c, classes]

    # topk does not say which of several equal values it takes; the k-th value and a count of its equals do.
    last = similarity.topk(k, dim=1).values[:, -1:]  # [c, 1]
    above, equal = similarity > last, similarity == last
    ties = k - above.sum(dim=1, keepdim=True)  # [c, 1]
    voters = above | (equal & (equal.cumsum(dim=1) <= ties))  # [c, n]
    votes = similarity.new_zeros(len(test), classes).scatter_add_(1, owner, voters.to(similarity.dtype))

    # Two stable sorts: the second key first.
    order = torch.sort(nearest, dim=1, descending=True, stable=True).indices  # [c, classes]
    by_votes = torch.sort(votes.gather(1, order), dim=1, descending=True, stable=True).indices
    order = order.gather(1, by_votes)
    return order.masked_fill(nearest.gather(1, order) == -torch.inf, -1)
