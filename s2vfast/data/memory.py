"""Sequences in memory, where clips can be made of them as of a store's."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.layout import Layout
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.data.point_writer import centre_of, check_points
from s2vfast.data.skeleton_writer import check_sequence
from s2vfast.data.store import Recording, Sequence
from s2vfast.errors import DataError


class MemoryStore:
    """What `s2vfast.train.feed.Recordings` asks of a store, of sequences that are no store's. Labels are not looked at.

    Args:
        sequences: Q of them, each with a body in at least one frame.
        layout: the skeleton; every body has its V joints.

    Raises:
        DataError: a sequence that a store could not hold, or without a body in any frame.
    """

    path, unit, dimensions = Path("memory"), "m", 3

    def __init__(self, sequences: Collection[Sequence], layout: Layout) -> None:
        self.layout = layout
        self.names: list[str] = []
        frames, index, tracks, confidence = [], [], [], []
        rows = 0
        for number, sequence in enumerate(sequences):
            check_sequence(sequence, layout, None)
            slot = 0
            for body in sequence.bodies:
                joints = np.asarray(body.joints, dtype=np.float32)
                present = joints.any(axis=(1, 2))
                if not present.any():
                    continue
                frames.append(joints[present])
                index.append(np.asarray(body.frame_index, dtype=np.int32)[present])
                confidence.append(None if body.confidence is None else np.asarray(body.confidence)[present])
                tracks.append((number, slot, rows, len(index[-1])))
                rows, slot = rows + len(index[-1]), slot + 1
            if slot == 0:
                raise DataError(f"{sequence.name}: no body in any frame")
            self.names.append(sequence.name)
        self.tracks = np.array(tracks, [("sequence", "i4"), ("slot", "i2"), ("row", "i8"), ("count", "i4")])
        """Structured, as a store's."""
        self.total_frames = np.array([sequence.total_frames for sequence in sequences], np.int64)
        """int64 [Q]."""
        self.frames = np.concatenate([*frames, np.zeros((0, layout.num_joints, 3), np.float32)])
        """float32 [R, V, 3]."""
        self.frame_index = np.concatenate([*index, np.zeros(0, np.int32)])
        """int32 [R]."""
        lacking = not confidence or any(part is None for part in confidence)
        self.confidence = None if lacking else np.concatenate(confidence).astype(np.float16)
        """float16 [R, V]; None where a body's are not known."""

    def __len__(self) -> int:
        return len(self.names)

    def track_table(self, bodies: int) -> tuple[np.ndarray, np.ndarray]:
        """As of `s2vfast.data.store.Store.track_table`."""
        row, count = np.zeros((len(self), bodies), np.int64), np.zeros((len(self), bodies), np.int32)
        for sequence, slot, first, length in self.tracks.tolist():
            if slot < bodies:
                row[sequence, slot], count[sequence, slot] = first, length
        return row, count


class MemoryPoints:
    """The same of recordings of points.

    Args:
        sequences: Q of them, each with a point in at least one frame.
        layout: of point clouds.

    Raises:
        DataError: a sequence that a store could not hold, or without a point in any frame.
    """

    path, unit, dimensions, confidence = Path("memory"), "m", 3, None

    def __init__(self, sequences: Collection[PointSequence], layout: PointLayout) -> None:
        self.layout = layout
        for sequence in sequences:
            check_points(sequence, layout, None)
            if not np.any(sequence.counts):
                raise DataError(f"{sequence.name}: no point in any frame")
        self.names = [sequence.name for sequence in sequences]
        self.total_frames = np.array([sequence.total_frames for sequence in sequences], np.int64)
        """int64 [Q]."""
        self.centres = np.zeros((len(self), 3), np.float32)
        """float32 [Q, 3], as a store's."""
        points = [np.zeros((0, 3), np.float16)]
        for number, sequence in enumerate(sequences):
            self.centres[number] = centre_of(sequence.points, sequence.counts)
            points.append((sequence.points - self.centres[number]).astype(np.float16))  # as a store has them
        self.points = np.concatenate(points)
        """float16 [R, 3]."""
        counts = [np.zeros(1, np.int64), *(sequence.counts for sequence in sequences)]
        self.frame_rows = np.cumsum(np.concatenate(counts))
        """int64 [F + 1]."""
        self.first_frame = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.total_frames)])
        """int64 [Q + 1]."""

    def __len__(self) -> int:
        return len(self.names)


def memory_store(sequences: Collection[Recording], layout: Layout | PointLayout) -> MemoryStore | MemoryPoints:
    """The sequences where clips can be made of them, of either kind; arguments and errors as of these classes."""
    kind: Any = MemoryPoints if layout.kind == PointLayout.kind else MemoryStore
    return kind(sequences, layout)
