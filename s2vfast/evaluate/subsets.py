"""Which labels a semi-supervised run may see: fixed lists of every class, the same on any rank, machine and version.

A sequence's place in a list is a draw of (seed, list, its name), and a class's share are the sequences that were drawn
first. So lists of one number hold each other: what is in the list of 1 % is in those of 5, 10 and 20 %. Names are
drawn, not sequence numbers, so that a store that was imported again, in another order, gives the same lists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

import s2vfast.errors as errors
from s2vfast.data.splits import name_draws
from s2vfast.data.store import Store
from s2vfast.reference import philox

PERCENTS: tuple[float, ...] = (1, 5, 10, 20)
"""Shares of the published tables."""
LISTS = 5
"""Lists of each share; results are mean and standard deviation over them."""


def subset_size(count: int, percent: float) -> int:
    """Sequences that a subset has of a class of ``count``: ``percent`` of them, halves rounded up, at least one."""
    exact = Fraction(str(percent)) * count / 100
    return min(count, max(1, int(exact + Fraction(1, 2))))


def choose(names: Sequence[str], labels: Sequence[int], percent: float, seed: int = 0, number: int = 0) -> list[int]:
    """Positions of the sequences of a label subset, ascending.

    Args:
        names: of the sequences to choose from, each once.
        labels: their classes.
        percent: in (0, 100].
        seed: of all lists.
        number: which list of that seed.

    Raises:
        ConfigError: a percentage outside (0, 100].
    """
    if not 0 < percent <= 100:
        raise errors.ConfigError(f"percent: {percent}; a number in (0, 100] is expected")
    draws = name_draws(names, seed, number, philox.LABELS)
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(int(label), []).append(position)
    subset_positions = []
    for positions in members.values():
        positions.sort(key=lambda position: (draws[position], names[position]))
        subset_positions += positions[: subset_size(len(positions), percent)]
    return sorted(subset_positions)


def subset(
    store: Store, split: str, percent: float, *, part: str = "train", seed: int = 0, number: int = 0
) -> np.ndarray:
    """Sequence numbers of a list of a store's split: int64, ascending. Arguments as of `choose`."""
    ids = store.select(split, part)
    ids = ids[store.labels[ids] >= 0]  # what has no label is none of a class
    return ids[choose([store.names[i] for i in ids], store.labels[ids].tolist(), percent, seed, number)]


def table(
    store: Store,
    split: str,
    percents: Sequence[float] = PERCENTS,
    *,
    part: str = "train",
    seed: int = 0,
    lists: int = LISTS,
) -> dict[str, object]:
    """All lists of a split, for JSON: names by share and list, and the SHA-256 of them.

    Args:
        store: whose names and classes decide.
        split: named split.
        percents: shares.
        part: part of the split.
        seed: of the lists.
        lists: lists of each share.
    """
    names = {
        f"{percent:g}": [
            [store.names[i] for i in subset(store, split, percent, part=part, seed=seed, number=number)]
            for number in range(lists)
        ]
        for percent in percents
    }
    digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()
    about = {"store_fingerprint": store.fingerprint, "split": split, "part": part, "seed": seed}
    return {**about, "rounding": "halves up, at least one of each class", "sha256": digest, "lists": names}
