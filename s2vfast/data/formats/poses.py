"""What the JSON of pose detectors has in common: which detector wrote a file, strict numbers, frames, people.

A detector finds people in every frame anew. What it found becomes tracks by `s2vfast.data.tracks.link`, the tracks
become bodies by the importer's one rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from s2vfast.data.archive import AnyPath, is_single, open_file, read_bytes
from s2vfast.data.formats.base import BrokenRecording
from s2vfast.data.limits import MAX_BODIES, MAX_FRAMES, MAX_POSE_BYTES, NotJson, NotRead, describe, parse_json
from s2vfast.data.scan import recording_name, scan
from s2vfast.data.store import Body, Sequence
from s2vfast.data.tracks import Sighting, link

HEAD = 1 << 16
"""Bytes at the beginning of a file that tell its kind."""
_KINDS = (
    ("nwucla", re.compile(rb'"skeletons"\s*:')),
    ("openpose", re.compile(rb'"pose_keypoints_2d"\s*:')),
    ("kinetics", re.compile(rb'"skeleton"\s*:|"label_index"\s*:|"has_skeleton"\s*:')),
    ("mediapipe", re.compile(rb'"(pose_?)?(world_?)?landmarks?"\s*:|"visibility"\s*:', re.IGNORECASE)),
    ("alphapose", re.compile(rb'"image_id"\s*:')),
    ("rtmpose", re.compile(rb'"keypoints"\s*:|"instances"\s*:|"instance_info"\s*:|"keypoint_scores"\s*:')),
)
_FIRST_FRAME = re.compile(rb"\s*(?:\[\s*(?:\[\s*\]|null)\s*,\s*)?\[\s*\[\s*\[")
_NUMBERS = {int, float}
_FRAME_KEYS = ("frame", "frame_index", "frame_id", "frame_idx", "frame_number")


def kind_of(path: AnyPath) -> str | None:
    """The format that the first bytes of a .json file speak for; None where they do not tell."""
    try:
        with open_file(path) as (file, _):
            head = file.read(HEAD)
    except (OSError, NotRead):
        return None
    return kind_of_json(head)


def kind_of_json(head: bytes) -> str | None:
    """The same of the bytes that a JSON text begins with."""
    for kind, pattern in _KINDS:
        if pattern.search(head):
            return kind
    # Frames as lists alone: MediaPipe's, if the first has 33 landmarks.
    if _FIRST_FRAME.match(head):
        first = head[: end.end()] if (end := re.search(rb"\]\s*\]", head)) else head
        if len(re.findall(rb"\[[^\[\]]*\d[^\[\]]*\]", first)) == 33:
            return "mediapipe"
    return None


def files_of(src: AnyPath, kind: str) -> tuple[list[Any], list[str]]:
    """The .json files of a kind at or below ``src``, and what was passed over; as of `s2vfast.data.scan.scan`."""
    if is_single(src):
        return [src], []
    strangers: list[str] = []

    def accept(path: AnyPath) -> bool:
        accepted = kind_of(path) == kind
        if not accepted:
            strangers.append(path.name)
        return accepted

    paths, notes = scan(src, ".json", accept)
    paths.sort(key=lambda path: recording_name(path, src))
    if strangers:
        listed = ", ".join(sorted(strangers)[:3]) + (", ..." if len(strangers) > 3 else "")
        notes.append(f"{len(strangers)} .json files that are no {kind} recordings left out: {listed}")
    return paths, notes


def detects(src: AnyPath, kind: str) -> bool:
    """Whether ``src`` is a .json file of a kind, or a folder with one."""
    if is_single(src):
        return src.suffix.lower() == ".json" and kind_of(src) == kind
    return bool(scan(src, ".json", lambda path: kind_of(path) == kind, first=True)[0])


def read_json(path: AnyPath) -> Any:
    """The content of a recording's JSON.

    Raises:
        BrokenRecording: it is none.
    """
    try:
        return parse_json(read_bytes(path, MAX_POSE_BYTES))
    except NotJson as error:
        raise BrokenRecording(path.name, f"not JSON: {error}", error.line) from None


def first_readable(paths: Iterable[Any], read: Callable[[Any], Any]) -> tuple[Any, str]:
    """(what ``read`` gives of the first file of which it gives anything, ""), or (None, why not of the first file)."""
    reason = ""
    for path in paths:
        value, why_not = _attempt(path, read)
        if value is not None:
            return value, ""
        reason = reason or why_not
    return None, reason


def _attempt(path: AnyPath, read: Callable[[Any], Any]) -> tuple[Any, str]:
    try:
        return read(path), f"{path.name}: nobody in any frame"
    except (BrokenRecording, NotRead, OSError) as error:
        return None, str(error)


def frames_in(data: Any, file: str, keys: tuple[str, ...]) -> list[Any]:
    """The list of frames that a file is, or holds under one of ``keys``."""
    if isinstance(data, dict):
        data = next((data[key] for key in keys if key in data), data)
    if not isinstance(data, list):
        raise BrokenRecording(file, f"expected a list of frames, or an object with one under {' or '.join(keys)}")
    if len(data) > MAX_FRAMES:
        raise BrokenRecording(file, f"{len(data):,} frames, {MAX_FRAMES:,} at most are read")
    return data


def frame_numbers(frames: list[Any], file: str) -> list[int]:
    """Numbers of frames from 0: what they say themselves, a common step divided out, else their order."""
    values = [
        next((frame[key] for key in _FRAME_KEYS if key in frame), None) if isinstance(frame, dict) else None
        for frame in frames
    ]
    if all(value is None for value in values):
        return list(range(len(frames)))
    for at, value in enumerate(values):
        if type(value) is not int:
            raise BrokenRecording(file, f"frame {at}: its number is {describe(value)}, expected a whole number")
        if at and value <= values[at - 1]:
            raise BrokenRecording(file, f"frame {at}: its number is {value} after {values[at - 1]}, expected ascending")
    step = math.gcd(*(value - values[0] for value in values)) or 1
    numbers = [(value - values[0]) // step for value in values]
    if numbers[-1] >= MAX_FRAMES:
        raise BrokenRecording(file, f"frame numbers up to {numbers[-1]:,}, below {MAX_FRAMES:,} are read")
    return numbers


def check_people(people: list[Any], file: str, frame: int) -> None:
    """Refuse a frame of more people than are read."""
    if len(people) > MAX_BODIES:
        raise BrokenRecording(file, f"frame {frame}: {len(people):,} people, {MAX_BODIES} at most are read")


def rows(values: Any, widths: tuple[int, ...], count: int, where: str, file: str) -> np.ndarray:
    """Lists of numbers as an array [count, width]; every one has the same of the ``widths``."""
    expected = f"expected {count} lists of {' or '.join(map(str, widths))} numbers"
    if not isinstance(values, list) or len(values) != count:
        length = len(values) if isinstance(values, list) else describe(values)
        raise BrokenRecording(file, f"{where}: {length}, {expected}")
    width = len(values[0]) if isinstance(values[0], list) else 0
    fits = width in widths and all(isinstance(row, list) and len(row) == width for row in values)
    # Of numbers alone: numpy would take "1" and true for 1.
    if not fits or not all(_NUMBERS.issuperset(map(type, row)) for row in values):
        raise BrokenRecording(file, f"{where}: {expected}")
    return array_of(values, where, file)


def row(values: Any, lengths: tuple[int, ...], where: str, file: str) -> np.ndarray:
    """A list of numbers as an array of one of the ``lengths``."""
    if not isinstance(values, list) or len(values) not in lengths or not _NUMBERS.issuperset(map(type, values)):
        raise BrokenRecording(file, f"{where}: {describe(values)}, expected {' or '.join(map(str, lengths))} numbers")
    return array_of(values, where, file)


def array_of(values: Any, where: str, file: str) -> np.ndarray:
    """float64, of lists that hold numbers alone."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:  # a whole number beyond a float's range
        raise BrokenRecording(file, f"{where}: a number beyond any coordinate") from None


def in_three(joints: np.ndarray) -> np.ndarray:
    """[..., 2] with z = 0, [..., 3] as it is."""
    return joints if joints.shape[-1] == 3 else np.pad(joints, [(0, 0)] * (joints.ndim - 1) + [(0, 1)])


def bodies_of(joints: np.ndarray, confidence: np.ndarray | None) -> list[Body]:
    """Bodies of coordinates [M, T, V, 3] and confidences [M, T, V], frames without a joint left out as gaps."""
    bodies = []
    for body, track in enumerate(joints):  # [T, V, 3]
        present = track.any(axis=(1, 2))
        if present.any():
            bodies.append(Body(str(body), np.flatnonzero(present).astype(np.int32), track[present]))
            if confidence is not None:
                bodies[-1].confidence = confidence[body, present].astype(np.float32)
    return bodies


def sequence_of(name: str, frames: list[tuple[int, list[Sighting]]], total_frames: int) -> Sequence:
    """The sequence of what was seen in frames, without a label."""
    notes: list[str] = []
    return Sequence(name, -1, total_frames, link(frames, notes), notes=notes)
