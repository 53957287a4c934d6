"""NTU RGB+D 60 and 120: one ``.skeleton`` text file a recording.

A file holds the number of frames; for every frame the number of bodies; for every body a line of ten fields that
begins with the tracking id, the number of joints (25), and a line of twelve numbers a joint, x y z in metres first.
The name SsssCcccPpppRrrrAaaa gives setup, camera, performer, replication and action. Lines end in LF or CRLF.
The nine other numbers of a joint (depth and colour pixels, orientation, state) are not used and not checked.

Which tracks are people is decided by `s2vfast.data.tracks`. A track keeps its frame numbers: where its body was not
seen there is a gap.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s2vfast.data.formats.base import MAX_FRAMES, MAX_METRES, BrokenRecording, Source, find_absurd, whole_number
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.store import Body, Sequence
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

JOINTS = 25
MAX_BODIES = 64  # in one frame; a Kinect v2 tracks six

XSUB60_TRAIN = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
XSUB120_TRAIN = XSUB60_TRAIN | {45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84}
XSUB120_TRAIN |= {85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103}
"""Performers that train (official x-sub splits of NTU RGB+D 60 and 120)."""
XVIEW_TRAIN = frozenset((2, 3))
"""Cameras that train (official x-view split of NTU RGB+D 60). x-set of 120 trains on even setups."""

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")


class Name(NamedTuple):
    """What the name of a recording says."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int


def parse_name(name: str) -> Name | None:
    """Read a name like S001C002P003R002A013 (anything after it is ignored), or None if it is not one."""
    match = _NAME.match(name)
    return Name(*map(int, match.groups())) if match else None


def detect(src: Path) -> bool:
    """A ``.skeleton`` file or a folder with one somewhere below."""
    return src.suffix == ".skeleton" if src.is_file() else any(src.rglob("*.skeleton"))


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All ``.skeleton`` files below ``src``, in the order of their names. The layout is always kinect_v2."""
    files = [src] if src.is_file() else sorted(src.rglob("*.skeleton"), key=lambda path: (path.stem, path))
    if not files:
        raise DataError(f"{src}: no .skeleton files below")
    actions = [name.action for file in files if (name := parse_name(file.stem))]
    classes = 120 if max(actions, default=1) > 60 else 60
    return Source(
        layout=LAYOUTS["kinect_v2"],
        classes=[f"A{action:03d}" for action in range(1, classes + 1)],
        items=files,
        total=len(files),
        read=partial(read_file, labelled=labelled),
        splits=splits60 if classes == 60 else splits120,
        labelled=labelled,
    )


def splits60(infos: list[SequenceInfo]) -> Splits:
    """The official splits of NTU RGB+D 60: xsub by performer, xview by camera."""
    return {
        "xsub": _split(infos, [info.subject in XSUB60_TRAIN for info in infos]),
        "xview": _split(infos, [info.view in XVIEW_TRAIN for info in infos]),
    }


def splits120(infos: list[SequenceInfo]) -> Splits:
    """The official splits of NTU RGB+D 120: xsub by performer, xset by setup."""
    return {
        "xsub": _split(infos, [info.subject in XSUB120_TRAIN for info in infos]),
        "xset": _split(infos, [info.setup % 2 == 0 for info in infos]),
    }


def _split(infos: list[SequenceInfo], trains: list[bool]) -> dict[str, list[str]]:
    pairs = list(zip(infos, trains, strict=True))
    return {"train": [i.name for i, yes in pairs if yes], "test": [i.name for i, yes in pairs if not yes]}


def read_file(path: Path, labelled: bool = True) -> list[Sequence | BrokenRecording]:
    """One recording with all its tracks; without ``labelled`` under any name.

    Raises:
        BrokenRecording: file, line and reason.
    """
    name = parse_name(path.stem)
    if labelled and (name is None or not 1 <= name.action <= 120):
        raise BrokenRecording(path.name, "the name is not SsssCcccPpppRrrrAaaa with an action from 1 to 120")
    frames, tracks, notes = parse(path.read_bytes(), path.name)
    sequence = Sequence(path.stem, -1, frames, tracks, notes=notes)
    if labelled:
        sequence.label, sequence.subject, sequence.view = name.action - 1, name.performer, name.camera
        sequence.repetition, sequence.setup = name.replication, name.setup
    return [sequence]


def parse(data: bytes, file: str) -> tuple[int, list[Body], list[str]]:
    """Parse the text of a ``.skeleton`` file.

    Args:
        data: the file's bytes.
        file: its name, for messages.

    Returns:
        (number of frames, tracks in the order they appear, notes). A frame in which all joints of a body lie at zero
        counts as one in which it was not seen.

    Raises:
        BrokenRecording: with the line and the reason.
    """
    lines = data.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise BrokenRecording(file, "the file is empty", 1)
    frames = whole_number(lines[0], "number of frames", file, 1, 0, MAX_FRAMES)
    sightings: dict[str, tuple[list[int], list[int]]] = {}  # id -> (frames, lines of the first joint, counted from 0)
    notes: list[str] = []
    at = 1
    for frame in range(frames):
        if at >= len(lines):
            raise _cut(file, lines, frame, frames)
        count = whole_number(lines[at], "number of bodies", file, at + 1, 0, MAX_BODIES)
        at += 1
        for _ in range(count):
            if at + 2 + JOINTS > len(lines):
                # A cut may hide a wrong joint count, which tells more.
                if at + 1 < len(lines):
                    _joint_count(lines[at + 1], file, at + 2)
                raise _cut(file, lines, frame, frames)
            fields = lines[at].split()
            if len(fields) != 10:
                raise BrokenRecording(file, f"a body's line has 10 fields, found {len(fields)}", at + 1)
            _joint_count(lines[at + 1], file, at + 2)
            body = fields[0].decode("ascii", "replace")
            rows, starts = sightings.setdefault(body, ([], []))
            if rows and rows[-1] == frame:
                notes.append(f"body {body}: twice in frame {frame}, the second left out")
            else:
                rows.append(frame)
                starts.append(at + 2)
            at += 2 + JOINTS
    if at < len(lines):
        raise BrokenRecording(file, f"{len(lines) - at} more lines after the last of {frames} frames", at + 1)
    tracks = [Body(body, *_coordinates(lines, rows, starts, file)) for body, (rows, starts) in sightings.items()]
    return frames, tracks, notes


def _joint_count(line: bytes, file: str, number: int) -> None:
    count = whole_number(line, "number of joints", file, number, 0, 10_000)
    if count != JOINTS:
        raise BrokenRecording(file, f"{count} joints, expected {JOINTS}", number)


def _cut(file: str, lines: list[bytes], frame: int, frames: int) -> BrokenRecording:
    return BrokenRecording(file, f"the file ends in frame {frame + 1} of {frames} (cut off?)", len(lines))


def _coordinates(lines: list[bytes], rows: list[int], starts: list[int], file: str) -> tuple[np.ndarray, np.ndarray]:
    """(frame_index int32 [n], joints float32 [n, V, 3]) of one track."""
    values: list[float] = []
    for start in starts:
        for at in range(start, start + JOINTS):
            fields = lines[at].split()
            if len(fields) != 12:
                raise BrokenRecording(file, f"a joint's line has 12 numbers, found {len(fields)}", at + 1)
            try:
                values.extend((float(fields[0]), float(fields[1]), float(fields[2])))
            except ValueError:
                excerpt = b" ".join(fields[:3])[:60].decode("utf-8", "replace")
                raise BrokenRecording(file, f"x y z are not three numbers: {excerpt!r}", at + 1) from None
    joints = np.array(values).reshape(len(rows), JOINTS, 3)  # [n, V, 3]
    if absurd := find_absurd(joints, MAX_METRES):
        row, joint, reason = absurd
        raise BrokenRecording(file, f"{reason} (frame {rows[row]})", starts[row] + joint + 1)
    present = joints.any(axis=(1, 2))
    return np.array(rows, dtype=np.int32)[present], joints[present].astype(np.float32)
