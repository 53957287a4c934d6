"""OpenPose's own output: a folder with a .json file a frame, named ``CLIP_000000000012_keypoints.json``.

``people`` of a file have ``pose_keypoints_2d``, x, y and confidence of 25 joints (BODY_25) or 18 (COCO), and perhaps a
``person_id``. The files of one CLIP in one folder are one recording; the number is that of the frame, and frames
without a file are gaps. A keypoint at (0, 0) was not seen.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.archive import is_single
from s2vfast.data.formats import poses
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.layout import Layout, get_layout
from s2vfast.data.limits import MAX_FRAMES, describe
from s2vfast.data.scan import recording_name, scan
from s2vfast.data.store import Sequence
from s2vfast.data.tracks import Sighting
from s2vfast.data.units import guess_unit
from s2vfast.errors import DataError

LAYOUT_OF = {25: "body25", 18: "openpose18"}
_NAME = re.compile(r"(?P<clip>.*?)_?(?P<frame>\d{1,12})_keypoints")


def detect(src: Path) -> bool:
    """A file named like CLIP_000000000012_keypoints.json, or a folder with one somewhere below."""
    return _is_frame(src) if is_single(src) else bool(scan(src, ".json", _is_frame, first=True)[0])


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() == ".json" and _NAME.fullmatch(path.stem) is not None


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All recordings at or below ``src``. The layout is that of the number of joints.

    Raises:
        DataError: nothing there.
    """
    files, notes = scan(src, ".json", _is_frame)
    recordings: dict[str, list[tuple[int, Path]]] = {}
    for path in files:
        if (match := _NAME.fullmatch(path.stem)) is None:
            raise DataError(f"{path}: expected a name like CLIP_000000000012_keypoints.json")
        folder, _, _ = recording_name(path, src).rpartition("/")
        clip = match["clip"] or folder.rpartition("/")[2] or src.stem
        name = f"{folder}/{clip}" if folder and match["clip"] else folder or clip
        recordings.setdefault(name, []).append((int(match["frame"]), path))
    if not recordings:
        raise DataError(f"{src}: no files named like CLIP_000000000012_keypoints.json below")
    first, reason = poses.first_readable(files, _first)
    if first is None:
        raise DataError(f"{src}: nobody in any of {len(files):,} frames; the first: {reason}")
    unit, reason = guess_unit([first[None, :, :2]], 2)
    return Source(
        layout=get_layout(LAYOUT_OF[len(first)]),
        items=[(name, sorted(recordings[name])) for name in sorted(recordings)],
        read=partial(read_frames, joints=len(first)),
        unit=unit,
        unit_reason=reason,
        dimensions=2,
        notes=notes,
        names=sorted(recordings),
        labelled=labelled,
    )


def _first(path: Path) -> np.ndarray | None:
    people = _people(path)
    return _keypoints(people[0], tuple(LAYOUT_OF), path.name) if people else None


def read_frames(item: tuple[str, list[tuple[int, Path]]], joints: int) -> list[Sequence | BrokenRecording]:
    """One recording: (name, its frames with their numbers, ascending).

    Raises:
        BrokenRecording: a frame that is no such file.
    """
    name, files = item
    start, stop = files[0][0], files[-1][0] + 1
    if stop - start > MAX_FRAMES:
        raise BrokenRecording(name, f"frames {start:,} to {stop - 1:,}, {MAX_FRAMES:,} at most are read")
    seen: list[tuple[int, list[Sighting]]] = []
    for number, path in files:
        if seen and seen[-1][0] == number - start:
            raise BrokenRecording(path.name, f"a second file of frame {number}", name=name)
        sightings = []
        for person in _people(path):
            keypoints = _keypoints(person, (joints,), path.name)
            sightings.append(Sighting(poses.in_three(keypoints[:, :2]), keypoints[:, 2], _id(person)))
        seen.append((number - start, sightings))
    return [poses.sequence_of(name, seen, stop - start)]


def _people(path: Path) -> list[dict[str, Any]]:
    data = poses.read_json(path)
    people = data.get("people") if isinstance(data, dict) else None
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise BrokenRecording(path.name, "expected an object with people, a list of objects")
    poses.check_people(people, path.name, 0)
    return [person for person in people if person.get("pose_keypoints_2d") != []]


def _keypoints(person: dict[str, Any], joints: tuple[int, ...], file: str) -> np.ndarray:
    """[V, 3]: x, y, confidence."""
    if "pose_keypoints_2d" not in person:
        raise BrokenRecording(file, "a person without pose_keypoints_2d")
    lengths = tuple(3 * number for number in joints)
    return poses.row(person["pose_keypoints_2d"], lengths, "pose_keypoints_2d", file).reshape(-1, 3)


def _id(person: dict[str, Any]) -> str | None:
    """person_id, a list of one number; -1 is none."""
    value = person.get("person_id")
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return describe(value) if type(value) is int and 0 <= value < 2**63 else None
