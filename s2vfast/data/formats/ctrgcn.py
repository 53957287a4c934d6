"""The npz of CTR-GCN and MAMP: ``x_train``, ``x_test`` [n, T, 150] and ``y_train``, ``y_test``, one-hot or numbers.

The 150 numbers are two bodies of 25 joints, x y z. A sequence ends with its last frame that is not all zero; frames in
which a body is zero before that are gaps. Names are not in the file, so sequences are called train_000000 and
test_000000. The split is named after the file: xsub (NTU60_CS, NTU120_CSub), xview (NTU60_CV), xset (NTU120_CSet),
else "default". Arrays are streamed out of the zip archive, one sequence at a time; pickled objects are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from s2vfast.data.archive import is_single
from s2vfast.data.formats.base import BrokenRecording, Source, parts_of
from s2vfast.data.formats.npy import check_c_order, npz_array, npz_names, read_header
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.limits import MAX_CLASSES, MAX_FRAMES, MAX_SEQUENCES
from s2vfast.data.names import ntu_classes, ntu_codes
from s2vfast.data.store import Body, Sequence
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

BODIES, JOINTS = 2, 25
NOT_ONE_HOT = -2
PARTS = ("train", "val", "test")


def detect(src: Path) -> bool:
    """A .npz file with x_train or x_test."""
    if not is_single(src) or src.suffix.lower() != ".npz":
        return False
    try:
        return not {"x_train", "x_test"}.isdisjoint(npz_names(src))
    except DataError:
        return True  # `open_source` says what is wrong with it


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """Read the labels and the shapes. The layout is always kinect_v2; without ``labelled``, one of the parts will do.

    Raises:
        DataError: an array is missing or of another shape.
    """
    if not is_single(src):
        raise DataError(f"{src}: expected one .npz file")
    labels: dict[str, np.ndarray] = {}
    classes = 0
    notes: list[str] = []
    names = set(npz_names(src))
    parts = [part for part in PARTS if f"x_{part}" in names] or [PARTS[0]]
    for part in parts:
        with npz_array(src, f"x_{part}") as member:
            shape, _ = _skeletons_header(member, f"{src}: x_{part}")
        labels[part], count = _labels(src, part, names) if labelled else (np.full(shape[0], -1), 0)
        classes = max(classes, count)
        if labelled and f"y_{part}" not in names:
            labels[part] = np.full(shape[0], -1)
            notes.append(f"no y_{part}: its sequences have no labels")
        if len(labels[part]) != shape[0]:
            raise DataError(f"{src}: {shape[0]} sequences in x_{part} but {len(labels[part])} labels in y_{part}")
    return Source(
        layout=LAYOUTS["kinect_v2"],
        classes=(ntu_classes if classes in (60, 120) else ntu_codes)(classes),  # others reuse the container
        items=_items(src, labels),
        total=sum(map(len, labels.values())),
        read=partial(read_row, file=src.name, labelled=labelled),
        splits=partial(splits, split=split_name(src.stem)),
        parallel=False,
        notes=notes,
        labelled=labelled,
    )


def split_name(stem: str) -> str:
    """The split that a file like NTU60_CS.npz holds."""
    ending = stem.lower().replace("-", "_").rpartition("_")[2]
    aliases = {"xsub": ("cs", "csub", "xsub"), "xview": ("cv", "cview", "xview"), "xset": ("cset", "xset")}
    return next((split for split, endings in aliases.items() if ending in endings), "default")


def splits(infos: list[SequenceInfo], split: str) -> Splits:
    """One split, by the array that a sequence comes from."""
    by_part = {part: [info.name for info in infos if info.name.startswith(f"{part}_")] for part in PARTS}
    return {split: parts_of({part: names for part, names in by_part.items() if names})}


def read_row(item: tuple[str, int, np.ndarray], file: str, labelled: bool = True) -> list[Sequence | BrokenRecording]:
    """One sequence from its numbers [T, 150].

    Raises:
        BrokenRecording: the label is not one class.
    """
    name, label, numbers = item
    if labelled and label == NOT_ONE_HOT:
        raise BrokenRecording(file, "the label is not one-hot (exactly one 1, zeros elsewhere)", name=name)
    bodies_first = numbers.reshape(-1, BODIES, JOINTS, 3).transpose(1, 0, 2, 3)  # [M, T, V, 3]
    present = bodies_first.any(axis=(2, 3))  # [M, T]
    frames = int(np.flatnonzero(present.any(axis=0)).max(initial=-1)) + 1
    bodies = [
        Body(str(body), np.flatnonzero(present[body]).astype(np.int32), bodies_first[body, present[body]])
        for body in range(BODIES)
        if present[body].any()
    ]
    return [Sequence(name, label, frames, bodies)]


def _items(src: Path, labels: dict[str, np.ndarray]) -> Iterator[tuple[str, int, np.ndarray]]:
    for part in sorted(labels):  # test before train: names ascend, as in every store
        with npz_array(src, f"x_{part}") as member:
            (count, frames, width), dtype = _skeletons_header(member, f"{src}: x_{part}")
            size = frames * width * dtype.itemsize
            for number in range(count):
                data = member.read(size)
                if len(data) != size:
                    raise DataError(f"{src}: x_{part}: ends in sequence {number} of {count} (cut off?)")
                name = f"{part}_{number:06d}"
                yield name, int(labels[part][number]), np.frombuffer(data, dtype=dtype).reshape(frames, width)
            if member.read(1):  # at the end of a member its checksum is looked at
                raise DataError(f"{src}: x_{part}: more data than {count} sequences")


def _skeletons_header(member: IO[bytes], where: str) -> tuple[tuple[int, int, int], np.dtype]:
    shape, fortran, dtype = read_header(member, where)
    check_c_order(shape, fortran, where)
    width = BODIES * JOINTS * 3
    if len(shape) != 3 or shape[2] != width or not 1 <= shape[1] <= MAX_FRAMES or not 0 <= shape[0] <= MAX_SEQUENCES:
        raise DataError(f"{where}: shape {list(shape)}, expected [n, T, {width}]")
    if dtype.kind != "f":
        raise DataError(f"{where}: expected floating-point numbers, found {dtype}")
    return shape, dtype


def _labels(src: Path, part: str, names: set[str]) -> tuple[np.ndarray, int]:
    """(label per sequence, NOT_ONE_HOT where a row is none; number of classes)."""
    if f"y_{part}" not in names:
        return np.empty(0, dtype=np.int64), 0
    name = f"{src}: y_{part}"
    with npz_array(src, f"y_{part}") as member:
        shape, fortran, dtype = read_header(member, name)
        check_c_order(shape, fortran, name)
        if dtype.kind not in "iufb" or len(shape) not in (1, 2) or not 0 <= shape[0] <= MAX_SEQUENCES:
            raise DataError(f"{name}: {dtype} {list(shape)}, expected one-hot rows or numbers")
        if shape[1:] and not 1 <= shape[1] <= MAX_CLASSES:
            raise DataError(f"{name}: {shape[1]} columns, expected 1 to {MAX_CLASSES:,}")
        size = math.prod(shape) * dtype.itemsize
        data = member.read(size + 1)  # no more than there is; past the end, so that the checksum is looked at
    if len(data) != size:
        raise DataError(f"{name}: {len(data)} bytes or more for shape {list(shape)} (cut off?)")
    y = np.frombuffer(data, dtype=dtype).reshape(shape)
    if y.ndim == 1 or y.shape[1] == 1:  # a column holds numbers: one-hot rows of one class would all be 1
        y = y.reshape(-1)
        if not ((y >= -1) & (y < MAX_CLASSES)).all() or (labels := y.astype(np.int64)).tolist() != y.tolist():
            raise DataError(f"{name}: expected whole numbers from 0 to below {MAX_CLASSES:,}, or -1 for no label")
        return labels, int(labels.max(initial=-1)) + 1
    one_hot = ((y != 0).sum(axis=1) == 1) & ((y == 1).sum(axis=1) == 1)
    return np.where(one_hot, y.argmax(axis=1), NOT_ONE_HOT), y.shape[1]
