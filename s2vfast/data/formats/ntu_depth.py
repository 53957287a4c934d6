"""NTU RGB+D 60 and 120, depth: a folder a recording, ``SsssCcccPpppRrrrAaaa/MDepth-00000001.png`` and so on.

Pictures are 512 x 424, 16 bits, in millimetres. The masked depth (``MDepth``) holds the pixels about the tracked bodies
alone. Of the whole depth (``Depth-00000001.png``) ``--foreground moving`` takes what moves. A number that no picture
has is a frame without points.

The camera is kinect_v2; every device has its own numbers, which the data set does not give. ``--camera f280`` gives the
geometry of PSTNet and later work, in which people are 1.3 times too wide and too tall.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from s2vfast.data.archive import AnyPath
from s2vfast.data.depth import DEPTH_OPTIONS, Depth, point_layout
from s2vfast.data.formats import ntu
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.formats.depth_files import Pictures
from s2vfast.data.layout import Layout
from s2vfast.data.limits import MAX_FRAMES
from s2vfast.data.names import ntu_classes
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.data.scan import picture_folders
from s2vfast.errors import DataError

OPTIONS = DEPTH_OPTIONS
UNIT = 0.001
"""Metres of a raw unit."""

_PICTURE = re.compile(r"M?Depth-(\d{1,8})\.png", re.IGNORECASE)


def _is_picture(name: str) -> bool:
    return _PICTURE.fullmatch(name) is not None


def detect(src: AnyPath) -> bool:
    """A folder with such pictures somewhere below."""
    return isinstance(src, Path) and src.is_dir() and next(picture_folders(src, ".png", _is_picture), None) is not None


def open_source(src: AnyPath, layout: Layout | PointLayout | None, labelled: bool = True, **options: Any) -> Source:
    """All recordings below ``src``, in the order of their names."""
    folders = (
        sorted(picture_folders(src, ".png", _is_picture), key=lambda path: (path.name, path)) if src.is_dir() else []
    )
    if not folders:
        raise DataError(f"{src}: no folders with MDepth-00000001.png below; unpack archives first")
    depth = Depth.of("kinect_v2", UNIT, **options)
    actions = [name.action for folder in folders if (name := ntu.parse_name(folder.name))]
    classes = (120 if max(actions) > 60 else 60) if actions else 0
    return Source(
        layout=point_layout(layout, "ntu_depth"),
        classes=ntu_classes(classes),
        items=folders,
        read=partial(read_folder, depth=depth, labelled=labelled),
        splits=ntu.splits120 if classes == 120 else ntu.splits60,
        facts=depth.facts(),
        labelled=labelled,
    )


def read_folder(folder: Path, depth: Depth, labelled: bool = True) -> list[PointSequence | BrokenRecording]:
    """One recording; a name of another kind tells no label."""
    numbers: dict[int, Path] = {}
    for name in sorted(os.listdir(folder)):
        if match := _PICTURE.fullmatch(name):
            number = int(match[1])
            if not 1 <= number <= MAX_FRAMES or number in numbers:
                reason = "twice" if number in numbers else f"expected 1 to {MAX_FRAMES:,}"
                raise BrokenRecording(folder.name, f"{name}: frame {number:,}, {reason}")
            numbers[number] = folder / name
    try:
        points, counts = depth.points_of(Pictures([numbers.get(number) for number in range(1, max(numbers) + 1)]))
    except DataError as error:
        raise BrokenRecording(folder.name, str(error)) from None
    sequence = PointSequence(folder.name, -1, len(counts), points, counts)
    if labelled:
        ntu.add_label(sequence, folder.name, folder.name)
    return [sequence]
