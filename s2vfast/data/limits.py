"""How much a file may ask for. Every reader of recordings, pickles, layouts and stores keeps to these.

The rule behind the numbers: no input takes more memory or time than a multiple of its own bytes. What a file says of
its size (a count, a shape, a list that is shared) is held against the bytes that are there. docs/limits.md has the
table.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.errors import DataError

MAX_TEXT_BYTES = 64 * 2**20
"""Of one recording as text or JSON: NTU RGB+D's longest has 2 MB, PKU-MMD's 10 MB."""
MAX_ARRAY_BYTES = 2**30
"""Of one recording as an array."""
MAX_POSE_BYTES = 256 * 2**20
"""Of one recording as a pose detector's JSON: half an hour of MediaPipe's landmarks, with their names."""
MAX_LINES = 4_000_000
"""Of one text file."""
MAX_LIST_BYTES = 2**20
"""Of a layout, and of a list of recordings."""
MAX_LABELS_BYTES = 64 * 2**20
"""Of a file of labels: a line for each of 500,000 recordings."""
MAX_NAMES_BYTES = 256 * 2**20
"""Of a list of names, which may name every sequence of a dataset."""
MAX_JSON_BYTES = 2**30
"""Of one JSON file of a store."""
MAX_FRAMES = 1_000_000
"""Of one recording: 9 hours at 30 frames a second."""
MAX_BODIES = 64
"""Of one recording's array, or of one frame of a text."""
MAX_JOINTS = 1024
"""Of a skeleton."""
MAX_CLASSES = 10_000
"""Of a dataset."""
MAX_SPLITS = 100
"""Of a dataset."""
MAX_SEQUENCES = 10_000_000
"""Of a dataset."""
MAX_NAME = 255
"""Characters of the name of a sequence, class, split, body or joint."""
MAX_REASON = 300
"""Characters of each text of a report on a recording that was left out."""
MAX_EXPANSION = 16
"""Bytes that one byte of an archive may become. Deflated skeletons grow 1.2 to 8 times, zeros 1,000 times."""
MAX_DEPTH_EXPANSION = 128
"""The same of a recording of depth, whose background is zeros: MSR-Action3D's grow up to 90 times."""
MAX_SIDE = 8192
"""Pixels of a side of a picture."""
MAX_PICTURE_BYTES = 256 * 2**20
"""Of one picture of depth as a file."""
FREE_EXPANSION = 4 * 2**20
"""Bytes that a file may become in any case: a small archive may be mostly zeros, a pickle may share an array."""


class NotRead(DataError):
    """A file that is not read: ``reason`` says why, ``path`` which (a path, or what stands for one in an archive)."""

    def __init__(self, path: Any, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


def open_plain(path: Path, limit: int | None = None) -> int:
    """Open a file that is one: a device, a pipe or a folder is refused before anything waits for it.

    Args:
        path: the file; a link counts as what it leads to.
        limit: bytes that it may have; None: any number.

    Returns:
        A file descriptor, for reading.

    Raises:
        NotRead: no plain file, or too large.
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        facts = os.fstat(handle)
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(facts.st_mode):
            raise NotRead(path, "is a device or a pipe; a plain file is expected")
        if limit is not None and facts.st_size > limit:
            raise NotRead(path, f"{facts.st_size:,} bytes, {limit:,} at most are read")
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_plain(path: Path, limit: int) -> bytes:
    """All bytes of a plain file; errors as of `open_plain`."""
    with os.fdopen(open_plain(path, limit), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
    if len(content) > size:
        raise NotRead(path, "grew while it was read")
    return content


class NotJson(ValueError):
    """Why a text is no JSON, in a line; ``line`` where it is known."""

    line: int | None = None


def parse_json(raw: bytes) -> Any:
    """JSON in which no object has a key twice.

    Raises:
        NotJson: the reason. Also for what is nested too deeply to be read.
    """
    try:
        return json.loads(raw, object_pairs_hook=_object)
    except NotJson:
        raise
    except json.JSONDecodeError as error:
        cut = " (cut off?)" if error.pos >= len(error.doc.rstrip()) or "Unterminated" in error.msg else ""
        reason = NotJson(f"{error.msg} at character {error.pos + 1:,}{cut}")
        reason.line = error.lineno
        raise reason from None
    except RecursionError:
        raise NotJson("nested too deeply") from None
    except ValueError as error:  # not UTF-8, a number of thousands of digits
        raise NotJson(str(error)) from None


def load_json(path: Path) -> Any:
    """What `parse_json` makes of a file that somebody wrote by hand.

    Raises:
        DataError: no plain file of such a size, or no JSON.
    """
    try:
        return parse_json(read_plain(path, MAX_LIST_BYTES))
    except (OSError, NotJson) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in content if keys.count(key) > 1)
        raise NotJson(f"the key {describe(twice)} stands twice in an object")
    return content


def describe(value: Any) -> str:
    """A value that a file holds, for a message: its text if it is a small thing, else what it is."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, (bool, float, np.bool_, np.floating, np.integer)):
        return str(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else f"a whole number of {value.bit_length()} bits"
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    if isinstance(value, (list, tuple, dict, bytes, bytearray)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def printable(text: str) -> str:
    """A text in which what a terminal would carry out (escape sequences, line ends) is written in ASCII."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
