"""Any recordings of depth: folders of 16-bit PNGs, a folder a recording, and .npy files, a file a recording.

Pictures are taken in the order of their names, numbers in them as numbers. An array is [frames, height, width]. Raw
units are millimetres, and metres where an array's numbers are floating; the file that ``--camera`` names may say
another unit. 0 (or NaN) is a pixel without a measurement.

Where the background is not 0, ``--near``, ``--far`` (metres) and ``--foreground moving`` say what is somebody. Classes
and people come from ``--labels``, as for arrays.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.archive import AnyPath
from s2vfast.data.depth import DEPTH_OPTIONS, Depth, point_layout
from s2vfast.data.formats import ntu_depth
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.formats.depth_files import Pictures, read_npy
from s2vfast.data.layout import Layout
from s2vfast.data.limits import MAX_FRAMES
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.data.scan import picture_folders, recording_name, scan
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

OPTIONS = DEPTH_OPTIONS
UNIT = 0.001
"""Metres of a raw unit of whole numbers."""


def detect(src: AnyPath) -> bool:
    """A folder with PNGs somewhere below, that are none of NTU RGB+D; .npy files need ``--format depth``."""
    return (
        isinstance(src, Path)
        and src.is_dir()
        and next(picture_folders(src, ".png"), None) is not None
        and not ntu_depth.detect(src)
    )


def open_source(src: AnyPath, layout: Layout | PointLayout | None, labelled: bool = True, **options: Any) -> Source:
    """All recordings below ``src``, in the order of their places."""
    items: list[Any] = [*picture_folders(src, ".png")] if isinstance(src, Path) and src.is_dir() else []
    arrays, notes = scan(src, ".npy")
    items = sorted([*items, *arrays])
    if not items:
        raise DataError(f"{src}: no folders of .png files and no .npy files below")
    names = {item: _name(item, src) for item in items}
    depth = Depth.of(None, UNIT, **options)
    return Source(
        layout=point_layout(layout, "depth"),
        classes=[],
        items=items,
        read=partial(read_item, src=src, depth=depth),
        splits=_no_splits,
        notes=notes,
        names=list(names.values()),
        facts=depth.facts(),
        labelled=labelled,
    )


def _no_splits(infos: list[SequenceInfo]) -> Splits:
    return {}


def _name(item: AnyPath, src: AnyPath) -> str:
    """A folder's place below ``src``, whose own name it has itself; a file's without the suffix."""
    if isinstance(item, Path) and item.is_dir():
        return item.resolve().name if item == src else item.relative_to(src).as_posix()
    return recording_name(item, src)


def read_item(item: AnyPath, src: AnyPath, depth: Depth) -> list[PointSequence | BrokenRecording]:
    """One recording."""
    name = _name(item, src)
    if isinstance(item, Path) and item.is_dir():
        pictures = [name for name in os.listdir(item) if name.lower().endswith(".png") and not name.startswith(".")]
        if len(pictures) > MAX_FRAMES:
            raise BrokenRecording(name, f"{len(pictures):,} pictures, {MAX_FRAMES:,} at most are read")
        frames: Any = Pictures([item / picture for picture in sorted(pictures, key=_natural)])
    else:
        frames = read_npy(item)
        if frames.dtype.kind == "f":
            frames = frames.astype(np.float32, copy=False)
            depth = replace(depth, unit=depth.camera.unit or 1.0)
    try:
        points, counts = depth.points_of(frames)
    except DataError as error:
        raise BrokenRecording(name, str(error)) from None
    return [PointSequence(name, -1, len(counts), points, counts)]


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"[0-9]+|[^0-9]+", name)]
