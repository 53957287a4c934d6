"""The arrays of ST-GCN, AGCN and AimCLR: ``train_data_joint.npy`` [N, C, T, V, M] beside ``train_label.pkl``.

A folder holds a pair a part (train, val, test), which make the split "default". The .npy is called ``PART_data_joint``,
``PART_data``, ``PART_joint`` or ``PART_position``; bones and motions are made by a run and are left aside. The pickle
holds (names, labels). One .npy alone is read too, with the pickle beside it where there is one. Arrays are read one
sequence after another, so that 10 GB take no more memory than one.

C is 3, or 2: x, y and z; of 18 joints (Kinetics) the third number is the score, of others with ``--channels xys``.
Frames of zeros are gaps, and a sequence ends with its last frame that is none. AGCN's scripts fill an array by
repeating the sequence; a body whose frames repeat exactly from some frame on is cut there. Names like NTU's tell
performer, camera, replication and setup.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from s2vfast.data.archive import AnyPath, Member, is_single, open_file
from s2vfast.data.formats.base import BrokenRecording, Source, parts_of
from s2vfast.data.formats.npy import check_c_order, read_header
from s2vfast.data.formats.ntu import add_name, parse_name
from s2vfast.data.formats.poses import bodies_of, in_three
from s2vfast.data.layout import Layout, get_layout, layout_of_shape
from s2vfast.data.limits import MAX_BODIES, MAX_CLASSES, MAX_FRAMES, MAX_JOINTS, MAX_NAME, MAX_SEQUENCES, describe
from s2vfast.data.names import ntu_classes
from s2vfast.data.safe_pickle import load_pickle
from s2vfast.data.scan import only_folder, scan
from s2vfast.data.store import Sequence
from s2vfast.data.units import guess_unit, third_is_score
from s2vfast.errors import DataError

OPTIONS = ("channels",)
KINETICS = 18
SAMPLES = 50
"""Sequences, and frames of each, that the unit is guessed from."""
_ARRAY = re.compile(r"(?:.*[_-])?(?P<part>train|val|test)_(?:data|joint|position|data_joint)", re.IGNORECASE)
_DERIVED = re.compile(r".*_(?:bone|motion|joint_motion|bone_motion|joint_bone)", re.IGNORECASE)


def detect(src: Path) -> bool:
    """A .npy file of five axes, or a folder with one called like train_data_joint.npy."""
    if is_single(src):
        return src.suffix.lower() == ".npy" and _axes(src) == 5
    return bool(scan(src, ".npy", _is_part, first=True)[0])


def _is_part(path: AnyPath) -> bool:
    return _ARRAY.fullmatch(path.stem) is not None and _axes(path) == 5


def _axes(path: AnyPath) -> int:
    """Axes of a .npy file; 0 where it is none."""
    try:
        with open_file(path) as (file, _):
            return len(read_header(file, str(path))[0])
    except (DataError, OSError):
        return 0


def open_source(src: Path, layout: Layout | None, labelled: bool = True, channels: str | None = None) -> Source:
    """Read the headers and the labels.

    Raises:
        DataError: a part is missing or does not fit, or the skeleton needs a layout.
    """
    arrays, notes = _arrays(src)
    shape, dtype = _header(arrays[sorted(arrays)[0]])
    _, width, _, joints, _ = shape
    if channels is not None and (channels not in ("xy", "xyz", "xys") or len(channels) != width):
        raise DataError(f"{src}: --channels {channels!r}: expected {'xy' if width == 2 else 'xyz or xys, s a score'}")
    scored = channels == "xys" or (channels is None and joints == KINETICS and width == 3)
    dimensions = 2 if scored else width
    layout_reason = ""
    if layout is None:
        layout = get_layout("openpose18") if joints == KINETICS else layout_of_shape(joints, dimensions, where=str(src))
        layout_reason = f"{joints} joints with {dimensions} coordinates"
    if layout.num_joints != joints:
        raise DataError(f"{src}: {joints} joints, layout {layout.name} has {layout.num_joints}")
    names: dict[str, list[str]] = {}
    labels: dict[str, list[int]] = {}
    for part, path in arrays.items():
        other = _header(path)[0]
        if (other[1], other[3]) != (width, joints):
            raise DataError(f"{path}: {other[3]} joints of {other[1]} numbers, another part has {joints} of {width}")
        names[part], labels[part] = [f"{path.stem}_{number:06d}" for number in range(other[0])], [-1] * other[0]
        pickle = _labels_beside(path) if labelled else None
        if pickle is not None:
            names[part], labels[part] = _names_and_labels(pickle, other[0])
        elif labelled:
            notes.append(f"no {part or path.stem}_label.pkl: its sequences have no labels")
    count = max((max(numbers, default=-1) for numbers in labels.values()), default=-1) + 1
    from_ntu = any(parse_name(name) for part in names.values() for name in part[:1])
    if (distinct := len(set().union(*names.values()))) < sum(len(set(part)) for part in names.values()):
        notes.append(f"some names stand in several parts ({distinct:,} names in all): they begin with their part here")
        names = {part: [f"{part}/{name}" for name in members] for part, members in names.items()}
    first_rows = itertools.islice(_rows(arrays[min(arrays)]), SAMPLES)
    samples = [row[:dimensions, :: max(1, row.shape[1] // SAMPLES)].transpose(3, 1, 2, 0) for row in first_rows]
    if dimensions == 3 and channels is None and third_is_score(samples):
        raise DataError(f"{src}: is the third number a score? It lies in 0 to 1; say --channels xys, or xyz if it is z")
    unit, reason = guess_unit(samples, dimensions)
    parts = {part: members for part, members in names.items() if part}
    return Source(
        layout=layout,
        layout_reason=layout_reason,
        classes=ntu_classes(count) if from_ntu else [f"class {label}" for label in range(count)],
        items=_items(arrays, names, labels),
        total=sum(map(len, names.values())),
        read=partial(read_row, dimensions=dimensions, scored=scored, labelled=labelled),
        splits=lambda infos: {"default": parts_of(parts)} if parts else {},
        parallel=False,
        unit=unit,
        unit_reason=reason,
        dimensions=dimensions,
        notes=notes,
        labelled=labelled,
    )


def _arrays(src: AnyPath) -> tuple[dict[str, AnyPath], list[str]]:
    """(part -> its .npy, notes); one .npy alone is part ""."""
    if is_single(src):
        return {"": src}, []
    paths, notes = scan(src, ".npy")
    derived = [path for path in paths if _DERIVED.fullmatch(path.stem)]
    if derived:
        notes.append(f"{len(derived)} arrays left out, bones and motions are made by a run: {derived[0].name}, ...")
    arrays: dict[str, AnyPath] = {}
    matches = [(path, match) for path in paths if path not in derived and (match := _ARRAY.fullmatch(path.stem))]
    only_folder([path for path, _ in matches], src)
    for path, match in matches:
        part = match["part"].lower()
        if part in arrays:
            raise DataError(f"{path}: a second array of part {part}, the first is {arrays[part].name}; keep one")
        arrays[part] = path
    if not arrays:
        raise DataError(f"{src}: no arrays named like train_data_joint.npy, train_data.npy or train_position.npy below")
    return arrays, notes


def _labels_beside(path: AnyPath) -> AnyPath | None:
    """The pickle of labels that belongs to an array: train_label.pkl of train_data_joint.npy."""
    match = re.fullmatch(r"(?P<stem>.*?)_?(?:data|joint|position|data_joint)", path.stem, re.IGNORECASE)
    if match is None:
        return None
    folder = path.archive if isinstance(path, Member) else path.parent
    name = f"{match['stem']}_label" if match["stem"] else "label"
    pickles = scan(folder, (".pkl", ".pickle"), lambda other: other.stem == name and other.parent == path.parent)[0]
    return pickles[0] if pickles else None


def _names_and_labels(path: AnyPath, count: int) -> tuple[list[str], list[int]]:
    """The two lists of a pickle (names, labels)."""
    data = load_pickle(path)
    expected = f"{path}: expected (names, labels), two lists of {count:,}"
    if not isinstance(data, (list, tuple)) or len(data) != 2:
        raise DataError(f"{expected}, found {describe(data)}")
    names, labels = (column.tolist() if isinstance(column, np.ndarray) else column for column in data)
    if not all(isinstance(column, (list, tuple)) for column in (names, labels)):
        raise DataError(f"{expected}, found {describe(names)} and {describe(labels)}")
    if not len(names) == len(labels) == count:
        raise DataError(f"{expected}, found {len(names):,} names and {len(labels):,} labels")
    for number, (name, label) in enumerate(zip(names, labels, strict=True)):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise DataError(f"{path}: name {number} is {describe(name)}, expected a text")
        if not isinstance(label, int) or isinstance(label, bool) or not -1 <= label < MAX_CLASSES:
            raise DataError(f"{path}: label {number} is {describe(label)}, expected a whole number from 0, or -1")
    return [name.removesuffix(".skeleton") for name in names], list(labels)


def _header(path: AnyPath) -> tuple[tuple[int, int, int, int, int], np.dtype]:
    """(N, C, T, V, M) and dtype of an array."""
    with open_file(path) as (file, size):
        shape, fortran, dtype = read_header(file, str(path))
        start = file.tell()
    check_c_order(shape, fortran, str(path))
    if len(shape) != 5 or dtype.kind != "f" or shape[1] not in (2, 3):
        raise DataError(f"{path}: {dtype} {list(shape)}, expected floating-point [N, C, T, V, M] with C 2 or 3")
    count, channels, frames, joints, bodies = shape
    if not (0 <= count <= MAX_SEQUENCES and 1 <= frames <= MAX_FRAMES and 1 <= joints <= MAX_JOINTS):
        raise DataError(f"{path}: shape {list(shape)}; 1 to {MAX_FRAMES:,} frames, {MAX_JOINTS:,} joints are read")
    if not 1 <= bodies <= MAX_BODIES:
        raise DataError(f"{path}: shape {list(shape)}; 1 to {MAX_BODIES} bodies are read")
    expected = count * channels * frames * joints * bodies * dtype.itemsize
    if size - start != expected:
        raise DataError(f"{path}: {size - start:,} bytes for shape {list(shape)} of {dtype}, expected {expected:,}")
    return (count, channels, frames, joints, bodies), dtype


def _rows(path: AnyPath) -> Iterator[np.ndarray]:
    """[C, T, V, M] of one sequence after another."""
    shape, dtype = _header(path)
    size = int(np.prod(shape[1:])) * dtype.itemsize
    with open_file(path) as (file, _):
        read_header(file, str(path))
        for number in range(shape[0]):
            data = file.read(size)
            if len(data) != size:
                raise DataError(f"{path}: ends in sequence {number} of {shape[0]} (cut off?)")
            yield np.frombuffer(data, dtype=dtype).reshape(shape[1:])


def _items(
    arrays: dict[str, AnyPath], names: dict[str, list[str]], labels: dict[str, list[int]]
) -> Iterator[tuple[str, int, np.ndarray]]:
    for part in sorted(arrays):
        yield from zip(names[part], labels[part], _rows(arrays[part]), strict=True)


def read_row(
    item: tuple[str, int, np.ndarray], dimensions: int, scored: bool, labelled: bool = True
) -> list[Sequence | BrokenRecording]:
    """One sequence: (name, label, numbers [C, T, V, M])."""
    name, label, numbers = item
    by_body = numbers.transpose(3, 1, 2, 0)  # [M, T, V, C]
    confidence = by_body[..., -1] if scored else None
    joints = in_three(by_body[..., :dimensions])
    seen = joints.any(axis=(2, 3))  # [M, T]
    notes = []
    for body in range(len(joints)):
        if (period := _period(joints[body])) is not None:
            seen[body, period:] = False
            notes.append(f"body {body}: {joints.shape[1] - period} frames left out that repeat its first {period}")
    joints = np.where(seen[..., None, None], joints, 0.0)
    frames = int(np.flatnonzero(seen.any(axis=0)).max(initial=-1)) + 1
    sequence = Sequence(name, label, frames, bodies_of(joints, confidence), notes=notes)
    if labelled:
        add_name(sequence, name.rpartition("/")[2])
    return [sequence]


def _period(track: np.ndarray) -> int | None:
    """The frame from which a track [T, V, 3] repeats itself exactly to its end; None where it does not."""
    if not track.any() or not track[-1].any():
        return None
    again = np.flatnonzero((track[1:] == track[:1]).all(axis=(1, 2))) + 1
    for period in again[:SAMPLES].tolist():
        if period > 1 and np.array_equal(track[period:], track[:-period]):
            return period
    return None
