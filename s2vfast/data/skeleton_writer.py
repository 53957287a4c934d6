"""Writing the files of a store of skeletons (`s2vfast.data.skeleton_store`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2vfast.data.layout import Layout
from s2vfast.data.skeleton_store import CONFIDENCE, SkeletonStore
from s2vfast.data.store import Sequence
from s2vfast.data.store_writer import Writer, check_recording, check_text
from s2vfast.errors import DataError


def check_sequence(sequence: Sequence, layout: Layout, num_classes: int | None) -> None:
    """Raise DataError, naming the sequence and the reason, unless a store may hold ``sequence``.

    Args:
        sequence: any.
        layout: of the store.
        num_classes: classes of the store; None: its label does not matter.
    """
    check_recording(sequence, num_classes)
    name = sequence.name
    for body in sequence.bodies:
        joints, at = np.asarray(body.joints), np.asarray(body.frame_index)
        check_text(f"{name}, body", str(body.body_id))
        where = f"{name}, body {body.body_id}"
        if joints.ndim != 3 or joints.shape[1:] != (layout.num_joints, 3):
            expected = f"[frames, {layout.num_joints}, 3] for layout {layout.name}"
            raise DataError(f"{where}: joints of shape {list(joints.shape)}, expected {expected}")
        if body.confidence is not None and body.confidence.shape != joints.shape[:2]:
            raise DataError(f"{where}: confidence {list(body.confidence.shape)}, expected {list(joints.shape[:2])}")
        if at.shape != joints.shape[:1]:
            raise DataError(f"{where}: {at.size} frame numbers for {len(joints)} frames")
        if not np.isfinite(joints).all():
            frame, joint = np.argwhere(~np.isfinite(joints))[0][:2]
            raise DataError(f"{where}: frame {at[frame]}, joint {joint} is not a finite number")
        if len(at) and (at[0] < 0 or at[-1] >= sequence.total_frames or (np.diff(at) <= 0).any()):
            raise DataError(f"{where}: frame numbers must ascend from 0 to below {sequence.total_frames}")


class SkeletonWriter(Writer):
    """The files of a store of skeletons in the making."""

    store, dtype = SkeletonStore, np.dtype("float32")
    check = staticmethod(check_sequence)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tracks: list[tuple[int, int, int, int, str]] = []

    def _add(self, sequence: Sequence, notes: list[str]) -> bool:
        slot = 0
        for body in sequence.bodies:
            with np.errstate(over="ignore"):  # float16: looked for in the next line
                joints = np.asarray(body.joints, dtype=self.dtype)  # [n, V, 3]
            if not np.isfinite(joints).all():
                where = f"{sequence.name}, body {body.body_id}"
                raise DataError(f"{where}: a coordinate does not fit {self.dtype}; use float32")
            present = joints.any(axis=(1, 2))
            count = int(present.sum())
            if count == 0:
                notes.append(f"body {body.body_id}: dropped, all its frames are zero")
                continue
            joints, at = joints[present], np.asarray(body.frame_index, dtype="<i4")[present]
            self.array("frames.npy").write(np.ascontiguousarray(joints, dtype=self.dtype.newbyteorder("<")).data)
            self.array("frame_index.npy").write(np.ascontiguousarray(at).data)
            self._add_confidence(None if body.confidence is None else body.confidence[present], count)
            self.tracks.append((len(self.info), slot, self.rows, count, str(body.body_id)))
            self.rows += count
            slot += 1
        return slot > 0

    def _add_confidence(self, confidence: np.ndarray | None, count: int) -> None:
        """Of the next ``count`` rows; 1 where a body has none among others that do."""
        joints = self.layout.num_joints
        if confidence is not None and CONFIDENCE not in self._arrays:  # the first body that has some
            ones = np.ones(joints, "<f2").tobytes()
            for _ in range(self.rows):
                self.array(CONFIDENCE).write(ones)
        if CONFIDENCE in self._arrays or confidence is not None:
            values = np.ones((count, joints)) if confidence is None else confidence
            self.array(CONFIDENCE).write(np.ascontiguousarray(np.clip(values, -6e4, 6e4), dtype="<f2").data)

    def _finish(self) -> tuple[dict[str, int], dict[str, np.ndarray]]:
        joints = self.layout.num_joints
        self.finish_array("frames.npy", self.dtype.newbyteorder("<"), (self.rows, joints, 3))
        self.finish_array("frame_index.npy", np.dtype("<i4"), (self.rows,))
        if CONFIDENCE in self._arrays:
            self.finish_array(CONFIDENCE, np.dtype("<f2"), (self.rows, joints))
        longest = max(1, max(len(track[-1]) for track in self.tracks))
        record = [("sequence", "<i4"), ("slot", "<i2"), ("row", "<i8"), ("count", "<i4"), ("body", f"<U{longest}")]
        with open(self.folder / "tracks.npy", "wb") as file:
            np.save(file, np.array(self.tracks, dtype=record), allow_pickle=False)
        return {"rows": self.rows, "tracks": len(self.tracks)}, {}

    def _version(self, facts: dict[str, Any]) -> int:
        return 2 if facts or CONFIDENCE in self._arrays else 1
