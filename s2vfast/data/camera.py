"""Cameras that see depth: from a pixel and its depth to a point.

The known ones are the JSON files in ``cameras``, in the form in which anyone may write one. Pictures are taken as free
of lens distortion.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.limits import MAX_NAME, MAX_SIDE, describe, load_json
from s2vfast.errors import DataError


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Pixel u counts from 0 to the right, v from 0 downwards."""

    name: str
    """Stores say which camera their depth was seen with."""
    fx: float
    """Focal length in pixels, to the right."""
    fy: float
    """Downwards."""
    cx: float | None = None
    """Pixel of the optical axis, to the right; None: the middle of the picture, width / 2."""
    cy: float | None = None
    """Downwards; None: height / 2."""
    width: int | None = None
    """Pixels of its pictures; None: any."""
    height: int | None = None
    """Likewise."""
    unit: float | None = None
    """Metres of one raw unit of depth; None: as the format says, a millimetre mostly."""
    about: str = ""
    """Which camera it is, in a few words."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    @classmethod
    def from_dict(cls, data: Any, where: str = "camera") -> Camera:
        """Build and check a camera.

        Raises:
            DataError: a field is missing, unknown or impossible; the message starts with ``where`` and names it.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(data, dict):
            raise DataError(f"{where}: expected an object with the fields of a camera, found {describe(data)}")
        if absent := [name for name in ("name", "fx", "fy") if name not in data]:
            raise DataError(f"{where}: missing field(s) {', '.join(absent)}")
        if unknown := sorted(map(str, data.keys() - set(names))):
            raise DataError(f"{where}: unknown field(s) {', '.join(unknown)}; known are {', '.join(names)}")
        values = {name: value for name, value in data.items() if value is not None}
        for name in ("name", "about"):
            if name in values and (not isinstance(values[name], str) or len(values[name]) > MAX_NAME):
                raise DataError(f"{where}: {name}: expected a text of {MAX_NAME} characters at most")
        for name in ("fx", "fy", "unit", "cx", "cy"):
            value = values.get(name, 1.0)
            number = type(value) in (int, float) and math.isfinite(value) and abs(value) <= 1e6
            if not number or (value <= 0 and name not in ("cx", "cy")):
                expected = "a number" if name in ("cx", "cy") else "a number above 0"
                raise DataError(f"{where}: {name}: {describe(value)}, expected {expected}")
            if name in values:
                values[name] = float(value)
        for name in ("width", "height"):
            value = values.get(name, 1)
            if type(value) is not int or not 1 <= value <= MAX_SIDE:
                raise DataError(f"{where}: {name}: {describe(value)}, expected 1 to {MAX_SIDE:,} pixels")
        return cls(**values)

    def rays(self, height: int, width: int) -> np.ndarray:
        """Where the rays of all pixels are 1 m before the camera: float32 [height * width, 3], row after row.

        A pixel that sees a depth of z metres sees the point z * ray: x to the right, y up, z away from the camera.

        Raises:
            DataError: the camera's pictures are of another size.
        """
        if (self.height or height, self.width or width) != (height, width):
            raise DataError(
                f"a picture of {width} x {height}, camera {self.name} has {self.width or 'any'} x "
                f"{self.height or 'any'}; name another with --camera"
            )
        return _rays(self, height, width)


@functools.lru_cache(maxsize=8)
def _rays(camera: Camera, height: int, width: int) -> np.ndarray:
    cx = width / 2 if camera.cx is None else camera.cx
    cy = height / 2 if camera.cy is None else camera.cy
    rays = np.ones((height, width, 3), dtype=np.float32)
    rays[..., 0] = (np.arange(width) - cx) / camera.fx
    rays[..., 1] = ((cy - np.arange(height)) / camera.fy)[:, None]
    rays.setflags(write=False)
    return rays.reshape(-1, 3)


def get_camera(name_or_path: str | Path) -> Camera:
    """A camera by its name in `CAMERAS`, or read from a JSON file with the fields of `Camera`.

    Raises:
        DataError: no such name or file, or a file that is no camera.
    """
    if (name := str(name_or_path)) in CAMERAS:
        return CAMERAS[name]
    path = Path(name_or_path)
    if not path.is_file():
        raise DataError(
            f"camera {name!r}: neither a known camera ({', '.join(CAMERAS)}) nor a JSON file; write a file with name, "
            "fx, fy, cx, cy, width, height and unit (metres of a raw unit)"
        )
    return _read(path)


def _read(path: Path) -> Camera:
    return Camera.from_dict(load_json(path), where=str(path))


CAMERAS: dict[str, Camera] = {
    path.stem: _read(path) for path in sorted((Path(__file__).parent / "cameras").glob("*.json"))
}
"""The cameras known by name."""
