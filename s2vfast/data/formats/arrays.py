"""A folder of arrays, one recording a file: .npy, .npz or .csv, of any skeleton.

An array is [T, V, C], [M, T, V, C] or [T, M, V, C]: frames, joints, coordinates, bodies. In the last two the axis that
has more than 8 in every file is T and the one that has 8 or fewer is M; where that does not tell, and for any other
order, ``--axes`` says it, as ``TMVC``. A .csv, and an array of two axes, has a frame a line: the numbers of all joints,
x y z of one and then of the next (or all x, then all y, where a header says so). C is 2, 3 or 4: x and y, z, a score.
``--channels xys`` says that the third number is a score. A joint of zeros or NaN was not seen.

An .npz holds one array, or one that is called keypoints, joints, data or the like, and perhaps scores [.., V]. A header
of a .csv may name columns; frame, time and the like are left aside.

The skeleton is the one of ``--layout``, else the one known layout of that V and C; where there are several or none, it
has to be named. Classes and people come from ``--labels``, or from the folders (`s2vfast.data.labels`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.archive import AnyPath, is_single, open_file, read_bytes
from s2vfast.data.formats import poses
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.formats.npy import npz_array, npz_names, read_array, read_header
from s2vfast.data.formats.text import BYTE_ORDER_MARK, numbers, split_lines
from s2vfast.data.layout import LAYOUTS, Layout, UnknownLayout, layout_of_shape
from s2vfast.data.limits import MAX_ARRAY_BYTES, MAX_BODIES, MAX_FRAMES, MAX_JOINTS, MAX_TEXT_BYTES, describe
from s2vfast.data.scan import recording_name, scan
from s2vfast.data.store import Sequence
from s2vfast.data.units import guess_unit, third_is_score
from s2vfast.errors import DataError

OPTIONS = ("axes", "channels")
SUFFIXES = (".npy", ".npz", ".csv")
PEOPLE = 8
"""Bodies that an axis of M has at most, where nobody says which it is."""
CHANNELS = {2: "xy", 3: "xyz", 4: "xyzs"}
NAMES = "keypoints keypoint joints skeleton skeletons data poses pose positions landmarks points kpts x".split()
SCORES = "scores score confidence confidences keypoint_scores keypoint_score visibility".split()
SAMPLES = 50
"""Files whose shapes and sizes are looked at before all are read."""
SAMPLE_FRAMES, SAMPLE_BYTES = 1000, 2**26
"""Frames of each, about, and bytes of all, unless the first has more."""
_ASIDE = re.compile(r"frame.*|time.*|timestamp.*|index|id|idx|unnamed.*|", re.IGNORECASE)
_COLUMN = re.compile(r"(?:.*[^a-z]|)([xyzsvcp])|([xyzsvcp])(?:[^a-z].*|)|.*(score|visibility|confidence)", re.I)


def detect(src: Path) -> bool:
    """A file of an array of up to four axes, or a folder with one somewhere below."""
    return _is_array(src) if is_single(src) else bool(scan(src, SUFFIXES, _is_array, first=True)[0])


def _is_array(path: AnyPath) -> bool:
    """Whether a file begins as an array of one recording does. What is damaged is none."""
    try:
        if path.suffix.lower() == ".npz":
            return {"x_train", "x_test"}.isdisjoint(npz_names(path))
        with open_file(path) as (file, _):
            if path.suffix.lower() == ".npy":
                return len(read_header(file, str(path))[0]) <= 4
            if path.suffix.lower() == ".csv":
                lines = [line for line in file.read(1 << 16).splitlines() if line.strip()]
                return any(len(cells) > 5 and _are_numbers(cells) for cells in map(_cells, lines[:2]))
    except (DataError, OSError):
        pass
    return False


def _are_numbers(cells: list[bytes]) -> bool:
    try:
        numbers([cell for cell in cells if cell])
    except ValueError:
        return False
    return True


def open_source(
    src: Path, layout: Layout | None, labelled: bool = True, axes: str | None = None, channels: str | None = None
) -> Source:
    """All arrays at or below ``src``.

    Raises:
        DataError: nothing there, or a layout or an order of axes that has to be named.
    """
    files, notes = scan(src, SUFFIXES, _is_array)
    if not files:
        raise DataError(f"{src}: no .npy, .npz or .csv files of arrays below")
    files.sort(key=lambda path: recording_name(path, src))
    axes = None if axes is None else _check_axes(axes)
    if channels is not None and channels not in ("xy", "xyz", "xys", "xyzs"):
        raise DataError(f"--channels {channels!r}: expected xy, xyz, xys or xyzs, s a score")
    samples = _samples(files[:: max(1, len(files) // SAMPLES)])
    if not samples:
        raise DataError(f"{src}: none of its {len(files):,} files can be read; the first: {_reason(files[0])}")
    ranks = {array.ndim for array in samples}
    if axes is None and 4 in ranks:
        axes = _people_axis([array.shape for array in samples if array.ndim == 4], src)
        notes.append(f"axes {axes} taken: one has {PEOPLE} or fewer, the other more")
    first = samples[0]
    named, named_channels = layout, channels
    layout, channels, layout_reason = _skeleton(first, layout, axes, channels, src)
    fitting = [array for sample in samples if (array := _arranged(sample, layout, axes, channels)) is not None]
    arranged = [array[:, :: max(1, array.shape[1] // SAMPLE_FRAMES)] for array in fitting]
    if not arranged:
        raise DataError(f"{src}: {_misfit(first, layout, axes, channels)}")
    if channels == "xyz" and named_channels is None and third_is_score(arranged):
        raise DataError(f"{src}: is the third number a score? It lies in 0 to 1; say --channels xys, or xyz if it is z")
    dimensions = 3 if "z" in channels else 2
    unit, reason = guess_unit((array[..., :dimensions] for array in arranged), dimensions)
    return Source(
        layout=layout,
        layout_reason="" if layout is named else layout_reason,
        items=files,
        read=partial(read_file, src=src, layout=layout, axes=axes, channels=channels),
        unit=unit,
        unit_reason=reason,
        dimensions=dimensions,
        notes=notes,
        names=[recording_name(path, src) for path in files],
        labelled=labelled,
    )


def _check_axes(axes: str) -> str:
    letters = axes.upper()
    if sorted(letters) not in (sorted("TVC"), sorted("MTVC")):
        raise DataError(f"--axes {axes!r}: expected T, V, C and perhaps M in the arrays' order, as TVC, MTVC or CTVM")
    return letters


def _people_axis(shapes: list[tuple[int, ...]], src: Path) -> str:
    """MTVC or TMVC, by which of the first two axes is small in all files and which large."""
    first, second = ([shape[axis] for shape in shapes] for axis in (0, 1))
    if max(first) <= PEOPLE < min(second):
        return "MTVC"
    if max(second) <= PEOPLE < min(first):
        return "TMVC"
    raise DataError(f"{src}: arrays {list(shapes[0])}: which axis is bodies, which frames? Say --axes MTVC or TMVC")


def _skeleton(
    array: np.ndarray, layout: Layout | None, axes: str | None, channels: str | None, src: Path
) -> tuple[Layout, str, str]:
    """(layout, channels, what the layout was taken for) of arrays like this one."""
    if array.ndim == 2:
        width = array.shape[1]
        fitting = [
            (each, letters)
            for each in ([layout] if layout is not None else LAYOUTS.values())
            for letters in ([channels] if channels is not None else CHANNELS.values())
            if each.num_joints * len(letters) == width
            and (layout is not None or (3 if "z" in letters else 2) in each.dimensions)
        ]
        if layout is not None and len(fitting) != 1:
            joints = layout.num_joints
            raise DataError(f"{src}: {width} numbers a frame; layout {layout.name} has {joints} joints of 2, 3 or 4")
        if len(fitting) != 1:
            listed = (
                " or ".join(f"{each.name} of {letters}" for each, letters in fitting) or "no known layout has so many"
            )
            raise UnknownLayout(f"{src}: {width} numbers a frame ({listed}); say --layout and --channels")
        layout, channels = fitting[0]
        return layout, channels, f"{width} numbers a frame, {channels} of each joint"
    order = _order(array, axes)
    if len(order) != array.ndim:
        raise DataError(f"{src}: arrays {list(array.shape)}, expected 2, 3 or 4 axes, {axes or 'TVC or MTVC'}")
    joints, width = array.shape[order.index("V")], array.shape[order.index("C")]
    if channels is None:
        if width not in CHANNELS:
            raise DataError(
                f"{src}: arrays {list(array.shape)} in the order {order} have {width} coordinates a joint, expected 2, "
                "3 or 4; --axes says another order"
            )
        channels = CHANNELS[width]
    if layout is None:
        layout = layout_of_shape(joints, 3 if "z" in channels else 2, where=str(src))
    return layout, channels, f"{joints} joints of {channels}"


def read_file(path: AnyPath, src: AnyPath, layout: Layout, axes: str | None, channels: str) -> list[Sequence]:
    """One recording.

    Raises:
        BrokenRecording: not such an array.
    """
    values, score = _load(path)
    array = _arranged(values, layout, axes, channels)
    if array is None:
        raise BrokenRecording(path.name, _misfit(values, layout, axes, channels))
    coordinates = 3 if "z" in channels else 2
    confidence = array[..., -1] if channels.endswith("s") else None
    if score is not None and confidence is None:
        scored = None
        if values.ndim == 2:
            scored = _arranged(score, layout, axes, "s") if score.ndim == 2 else None
        elif score.ndim == values.ndim - 1:
            scored = _arranged(np.expand_dims(score, _order(values, axes).index("C")), layout, axes, "s")
        if scored is None or scored.shape[:3] != array.shape[:3]:
            raise BrokenRecording(path.name, f"scores {list(score.shape)}, which do not fit {list(values.shape)}")
        confidence = scored[..., 0]
    joints = np.zeros((*array.shape[:3], 3), np.float64 if array.dtype.itemsize > 4 else np.float32)
    joints[..., :coordinates] = array[..., :coordinates]
    return [Sequence(recording_name(path, src), -1, array.shape[1], poses.bodies_of(joints, confidence))]


def _arranged(array: np.ndarray, layout: Layout, axes: str | None, channels: str) -> np.ndarray | None:
    """[M, T, V, C] of a file's array; None where it does not fit."""
    joints, width = layout.num_joints, len(channels)
    if array.ndim == 2:
        if array.shape[1] != joints * width:
            return None
        array, order = array.reshape(-1, joints, width), "TVC"
    else:
        order = _order(array, axes)
    if array.ndim not in (3, 4) or len(order) != array.ndim:
        return None
    array = np.transpose(array, [order.index(letter) for letter in "MTVC" if letter in order])
    array = array if array.ndim == 4 else array[None]
    fits = array.shape[2:] == (joints, width) and array.shape[0] <= MAX_BODIES and array.shape[1] <= MAX_FRAMES
    return array if fits and joints <= MAX_JOINTS else None


def _order(array: np.ndarray, axes: str | None) -> str:
    """The order of the axes of an array: of three, of four without their M if they are told for arrays of four."""
    if axes is not None and len(axes) != array.ndim:
        axes = axes.replace("M", "")
    return axes if axes is not None else "TVC"


def _misfit(array: np.ndarray, layout: Layout, axes: str | None, channels: str) -> str:
    order = _order(array, axes)
    limits = f"at most {MAX_BODIES} bodies and {MAX_FRAMES:,} frames"
    joints, width = layout.num_joints, len(channels)
    if array.ndim == 2:
        return f"{array.shape[1]} numbers a frame, expected {joints * width}: {joints} joints of {channels}; {limits}"
    return (
        f"array {list(array.shape)}, expected {', '.join(order)} with V {joints} and C {width} ({channels}); {limits}"
    )


def _samples(paths: list[AnyPath]) -> list[np.ndarray]:
    """The arrays of files, as far as they can be read and while they are no more than `SAMPLE_BYTES`."""
    arrays: list[np.ndarray] = []
    for path in paths:
        with contextlib.suppress(DataError, OSError):
            arrays.append(_load(path)[0])
        if sum(array.nbytes for array in arrays) > SAMPLE_BYTES:
            break
    return arrays


def _reason(path: AnyPath) -> str:
    try:
        return describe(_load(path)[0])
    except (DataError, OSError) as error:
        return str(error)


def _load(path: AnyPath) -> tuple[np.ndarray, np.ndarray | None]:
    """(numbers, scores or None) of a file, as they lie in it."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _load_csv(path), None
    if suffix == ".npy":
        with open_file(path) as (file, _):
            return _broken(path, partial(read_array, file, path.name, MAX_ARRAY_BYTES)), None
    names = _broken(path, partial(npz_names, path))
    named = [name for name in names if name.lower() in NAMES] if len(names) > 1 else names
    if len(named) != 1:
        listed = ", ".join(names[:6]) or "nothing"
        raise BrokenRecording(path.name, f"holds {listed}: which is the recording? Save it as keypoints")
    scores = [name for name in names if name.lower() in SCORES and name not in named]
    arrays = [_broken(path, partial(_load_npz, path, name)) for name in named + scores[:1]]
    return arrays[0], arrays[1] if len(arrays) > 1 else None


def _broken(path: AnyPath, read: Callable[[], Any]) -> Any:
    """What ``read`` gives; what is wrong with a file costs that recording alone."""
    try:
        return read()
    except DataError as error:
        if isinstance(error, BrokenRecording):
            raise
        reason = str(error).removeprefix(f"{path}").removeprefix(path.name).lstrip(": ")
        raise BrokenRecording(path.name, reason) from None


def _load_npz(path: AnyPath, name: str) -> np.ndarray:
    with npz_array(path, name) as member:
        return read_array(member, name, MAX_ARRAY_BYTES)


def _cells(line: bytes) -> list[bytes]:
    """The fields of a line, separated by commas, semicolons or tabs, or by blanks where it has none of these."""
    delimiter = max((b",", b";", b"\t"), key=line.count)
    return [cell.strip() for cell in line.split(delimiter)] if delimiter in line else line.split()


def _load_csv(path: AnyPath) -> np.ndarray:
    """[T, n], or [T, V, C] where the header says that all x come before all y."""
    data = read_bytes(path, MAX_TEXT_BYTES).removeprefix(BYTE_ORDER_MARK)
    lines = split_lines(data, path.name)
    header = [cell.strip(b'"') for cell in _cells(lines[0])] if lines else []
    columns = slice(None)
    start, letters = 0, ""
    if header and not _are_numbers(header):
        names = [cell.decode("utf-8", "replace") for cell in header]
        columns = [at for at, name in enumerate(names) if not _ASIDE.fullmatch(name)]
        letters = _letters([names[at] for at in columns])
        start = 1
    width, rows = len(header), []
    for number, line in enumerate(lines[start:], start + 1):
        cells = _cells(line)
        if len(cells) != width:
            raise BrokenRecording(path.name, f"{len(cells)} numbers, the first line has {width}", number)
        if start:
            cells = [cells[at] for at in columns]
        try:
            rows.append(np.array(numbers([cell or b"nan" for cell in cells])))
        except ValueError as error:
            raise BrokenRecording(path.name, f"not a number: {error}", number) from None
    if not rows:
        raise BrokenRecording(path.name, "no line of numbers")
    values = np.stack(rows)
    channels = len(set(letters))
    if channels > 1 and letters == "".join(letter * (len(letters) // channels) for letter in dict.fromkeys(letters)):
        values = values.reshape(len(values), channels, -1).swapaxes(1, 2).reshape(len(values), -1)
    return values


def _letters(names: list[str]) -> str:
    """What the columns are, a letter each, as far as their names say it: xxyyzz of x0, x1, y0, y1, z0, z1."""
    matches = [_COLUMN.fullmatch(name) for name in names]
    if not all(matches):
        return ""
    letters = "".join((match[1] or match[2] or "s").lower() for match in matches if match)
    return re.sub("[vcp]", "s", letters)
