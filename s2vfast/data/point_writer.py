"""Writing the files of a store of point clouds (`s2vfast.data.point_store`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence, PointStore
from s2vfast.data.store_writer import Writer, check_recording
from s2vfast.data.units import LIMITS
from s2vfast.errors import DataError


def check_points(sequence: PointSequence, layout: PointLayout, num_classes: int | None) -> None:
    """Raise DataError, naming the sequence and the reason, unless a store may hold ``sequence``.

    Args:
        sequence: any.
        layout: of the store.
        num_classes: classes of the store; None: its label does not matter.
    """
    check_recording(sequence, num_classes)
    name, points, counts = sequence.name, np.asarray(sequence.points), np.asarray(sequence.counts)
    if counts.shape != (sequence.total_frames,) or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise DataError(f"{name}: counts: expected a number of points for each of {sequence.total_frames} frames")
    if points.shape != (int(counts.sum()), 3):
        raise DataError(
            f"{name}: points of shape {list(points.shape)}, expected [{int(counts.sum())}, 3] by its counts"
        )
    with np.errstate(invalid="ignore"):
        fits = (np.abs(points) <= LIMITS["m"]).all(axis=1)  # not for NaN either
    if not fits.all():
        row = int(np.flatnonzero(~fits)[0])
        frame = int(np.searchsorted(np.cumsum(counts), row, side="right"))
        x, y, z = points[row].tolist()
        raise DataError(
            f"{name}: frame {frame}: a point at ({x:g}, {y:g}, {z:g}) m; within {LIMITS['m']:g} m is expected"
        )


def centre_of(points: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float32 [3]: the median of the first frame that has points; arguments as of `PointSequence`."""
    return np.median(points[: counts[np.flatnonzero(counts)[0]]], axis=0).astype(np.float32)


class PointWriter(Writer):
    """The files of a store of point clouds in the making."""

    store, dtype = PointStore, np.dtype("float16")
    check = staticmethod(check_points)
    nothing = "no point in any frame"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.frames = 0
        self.centres: list[np.ndarray] = []
        self.array("points.npy")
        self.array("frame_rows.npy").write(np.zeros(1, "<i8").data)

    def _add(self, sequence: PointSequence, notes: list[str]) -> bool:
        counts = np.asarray(sequence.counts, dtype="<i8")
        if not counts.any():
            return False
        points = np.asarray(sequence.points, dtype=np.float32)
        self.centres.append(centre_of(points, counts))
        points = (points - self.centres[-1]).astype(self.dtype.newbyteorder("<"))
        self.array("points.npy").write(np.ascontiguousarray(points).data)
        self.array("frame_rows.npy").write(np.ascontiguousarray(self.rows + np.cumsum(counts), dtype="<i8").data)
        self.rows, self.frames = self.rows + len(points), self.frames + len(counts)
        return True

    def _finish(self) -> tuple[dict[str, int], dict[str, np.ndarray]]:
        self.finish_array("points.npy", self.dtype.newbyteorder("<"), (self.rows, 3))
        self.finish_array("frame_rows.npy", np.dtype("<i8"), (self.frames + 1,))
        return {"frames": self.frames, "points": self.rows}, {"centre": np.array(self.centres, dtype="<f4")}

    def _facts(self) -> dict[str, Any]:
        return {"kind": self.store.kind}
