"""AlphaPose's results as JSON, one file a video: a list of the people of all frames.

A person is ``{"image_id": "12.jpg", "keypoints": [x, y, score, ...], "score": ..., "idx": 1}``. The last number in
``image_id`` is that of the frame; frames of which nobody is listed are gaps. ``idx`` is whom AlphaPose followed; all
people have the same where it followed nobody. A file ``alphapose-results.json`` is called after its folder.

Keypoints are 17 of COCO, 26 of Halpe, or 136 of Halpe's whole body, of which the first 26 are read; others need
``--layout``. Scores are the confidence.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from s2vfast.data.formats import poses, rtmpose
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.layout import Layout
from s2vfast.data.limits import describe
from s2vfast.data.scan import recording_name
from s2vfast.errors import DataError

USUAL = "alphapose-results"
_LAST = re.compile(r"(?:.*\D)?(\d{1,12})\D*")


def detect(src: Path) -> bool:
    """A .json file of people with image_id, or a folder with one somewhere below."""
    return poses.detects(src, "alphapose")


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All recordings at or below ``src``.

    Raises:
        DataError: nothing there, or a skeleton that needs a layout.
    """
    files, notes = poses.files_of(src, "alphapose")
    if not files:
        raise DataError(f"{src}: no .json files of AlphaPose below")
    return rtmpose.source_of(src, files, [_name(path, src) for path in files], frames_of, layout, labelled, notes)


def _name(path: Path, src: Path) -> str:
    name = recording_name(path, src)
    folder, _, stem = name.rpartition("/")
    return folder if folder and stem.lower() == USUAL else name


def frames_of(path: Path) -> list[dict[str, Any]]:
    """The frames of a file as RTMPose's: objects with frame and instances, the numbers ascending.

    Raises:
        BrokenRecording: no list of people, or an image_id without a number.
    """
    images: dict[int, tuple[Any, list[Any]]] = {}
    for at, person in enumerate(poses.frames_in(poses.read_json(path), path.name, ("results",))):
        if not isinstance(person, dict) or not {"image_id", "keypoints"} <= person.keys():
            raise BrokenRecording(path.name, f"entry {at}: expected an object with image_id and keypoints")
        image = person["image_id"]
        # Of 12.jpg and of walk_0012.jpg; the suffix may hold a number too.
        match = _LAST.fullmatch(Path(image).stem) if isinstance(image, str) else None
        number = image if type(image) is int else int(match[1]) if match else None
        if number is None:
            reason = f"entry {at}: image_id {describe(image)} has no number, which tells the frame"
            raise BrokenRecording(path.name, reason)
        first, people = images.setdefault(number, (image, []))
        if first != image:
            reason = f"{describe(first)} and {describe(image)} are both frame {number}; one recording a file is read"
            raise BrokenRecording(path.name, reason)
        people.append(person)
    return [{"frame": number, "instances": images[number][1]} for number in sorted(images)]
