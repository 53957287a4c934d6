"""The landmarks of MediaPipe Pose as JSON, one file a recording: a list of frames.

A frame is what a script writes of a result: an object with ``pose_world_landmarks`` and ``pose_landmarks`` (also
``world_landmarks``, ``landmarks``, and all of them in camel case), or the 33 landmarks alone. Landmarks are objects
``{x, y, z, visibility}``, lists ``[x, y, z]`` or ``[x, y, z, visibility]``, or MessageToDict's ``{"landmark": [...]}``;
the Tasks API's list of people is read too. ``null`` and ``[]`` are a frame without anybody. The list may lie in an
object under ``frames``, ``data`` or ``results``; ``frame`` or ``frame_index`` of a frame is its number.

World landmarks are metres from the middle of the hips, y down. Image landmarks are parts of the picture's width and
height, which differ; they are read where no world landmarks are. Landmarks without a name are world landmarks where the
hips lie about (0, 0). Visibility is the confidence.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.formats import poses
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.layout import Layout, get_layout
from s2vfast.data.scan import recording_name
from s2vfast.data.store import Sequence
from s2vfast.data.tracks import Sighting
from s2vfast.errors import DataError

JOINTS = 33
HIPS = (23, 24)
LISTS = ("frames", "data", "results")
KEYS = {
    "world": ("pose_world_landmarks", "poseWorldLandmarks", "world_landmarks", "worldLandmarks"),
    "image": ("pose_landmarks", "poseLandmarks", "landmarks"),
}
NEAR_ORIGIN = 0.05
"""Metres from the origin that the middle of the hips has at most in world landmarks, where it is the origin."""


def detect(src: Path) -> bool:
    """A .json file of landmarks, or a folder with one somewhere below."""
    return poses.detects(src, "mediapipe")


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All recordings at or below ``src``. The layout is always mediapipe33.

    Raises:
        DataError: nothing there.
    """
    files, notes = poses.files_of(src, "mediapipe")
    if not files:
        raise DataError(f"{src}: no .json files with MediaPipe's landmarks below")
    kind, unit, reason = poses.first_readable(files, _facts)[0] or ("world", "m", "")
    if kind == "image":
        notes.append("image landmarks read, which have no metres: there are no pose_world_landmarks")
    elif kind == "world":
        notes.append("pose_world_landmarks read: metres from the middle of the hips, so nobody walks about")
    return Source(
        layout=get_layout("mediapipe33"),
        items=files,
        read=partial(read_file, src=src, kind=kind),
        unit=unit,
        unit_reason=reason,
        notes=notes,
        names=[recording_name(path, src) for path in files],
        labelled=labelled,
    )


def _facts(path: Path) -> tuple[str, str, str] | None:
    """(kind, unit, why that unit) of the first pose in a file, None where there is none."""
    for number, frame in enumerate(poses.frames_in(poses.read_json(path), path.name, LISTS)):
        for kind in ("world", "image", "bare"):
            for values in _people(frame, kind):
                landmarks = _landmarks(values, path.name, number)
                if kind == "world":
                    return kind, "m", ""
                if kind == "image":
                    return kind, "normalised", ""
                if hips_at_origin(landmarks):
                    return kind, "m", "the hips lie about (0, 0), as in world landmarks"
                if np.abs(landmarks[:, :2]).max() > 10:
                    return kind, "px", "coordinates reach " + f"{np.abs(landmarks[:, :2]).max():.3g}"
                return kind, "normalised", "the hips do not lie about (0, 0), as they would in world landmarks"
    return None


def hips_at_origin(landmarks: np.ndarray) -> bool:
    """Whether the middle of the hips of [33, C] lies about (0, 0), as it does in world landmarks."""
    return bool(np.abs(landmarks[HIPS, :2].mean(axis=0)).max() <= NEAR_ORIGIN)


def read_file(path: Path, src: Path, kind: str) -> list[Sequence | BrokenRecording]:
    """One recording.

    Raises:
        BrokenRecording: not such a file, or without the landmarks that the first file has.
    """
    frames = poses.frames_in(poses.read_json(path), path.name, LISTS)
    numbers = poses.frame_numbers(frames, path.name)
    seen = [
        (number, sightings(frame, kind, path.name, at, "which the first recording has"))
        for at, (number, frame) in enumerate(zip(numbers, frames, strict=True))
    ]
    return [poses.sequence_of(recording_name(path, src), seen, numbers[-1] + 1 if numbers else 0)]


def sightings(frame: Any, kind: str, file: str, at: int, reason: str) -> list[Sighting]:
    """The people of a frame.

    Args:
        frame: see the module.
        kind: the landmarks that are read: world, image or bare.
        file: where it stands, for errors.
        at: its number, for errors.
        reason: why that kind, for errors.

    Raises:
        BrokenRecording: no such frame, or one of landmarks of another kind.
    """
    people = _people(frame, kind)
    poses.check_people(people, file, at)
    landmarks = [_landmarks(values, file, at) for values in people]
    if not people and any(_people(frame, other_kind) for other_kind in ("world", "image", "bare")):
        expected = {"world": KEYS["world"][0], "image": KEYS["image"][0], "bare": "landmarks without a name"}[kind]
        raise BrokenRecording(file, f"frame {at}: no {expected}, {reason}")
    # World landmarks are all about the origin: who is who is told by where they are in the picture.
    images = _people(frame, "image") if kind == "world" else []
    positions = [_landmarks(values, file, at)[:, :2] for values in images[: len(people)]]
    return [
        Sighting(pose[:, :3], pose[:, 3] if pose.shape[1] == 4 else None, position=position)
        for pose, position in itertools.zip_longest(landmarks, positions)
    ]


def _people(frame: Any, kind: str) -> list[Any]:
    """The lists of landmarks of a kind in a frame, one a person."""
    if isinstance(frame, dict):
        value = next((frame[key] for key in KEYS[kind] if frame.get(key)), None) if kind in KEYS else None
    else:
        value = frame if kind == "bare" else None
    if isinstance(value, dict):
        value = value.get("landmark", value)
    if not value:
        return []
    if isinstance(value, list) and isinstance(value[0], list) and value[0] and isinstance(value[0][0], (list, dict)):
        return [person for person in value if person]
    if isinstance(value, list) and isinstance(value[0], dict) and "landmark" in value[0]:
        return [person["landmark"] if isinstance(person, dict) else person for person in value]
    return [value]


def _landmarks(values: Any, file: str, frame: int) -> np.ndarray:
    """[33, 3] or [33, 4] of the landmarks of one person."""
    where = f"frame {frame}: landmarks"
    if isinstance(values, list) and values and isinstance(values[0], dict):
        keys = ("x", "y", "z", *(key for key in ("visibility", "score") if values[0].get(key) is not None))[:4]
        if "landmarks" in values[0] or not all(isinstance(landmark, dict) for landmark in values):
            raise BrokenRecording(file, f"{where}: expected {JOINTS} objects with x, y, z and visibility")
        for joint, landmark in enumerate(values):
            if absent := [key for key in keys if key not in landmark]:
                raise BrokenRecording(file, f"{where}: landmark {joint} has no {absent[0]}")
        values = [[landmark[key] for key in keys] for landmark in values]
    return poses.rows(values, (3, 4), JOINTS, where, file)
