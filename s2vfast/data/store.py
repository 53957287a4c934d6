"""The store: every sequence of a dataset in a few flat files that open at once and are read by memory map.

A store is a folder::

    store.json       version, layout, classes, counts, source, what was dropped and why, size and SHA-256 of the rest
    frames.npy       float32 or float16 [R, V, 3]: the frames of all tracks, one after another, metres
    frame_index.npy  int32 [R]: the frame of its sequence that a row was recorded in
    tracks.npy       one record a track: sequence, slot (0 is the main body), first row, rows, body id
    sequences.npz    name, label, subject, view, repetition, setup, total_frames of every sequence
    splits.json      split -> part -> sequence numbers
    notes.json       sequence name -> what was dropped from it and why

A body that vanishes and returns is one track whose frame numbers skip: nothing is filled in or glued together.
`s2vfast.data.store_writer.write_store` makes stores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.layout import Layout
from s2vfast.errors import DataError

FORMAT = "s2vfast-store"
VERSION = 1
HEADER = "store.json"
FILES = ("frames.npy", "frame_index.npy", "tracks.npy", "sequences.npz", "splits.json", "notes.json")
NO_LABEL = "no label"
SEQUENCE_FIELDS = ("label", "subject", "view", "repetition", "setup", "total_frames")


@dataclass
class Body:
    """One tracked body of a sequence."""

    body_id: str
    """The recording's own name of the body."""
    frame_index: np.ndarray
    """int32 [n], ascending: the frames of the sequence that the body was seen in."""
    joints: np.ndarray
    """float32 [n, V, 3], metres."""


@dataclass
class Sequence:
    """One recording: what a format reads and `write_store` takes."""

    name: str
    """Unique in a store."""
    label: int
    """Class number, from 0; -1 where the recording has none."""
    total_frames: int
    """Length of the recording, frames without a body included."""
    bodies: list[Body]
    """The main body first."""
    subject: int = -1
    """Performer; -1 where unknown, as in the following fields."""
    view: int = -1
    """Camera."""
    repetition: int = -1
    """Which repetition of the same action by the same performer."""
    setup: int = -1
    """Arrangement of the cameras."""
    notes: list[str] = field(default_factory=list)
    """What was dropped and why."""


class Store:
    """A store, open for reading. Opening reads no frames; all methods may be called from several threads at once.

    Make one with `Store.open`.
    """

    path: Path
    """The folder."""
    meta: dict[str, Any]
    """store.json."""
    fingerprint: str
    """SHA-256 of store.json, which holds the hashes of all other files: the identity of the data."""
    layout: Layout
    """The skeleton."""
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
    frames: np.ndarray
    """Memory-mapped [R, V, 3]."""
    frame_index: np.ndarray
    """Memory-mapped int32 [R]."""
    tracks: np.ndarray
    """Structured: sequence, slot, row, count, body."""
    splits: dict[str, dict[str, np.ndarray]]
    """split -> part -> int64 sequence numbers, ascending."""

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open the store in folder ``path``; checks version, presence and sizes of the files, not their hashes.

        Raises:
            DataError: no store there, made by another version, or a file is missing or of another size.
        """
        self = cls()
        self.path = Path(path)
        header = self.path / HEADER
        if not header.is_file():
            raise DataError(
                f"{self.path}: no store here (no {HEADER}); make one with `s2vfast data import` or `s2vfast data synth`"
            )
        raw = read_bytes(header)
        self.fingerprint = hashlib.sha256(raw).hexdigest()
        self.meta = meta = parse_json(raw, header)
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise DataError(f"{header}: not the header of a store")
        if meta.get("version") != VERSION:
            raise DataError(
                f"{header}: store version {meta.get('version')}, this program reads {VERSION}; import again"
            )
        if header_bytes(meta) != raw:
            raise DataError(f"{header}: damaged or edited by hand (its own hash does not match); import again")
        for name in FILES:
            file = self.path / name
            if name not in meta.get("files", {}):
                raise DataError(f"{header}: does not list {name}")
            if not file.is_file():
                raise DataError(f"{file}: missing; the store is damaged, import again")
            if (size := file.stat().st_size) != meta["files"][name]["size"]:
                raise DataError(f"{file}: {size} bytes, expected {meta['files'][name]['size']}; import again")
        self._load()
        return self

    def _load(self) -> None:
        meta = self.meta
        self.layout = Layout.from_dict(meta["layout"], where=str(self.path / HEADER))
        self.classes = list(meta["classes"])
        with _naming(self.path / "frames.npy") as path:
            self.frames = np.load(path, mmap_mode="r", allow_pickle=False)
            _expect(self.frames, (meta["counts"]["rows"], self.layout.num_joints, 3), meta["dtype"])
        with _naming(self.path / "frame_index.npy") as path:
            self.frame_index = np.load(path, mmap_mode="r", allow_pickle=False)
            _expect(self.frame_index, (meta["counts"]["rows"],), "int32")
        with _naming(self.path / "tracks.npy") as path:
            self.tracks = np.load(path, allow_pickle=False)
            self.max_bodies = int(self.tracks["slot"].max()) + 1
            _expect(self.tracks, (meta["counts"]["tracks"],))
        with _naming(self.path / "sequences.npz") as path, np.load(path, allow_pickle=False) as table:
            self.names = table["name"].tolist()
            columns = [table[name].astype(np.int64) for name in SEQUENCE_FIELDS]
            for column in columns:
                _expect(column, (meta["counts"]["sequences"],))
                column.setflags(write=False)
        self.labels, self.subjects, self.views, self.repetitions, self.setups, self.total_frames = columns
        with _naming(self.path / "splits.json") as path:
            self.splits = {
                split: {part: np.asarray(ids, dtype=np.int64) for part, ids in members.items()}
                for split, members in parse_json(read_bytes(path), path).items()
            }

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the files itself instead of being sent a copy of them.
        return (Store.open, (self.path,))

    def __len__(self) -> int:
        return len(self.names)

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
        return parse_json(read_bytes(self.path / "notes.json"), self.path / "notes.json")

    def verify(self, progress: Callable[[str], None] | None = None) -> None:
        """Compare every file with its SHA-256 in store.json.

        Args:
            progress: called with each file's name before it is read.

        Raises:
            DataError: names the first file that differs.
        """
        for name in FILES:
            if progress is not None:
                progress(name)
            if hash_file(self.path / name) != self.meta["files"][name]["sha256"]:
                raise DataError(f"{self.path / name}: damaged (its SHA-256 is not the one in {HEADER}); import again")
        if read_bytes(self.path / HEADER) != header_bytes(self.meta):
            raise DataError(f"{self.path / HEADER}: changed since the store was opened; import again")

    def track_table(self, bodies: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the first ``bodies`` tracks of every sequence lie in `frames`.

        Returns:
            (row int64 [Q, bodies], count int32 [Q, bodies]); an absent body has row 0 and count 0.
        """
        if bodies < 1:
            raise DataError(f"bodies: expected at least 1, found {bodies}")
        row = np.zeros((len(self), bodies), dtype=np.int64)
        count = np.zeros((len(self), bodies), dtype=np.int32)
        tracks = self.tracks[self.tracks["slot"] < bodies]
        row[tracks["sequence"], tracks["slot"]] = tracks["row"]
        count[tracks["sequence"], tracks["slot"]] = tracks["count"]
        return row, count

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

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sequence on its full time line, with zeros where a body is absent.

        Returns:
            (clip float32 [M, F, V, 3], present bool [M, F]); M is the number of bodies of this sequence.
        """
        if not 0 <= index < len(self):
            raise DataError(f"{self.path}: sequence {index} of {len(self)}")
        first, last = np.searchsorted(self.tracks["sequence"], [index, index + 1])
        length = int(self.total_frames[index])
        clip = np.zeros((last - first, length, self.layout.num_joints, 3), dtype=np.float32)  # [M, F, V, 3]
        present = np.zeros((last - first, length), dtype=bool)  # [M, F]
        for track in self.tracks[first:last]:
            rows = slice(int(track["row"]), int(track["row"]) + int(track["count"]))
            at = self.frame_index[rows]
            clip[track["slot"], at] = self.frames[rows]
            present[track["slot"], at] = True
        return clip, present


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
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
    """A whole small file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def parse_json(raw: bytes, path: Path) -> Any:
    """JSON, or a DataError that names the file."""
    try:
        return json.loads(raw)
    except ValueError as error:
        raise DataError(f"{path}: damaged, not JSON ({error}); import again") from error


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[Path]:
    """Turn whatever reading a damaged file raises into one line that names the file."""
    try:
        yield path
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); import again") from error


def _expect(array: np.ndarray, shape: tuple[int, ...], dtype: str | None = None) -> None:
    if array.shape != shape or (dtype is not None and array.dtype != dtype):
        raise ValueError(f"{array.dtype} {list(array.shape)}, expected {dtype or array.dtype} {list(shape)}")
