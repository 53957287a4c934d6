"""The layout of point clouds: what stands where recordings of skeletons have a `s2vfast.data.layout.Layout`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, NoReturn

from s2vfast.data.layout import Layout
from s2vfast.errors import ConfigError, DataError

_OF_SKELETONS = {field.name for field in fields(Layout)} | {"num_joints"}


@dataclass(frozen=True)
class PointLayout:
    """Recordings of points: unnamed, in no order, another number in every frame.

    Points are in metres, in the camera's axes: x to the right of the picture, y up, z away from the camera. That is
    also how the Kinects give joints, so that a skeleton of the same recording lies in its cloud.

    What is asked of a skeleton's joints, such as ``num_joints`` or ``parents``, raises `ConfigError`: no network,
    objective or page that works on joints can work on points.
    """

    kind: ClassVar[str] = "points"
    """As of `s2vfast.data.layout.Layout`."""
    name: str = "points"
    """Run folders are compared by it."""
    joints: tuple[str, ...] = ()
    """None."""
    dimensions: tuple[int, ...] = (3,)
    """Coordinates of a point."""
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)
    """Unit vector that points up in the recordings' coordinates, where the camera stands level."""
    planar: ClassVar[bool] = False
    """As of `s2vfast.data.layout.Layout`."""

    def __getattr__(self, name: str) -> NoReturn:
        if name in _OF_SKELETONS:
            raise ConfigError(
                f"point clouds have no joints ({name} was asked for): this works on stores of skeletons alone"
            )
        raise AttributeError(name)

    def same_joints(self, other: Any) -> bool:
        """Whether recordings of one are recordings of the other."""
        return other.kind == self.kind

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `layout_from_dict` reads them back."""
        return {"kind": self.kind, "name": self.name, "joints": [], "dimensions": [3], "up": list(self.up)}


def layout_from_dict(data: Any, where: str = "layout") -> Layout | PointLayout:
    """The layout that a run or store holds, of either kind.

    Raises:
        DataError: it is none; the message starts with ``where``.
    """
    if isinstance(data, dict) and "kind" in data:
        layout = PointLayout()
        if data != layout.to_dict():
            raise DataError(f"{where}: not the layout of point clouds that this program knows")
        return layout
    return Layout.from_dict(data, where)
