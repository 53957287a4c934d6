"""Which recordings are of one performance, as several cameras saw it: known without labels, as cameras run together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from s2vfast.errors import DataError
from s2vfast.reference import philox

if TYPE_CHECKING:
    from s2vfast.data.store import Store


def performances(store: Store, ids: np.ndarray, option: str, instead: str) -> np.ndarray:
    """int64 [n]: number, from 0, of the performance of each of n sequences.

    Sequences of one action, performer, repetition and setup, which differ in their camera, are one.

    Args:
        store: of the sequences.
        ids: int64 [n].
        option: what asks for them, for messages.
        instead: what else to choose, likewise.

    Raises:
        DataError: the store does not say which repetition of whom its sequences are, or gives several of one camera the
            same number, or no performance was seen by two cameras.
    """
    columns = np.stack([column[ids] for column in (store.labels, store.subjects, store.repetitions, store.setups)])
    why = None
    if (columns[1:3] < 0).any() or (store.views[ids] < 0).any():
        why = "does not say subject, repetition and view of all its sequences"
    groups = np.unique(columns, axis=1, return_inverse=True)[1].reshape(-1)
    if why is None and np.unique(np.stack([groups, store.views[ids]]), axis=1).shape[1] < len(ids):
        why = "has several sequences of one action, subject, repetition and view"
    if why is None and groups.max() + 1 == len(ids):
        why = "has no performance that two cameras saw in the part that is learned from"
    if why is not None:
        raise DataError(f"{option}: {store.path} {why}; {instead}")
    return groups


class CameraPairs:
    """For a view of a sequence, the recording of the same performance that the view is made of.

    Which performances change cameras is drawn anew every epoch. All recordings of one change together, each to another,
    so that no recording is shown twice.

    Args:
        store: of the sequences.
        ids: int64 [n], those that may be shown.
        fraction: of the performances that change cameras.

    Raises:
        DataError: as of `performances`.
    """

    def __init__(self, store: Store, ids: np.ndarray, fraction: float) -> None:
        self._fraction = fraction
        ids = np.sort(ids)
        groups = performances(store, ids, "data.camera_pairs", "give 0")
        order = np.argsort(groups, kind="stable")
        size = np.bincount(groups)
        first = np.cumsum(size) - size
        self._recordings = torch.from_numpy(ids[order])
        """int64 [n], performance after performance."""
        self._first, self._size = torch.from_numpy(first), torch.from_numpy(size)
        """int64 [G]: where the recordings of a performance begin, and how many there are."""
        self._at = torch.full((len(store),), -1)
        """int64 [Q]: where a sequence is among the recordings."""
        self._at[self._recordings] = torch.arange(len(ids))
        self._group = torch.from_numpy(groups[order])

    def __call__(self, ids: Tensor, seed: int, epoch: int) -> Tensor:
        """int64 [n] of sequences int64 [n], which may be themselves; draws are functions of seed, epoch and these."""
        at = self._at[ids]
        group = self._group[at]
        first, size = self._first[group], self._size[group]
        draws = philox.random_bits(seed, epoch, self._recordings[first], philox.CAMERAS, 2)  # [n, 2]
        further = 1 + philox.randint(draws[:, 1], size - 1)
        further = torch.where(philox.uniform(draws[:, 0]) < self._fraction, further, 0)
        return self._recordings[first + (at - first + further) % size]
