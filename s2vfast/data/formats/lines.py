"""A frame as a line of text, as streams have it: what a camera's script prints, a line for every frame.

A line is one of these:

- the coordinates of all joints, x y z after x y z (x y after x y of a skeleton of 2 coordinates), body after body, as
  numbers with spaces or commas between them or as JSON lists; a joint with a nan was not seen;
- a frame of MediaPipe's landmarks as JSON, as in its files (`s2vfast.data.formats.mediapipe`), where the skeleton is
  mediapipe33. World landmarks are read for coordinates in metres, image landmarks for others;
- a frame of RTMPose's keypoints as JSON, as in its files (`s2vfast.data.formats.rtmpose`);
- nothing, ``[]`` or ``null``: a frame in which nobody is seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2vfast.data.formats import mediapipe, poses, rtmpose
from s2vfast.data.formats.base import BrokenRecording
from s2vfast.data.layout import Layout
from s2vfast.data.limits import NotJson, parse_json
from s2vfast.data.tracks import Sighting
from s2vfast.errors import DataError

Frame = np.ndarray | list[Sighting] | None
"""Bodies [M, V, C], of which the order says who is who; people whom a detector found anew; or nobody."""


@dataclass(frozen=True)
class Reader:
    """Reads the lines of a stream.

    Args:
        layout: the skeleton whose joints they hold.
        unit: of the coordinates, a key of `s2vfast.data.units.LIMITS`; None where it is not known.
    """

    layout: Layout
    unit: str | None = None

    @property
    def coordinates(self) -> int:
        """C, of a joint."""
        return 2 if self.layout.planar else 3

    def read(self, line: str) -> Frame:
        """The frame of a line.

        Raises:
            DataError: it is none; the message says why and does not name the line.
        """
        line = line.strip()
        if not line or line == "null":
            return None
        if line[0] not in "[{":
            try:
                values = np.array(line.replace(",", " ").replace("_", "?").split()).astype(np.float64)  # 1_0: no number
            except ValueError:
                raise self._unexpected("not the numbers of a frame") from None
            return self._bodies(values)
        try:
            content = parse_json(line.encode())
        except NotJson as error:
            raise self._unexpected(f"not JSON: {error}") from None
        try:
            return self._of_json(content, line)
        except BrokenRecording as error:
            raise DataError(error.reason.removeprefix("frame 0: ")) from None

    def as_json(self, line: str, frame: Frame) -> str:
        """A frame as one line of JSON, which `read` takes, and of a detector's skeleton the importer.

        JSON of a detector stays as it came. Numbers become lists [M][V][C] with all their digits, under the name that
        MediaPipe's landmarks have where they are these.

        Args:
            line: as it came.
            frame: what `read` made of it.
        """
        if isinstance(frame, list):
            return line.strip()
        if frame is None:
            return "[]"
        bodies = np.where(np.isnan(frame).any(axis=-1, keepdims=True), 0.0, frame).tolist()
        if self.layout.name == "mediapipe33" and not self.layout.planar:
            return json.dumps({mediapipe.KEYS["world" if self._metric else "image"][0]: bodies})
        return json.dumps(bodies)

    @property
    def _metric(self) -> bool:
        return self.unit in (None, "m", "mm")

    def _of_json(self, content: Any, line: str) -> Frame:
        first = content
        while isinstance(first, list) and first:
            first = first[0]
        if isinstance(first, dict):
            kind = poses.kind_of_json(line[: poses.HEAD].encode())
            if kind == "rtmpose":
                shape = (self.layout.num_joints, self.coordinates)
                return rtmpose.sightings(content, shape, "", 0, "the skeleton of the run")
            if kind == "mediapipe":
                return self._landmarks(content)
            if content == {}:
                return None
            raise DataError(
                "an object without what a stream is read for: MediaPipe's pose_world_landmarks or pose_landmarks, or "
                "RTMPose's keypoints and scores"
            )
        try:
            values = np.array(content, dtype=object)
            if not all(type(value) in (int, float) for value in values.flat):  # "1" and true are no numbers
                raise ValueError
            values = values.astype(np.float64)
        except (ValueError, OverflowError):
            raise self._unexpected("not the numbers of a frame") from None
        if self.layout.name == "mediapipe33" and not self.layout.planar and values.shape[-2:] == (mediapipe.JOINTS, 4):
            return self._landmarks(content)
        return self._bodies(values)

    def _landmarks(self, content: Any) -> list[Sighting]:
        """People of MediaPipe's landmarks."""
        if self.layout.name != "mediapipe33":
            joints = f"{self.layout.num_joints} joints"
            raise DataError(f"MediaPipe's landmarks; the skeleton of the run is {self.layout.name} ({joints})")
        kind = "bare" if isinstance(content, list) else "world" if self._metric else "image"
        people = mediapipe.sightings(content, kind, "", 0, "which the run was trained on")
        if kind == "bare" and self.unit == "m" and not all(mediapipe.hips_at_origin(each.joints) for each in people):
            raise DataError("landmarks without a name whose hips do not lie about (0, 0), as in world landmarks")
        return people

    def _bodies(self, values: np.ndarray) -> np.ndarray | None:
        V, C = self.layout.num_joints, self.coordinates
        if not values.size:
            return None
        if values.ndim > 3 or (values.ndim > 1 and values.shape[-2:] != (V, C)):
            raise self._unexpected(f"lists of the shape {list(values.shape)}")
        if values.size % (C * V):
            raise self._unexpected(f"{values.size} numbers")
        return values.reshape(-1, V, C)

    def _unexpected(self, what: str) -> DataError:
        joints, axes = self.layout.num_joints, "x y" if self.layout.planar else "x y z"
        return DataError(
            f"{what}; {self.coordinates * joints} numbers a body are expected ({joints} joints, {axes} each)"
        )
