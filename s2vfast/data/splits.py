"""Splits that a user makes of a store: by people, cameras, a share of every class, or lists of names.

They lie in store.json, beside what was imported, and are used wherever a split's name is. The store's identity does not
change with them: it is the identity of the recordings (`s2vfast.data.store.Store.fingerprint`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2vfast import files
from s2vfast.data import names as name_lists
from s2vfast.data.store import HEADER, MADE_SPLITS, Store, header_bytes
from s2vfast.data.store_writer import check_text
from s2vfast.errors import ConfigError, DataError
from s2vfast.reference import philox

COLUMNS = ("subject", "view", "setup", "repetition")
"""Facts of a sequence that a split can go by."""
BY = (*COLUMNS, "share", "file")
"""What a split can go by."""


@dataclass
class Split:
    """A split that is to be kept in a store."""

    name: str
    train: np.ndarray
    """int64, ascending: sequence numbers."""
    test: np.ndarray
    origin: dict[str, Any]
    """How it was made, as JSON: part of the store's header."""
    notes: list[str] = field(default_factory=list)
    """What is odd about it, a sentence each."""


def make(
    store: Store,
    by: str,
    *,
    test: str | None = None,
    train: str | None = None,
    folds: int | None = None,
    name: str | None = None,
    seed: int = 0,
) -> list[Split]:
    """Splits of a store, not yet kept in it.

    Args:
        store: the sequences.
        by: one of `BY`. A column without ``test`` and ``folds`` gives a split for each of its values, whose sequences
            are the test (leave one subject out).
        test: of a column its values (``3,7``), of ``share`` a number in (0, 1), of ``file`` a file of names.
        train: of ``file``, a file of names; None: all sequences that are not in the test.
        folds: number of splits that deal out the values of a column, each of which is in the test of one of them.
        name: of the split, or what the names of several begin with; None: made from the other arguments.
        seed: of the draws of ``share`` and ``folds``: functions of the seed and a name or value alone.

    Raises:
        ConfigError: arguments that do not go together.
        DataError: values, names or facts that the store does not have, or a part without a sequence.
    """
    _check_arguments(by, test, train, folds)
    if by == "share":
        splits = [_share(store, str(test), seed, name)]
    elif by == "file":
        splits = [_file(store, Path(str(test)), None if train is None else Path(train), name)]
    else:
        splits = _column(store, by, test, folds, seed, name)
    for split in splits:
        check_text("split name", split.name)
        for part, ids in (("train", split.train), ("test", split.test)):
            if not len(ids):
                raise DataError(f"{store.path}: split {split.name} would have no sequence in its {part} part")
        absent = np.flatnonzero(_has_class(store, split.test) & ~_has_class(store, split.train))
        if len(absent):
            listed = name_lists.example([store.classes[label] for label in absent])
            split.notes.append(f"{len(absent)} classes of its test part have no sequence to learn from: {listed}")
    return splits


def keep(path: str | Path, splits: Sequence[Split], overwrite: bool = False) -> None:
    """Write splits into a store's header, all of them or none; no other file changes.

    Args:
        path: the store's folder.
        splits: of that very store.
        overwrite: replace splits of these names that were made in this way; those that were imported stay.

    Raises:
        DataError: a name that is in use, no store, or a disk that cannot take it.
    """
    path = Path(path)
    with files.disk_errors(path / HEADER, DataError, "the splits could not be written"), _locked(path):
        store = Store.open(path)  # as it is now: another process may have made splits meanwhile
        own_splits = dict(store.meta.get(MADE_SPLITS, {}))
        for split in splits:
            if split.name == "all" or (split.name in store.splits and not (overwrite and split.name in own_splits)):
                hint = "; replace it with --overwrite" if split.name in own_splits else ""
                raise DataError(f"{path}: has a split {split.name} already; choose another name with --name{hint}")
            parts: dict[str, Any] = {"train": split.train.tolist(), "test": split.test.tolist()}
            if len(split.train) + len(split.test) == len(store):  # the rest is not listed: there may be many splits
                parts["train"] = None
            own_splits[split.name] = {**split.origin, "parts": parts}
        files.write_bytes(path / HEADER, header_bytes({**store.meta, MADE_SPLITS: own_splits}))


def describe(store: Store, name: str) -> str:
    """The parts of a split, with their sequences and classes."""
    phrases = []
    for part, ids in store.splits[name].items():
        count = int(_has_class(store, ids).sum())
        classes = f" ({count} classes)" if count else ""
        phrases.append(f"{part} {len(ids):,}{classes}")
    return ", ".join(phrases)


def name_draws(names: Sequence[str], seed: int, number: int, stream: int) -> list[tuple[int, int]]:
    """Two Philox words of each name: the same for a name whatever the others are.

    Args:
        names: any.
        seed: of the draws.
        number: which draw of that seed.
        stream: what it is for.
    """
    # 48 bits of a name's hash are its id, as many as fit a counter.
    ids = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") for name in names]
    words = philox.random_bits(seed, number, torch.tensor(ids, dtype=torch.int64), stream, 2)
    return [(int(high), int(low)) for high, low in words.tolist()]


def _check_arguments(by: str, test: str | None, train: str | None, folds: int | None) -> None:
    if by not in BY:
        raise ConfigError(f"--by: {by!r} is not one of {', '.join(BY)}")
    if by in ("share", "file") and test is None:
        expected = "a number in (0, 1)" if by == "share" else "a file of names"
        raise ConfigError(f"--test: needed with --by {by}: {expected}")
    if folds is not None and (by not in COLUMNS or test is not None):
        raise ConfigError("--folds: goes with --by subject, view, setup or repetition, and without --test")
    if folds is not None and folds < 2:
        raise ConfigError(f"--folds: {folds}; 2 or more is expected")
    if train is not None and by != "file":
        raise ConfigError("--train: goes with --by file alone")


def _column(store: Store, by: str, test: str | None, folds: int | None, seed: int, name: str | None) -> list[Split]:
    column = getattr(store, f"{by}s")
    values = sorted(set(column[column >= 0].tolist()))
    if not values:
        raise DataError(f"{store.path}: no sequence says its {by}; make a split by share or by file")
    if test is not None:
        tests = {name or f"{by}-test": _values(test, values, by, store)}
        origin: dict[str, Any] = {"by": by, "test": tests[name or f"{by}-test"]}
    elif folds is not None:
        if folds > len(values):
            raise DataError(f"--folds: {folds}; {store.path} has {len(values)} {by}s")
        draws = name_draws([str(value) for value in values], seed, 0, philox.SPLIT)
        order = [value for _, value in sorted(zip(draws, values, strict=True))]
        tests = {f"{name or by}-{fold + 1}of{folds}": sorted(order[fold::folds]) for fold in range(folds)}
        origin = {"by": by, "folds": folds, "seed": seed}
    else:
        tests = {f"{name or by}-{value}": [value] for value in values}
        origin = {"by": by}
    splits = []
    for split, test_values in tests.items():
        in_test = np.isin(column, test_values)
        splits.append(Split(split, np.flatnonzero(~in_test), np.flatnonzero(in_test), origin | {"test": test_values}))
        if unknown := int((column < 0).sum()):
            splits[-1].notes.append(f"{unknown:,} sequences that do not say their {by} are in its training part")
    return splits


def _values(text: str, values: list[int], by: str, store: Store) -> list[int]:
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"--test: {text!r}; numbers with commas between them are expected") from None
    if unknown := [number for number in numbers if number not in values]:
        known_values = f"{values[0]} to {values[-1]}" if len(values) > 10 else ", ".join(map(str, values))
        raise DataError(f"--test: {store.path} has no {by} {', '.join(map(str, unknown))}; it has {known_values}")
    return numbers


def _share(store: Store, test: str, seed: int, name: str | None) -> Split:
    try:
        fraction = Fraction(str(float(test)))
    except (ValueError, OverflowError):  # OverflowError: infinite
        fraction = Fraction(0)
    if not 0 < fraction < 1:
        raise ConfigError(f"--test: {test!r}; with --by share a number in (0, 1) is expected")
    draws = name_draws(store.names, seed, 0, philox.SPLIT)
    ids: list[int] = []
    for label in sorted(set(store.labels.tolist())):  # -1: those without a label are one stratum more
        members = np.flatnonzero(store.labels == label).tolist()
        members.sort(key=lambda number: (draws[number], store.names[number]))
        # Halves rounded up; at least one on either side, where there are two.
        count = min(max(int(fraction * len(members) + Fraction(1, 2)), 1), len(members) - 1)
        ids += members[:count]
    numbers = np.array(sorted(ids), dtype=np.int64)
    usual = f"share-{float(100 * fraction):g}" + (f"-seed-{seed}" if seed else "")
    train = np.setdiff1d(np.arange(len(store)), numbers)
    return Split(name or usual, train, numbers, {"by": "share", "test": float(fraction), "seed": seed})


def _file(store: Store, test: Path, train: Path | None, name: str | None) -> Split:
    notes: list[str] = []
    test_ids = _listed(store, test, notes)
    train_ids = np.setdiff1d(np.arange(len(store)), test_ids) if train is None else _listed(store, train, notes)
    if len(both := np.intersect1d(train_ids, test_ids)):
        raise DataError(f"{train}: {store.names[both[0]]} is in {test} too ({len(both):,} names are in both)")
    origin = {"by": "file", "test": test.name} | ({} if train is None else {"train": train.name})
    return Split(name or test.stem, train_ids, test_ids, origin, notes)


def _listed(store: Store, path: Path, notes: list[str]) -> np.ndarray:
    """Numbers of the sequences that a file names; names that the store does not have are noted."""
    listed = name_lists.read_names(path)
    numbers = {name_lists.key(name): number for number, name in enumerate(store.names)}
    exact = {name: number for number, name in enumerate(store.names)}
    ids = {exact.get(name, numbers.get(name_lists.key(name))) for name in listed}
    unknown = [name for name in listed if name not in exact and name_lists.key(name) not in numbers]
    if len(unknown) == len(listed):
        raise DataError(f"{path}: none of its {len(listed):,} names is in {store.path}, such as {unknown[0]}")
    if unknown:
        notes.append(f"{len(unknown):,} names of {path.name} are not in the store: {name_lists.example(unknown)}")
    return np.array(sorted(ids - {None}), dtype=np.int64)


def _has_class(store: Store, ids: np.ndarray) -> np.ndarray:
    """bool [classes]: whether one of the sequences is of the class."""
    labels = store.labels[ids]
    return np.bincount(labels[labels >= 0], minlength=len(store.classes)) > 0


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time reads the header of a store and writes it anew."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
