"""Kinetics-skeleton of ST-GCN: a folder with a .json file a video, and lists of labels.

A video is ``{"data": [{"frame_index": 1, "skeleton": [{"pose": [x, y, ...], "score": [...]}]}], "label": "jetskiing",
"label_index": 12}``: 18 joints of OpenPose, parts of the picture's width and height, (0, 0) where one was not seen.
Scores are the confidence. A list, ``kinetics_train_label.json``, is ``{video: {"has_skeleton": true, "label":
"jetskiing", "label_index": 12}}``; it names the classes. Without lists the videos' own labels do, which are read first.

Videos in folders named like ``kinetics_train`` and ``kinetics_val`` make the split "default".
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from s2vfast.data.archive import is_single
from s2vfast.data.formats import poses
from s2vfast.data.formats.base import BrokenRecording, Source, parts_of
from s2vfast.data.layout import Layout, get_layout
from s2vfast.data.limits import MAX_CLASSES, describe
from s2vfast.data.scan import recording_name, scan
from s2vfast.data.store import Sequence
from s2vfast.data.store_writer import Splits, check_text
from s2vfast.data.tracks import Sighting
from s2vfast.errors import DataError

JOINTS = 18
_LIST = re.compile(r".*_label", re.IGNORECASE)
_PART = re.compile(r"(?:.*[_-])?(train|val|test)", re.IGNORECASE)


def detect(src: Path) -> bool:
    """A .json file of a video, or a folder with one somewhere below."""
    return poses.detects(src, "kinetics")


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All videos at or below ``src``. The layout is always openpose18.

    Raises:
        DataError: nothing there, or labels that contradict each other.
    """
    files, notes = poses.files_of(src, "kinetics")
    files = [path for path in files if path == src or not _LIST.fullmatch(path.stem)]
    if not files:
        raise DataError(f"{src}: no .json files of Kinetics-skeleton below")
    classes: dict[int, str] = {}
    if labelled:
        lists = [] if is_single(src) else scan(src, ".json", lambda path: _LIST.fullmatch(path.stem) is not None)[0]
        for path in lists:
            _add_classes(classes, _entries(path), path)
        if not lists:
            notes.append("no list of labels: classes are those of the videos")
            for path in files:
                poses.first_readable([path], partial(_add_video, classes))
    parts = {recording_name(path, src): _PART.fullmatch(path.parent.name) for path in files}
    return Source(
        layout=get_layout("openpose18"),
        classes=[classes.get(label, f"class {label}") for label in range(max(classes, default=-1) + 1)],
        items=files,
        read=partial(read_file, src=src, labelled=labelled),
        splits=lambda infos: _splits({name: match[1].lower() for name, match in parts.items() if match}),
        unit="normalised",
        dimensions=2,
        notes=notes,
        labelled=labelled,
    )


def _splits(parts: dict[str, str]) -> Splits:
    """Recording -> part as one split."""
    by_part: dict[str, list[str]] = {}
    for name, part in parts.items():
        by_part.setdefault(part, []).append(name)
    return {"default": parts_of(by_part)} if by_part else {}


def _entries(path: Path) -> list[Any]:
    try:
        data = poses.read_json(path)
    except BrokenRecording as error:
        raise DataError(f"{path}: {error.reason}") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected an object of video: label and label_index")
    return list(data.values())


def _add_video(classes: dict[int, str], path: Path) -> None:
    """Of a video whose label cannot be used, `read_file` says what is wrong."""
    video = poses.read_json(path)
    if isinstance(video, dict) and isinstance(video.get("label"), str) and _label(video) is not None:
        _add_classes(classes, [video], path)


def _add_classes(classes: dict[int, str], entries: list[Any], path: Path) -> None:
    """Take the names of classes from entries with label and label_index."""
    for entry in entries:
        label, name = _label(entry), entry.get("label") if isinstance(entry, dict) else None
        if label is None or (label >= 0 and not isinstance(name, str)):
            raise DataError(f"{path}: expected label, a text, and label_index, 0 to {MAX_CLASSES - 1:,}")
        if label >= 0:
            check_text(f"{path}: label", name)
            if classes.setdefault(label, name) != name:
                raise DataError(f"{path}: label_index {label} is {describe(name)} and {describe(classes[label])}")


def _label(entry: Any) -> int | None:
    """label_index, -1 where there is none, None where it is something else."""
    value = entry.get("label_index", -1) if isinstance(entry, dict) else None
    value = -1 if isinstance(entry, dict) and value is None else value
    return value if type(value) is int and -1 <= value < MAX_CLASSES else None


def read_file(path: Path, src: Path, labelled: bool = True) -> list[Sequence | BrokenRecording]:
    """One video.

    Raises:
        BrokenRecording: not such a file.
    """
    data = poses.read_json(path)
    frames = poses.frames_in(data, path.name, ("data",))
    label = _label(data) if labelled and isinstance(data, dict) else -1
    if label is None:
        raise BrokenRecording(path.name, f"label_index {describe(data['label_index'])}, expected a whole number from 0")
    numbers = poses.frame_numbers(frames, path.name)
    seen = []
    for at, (number, frame) in enumerate(zip(numbers, frames, strict=True)):
        people = frame.get("skeleton") if isinstance(frame, dict) else None
        if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
            raise BrokenRecording(path.name, f"frame {at}: expected skeleton, a list of objects with pose and score")
        poses.check_people(people, path.name, at)
        sightings = []
        for person in people:
            pose = poses.row(person.get("pose"), (2 * JOINTS,), f"frame {at}: pose", path.name).reshape(-1, 2)
            score = poses.row(person.get("score"), (JOINTS,), f"frame {at}: score", path.name)
            sightings.append(Sighting(poses.in_three(pose), score))
        seen.append((number, sightings))
    sequence = poses.sequence_of(recording_name(path, src), seen, numbers[-1] + 1 if numbers else 0)
    sequence.label = label
    return [sequence]
