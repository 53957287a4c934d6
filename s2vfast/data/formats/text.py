"""Text formats: one number grammar, and parsers of NTU's and PKU-MMD's files that follow it.

A number is ``-?digits(.digits)?([eE][+-]?digits)?`` of at most `NUMBER_LENGTH` characters in ASCII, or one of the words
nan, inf, infinity, which say more in a message than "no number". A whole number is ``-?digits``. Lines end in LF, CR LF
or CR; fields are separated by blanks. Nothing else is a number: no underscore, no leading plus, no other digits.

The compiled extension (csrc/text_ntu.cpp, csrc/text_pkummd.cpp) reads good files by the same rules, several times as
fast. What it does not take is read here, so that every message comes from one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from s2vfast import _extension
from s2vfast.data.formats.base import MAX_METRES, BrokenRecording, find_absurd
from s2vfast.data.limits import MAX_BODIES, MAX_FRAMES, MAX_LINES
from s2vfast.data.store import Body

JOINTS = 25
NUMBER_LENGTH = 64
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""That Windows' editors write before UTF-8; readers take it off."""
_NUMBER = re.compile(
    rb"(?=.{1,%d}\Z)-?(?:[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))" % NUMBER_LENGTH
)
_WHOLE = re.compile(rb"-?[0-9]{1,20}")
_ID = re.compile(rb"[0-9]{1,20}")


def whole_number(text: bytes, what: str, file: str, line: int, low: int, high: int) -> int:
    """A whole number in [low, high], blanks around it left aside, or BrokenRecording."""
    digits = text.strip()
    if not _WHOLE.fullmatch(digits):
        raise BrokenRecording(file, f"{what}: expected a whole number, found {_excerpt(digits)}", line)
    value = int(digits)
    if not low <= value <= high:
        raise BrokenRecording(file, f"{what}: {value}, expected {low} to {high}", line)
    return value


def numbers(fields: list[bytes]) -> list[float]:
    """The values of fields that are all numbers; ValueError names the first that is none."""
    if not all(map(_NUMBER.fullmatch, fields)):
        raise ValueError(_excerpt(next(field for field in fields if not _NUMBER.fullmatch(field))))
    return list(map(float, fields))


def check_lines(data: bytes, file: str) -> None:
    """Refuse a text of more lines than memory is to be given to."""
    # To count takes as long as to parse: not where there are fewer bytes.
    if len(data) > MAX_LINES and data.count(b"\n") + data.count(b"\r") > MAX_LINES:
        raise BrokenRecording(file, f"more than {MAX_LINES:,} lines")


def split_lines(data: bytes, file: str) -> list[bytes]:
    """Lines without their ends, and without blank ones after the last."""
    check_lines(data, file)
    lines = data.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def parse_ntu(data: bytes, file: str) -> tuple[int, list[Body], list[str]]:
    """Parse the text of a ``.skeleton`` file.

    Args:
        data: the file's bytes.
        file: its name, for messages.

    Returns:
        (number of frames, tracks in the order they appear, notes). A frame in which all joints of a body lie at zero
        counts as one in which it was not seen.

    Raises:
        BrokenRecording: with the line and the reason.
    """
    check_lines(data, file)
    native = _native("text_ntu")
    if native is None or (parsed := native(data)) is None:
        return parse_ntu_in_python(data, file)
    frames, tracks = parsed
    return frames, [_track(*track) for track in tracks], []


def _track(body_id: str, frame_index: bytearray, joints: bytearray) -> Body:
    index = np.frombuffer(frame_index, dtype=np.int32)
    return Body(body_id, index, np.frombuffer(joints, dtype=np.float32).reshape(len(index), JOINTS, 3))


def parse_ntu_in_python(data: bytes, file: str) -> tuple[int, list[Body], list[str]]:
    """`parse_ntu` without the extension: the same results, and every message."""
    lines = split_lines(data, file)
    if not lines:
        raise BrokenRecording(file, "the file is empty", 1)
    frames = whole_number(lines[0], "number of frames", file, 1, 0, MAX_FRAMES)
    sightings: dict[str, tuple[list[int], list[int]]] = {}  # id -> (frames, lines of the first joint, counted from 0)
    notes: list[str] = []
    at = 1
    for frame in range(frames):
        if at >= len(lines):
            raise _cut(file, lines, frame, frames)
        count = whole_number(lines[at], "number of bodies", file, at + 1, 0, MAX_BODIES)
        at += 1
        for _ in range(count):
            if at + 2 + JOINTS > len(lines):
                # A cut may hide a wrong joint count, which says more.
                if at + 1 < len(lines):
                    _joint_count(lines[at + 1], file, at + 2)
                raise _cut(file, lines, frame, frames)
            body = _body_id(lines[at], file, at + 1)
            _joint_count(lines[at + 1], file, at + 2)
            rows, starts = sightings.setdefault(body, ([], []))
            if rows and rows[-1] == frame:
                notes.append(f"body {body}: twice in frame {frame}, the second left out")
            else:
                rows.append(frame)
                starts.append(at + 2)
            at += 2 + JOINTS
    if at < len(lines):
        raise BrokenRecording(file, f"{len(lines) - at} more lines after the last of {frames} frames", at + 1)
    tracks = [Body(body, *_coordinates(lines, rows, starts, file)) for body, (rows, starts) in sightings.items()]
    return frames, tracks, notes


def _body_id(line: bytes, file: str, number: int) -> str:
    fields = line.split()
    if len(fields) != 10:
        raise BrokenRecording(file, f"a body's line has 10 fields, found {len(fields)}", number)
    if not _ID.fullmatch(fields[0]):
        raise BrokenRecording(file, f"a body's id has up to 20 digits, found {_excerpt(fields[0])}", number)
    return fields[0].decode("ascii")


def _joint_count(line: bytes, file: str, number: int) -> None:
    count = whole_number(line, "number of joints", file, number, 0, 10_000)
    if count != JOINTS:
        raise BrokenRecording(file, f"{count} joints, expected {JOINTS}", number)


def _cut(file: str, lines: list[bytes], frame: int, frames: int) -> BrokenRecording:
    return BrokenRecording(file, f"the file ends in frame {frame + 1} of {frames} (cut off?)", len(lines))


def _coordinates(lines: list[bytes], rows: list[int], starts: list[int], file: str) -> tuple[np.ndarray, np.ndarray]:
    """(frame_index int32 [n], joints float32 [n, V, 3]) of one track."""
    values: list[float] = []
    for start in starts:
        for at in range(start, start + JOINTS):
            fields = lines[at].split()
            if len(fields) != 12:
                raise BrokenRecording(file, f"a joint's line has 12 numbers, found {len(fields)}", at + 1)
            try:
                values += numbers(fields[:3])
            except ValueError:
                raise BrokenRecording(
                    file, f"x y z are not three numbers: {_excerpt(b' '.join(fields[:3]))}", at + 1
                ) from None
    joints = np.array(values).reshape(len(rows), JOINTS, 3)  # [n, V, 3]
    if absurd := find_absurd(joints, MAX_METRES):
        row, joint, reason = absurd
        raise BrokenRecording(file, f"{reason} (frame {rows[row]})", starts[row] + joint + 1)
    present = joints.any(axis=(1, 2))
    return np.array(rows, dtype=np.int32)[present], joints[present].astype(np.float32)


def parse_pkummd(data: bytes, file: str) -> np.ndarray:
    """The numbers of a PKU-MMD skeleton file, float64 [F, 2, V, 3]. NaN and Inf stay: the importer refuses by action.

    Raises:
        BrokenRecording: with the line and the reason.
    """
    check_lines(data, file)
    native = _native("text_pkummd")
    if native is None or (values := native(data)) is None:
        return parse_pkummd_in_python(data, file)
    return np.frombuffer(values, dtype=np.float64).reshape(-1, 2, JOINTS, 3)


def parse_pkummd_in_python(data: bytes, file: str) -> np.ndarray:
    """`parse_pkummd` without the extension: the same results, and every message."""
    width = 2 * JOINTS * 3
    lines = split_lines(data, file)
    values: list[list[float]] = []
    for at, line in enumerate(lines):
        fields = line.split()
        if len(fields) != width:
            raise BrokenRecording(file, f"expected {width} numbers, found {len(fields)}", at + 1)
        try:
            values.append(numbers(fields))
        except ValueError as error:
            raise BrokenRecording(file, f"not a number: {error}", at + 1) from None
    return np.array(values, dtype=np.float64).reshape(-1, 2, JOINTS, 3)


def _native(name: str) -> Callable[[bytes], Any] | None:
    """A parser of the extension, where there is one."""
    return None if _extension.why_not() else getattr(_extension.load(), name, None)


def _excerpt(text: bytes) -> str:
    return repr(text[:60].decode("utf-8", "replace"))
