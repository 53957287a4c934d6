"""Writing a store: sequences stream into a temporary folder, which takes the store's name only when it is whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NamedTuple

import numpy as np

from s2vfast import files
from s2vfast.data.limits import MAX_CLASSES, MAX_NAME, describe
from s2vfast.data.store import (
    FORMAT,
    HEADER,
    SEQUENCE_FIELDS,
    TABLES,
    Recording,
    Store,
    hash_file,
    header_bytes,
    store_classes,
)
from s2vfast.data.units import check_unit
from s2vfast.errors import DataError

if TYPE_CHECKING:
    from s2vfast.data.layout import Layout
    from s2vfast.data.point_layout import PointLayout

HEADER_BYTES = 128  # space for the .npy header, written last because the number of rows is known last
Splits = dict[str, dict[str, list[str]]]


class SequenceInfo(NamedTuple):
    """What a function that makes splits sees of a sequence."""

    name: str
    label: int
    subject: int
    view: int
    repetition: int
    setup: int
    total_frames: int


def write_store(
    out: str | Path,
    sequences: Iterable[Recording],
    *,
    layout: Layout | PointLayout,
    classes: list[str],
    splits: Splits | Callable[[list[SequenceInfo]], Splits],
    source: dict[str, Any],
    dropped: list[dict[str, Any]],
    dtype: str | None = None,
    unit: str = "m",
    dimensions: int = 3,
    overwrite: bool = False,
) -> Path:
    """Write a store; the numbers of sequences follow the order in which they come.

    Of skeletons, frames in which every joint of a body is zero are not stored, they are gaps. A body without any frame
    left is left out with a note; a sequence in which nobody is left goes to the list of the dropped.

    Args:
        out: the store's folder, which must not exist unless ``overwrite``.
        sequences: taken one at a time, never all in memory.
        layout: the skeleton, every body has its V joints; or a `PointLayout`, for recordings of points. It decides the
            kind of the store.
        classes: class names; labels count into them, -1 is a sequence without a label.
        splits: split -> part -> sequence names, or a function that makes it from the sequences that were kept.
            Names that are not in the store are left out and counted in store.json.
        source: where the data came from, as JSON. Part of the store's identity: no dates, no absolute paths.
        dropped: sequences left out before this call, each with at least "name" and "reason". Like ``source`` it is
            read after the last sequence was taken, so a producer may add to it while it runs.
        dtype: "float32" or "float16" on disk; None: float32 of skeletons, float16 of points.
        unit: of the coordinates, a key of `s2vfast.data.units.LIMITS`.
        dimensions: recorded coordinates of a joint, 2 (z is 0) or 3.
        overwrite: replace an existing store.

    Returns:
        The store's folder.

    Raises:
        DataError: a sequence that no store may hold (wrong shape, not finite, label out of range, name used twice),
            an existing ``out``, or a disk that cannot take it. Nothing is left behind in any case.
    """
    out = Path(out)
    if dtype not in ("float32", "float16", None):
        raise DataError(f"dtype: expected float32 or float16, found {dtype!r}")
    if not overwrite and os.path.lexists(out):
        raise DataError(f"{out}: exists already; choose another place or allow overwriting (--overwrite)")
    if os.path.lexists(out) and not _is_store(out):
        raise DataError(f"{out}: exists and is not a store, so it is not overwritten")
    check_unit(unit, dimensions)
    if len(classes) > MAX_CLASSES:
        raise DataError(f"{len(classes):,} classes, {MAX_CLASSES:,} at most")
    for name in classes:
        check_text("class name", name)
    with _disk_errors(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        files.recover(out)
    new = files.NewFolder(out, may_replace=_is_store if overwrite else lambda path: False)
    writer = None
    try:
        with _disk_errors(out):
            new.make()
            writer = _writer_of(layout)(new.path, layout, classes, dtype)
        for sequence in sequences:
            writer.check(sequence, layout, len(classes))
            with _disk_errors(out):
                writer.add(sequence)
        with _disk_errors(out):
            writer.finish(splits, source, list(dropped), unit, dimensions)
            new.commit()
    except BaseException:  # also Ctrl-C: nothing half-written stays
        if writer is not None:
            writer.abandon()
        new.abandon()
        raise
    return out


def _is_store(path: Path) -> bool:
    """Whether a folder holds the files of a store and nothing else: what may be deleted."""
    if path.is_symlink() or not (path / HEADER).is_file():
        return False
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(f"{files.TEMPORARY}{HEADER}-")}
    return any(names <= {HEADER, *kind.data_files, *kind.optional_files, *TABLES} for kind in store_classes())


def _writer_of(layout: Layout | PointLayout) -> type[Writer]:
    """What writes recordings of a layout."""
    from s2vfast.data.point_writer import PointWriter
    from s2vfast.data.skeleton_writer import SkeletonWriter

    return next(writer for writer in (SkeletonWriter, PointWriter) if writer.store.kind == layout.kind)


def check_recording(recording: Recording, num_classes: int | None) -> None:
    """Raise DataError, naming the recording and the reason, unless a store may hold its name, label and length.

    Args:
        recording: any.
        num_classes: classes of the store; None: its label does not matter.
    """
    name = recording.name
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"sequence name {describe(name)}: expected a non-empty text")
    check_text("sequence name", name)
    if num_classes is not None and not -1 <= recording.label < num_classes:
        raise DataError(f"{name}: label {recording.label}, expected 0 to {num_classes - 1}, or -1 where it has none")
    if not 0 <= recording.total_frames < 2**31:
        raise DataError(f"{name}: total_frames {recording.total_frames}")


def check_text(what: str, text: str) -> None:
    """Raise DataError if a name is too long, or holds half a character, which nothing can print or write to a file."""
    if len(text) > MAX_NAME:
        raise DataError(f"{what} {describe(text)}: {len(text):,} characters, {MAX_NAME} at most")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{what} {text!a}: not a text, it holds half a character (a lone surrogate); rename it")


class Writer:
    """The open files of a store in the making, and the tables that are written at the end. One subclass a kind.

    Args:
        folder: where the files are made.
        layout: of the recordings.
        classes: class names.
        dtype: of coordinates on disk; None: `dtype`.
    """

    store: ClassVar[type[Store]]
    """The kind of store that it writes."""
    dtype: np.dtype
    """Of coordinates on disk, where nobody asks for another."""
    nothing: ClassVar[str] = "no body in any frame"
    """Why a recording is left out of which `_add` leaves nothing."""

    def __init__(self, folder: Path, layout: Layout | PointLayout, classes: list[str], dtype: str | None) -> None:
        self.folder, self.layout, self.classes = folder, layout, classes
        self.dtype = self.dtype if dtype is None else np.dtype(dtype)
        self.rows = 0
        self.info: list[SequenceInfo] = []
        self.names: set[str] = set()
        self.notes: dict[str, list[str]] = {}
        self.dropped: list[dict[str, Any]] = []
        self._arrays: dict[str, BinaryIO] = {}

    @staticmethod
    def check(recording: Any, layout: Any, num_classes: int | None) -> None:
        """Raise DataError, naming the recording and the reason, unless a store may hold it; see `check_recording`."""
        raise NotImplementedError

    def _add(self, recording: Any, notes: list[str]) -> bool:
        """Write what was recorded, and say in ``notes`` what was left out; False where nothing is left."""
        raise NotImplementedError

    def _finish(self) -> tuple[dict[str, int], dict[str, np.ndarray]]:
        """Write the ends of the files of this kind; returns counts for the header, and columns of sequences.npz."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        """What the header says of such a store alone."""
        return {}

    def _version(self, facts: dict[str, Any]) -> int:
        return self.store.versions[-1]

    def add(self, recording: Recording) -> None:
        """Write a recording that has been checked."""
        name = recording.name
        if name in self.names:
            raise DataError(f"{name}: two sequences of this name")
        notes = list(recording.notes)
        if not self._add(recording, notes):
            reason = self.nothing + "".join(f"; {note}" for note in notes)
            self.dropped.append({"name": name, "reason": reason, "kind": "empty"})
            return
        self.names.add(name)
        values = (int(getattr(recording, key)) for key in SEQUENCE_FIELDS)
        self.info.append(SequenceInfo(name=name, **dict(zip(SEQUENCE_FIELDS, values, strict=True))))
        if notes:
            self.notes[name] = notes

    def array(self, name: str) -> BinaryIO:
        """A .npy file to append numbers to; `finish_array` writes its header."""
        if name not in self._arrays:
            self._arrays[name] = open(self.folder / name, "wb")  # noqa: SIM115 (closed by finish_array or abandon)
            self._arrays[name].write(bytes(HEADER_BYTES))
        return self._arrays[name]

    def finish_array(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        """Write the header of a .npy file (format 1.0) into the space kept for it, and close the file."""
        text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
        prefix = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
        file = self.array(name)
        file.seek(0)
        file.write(prefix + text.encode("ascii").ljust(HEADER_BYTES - 11) + b"\n")
        file.close()

    def finish(
        self,
        splits: Splits | Callable[[list[SequenceInfo]], Splits],
        source: dict[str, Any],
        dropped: list[dict[str, Any]],
        unit: str,
        dimensions: int,
    ) -> None:
        """Write the tables and the header; arguments as of `write_store`."""
        dropped = dropped + self.dropped
        if not self.info:
            first = f"; the first dropped: {dropped[0]['name']}: {dropped[0]['reason']}" if dropped else ""
            raise DataError(f"no sequence to store{first}")
        counts, more_columns = self._finish()
        columns = {key: np.array([getattr(info, key) for info in self.info], dtype="<i8") for key in SEQUENCE_FIELDS}
        with open(self.folder / "sequences.npz", "wb") as file:
            np.savez(file, name=np.array([info.name for info in self.info]), **columns, **more_columns)
        by_id, absent_names = self._split_ids(splits(list(self.info)) if callable(splits) else splits)
        _write_json(self.folder / "splits.json", by_id)
        _write_json(self.folder / "notes.json", self.notes)
        optional = [name for name in self.store.optional_files if name in self._arrays]
        file_entries = {}
        for name in (*self.store.data_files, *TABLES, *optional):
            path = self.folder / name
            files.sync(path)
            file_entries[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
        facts = {
            name: value for name, value, usual in (("unit", unit, "m"), ("dimensions", dimensions, 3)) if value != usual
        }
        meta = {
            "format": FORMAT,
            "version": self._version(facts),
            **self._facts(),
            **facts,
            "layout": self.layout.to_dict(),
            "classes": list(self.classes),
            "counts": {"sequences": len(self.info), **counts},
            "dtype": self.dtype.name,
            "source": source,
            "dropped": dropped,
            "names_missing_from_splits": absent_names,
            "files": file_entries,
        }
        files.write_into(self.folder, HEADER, header_bytes(json.loads(json.dumps(meta))))

    def _split_ids(self, splits: Splits) -> tuple[dict[str, dict[str, list[int]]], dict[str, dict[str, int]]]:
        number = {info.name: at for at, info in enumerate(self.info)}
        by_id: dict[str, dict[str, list[int]]] = {}
        absent_names: dict[str, dict[str, int]] = {}
        for split, by_part in splits.items():
            check_text("split name", split)
            for part in by_part:
                check_text("part of a split", part)
            by_id[split] = {}
            for part, names in by_part.items():
                part_names = set(names)
                by_id[split][part] = sorted(number[name] for name in part_names if name in number)
                if absent := len(part_names) - len(by_id[split][part]):
                    absent_names.setdefault(split, {})[part] = absent
            both = set(by_id[split].get("train", ())) & set(by_id[split].get("test", ()))
            if both:
                raise DataError(f"split {split}: {self.info[min(both)].name} is in both train and test")
        return by_id, absent_names

    def abandon(self) -> None:
        """Close what is open."""
        for file in self._arrays.values():
            with contextlib.suppress(OSError, ValueError):  # closing flushes, which fails again on a full disk
                file.close()


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")


def _disk_errors(out: Path) -> contextlib.AbstractContextManager[None]:
    return files.disk_errors(out, DataError, "the store could not be written")
