"""NTU RGB+D 60 and 120: one ``.skeleton`` text file a recording.

A file holds the number of frames; for every frame the number of bodies; for every body a line of ten fields that
begins with the tracking id, the number of joints (25), and a line of twelve numbers a joint, x y z in metres first.
The name SsssCcccPpppRrrrAaaa gives setup, camera, performer, replication and action. Lines end in LF or CRLF.
The nine other numbers of a joint (depth and colour pixels, orientation, state) are not used and not checked.

**Which bodies are real.** The tracker also follows chairs and reflections, and gives a person it lost a new id. The
rule looks at the tracks alone, never at the action, so that no label leaks into the data:

1. A recording with a single track keeps it.
2. Tracks of at most `SHORT_TRACK` frames are dropped.
3. Tracks that are wider than `SPREAD` of their height in more than `SPREAD_SHARE` of their frames are dropped
   (furniture is wide, people are tall).
4. If 2 and 3 leave nothing, the longest track is kept.
5. The rest is ranked by motion, the variance of the joints over time summed over joints and axes; the one that moves
   most is the main body, the second is kept too unless its motion is below `STILL`, the others are dropped.

Every drop is noted. A track keeps its frame numbers: where its body was not seen there is a gap.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s2vfast.data.formats.base import MAX_FRAMES, MAX_METRES, BrokenRecording, Source, find_absurd, whole_number
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.scan import scan
from s2vfast.data.store import Body, Sequence
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

JOINTS = 25
SHORT_TRACK = 11  # frames
SPREAD = 0.8
SPREAD_SHARE = 0.7
STILL = 1e-3  # m2, summed over 75 coordinates: 4 mm of movement each, below what a Kinect's noise alone gives
MAX_BODIES = 64  # in one frame; a Kinect v2 tracks six

XSUB60_TRAIN = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
XSUB120_TRAIN = XSUB60_TRAIN | {45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84}
XSUB120_TRAIN |= {85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103}
"""Performers that train (official x-sub splits of NTU RGB+D 60 and 120)."""
XVIEW_TRAIN = frozenset((2, 3))
"""Cameras that train (official x-view split of NTU RGB+D 60). x-set of 120 trains on even setups."""

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", re.IGNORECASE)


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
    return src.suffix.lower() == ".skeleton" if src.is_file() else bool(scan(src, ".skeleton")[0])


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All ``.skeleton`` files below ``src``, in the order of their names. The layout is always kinect_v2."""
    files, notes = scan(src, ".skeleton")
    if not files:
        raise DataError(f"{src}: no .skeleton files below")
    actions = [name.action for file in files if (name := parse_name(file.stem))]
    classes = (120 if max(actions) > 60 else 60) if actions else 0
    return Source(
        layout=LAYOUTS["kinect_v2"],
        classes=[f"A{action:03d}" for action in range(1, classes + 1)],
        items=files,
        total=len(files),
        read=partial(read_file, labelled=labelled),
        splits=splits120 if classes == 120 else splits60,
        notes=notes,
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
    """One recording, with at most two bodies chosen by the rule above; a name of another kind tells no label.

    Raises:
        BrokenRecording: file, line and reason.
    """
    name = parse_name(path.stem)
    if labelled and name is not None and not 1 <= name.action <= 120:
        raise BrokenRecording(path.name, f"the name says action {name.action}, expected 1 to 120")
    frames, tracks, notes = parse(path.read_bytes(), path.name)
    bodies = choose_bodies(tracks, notes)
    sequence = Sequence(path.stem, -1, frames, bodies, notes=notes)
    if labelled and name is not None:
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


def motion(body: Body) -> float:
    """Variance of the joints over time, summed over joints and axes, in square metres."""
    return float(body.joints.astype(np.float64).var(axis=0).sum())


def wide_fraction(body: Body) -> float:
    """Fraction of a track's frames in which it is wider than `SPREAD` of its height."""
    extent = np.ptp(body.joints[..., :2], axis=1)  # [n, 2]
    return float((extent[:, 0] > SPREAD * extent[:, 1]).mean())


def choose_bodies(tracks: list[Body], notes: list[str]) -> list[Body]:
    """At most two real bodies out of all tracks, the main one first; every drop is added to ``notes``."""
    candidates = []
    for track in tracks:
        if len(track.frame_index):
            candidates.append(track)
        else:
            notes.append(f"body {track.body_id}: dropped, all its frames are zero")
    if len(candidates) <= 1:
        return candidates
    real, reasons = [], {}
    for track in candidates:
        length, wide = len(track.frame_index), wide_fraction(track)
        if length <= SHORT_TRACK:
            reasons[track.body_id] = f"seen in {length} frames, {SHORT_TRACK} or fewer"
        elif wide > SPREAD_SHARE:
            reasons[track.body_id] = f"wider than a person in {wide:.0%} of its frames"
        else:
            real.append(track)
    if not real:
        longest = max(candidates, key=lambda track: len(track.frame_index))
        notes.append(f"body {longest.body_id}: kept as the longest, no track looks like a person")
        real = [longest]
        reasons.pop(longest.body_id)
    real.sort(key=motion, reverse=True)  # a stable sort: equal motion keeps the file's order
    for track in real[2:]:
        reasons[track.body_id] = f"motion {motion(track):.3g}, two others move more"
    if len(real) > 1 and motion(real[1]) < STILL:
        reasons[real[1].body_id] = f"motion {motion(real[1]):.3g}, it does not move"
        real = real[:1]
    notes.extend(f"body {body}: dropped, {reason}" for body, reason in reasons.items())
    return real[:2]
