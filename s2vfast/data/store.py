"""The store: every sequence of a dataset in a few flat files that open at once and are read by memory map.

A store is a folder. Every kind of store has::

    store.json       version, kind, layout, classes, counts, source, what was dropped and why, size and SHA-256 of the
                     other files
    sequences.npz    name, label, subject, view, repetition, setup, total_frames of every sequence
    splits.json      split -> part -> sequence numbers
    notes.json       sequence name -> what was dropped from it and why

What was recorded lies in files of the kind: skeletons (`s2vfast.data.skeleton_store`), or points
(`s2vfast.data.point_store`). store.json names the kind where it is not skeletons. It has "made_splits" where a user has
made splits of the store (`s2vfast.data.splits`).

`Store.open` opens either kind. `s2vfast.data.store_writer.write_store` makes stores.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from s2vfast.data.limits import MAX_JSON_BYTES, NotJson, open_plain, parse_json, read_plain
from s2vfast.data.store_checks import expect, is_count, made_parts, naming, require, split_ids
from s2vfast.data.units import LIMITS
from s2vfast.errors import DataError

if TYPE_CHECKING:
    from s2vfast.data.layout import Layout
    from s2vfast.data.point_layout import PointLayout

FORMAT = "s2vfast-store"
VERSIONS = (1, 2, 3)
"""2: skeletons in another unit than metres, of 2 coordinates, or with confidences. 3: points."""
HEADER = "store.json"
TABLES = ("sequences.npz", "splits.json", "notes.json")
"""Files of every store beside its header."""
MADE_SPLITS = "made_splits"
"""Field of store.json that holds the splits which were made of the store later."""
NO_LABEL = "no label"
SEQUENCE_FIELDS = ("label", "subject", "view", "repetition", "setup", "total_frames")


@dataclass
class Recording:
    """What is known of one recording of any kind."""

    name: str
    """Unique in a store."""
    label: int
    """Class number, from 0; -1 where the recording has none."""
    total_frames: int
    """Length of the recording, frames in which nobody is seen included."""
    subject: int = field(default=-1, kw_only=True)
    """Performer; -1 where unknown, as in the following fields."""
    view: int = field(default=-1, kw_only=True)
    """Camera."""
    repetition: int = field(default=-1, kw_only=True)
    """Which repetition of the same action by the same performer."""
    setup: int = field(default=-1, kw_only=True)
    """Arrangement of the cameras."""
    notes: list[str] = field(default_factory=list, kw_only=True)
    """What was dropped and why."""


@dataclass
class Body:
    """One tracked body of a sequence."""

    body_id: str
    """The recording's own name of the body."""
    frame_index: np.ndarray
    """int32 [n], ascending: the frames of the sequence that the body was seen in."""
    joints: np.ndarray
    """float32 [n, V, 3], in the store's unit; zeros where a joint was not seen."""
    confidence: np.ndarray | None = None
    """float32 [n, V], how sure the detector was; None where it does not tell."""


@dataclass
class Sequence(Recording):
    """One recording of skeletons: what a format reads and `write_store` takes."""

    bodies: list[Body]
    """The main body first."""


class Store:
    """A store of any kind, open for reading. Opening reads no frames; all methods may be called from several threads.

    Make one with `Store.open`, which gives a `s2vfast.data.skeleton_store.SkeletonStore` or a
    `s2vfast.data.point_store.PointStore`.
    """

    kind: ClassVar[str]
    """What was recorded: skeletons or points."""
    versions: ClassVar[tuple[int, ...]]
    """Of `VERSIONS`, those of this kind."""
    rows_are: ClassVar[str]
    """What `rows` counts, in a word."""
    data_files: ClassVar[tuple[str, ...]]
    """Files of this kind that every such store has, beside `TABLES`."""
    optional_files: ClassVar[tuple[str, ...]] = ()
    """Files that one may have."""
    path: Path
    """The folder."""
    meta: dict[str, Any]
    """store.json."""
    fingerprint: str
    """SHA-256 of store.json, which holds the hashes of all other files, without the splits that a user made: the
    identity of the recordings."""
    layout: Layout | PointLayout
    """The skeleton, or that there is none."""
    classes: list[str]
    """Class names by label."""
    names: list[str]
    """Sequence names, Q of them."""
    labels: np.ndarray
    """int64 [Q]."""
    subjects: np.ndarray
    """int64 [Q], -1 where unknown; likewise views, repetitions and setups."""
    views: np.ndarray
    repetitions: np.ndarray
    setups: np.ndarray
    total_frames: np.ndarray
    """int64 [Q]."""
    splits: dict[str, dict[str, np.ndarray]]
    """split -> part -> int64 sequence numbers, ascending."""

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open the store in folder ``path``.

        Checks version, presence and sizes of the files, and that the tables fit each other, so that no number in them
        can lead out of an array; neither their hashes nor the frames, which `verify` does.

        Raises:
            DataError: no store there, made by another version, a file that is missing, cannot be read or is of
                another size, or tables that do not fit.
        """
        path = Path(path)
        header = path / HEADER
        if not header.is_file():
            raise DataError(
                f"{path}: no store here (no {HEADER}); make one with `s2vfast data import` or `s2vfast data synth`"
            )
        raw = read_bytes(header)
        meta = _json(raw, header)
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise DataError(f"{header}: not the header of a store")
        if meta.get("version") not in VERSIONS:
            numbers = f"{', '.join(map(str, VERSIONS[:-1]))} and {VERSIONS[-1]}"
            raise DataError(
                f"{header}: store version {meta.get('version')}, this program reads {numbers}; import again"
            )
        if header_bytes(meta) != raw:
            raise DataError(f"{header}: damaged or edited by hand (its own hash does not match); import again")
        with naming(header):
            self = _class_of(meta)()
            self.path, self.meta = path, meta
            imported = {key: value for key, value in meta.items() if key != MADE_SPLITS}
            self.fingerprint = hashlib.sha256(header_bytes(imported)).hexdigest()
            self._check_meta()
        for name in self.files:
            file = self.path / name
            if not file.is_file():
                raise DataError(f"{file}: missing; the store is damaged, import again")
            if (size := file.stat().st_size) != meta["files"][name]["size"]:
                raise DataError(f"{file}: {size} bytes, expected {meta['files'][name]['size']}; import again")
        self._load()
        return self

    def _check_meta(self) -> None:
        """Raise, whatever it may be, unless the header is one of this kind of store."""
        meta, where = self.meta, self.path / HEADER
        for name in self.files:
            if name not in meta["files"]:
                raise DataError(f"{where}: does not list {name}")
            require(is_count(meta["files"][name]["size"]), f"size of {name}")
            require(isinstance(meta["files"][name]["sha256"], str), f"hash of {name}")
        require(self.unit in LIMITS and self.dimensions in (2, 3), "unit or dimensions")
        require(meta["dtype"] in ("float32", "float16"), "dtype")
        self.classes = list(meta["classes"])
        require(all(isinstance(name, str) for name in self.classes), "classes: expected texts")
        require(isinstance(meta["source"], dict), "source: expected an object")
        lost = meta["names_missing_from_splits"]
        require(all(is_count(n) for parts in lost.values() for n in parts.values()), "names_missing_from_splits")
        require(isinstance(meta["dropped"], list), "dropped: expected a list")
        for entry in meta["dropped"]:
            require(isinstance(entry["name"], str) and isinstance(entry["reason"], str), "dropped: name and reason")

    def _check_counts(self, *names: str) -> None:
        """Raise ValueError unless the header counts these things, one or more of each."""
        for name in names:
            require(is_count(self.meta["counts"][name]) and self.meta["counts"][name] > 0, f"counts: {name}")

    def _load(self) -> None:
        """Read the tables of sequences and splits."""
        meta = self.meta
        with naming(self.path / "sequences.npz") as path, np.load(path, allow_pickle=False) as table:
            expect(table["name"], (meta["counts"]["sequences"],))
            self.names = table["name"].tolist()
            require(all(isinstance(name, str) and name for name in self.names), "a sequence without a name")
            require(len(set(self.names)) == len(self.names), "two sequences of one name")
            columns = [table[name].astype(np.int64) for name in SEQUENCE_FIELDS]
            for column in columns:
                expect(column, (meta["counts"]["sequences"],))
                column.setflags(write=False)
            self.labels, self.subjects, self.views, self.repetitions, self.setups, self.total_frames = columns
            within = (self.labels >= -1) & (self.labels < len(self.classes))  # -1: without a label
            require(within.all(), "a label that is no class")
            require(((self.total_frames > 0) & (self.total_frames < 2**31)).all(), "a number of frames")
            self._check_sequences(table)
        with naming(self.path / "splits.json") as path:
            self.splits = {
                split: {part: split_ids(ids, len(self.names)) for part, ids in members.items()}
                for split, members in _json(read_bytes(path), path).items()
            }
        with naming(self.path / HEADER):
            for split, content in meta.get(MADE_SPLITS, {}).items():
                require(split not in self.splits, f"{MADE_SPLITS}: {split} twice")
                require(isinstance(content["by"], str), f"{MADE_SPLITS}: {split}: by")
                self.splits[split] = made_parts(content["parts"], len(self.names))

    def _check_sequences(self, table: Any) -> None:
        """Raise unless the table of sequences fits what was recorded of them."""

    def _check_frames(self) -> None:
        """Raise DataError for what no frame may hold, which `open` does not look at."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself instead of being sent a copy of them.
        return (Store.open, (self.path,))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the store's files beside store.json."""
        return (*self.data_files, *TABLES)

    @property
    def rows(self) -> int:
        """What the frames are counted by: frames of bodies, or points."""
        raise NotImplementedError

    @property
    def unit(self) -> str:
        """Of the coordinates: m, mm, px or normalised."""
        return self.meta.get("unit", "m")

    @property
    def dimensions(self) -> int:
        """Coordinates that were recorded of a joint, 2 or 3; with 2, z is 0 everywhere."""
        return self.meta.get("dimensions", 3)

    @property
    def dropped(self) -> list[dict[str, Any]]:
        """Sequences that were left out when the store was made: name, reason, and file and line where known."""
        return self.meta["dropped"]

    def class_name(self, index: int) -> str:
        """The class of a sequence by its number; "no label" where it has none."""
        label = int(self.labels[index])
        return self.classes[label] if label >= 0 else NO_LABEL

    @cached_property
    def notes(self) -> dict[str, list[str]]:
        """Sequence name -> what was dropped from it and why."""
        with naming(self.path / "notes.json") as path:
            notes = _json(read_bytes(path), path)
            texts = itertools.chain.from_iterable(notes.values())
            require(all(isinstance(text, str) for text in texts), "expected lists of texts")
            return notes

    def verify(self, progress: Callable[[str], None] | None = None) -> None:
        """Compare every file with its SHA-256 in store.json, and look at every frame and its number.

        Args:
            progress: called with each file's name before it is read.

        Raises:
            DataError: names the first file that differs, or that holds what no store may.
        """
        for name in self.files:
            if progress is not None:
                progress(name)
            if hash_file(self.path / name) != self.meta["files"][name]["sha256"]:
                raise DataError(f"{self.path / name}: damaged (its SHA-256 is not the one in {HEADER}); import again")
        if read_bytes(self.path / HEADER) != header_bytes(self.meta):
            raise DataError(f"{self.path / HEADER}: changed since the store was opened; import again")
        self._check_frames()
        self.notes  # noqa: B018 (reads and checks them)

    def select(self, split: str, part: str) -> np.ndarray:
        """Numbers of the sequences in a part ("train", "test") of a named split; split "all" has every sequence.

        Returns:
            int64 [n], ascending.

        Raises:
            DataError: no such split or part; the message lists what there is.
        """
        if split == "all" and "all" not in self.splits:
            return np.arange(len(self), dtype=np.int64)
        if split not in self.splits:
            names = ", ".join([*self.splits, "all"])
            raise DataError(f"{self.path}: no split {split!r}; this store has {names}")
        if part not in self.splits[split]:
            raise DataError(f"{self.path}: split {split!r} has no part {part!r}, only {', '.join(self.splits[split])}")
        return self.splits[split][part].copy()

    def split_digest(self, split: str) -> str | None:
        """SHA-256 of a split that a user made; None of one that was imported, which the fingerprint covers."""
        if split not in self.meta.get(MADE_SPLITS, {}):
            return None
        parts = {part: ids.tolist() for part, ids in self.splits[split].items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def store_classes() -> tuple[type[Store], ...]:
    """The kinds of stores; first the one that headers do not name."""
    from s2vfast.data.point_store import PointStore
    from s2vfast.data.skeleton_store import SkeletonStore

    return SkeletonStore, PointStore


def _class_of(meta: dict[str, Any]) -> type[Store]:
    """The class of the kind of store that a header is of."""
    kinds = {store.kind: store for store in store_classes()}
    kind = kinds[meta.get("kind", next(iter(kinds)))]
    require(meta["version"] in kind.versions, f"version {meta['version']} is none of a store of {kind.kind}")
    return kind


def check_finite(path: Path, frames: np.ndarray) -> None:
    """Raise DataError, naming the file, unless all coordinates in an array are finite; it is read in pieces."""
    with naming(path):
        for start in range(0, len(frames), 1 << 16):
            require(np.isfinite(frames[start : start + (1 << 16)]).all(), "a coordinate that is not finite")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def header_bytes(meta: dict[str, Any]) -> bytes:
    """store.json as it is on disk. Its last field is the hash of the others, so that a changed header shows too."""
    plain = {key: value for key, value in meta.items() if key != "header_sha256"}
    digest = hashlib.sha256(json.dumps(plain, indent=1).encode()).hexdigest()
    return (json.dumps({**plain, "header_sha256": digest}, indent=1) + "\n").encode()


def read_bytes(path: Path) -> bytes:
    """A whole JSON file of a store."""
    try:
        return read_plain(path, MAX_JSON_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _json(raw: bytes, path: Path) -> Any:
    """JSON, or a DataError that names the file."""
    try:
        return parse_json(raw)
    except NotJson as error:
        raise DataError(f"{path}: damaged, not JSON ({error}); import again") from error
