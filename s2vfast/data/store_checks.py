"""What a store's tables must be, so that no number in them can lead out of an array."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.errors import DataError


@contextlib.contextmanager
def naming(path: Path) -> Iterator[Path]:
    """Turn whatever reading a damaged file raises into one line that names the file."""
    try:
        yield path
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); import again") from error


def require(fits: Any, what: str) -> None:
    """Raise ValueError that says ``what`` unless something fits."""
    if not fits:
        raise ValueError(what)


def is_count(value: Any) -> bool:
    """Whether a JSON value is a number of things."""
    return type(value) is int and 0 <= value < 2**48


def check_tracks(tracks: np.ndarray, sequences: int, rows: int) -> None:
    """Raise ValueError unless tracks lie in `frames` one after another, those of a sequence together and counted."""
    sequence, slot = tracks["sequence"].astype(np.int64), tracks["slot"].astype(np.int64)
    row, count = tracks["row"].astype(np.int64), tracks["count"].astype(np.int64)
    tracks["body"]  # it is there
    require(sequence[0] == 0 and sequence[-1] == sequences - 1, "sequences of tracks")
    step = np.diff(sequence)
    require(((step == 0) | (step == 1)).all(), "sequences of tracks")
    require(slot[0] == 0 and (slot[1:] == np.where(step == 0, slot[:-1] + 1, 0)).all(), "slots of tracks")
    require(((count > 0) & (count <= rows)).all(), "counts of tracks")
    end = np.cumsum(count)
    require(row[0] == 0 and (row[1:] == end[:-1]).all() and end[-1] == rows, "rows of tracks")


def split_ids(ids: Any, sequences: int) -> np.ndarray:
    """int64, ascending, of a part of a split."""
    array = np.asarray(ids, dtype=np.int64)
    require(array.ndim == 1 and all(type(number) is int for number in ids), "expected lists of sequence numbers")
    within = len(array) == 0 or (array[0] >= 0 and array[-1] < sequences and (np.diff(array) > 0).all())
    require(within, "sequence numbers that do not ascend, or that no sequence has")
    return array


def made_parts(parts: dict[str, Any], sequences: int) -> dict[str, np.ndarray]:
    """The parts of a split that a user made; null are the sequences in no other part."""
    require(sum(ids is None for ids in parts.values()) <= 1, "two parts that have all others")
    listed = {part: split_ids(ids, sequences) for part, ids in parts.items() if ids is not None}
    unlisted = np.ones(sequences, dtype=bool)
    for ids in listed.values():
        unlisted[ids] = False
    return {part: listed[part] if part in listed else np.flatnonzero(unlisted) for part in parts}


def expect(array: np.ndarray, shape: tuple[int, ...], dtype: str | None = None) -> None:
    """Raise ValueError unless an array has a shape and, where one is named, a dtype."""
    if array.shape != shape or (dtype is not None and array.dtype != dtype):
        raise ValueError(f"{array.dtype} {list(array.shape)}, expected {dtype or array.dtype} {list(shape)}")
