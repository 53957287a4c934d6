"""From depth to points: which pixels are somebody's, where they lie in space, how many of a frame are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.camera import Camera, get_camera
from s2vfast.data.layout import Layout
from s2vfast.data.point_layout import PointLayout
from s2vfast.errors import DataError

DEPTH_OPTIONS = ("camera", "points", "near", "far", "foreground")
"""Options of formats of depth: the arguments of `Depth.of`."""
FOREGROUND = ("all", "moving")
POINTS = 2048
"""Points a frame that are kept, where nobody says another number: what networks are given in the literature."""
MOVED = 0.1
"""Metres before the background from which a pixel counts as moving."""


@dataclass(frozen=True)
class Depth:
    """How depth becomes points."""

    camera: Camera
    """What saw it."""
    unit: float
    """Metres of a raw unit."""
    points: int = POINTS
    """Most points of a frame; 0: all of them."""
    near: float = 0.0
    """Metres, the least depth that is kept."""
    far: float = math.inf
    """Metres, the largest."""
    foreground: str = "all"
    """``all``: every pixel with a depth, for recordings whose background is 0. ``moving``: pixels that are nearer by
    `MOVED` than what they see farthest in the recording, for a still camera."""

    @classmethod
    def of(
        cls,
        usual: str | None,
        unit: float,
        *,
        camera: str | Path | None = None,
        points: int | None = None,
        near: float | None = None,
        far: float | None = None,
        foreground: str | None = None,
    ) -> Depth:
        """What an import asks for; what is None is the format's own.

        Args:
            usual: the format's camera; None: it has none, and one must be named.
            unit: metres of its raw unit; a camera with a unit of its own has that.
            camera: name or JSON file, see `s2vfast.data.camera.get_camera`.
            points: as the fields, likewise the others.
            near: metres.
            far: metres.
            foreground: one of `FOREGROUND`.

        Raises:
            DataError: no camera, or an impossible value.
        """
        if camera is None and usual is None:
            raise DataError(
                "--camera: needed, as nothing says what saw this depth; a JSON file with name, fx, fy, cx, cy, width, "
                "height and unit (metres of a raw unit), or kinect_v1, kinect_v2 or f280"
            )
        seen_by = get_camera(camera if camera is not None else usual)
        if points is not None and points < 0:
            raise DataError(f"--points: {points}; 0 (all) or more are expected")
        if foreground not in (None, *FOREGROUND):
            raise DataError(f"--foreground: {foreground!r} is not one of {', '.join(FOREGROUND)}")
        near, far = near or 0.0, math.inf if far is None else far
        if not 0.0 <= near < far:
            raise DataError(f"--near, --far: {near:g} and {far:g} m; 0 <= near < far is expected")
        points = POINTS if points is None else points
        return cls(seen_by, seen_by.unit or unit, points, near, far, foreground or "all")

    def facts(self) -> dict[str, Any]:
        """What a store's source says of it."""
        facts: dict[str, Any] = {"camera": self.camera.to_dict(), "unit": self.unit, "points": self.points}
        if self.near or self.far < math.inf:
            facts["range"] = [self.near, self.far if self.far < math.inf else None]
        return facts | ({} if self.foreground == "all" else {"foreground": self.foreground})

    def points_of(self, frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The points of a recording.

        Of a frame with more than `points`, every (n / points)-th pixel in the order of rows is kept: a picture's points
        lie in it as evenly as its pixels, and the same recording gives the same points.

        Args:
            frames: [H, W] each, raw units, 0 or NaN where nothing was measured; asked for once, or twice where the
                foreground is what moves.

        Returns:
            (points float32 [R, 3], metres, in the camera's axes; counts int64 [T]).

        Raises:
            DataError: pictures of another size than the camera's, or that differ in size.
        """
        background = self._background(frames) if self.foreground == "moving" else None
        clouds, counts, shape = [], [], None
        for frame in frames:
            shape = shape or frame.shape
            if frame.shape != shape:
                raise DataError(
                    f"frame {len(counts)}: {frame.shape[1]} x {frame.shape[0]} pixels, the first has others"
                )
            z = np.ascontiguousarray(frame).reshape(-1)
            pixels = np.flatnonzero(z > 0)  # not where it is NaN
            z = z[pixels]
            if background is not None:
                moving = (background[pixels] - z) * self.unit > MOVED
                pixels, z = pixels[moving], z[moving]
            if self.near or self.far < math.inf:
                inside = (z >= self.near / self.unit) & (z <= self.far / self.unit)
                pixels, z = pixels[inside], z[inside]
            if 0 < self.points < len(pixels):
                at = ((np.arange(self.points) + 0.5) * (len(pixels) / self.points)).astype(np.int64)
                pixels, z = pixels[at], z[at]
            clouds.append(self.camera.rays(*shape)[pixels] * (z * np.float32(self.unit))[:, None].astype(np.float32))
            counts.append(len(pixels))
        points = np.concatenate([*clouds, np.zeros((0, 3), np.float32)])
        return points, np.array(counts, dtype=np.int64)

    def _background(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """float32 [H * W]: the largest depth that each pixel sees."""
        farthest: np.ndarray | None = None
        for frame in frames:
            z = np.nan_to_num(np.asarray(frame, dtype=np.float32), nan=0.0)
            if farthest is not None and farthest.shape != z.shape:
                raise DataError(f"a frame of {z.shape[1]} x {z.shape[0]} pixels, the first has others")
            farthest = z if farthest is None else np.maximum(farthest, z)
        return np.zeros(0, np.float32) if farthest is None else farthest.reshape(-1)


def point_layout(layout: Layout | PointLayout | None, format: str) -> PointLayout:
    """The layout of a format of depth, which `--layout` cannot change."""
    if layout is not None and layout.kind != PointLayout.kind:
        raise DataError(f"format {format} is of depth, which has no skeleton; leave --layout {layout.name} out")
    return PointLayout()
