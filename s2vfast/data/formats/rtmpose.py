"""Keypoints of RTMPose as JSON, one file a recording: what rtmlib's arrays and MMPose's predictions become.

A file is a list of frames, or holds one under ``instance_info``, ``frames``, ``data`` or ``results``. A frame is a list
of people, an object with such a list under ``instances``, or rtmlib's two arrays ``{"keypoints": [N][V][2], "scores":
[N][V]}``; the two arrays may also hold the frames themselves, [T][N][V]. A person has ``keypoints`` [V][2] (or [V][3]
with scores, or COCO's flat list of x, y, score), ``keypoint_scores`` or ``scores`` [V], and ``track_id`` where
something followed people. ``frame_id`` or ``frame_index`` of a frame is its number.

The skeleton is the one of ``--layout``, else coco17 for 17 keypoints and halpe26 for 26. Of the 133 of COCO-WholeBody
the first 17 are read, of the 136 of Halpe's whole body the first 26. Scores are the confidence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.formats import poses
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.layout import Layout, get_layout, layout_of_shape
from s2vfast.data.limits import MAX_JOINTS, describe
from s2vfast.data.scan import recording_name
from s2vfast.data.store import Sequence
from s2vfast.data.tracks import Sighting
from s2vfast.data.units import guess_unit
from s2vfast.errors import DataError

LISTS = ("instance_info", "frames", "data", "results")
LAYOUT_OF = {17: "coco17", 26: "halpe26"}
BODY_OF = {133: 17, 136: 26}
"""Keypoints of COCO-WholeBody and of Halpe's whole body -> how many of them, the first, are the body's."""
IDS = ("track_id", "person_id", "instance_id", "idx", "id")
SAMPLES = 50
"""Frames that the unit is guessed from."""
FramesOf = Callable[[Path], "list[Any]"]


def detect(src: Path) -> bool:
    """A .json file of keypoints, or a folder with one somewhere below."""
    return poses.detects(src, "rtmpose")


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All recordings at or below ``src``.

    Raises:
        DataError: nothing there, or a skeleton that needs a layout.
    """
    files, notes = poses.files_of(src, "rtmpose")
    if not files:
        raise DataError(f"{src}: no .json files with RTMPose's keypoints below")
    return source_of(src, files, [recording_name(path, src) for path in files], _frames, layout, labelled, notes)


def source_of(
    src: Path,
    files: list[Path],
    names: list[str],
    frames_of: FramesOf,
    layout: Layout | None,
    labelled: bool,
    notes: list[str],
) -> Source:
    """Files of keypoints as a dataset; ``frames_of`` gives the frames of one, in the forms above.

    Raises:
        DataError: a skeleton that needs a layout.
    """
    first, reason = poses.first_readable(files, partial(_first, frames_of=frames_of))
    if first is None:
        raise DataError(f"{src}: nobody in any of {len(files):,} recordings; the first: {reason}")
    _, joints, width = first.shape
    layout_reason = ""
    if layout is None:
        named = joints in LAYOUT_OF
        layout = get_layout(LAYOUT_OF[joints]) if named else layout_of_shape(joints, width, where=str(src))
        layout_reason = f"{joints} keypoints"
    if joints != layout.num_joints:
        raise DataError(f"{src}: {joints} keypoints, layout {layout.name} has {layout.num_joints} joints")
    unit, reason = guess_unit([first], width)
    return Source(
        layout=layout,
        layout_reason=layout_reason,
        items=list(zip(files, names, strict=True)),
        read=partial(read_file, frames_of=frames_of, joints=joints, width=width),
        unit=unit,
        unit_reason=reason,
        dimensions=width,
        notes=notes,
        names=names,
        labelled=labelled,
    )


def _first(path: Path, frames_of: FramesOf) -> np.ndarray | None:
    """[n, V, C] of the people in the first frames of a file; None where there is nobody."""
    people = []
    for at, frame in enumerate(frames_of(path)):
        people += [_keypoints(person, path.name, at)[0] for person in _people(frame, path.name, at)]
        if len(people) >= SAMPLES:
            break
    alike = [keypoints for keypoints in people if keypoints.shape == people[0].shape]
    return np.stack(alike) if alike else None


def read_file(item: tuple[Path, str], frames_of: FramesOf, joints: int, width: int) -> list[Sequence | BrokenRecording]:
    """One recording, (its file, its name), of people of ``joints`` keypoints of ``width`` coordinates.

    Raises:
        BrokenRecording: not such a file.
    """
    path, name = item
    frames = frames_of(path)
    numbers = poses.frame_numbers(frames, path.name)
    seen = [
        (number, sightings(frame, (joints, width), path.name, at, "the first recording"))
        for at, (number, frame) in enumerate(zip(numbers, frames, strict=True))
    ]
    return [poses.sequence_of(name, seen, numbers[-1] + 1 if numbers else 0)]


def sightings(frame: Any, shape: tuple[int, int], file: str, at: int, owner: str) -> list[Sighting]:
    """The people of a frame.

    Args:
        frame: see the module.
        shape: (V, C) of the keypoints that are expected.
        file: where it stands, for errors.
        at: its number, for errors.
        owner: what has keypoints of that shape, for errors.

    Raises:
        BrokenRecording: no such frame.
    """
    people = _people(frame, file, at)
    poses.check_people(people, file, at)
    seen = []
    for person in people:
        keypoints, scores = _keypoints(person, file, at)
        if keypoints.shape != shape:
            reason = f"{list(keypoints.shape)} keypoints, {owner} has {list(shape)}"
            raise BrokenRecording(file, f"frame {at}: {reason}")
        seen.append(Sighting(poses.in_three(keypoints), scores, _id(person, file, at)))
    return seen


def _frames(path: Path) -> list[Any]:
    data = poses.read_json(path)
    if isinstance(data, dict) and "keypoints" in data:  # rtmlib's arrays of all frames
        keypoints, scores = data["keypoints"], _scores(data)
        if not isinstance(keypoints, list) or (scores is not None and not isinstance(scores, list)):
            raise BrokenRecording(path.name, f"keypoints: {describe(keypoints)}, expected lists [T][N][V][2]")
        if scores is not None and len(scores) != len(keypoints):
            raise BrokenRecording(path.name, f"scores of {len(scores)} frames, keypoints of {len(keypoints)}")
        scores = scores if scores is not None else [None] * len(keypoints)
        data = [{"keypoints": k, "scores": s} for k, s in zip(keypoints, scores, strict=True)]
    return poses.frames_in(data, path.name, LISTS)


def _scores(holder: dict[str, Any]) -> Any:
    return holder.get("keypoint_scores", holder.get("scores"))


def _people(frame: Any, file: str, at: int) -> list[dict[str, Any]]:
    """The people of a frame, each an object with ``keypoints``."""
    if frame is None:
        return []
    if isinstance(frame, dict) and "instances" not in frame and "keypoints" in frame:
        keypoints, scores = frame["keypoints"], _scores(frame)
        if not keypoints:
            return []
        # [N][V][2] are people; [V][2] and a flat list are one person.
        deep = isinstance(keypoints, list) and isinstance(keypoints[0], list) and keypoints[0]
        if not deep or not isinstance(keypoints[0][0], list):
            return [frame]
        if scores is not None and (not isinstance(scores, list) or len(scores) != len(keypoints)):
            raise BrokenRecording(file, f"frame {at}: scores: {describe(scores)}, expected {len(keypoints)} lists")
        scores = scores if scores is not None else [None] * len(keypoints)
        return [{"keypoints": k, "scores": s} for k, s in zip(keypoints, scores, strict=True)]
    people = frame.get("instances") if isinstance(frame, dict) else frame
    if people is None and isinstance(frame, dict):
        people = frame.get("people", [])
    if not isinstance(people, list) or not all(isinstance(person, dict) and "keypoints" in person for person in people):
        raise BrokenRecording(file, f"frame {at}: expected people with keypoints, or arrays keypoints and scores")
    return people


def _keypoints(person: dict[str, Any], file: str, at: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(keypoints [V, C], scores [V] or None) of one person, the body's alone where they are of the whole body."""
    where, values = f"frame {at}: keypoints", person["keypoints"]
    scores = _scores(person)
    if not isinstance(values, list) or not 1 <= len(values) <= 3 * MAX_JOINTS:
        raise BrokenRecording(file, f"{where}: {describe(values)}, expected a list of up to {MAX_JOINTS:,}")
    if not isinstance(values[0], list):  # COCO's flat list
        if len(values) % 3:
            raise BrokenRecording(file, f"{where}: {len(values)} numbers, expected x, y and score of each")
        flat = poses.row(values, (len(values),), where, file).reshape(-1, 3)
        keypoints, confidence = flat[:, :2], flat[:, 2]
    else:
        keypoints, confidence = poses.rows(values, (2, 3), min(len(values), MAX_JOINTS), where, file), None
        if scores is not None:
            confidence = poses.row(scores, (len(keypoints),), f"frame {at}: scores", file)
        elif keypoints.shape[1] == 3:
            reason = "3 numbers each and no keypoint_scores: x, y, z or x, y, score? Write scores as keypoint_scores"
            raise BrokenRecording(file, f"{where}: {reason}")
    body = BODY_OF.get(len(keypoints), len(keypoints))
    return keypoints[:body], None if confidence is None else confidence[:body]


def _id(person: dict[str, Any], file: str, at: int) -> str | None:
    """The id that a tracker gave; negative ones are none."""
    value = next((person[key] for key in IDS if person.get(key) is not None), None)
    while isinstance(value, list) and value:  # AlphaPose: those of all boxes that a pose was merged from
        value = value[0]
    value = int(value) if type(value) is float and value.is_integer() else value
    if value is None or (type(value) is int and value < 0):
        return None
    if type(value) is int and value < 2**63:
        return str(value)
    if isinstance(value, str) and 0 < len(value) <= 60:
        return value
    raise BrokenRecording(file, f"frame {at}: the id of a person is {describe(value)}, expected a whole number")
