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

from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.formats.text import parse_ntu as parse
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.limits import MAX_TEXT_BYTES, read_plain
from s2vfast.data.store import Body, Sequence
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

SHORT_TRACK = 11  # frames
SPREAD = 0.8
SPREAD_SHARE = 0.7
STILL = 1e-3  # m2, summed over 75 coordinates: 4 mm of movement each, below what a Kinect's noise alone gives

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
    """One recording, with at most two bodies chosen by the rule above; without ``labelled`` under any name.

    Raises:
        BrokenRecording: file, line and reason.
    """
    name = parse_name(path.stem)
    if labelled and (name is None or not 1 <= name.action <= 120):
        raise BrokenRecording(path.name, "the name is not SsssCcccPpppRrrrAaaa with an action from 1 to 120")
    frames, tracks, notes = parse(read_plain(path, MAX_TEXT_BYTES), path.name)
    bodies = choose_bodies(tracks, notes)
    sequence = Sequence(path.stem, -1, frames, bodies, notes=notes)
    if labelled:
        sequence.label, sequence.subject, sequence.view = name.action - 1, name.performer, name.camera
        sequence.repetition, sequence.setup = name.replication, name.setup
    return [sequence]


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
