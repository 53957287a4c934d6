"""A store of point clouds.

Beside what every store has (`s2vfast.data.store`) its folder holds::

    points.npy       float16 or float32 [R, 3]: the points of all frames of all sequences, one after another, in metres,
                     from the centre of their sequence
    frame_rows.npy   int64 [F + 1]: frame f has the rows frame_rows[f] up to frame_rows[f + 1] of the points; the frames
                     of a sequence lie together, in their order, those without a point too
    sequences.npz    also centre, float32 [Q, 3]: the median of the points of a sequence's first frame that has some

The camera saw a point at its row plus the centre; axes are those of `s2vfast.data.point_layout.PointLayout`. Half
precision keeps what lies within 2 m of the centre to the millimetre. store.json has "kind": "points" and version 3; its
source says which camera saw the depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from s2vfast.data.point_layout import PointLayout, layout_from_dict
from s2vfast.data.store import HEADER, Recording, Store, check_finite
from s2vfast.data.store_checks import expect, naming, require
from s2vfast.errors import DataError

_OF_SKELETONS = {"frames", "frame_index", "tracks", "confidence", "max_bodies", "track_table", "sequence"}


@dataclass
class PointSequence(Recording):
    """One recording of points: what a format of depth reads and `write_store` takes."""

    points: np.ndarray
    """float32 [R, 3], metres, in the camera's axes: the points of all frames, one after another."""
    counts: np.ndarray
    """int64 [total_frames]: points of each frame."""


class PointStore(Store):
    """A store of point clouds."""

    kind, versions, rows_are = "points", (3,), "points"
    data_files = ("points.npy", "frame_rows.npy")

    layout: PointLayout
    """That there is no skeleton."""
    points: np.ndarray
    """Memory-mapped [R, 3], from the centre of their sequence."""
    frame_rows: np.ndarray
    """int64 [F + 1]."""
    first_frame: np.ndarray
    """int64 [Q + 1]: sequence q has the frames first_frame[q] up to first_frame[q + 1]."""
    centres: np.ndarray
    """float32 [Q, 3], metres: where the camera saw the centre of each sequence."""

    def __getattr__(self, name: str) -> NoReturn:
        if name in _OF_SKELETONS:
            raise DataError(f"{self.path}: a store of point clouds; this works on stores of skeletons alone")
        raise AttributeError(name)

    @property
    def rows(self) -> int:
        """R: points."""
        return len(self.points)

    def _check_meta(self) -> None:
        super()._check_meta()
        self._check_counts("sequences", "frames", "points")
        require((self.unit, self.dimensions) == ("m", 3), "unit and dimensions: points are in metres")
        where = str(self.path / HEADER)
        layout = layout_from_dict(self.meta["layout"], where)
        require(isinstance(layout, PointLayout), "layout: that of points is expected")
        self.layout = layout

    def _load(self) -> None:
        counts = self.meta["counts"]
        with naming(self.path / "points.npy") as path:
            self.points = np.load(path, mmap_mode="r", allow_pickle=False)
            expect(self.points, (counts["points"], 3), self.meta["dtype"])
        with naming(self.path / "frame_rows.npy") as path:
            self.frame_rows = np.load(path, allow_pickle=False)
            expect(self.frame_rows, (counts["frames"] + 1,), "int64")
            self.frame_rows.setflags(write=False)
            ascends = self.frame_rows[0] == 0 and (np.diff(self.frame_rows) >= 0).all()
            require(ascends and self.frame_rows[-1] == counts["points"], "rows of frames")
        super()._load()

    def _check_sequences(self, table: Any) -> None:
        self.centres = table["centre"].astype(np.float32)
        self.centres.setflags(write=False)
        expect(self.centres, (len(self.names), 3))
        require(np.isfinite(self.centres).all(), "a centre that is not finite")
        self.first_frame = np.concatenate([[0], np.cumsum(self.total_frames)])
        require(self.first_frame[-1] == self.meta["counts"]["frames"], "numbers of frames")
        require((np.diff(self.frame_rows[self.first_frame]) > 0).all(), "a sequence without a point")

    def _check_frames(self) -> None:
        check_finite(self.path / "points.npy", self.points)

    def cloud(self, index: int) -> list[np.ndarray]:
        """The frames of a sequence as the camera saw them: float32 [n, 3] each, metres; n may be 0."""
        if not 0 <= index < len(self):
            raise DataError(f"{self.path}: sequence {index} of {len(self)}")
        edges = self.frame_rows[self.first_frame[index] : self.first_frame[index + 1] + 1]
        points = self.points[edges[0] : edges[-1]].astype(np.float32) + self.centres[index]
        return np.split(points, edges[1:-1] - edges[0])
