"""MSR-Action3D: depth of one person before a Kinect, the background already 0, one file a recording.

Names are ``aAA_sSS_eEE_sdepth``: action, subject, and which time. ``.mat`` is a MATLAB 5 file with ``depth``, uint16
[240, 320, T]; ``.bin`` the set's own raw depth. It has 567 recordings of 20 actions by 10 subjects, 15 frames a second.

The camera is kinect_v1, 286 pixels around (160, 120): that is what joins the set's skeletons and its depth. A raw unit
is 5.25 mm, by which people come out 1.5 to 1.9 m tall. ``--camera f280`` gives the geometry of MeteorNet, PSTNet and
later work, but for their scale.

Two splits are both called cross-subject: ``odd_even`` trains on subjects 1, 3, 5, 7 and 9 (papers on skeletons and
depth), ``s1_5`` on 1 to 5 (MeteorNet and all papers on point clouds after it). ``odd_even_val`` and ``s1_5_val`` hold
two of those out, to choose settings by.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, NamedTuple

from s2vfast.data.archive import AnyPath, is_single
from s2vfast.data.depth import DEPTH_OPTIONS, Depth, point_layout
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.formats.depth_files import read_bin, read_mat
from s2vfast.data.layout import Layout
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.data.scan import scan
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

OPTIONS = DEPTH_OPTIONS
CLASSES = (
    "high arm wave|horizontal arm wave|hammer|hand catch|forward punch|high throw|draw x|draw tick|draw circle|"
    "hand clap|two hand wave|side boxing|bend|forward kick|side kick|jogging|tennis swing|tennis serve|golf swing|"
    "pick up and throw"
).split("|")
"""Actions 1 to 20."""
UNIT = 0.00525
"""Metres of a raw unit, fitted: 5.2 to 5.3 mm."""
PARTS = {
    "odd_even": ((1, 3, 5, 7, 9), (2, 4, 6, 8, 10)),
    "s1_5": ((1, 2, 3, 4, 5), (6, 7, 8, 9, 10)),
    "odd_even_val": ((1, 5, 9), (3, 7)),
    "s1_5_val": ((1, 3, 5), (2, 4)),
}
"""Split -> subjects that train, subjects that test."""

_NAME = re.compile(r"a(\d{2})_s(\d{2})_e(\d{2})_sdepth", re.IGNORECASE)
"""What follows is ignored."""
_SUFFIXES = (".mat", ".bin")


class Name(NamedTuple):
    """What the name of a recording says."""

    action: int
    subject: int
    repetition: int


def parse_name(name: str) -> Name | None:
    """Read a name like a01_s02_e03_sdepth, or None if it is not one."""
    match = _NAME.match(name)
    return Name(*map(int, match.groups())) if match else None


def _is_depth(path: Any) -> bool:
    return path.suffix.lower() == ".mat" or parse_name(path.stem) is not None


def detect(src: AnyPath) -> bool:
    """A ``.mat`` file, a ``.bin`` file with such a name, or a folder with one somewhere below."""
    if is_single(src):
        return src.suffix.lower() in _SUFFIXES and _is_depth(src)
    return bool(scan(src, _SUFFIXES, _is_depth, first=True)[0])


def open_source(src: AnyPath, layout: Layout | PointLayout | None, labelled: bool = True, **options: Any) -> Source:
    """All recordings below ``src``, in the order of their names."""
    files, notes = scan(src, _SUFFIXES, _is_depth)
    if not files:
        raise DataError(f"{src}: no aAA_sSS_eEE_sdepth.mat or .bin files below")
    depth = Depth.of("kinect_v1", UNIT, **options)
    return Source(
        layout=point_layout(layout, "msr_action3d"),
        classes=list(CLASSES),
        items=files,
        read=partial(read_file, depth=depth, labelled=labelled),
        splits=splits,
        notes=notes,
        facts=depth.facts(),
        labelled=labelled,
    )


def splits(infos: list[SequenceInfo]) -> Splits:
    """The splits of `PARTS`, by subject."""
    return {
        split: {
            part: [info.name for info in infos if info.subject in subjects]
            for part, subjects in zip(("train", "test"), parts, strict=True)
        }
        for split, parts in PARTS.items()
    }


def read_file(path: AnyPath, depth: Depth, labelled: bool = True) -> list[PointSequence | BrokenRecording]:
    """One recording; a name of another kind tells no label."""
    name = parse_name(path.stem) if labelled else None
    if name is not None and not 1 <= name.action <= len(CLASSES):
        raise BrokenRecording(path.name, f"the name says action {name.action}, expected 1 to {len(CLASSES)}")
    frames = read_mat(path) if path.suffix.lower() == ".mat" else read_bin(path)
    try:
        points, counts = depth.points_of(frames)
    except DataError as error:
        raise BrokenRecording(path.name, str(error)) from None
    sequence = PointSequence(path.stem.removesuffix("_sdepth"), -1, len(counts), points, counts)
    if name is not None:
        sequence.label, sequence.subject, sequence.repetition = name.action - 1, name.subject, name.repetition
    return [sequence]
