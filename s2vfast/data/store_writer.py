"""Writing a store: sequences stream into a temporary folder, which takes the store's name only when it is whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from s2vfast import files
from s2vfast.data.layout import Layout
from s2vfast.data.limits import MAX_CLASSES, MAX_NAME, describe
from s2vfast.data.store import CONFIDENCE, FILES, FORMAT, HEADER, SEQUENCE_FIELDS, Sequence, hash_file, header_bytes
from s2vfast.data.units import check_unit
from s2vfast.errors import DataError

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
    sequences: Iterable[Sequence],
    *,
    layout: Layout,
    classes: list[str],
    splits: Splits | Callable[[list[SequenceInfo]], Splits],
    source: dict[str, Any],
    dropped: list[dict[str, Any]],
    dtype: str = "float32",
    unit: str = "m",
    dimensions: int = 3,
    overwrite: bool = False,
) -> Path:
    """Write a store; the numbers of sequences follow the order in which they come.

    Frames in which every joint of a body is zero are not stored, they are gaps. A body without any frame left is left
    out with a note; a sequence without any body left goes to the list of the dropped.

    Args:
        out: the store's folder, which must not exist unless ``overwrite``.
        sequences: taken one at a time, never all in memory.
        layout: the skeleton; every body has its V joints.
        classes: class names; labels count into them, -1 is a sequence without a label.
        splits: split -> part -> sequence names, or a function that makes it from the sequences that were kept.
            Names that are not in the store are left out and counted in store.json.
        source: where the data came from, as JSON. Part of the store's identity: no dates, no absolute paths.
        dropped: sequences left out before this call, each with at least "name" and "reason". Like ``source`` it is
            read after the last sequence was taken, so a producer may add to it while it runs.
        dtype: "float32" or "float16" on disk.
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
    if dtype not in ("float32", "float16"):
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
            writer = _Writer(new.path, layout, classes, np.dtype(dtype))
        for sequence in sequences:
            check_sequence(sequence, layout, len(classes))
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
    return names <= {HEADER, *FILES, CONFIDENCE}


def check_sequence(sequence: Sequence, layout: Layout, num_classes: int | None) -> None:
    """Raise DataError, naming the sequence and the reason, unless a store may hold ``sequence``.

    Args:
        sequence: any.
        layout: of the store.
        num_classes: classes of the store; None: its label does not matter.
    """
    name = sequence.name
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"sequence name {describe(name)}: expected a non-empty text")
    check_text("sequence name", name)
    if num_classes is not None and not -1 <= sequence.label < num_classes:
        raise DataError(f"{name}: label {sequence.label}, expected 0 to {num_classes - 1}, or -1 where it has none")
    if not 0 <= sequence.total_frames < 2**31:
        raise DataError(f"{name}: total_frames {sequence.total_frames}")
    for body in sequence.bodies:
        joints, at = np.asarray(body.joints), np.asarray(body.frame_index)
        check_text(f"{name}, body", str(body.body_id))
        where = f"{name}, body {body.body_id}"
        if joints.ndim != 3 or joints.shape[1:] != (layout.num_joints, 3):
            expected = f"[frames, {layout.num_joints}, 3] for layout {layout.name}"
            raise DataError(f"{where}: joints of shape {list(joints.shape)}, expected {expected}")
        if body.confidence is not None and body.confidence.shape != joints.shape[:2]:
            raise DataError(f"{where}: confidence {list(body.confidence.shape)}, expected {list(joints.shape[:2])}")
        if at.shape != joints.shape[:1]:
            raise DataError(f"{where}: {at.size} frame numbers for {len(joints)} frames")
        if not np.isfinite(joints).all():
            frame, joint = np.argwhere(~np.isfinite(joints))[0][:2]
            raise DataError(f"{where}: frame {at[frame]}, joint {joint} is not a finite number")
        if len(at) and (at[0] < 0 or at[-1] >= sequence.total_frames or (np.diff(at) <= 0).any()):
            raise DataError(f"{where}: frame numbers must ascend from 0 to below {sequence.total_frames}")


def check_text(what: str, text: str) -> None:
    """Raise DataError if a name is too long, or holds half a character, which nothing can print or write to a file."""
    if len(text) > MAX_NAME:
        raise DataError(f"{what} {describe(text)}: {len(text):,} characters, {MAX_NAME} at most")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{what} {text!a}: not a text, it holds half a character (a lone surrogate); rename it")


class _Writer:
    """The open files of a store in the making, and the tables that are written at the end."""

    def __init__(self, folder: Path, layout: Layout, classes: list[str], dtype: np.dtype) -> None:
        self.folder, self.layout, self.classes, self.dtype = folder, layout, classes, dtype
        self.rows = 0
        self.info: list[SequenceInfo] = []
        self.names: set[str] = set()
        self.tracks: list[tuple[int, int, int, int, str]] = []
        self.notes: dict[str, list[str]] = {}
        self.dropped: list[dict[str, Any]] = []
        self.frames: BinaryIO = open(folder / "frames.npy", "wb")  # noqa: SIM115 (closed by finish or abandon)
        self.index: BinaryIO = open(folder / "frame_index.npy", "wb")  # noqa: SIM115
        self.confidence: BinaryIO | None = None  # made by the first body that has some
        for file in (self.frames, self.index):
            file.write(bytes(HEADER_BYTES))

    def add(self, sequence: Sequence) -> None:
        name = sequence.name
        if name in self.names:
            raise DataError(f"{name}: two sequences of this name")
        notes, slot = list(sequence.notes), 0
        for body in sequence.bodies:
            with np.errstate(over="ignore"):  # float16: looked for in the next line
                joints = np.asarray(body.joints, dtype=self.dtype)  # [n, V, 3]
            if not np.isfinite(joints).all():
                raise DataError(f"{name}, body {body.body_id}: a coordinate does not fit {self.dtype}; use float32")
            present = joints.any(axis=(1, 2))
            count = int(present.sum())
            if count == 0:
                notes.append(f"body {body.body_id}: dropped, all its frames are zero")
                continue
            joints, at = joints[present], np.asarray(body.frame_index, dtype="<i4")[present]
            self.frames.write(np.ascontiguousarray(joints, dtype=self.dtype.newbyteorder("<")).data)
            self.index.write(np.ascontiguousarray(at).data)
            self._add_confidence(None if body.confidence is None else body.confidence[present], count)
            self.tracks.append((len(self.info), slot, self.rows, count, str(body.body_id)))
            self.rows += count
            slot += 1
        if slot == 0:
            reason = "no body in any frame" + "".join(f"; {note}" for note in notes)
            self.dropped.append({"name": name, "reason": reason, "kind": "empty"})
            return
        self.names.add(name)
        values = (int(getattr(sequence, key)) for key in SEQUENCE_FIELDS)
        self.info.append(SequenceInfo(name=name, **dict(zip(SEQUENCE_FIELDS, values, strict=True))))
        if notes:
            self.notes[name] = notes

    def _add_confidence(self, confidence: np.ndarray | None, count: int) -> None:
        """Of the next ``count`` rows; 1 where a body has none among others that do."""
        joints = self.layout.num_joints
        if confidence is not None and self.confidence is None:
            self.confidence = open(self.folder / CONFIDENCE, "wb")  # noqa: SIM115
            self.confidence.write(bytes(HEADER_BYTES))
            ones = np.ones(joints, "<f2").tobytes()
            for _ in range(self.rows):
                self.confidence.write(ones)
        if self.confidence is not None:
            values = np.ones((count, joints)) if confidence is None else confidence
            self.confidence.write(np.ascontiguousarray(np.clip(values, -6e4, 6e4), dtype="<f2").data)

    def finish(
        self,
        splits: Splits | Callable[[list[SequenceInfo]], Splits],
        source: dict[str, Any],
        dropped: list[dict[str, Any]],
        unit: str,
        dimensions: int,
    ) -> None:
        dropped = dropped + self.dropped
        if not self.info:
            first = f"; the first dropped: {dropped[0]['name']}: {dropped[0]['reason']}" if dropped else ""
            raise DataError(f"no sequence to store{first}")
        joints = self.layout.num_joints
        _finish_npy(self.frames, self.dtype.newbyteorder("<"), (self.rows, joints, 3))
        _finish_npy(self.index, np.dtype("<i4"), (self.rows,))
        if self.confidence is not None:
            _finish_npy(self.confidence, np.dtype("<f2"), (self.rows, joints))
        longest = max(1, max(len(track[-1]) for track in self.tracks))
        record = [("sequence", "<i4"), ("slot", "<i2"), ("row", "<i8"), ("count", "<i4"), ("body", f"<U{longest}")]
        with open(self.folder / "tracks.npy", "wb") as file:
            np.save(file, np.array(self.tracks, dtype=record), allow_pickle=False)
        columns = {key: np.array([getattr(info, key) for info in self.info], dtype="<i8") for key in SEQUENCE_FIELDS}
        with open(self.folder / "sequences.npz", "wb") as file:
            np.savez(file, name=np.array([info.name for info in self.info]), **columns)
        by_id, absent_names = self._split_ids(splits(list(self.info)) if callable(splits) else splits)
        _write_json(self.folder / "splits.json", by_id)
        _write_json(self.folder / "notes.json", self.notes)
        file_entries = {}
        for name in FILES if self.confidence is None else (*FILES, CONFIDENCE):
            path = self.folder / name
            files.sync(path)
            file_entries[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
        facts = {
            name: value for name, value, usual in (("unit", unit, "m"), ("dimensions", dimensions, 3)) if value != usual
        }
        meta = {
            "format": FORMAT,
            "version": 2 if facts or self.confidence is not None else 1,
            **facts,
            "layout": self.layout.to_dict(),
            "classes": list(self.classes),
            "counts": {"sequences": len(self.info), "rows": self.rows, "tracks": len(self.tracks)},
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
        for file in (self.frames, self.index, *((self.confidence,) if self.confidence is not None else ())):
            with contextlib.suppress(OSError, ValueError):  # closing flushes, which fails again on a full disk
                file.close()


def _finish_npy(file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file (format 1.0) into the space kept for it, and close the file."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    prefix = b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little")
    file.seek(0)
    file.write(prefix + text.encode("ascii").ljust(HEADER_BYTES - 11) + b"\n")
    file.close()


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")


def _disk_errors(out: Path) -> contextlib.AbstractContextManager[None]:
    return files.disk_errors(out, DataError, "the store could not be written")
