"""NTU RGB+D 60 and 120: one ``.skeleton`` text file a recording.

A file holds the number of frames; for every frame the number of bodies; for every body a line of ten fields that
begins with the tracking id, the number of joints (25), and a line of twelve numbers a joint, x y z in metres first.
The name SsssCcccPpppRrrrAaaa gives setup, camera, performer, replication and action. Lines end in LF or CRLF.
The nine other numbers of a joint (depth and colour pixels, orientation, state) are not used and not checked.

The 535 recordings whose skeletons are missing or incomplete, as the authors list them, are left out of an import; that
gives the published numbers of sequences.

Which tracks are people is decided by `s2vfast.data.tracks`. A track keeps its frame numbers: where its body was not
seen there is a gap.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

from s2vfast.data.archive import is_single, read_bytes
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.formats.text import BYTE_ORDER_MARK
from s2vfast.data.formats.text import parse_ntu as parse
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.limits import MAX_TEXT_BYTES
from s2vfast.data.names import ntu_classes
from s2vfast.data.scan import scan
from s2vfast.data.store import Recording, Sequence
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

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


def add_name(sequence: Recording, name: str) -> Name | None:
    """Give a sequence what a name of that kind says of subject, view, repetition and setup."""
    if (fields := parse_name(name)) is not None:
        sequence.subject, sequence.view = fields.performer, fields.camera
        sequence.repetition, sequence.setup = fields.replication, fields.setup
    return fields


def add_label(sequence: Recording, name: str, file: str) -> None:
    """Give a sequence all that a name of that kind says of it.

    Raises:
        BrokenRecording: the name says an action that the data set does not have.
    """
    if (fields := add_name(sequence, name)) is not None:
        if not 1 <= fields.action <= 120:
            raise BrokenRecording(file, f"the name says action {fields.action}, expected 1 to 120")
        sequence.label = fields.action - 1


def detect(src: Path) -> bool:
    """A ``.skeleton`` file or a folder with one somewhere below."""
    return src.suffix.lower() == ".skeleton" if is_single(src) else bool(scan(src, ".skeleton", first=True)[0])


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All ``.skeleton`` files below ``src``, in the order of their names. The layout is always kinect_v2."""
    files, notes = scan(src, ".skeleton")
    if not files:
        raise DataError(f"{src}: no .skeleton files below")
    actions = [name.action for file in files if (name := parse_name(file.stem))]
    classes = (120 if max(actions) > 60 else 60) if actions else 0
    return Source(
        layout=LAYOUTS["kinect_v2"],
        classes=ntu_classes(classes),
        items=files,
        read=partial(read_file, labelled=labelled),
        splits=splits120 if classes == 120 else splits60,
        notes=notes,
        exclude="ntu_missing",
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
    """One recording with all its tracks; a name of another kind tells no label.

    Raises:
        BrokenRecording: file, line and reason.
    """
    frames, tracks, notes = parse(read_bytes(path, MAX_TEXT_BYTES).removeprefix(BYTE_ORDER_MARK), path.name)
    sequence = Sequence(path.stem, -1, frames, tracks, notes=notes)
    if labelled:
        add_label(sequence, path.stem, path.name)
    return [sequence]
