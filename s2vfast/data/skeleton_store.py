"""A store of skeletons.

Beside what every store has (`s2vfast.data.store`) its folder holds::

    frames.npy       float32 or float16 [R, V, 3]: the frames of all tracks, one after another; a joint of zeros was not
                     seen, and z is 0 in recordings of 2 coordinates
    frame_index.npy  int32 [R]: the frame of its sequence that a row was recorded in
    tracks.npy       one record a track: sequence, slot (0 is the main body), first row, rows, body id
    confidence.npy   float16 [R, V]: how sure the detector was of a joint; only where a recording tells

store.json has "unit" and "dimensions" where they are not metres and 3; such a store, and one with confidences, is of
version 2, so that a program that would take pixels for metres refuses it. Version 1 is everything else.

A body that vanishes and returns is one track whose frame numbers skip: nothing is filled in or glued together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from s2vfast.data.layout import Layout
from s2vfast.data.store import HEADER, TABLES, Store, check_finite
from s2vfast.data.store_checks import check_tracks, expect, naming, require
from s2vfast.errors import DataError

CONFIDENCE = "confidence.npy"


class SkeletonStore(Store):
    """A store of skeletons."""

    kind, versions, rows_are = "skeletons", (1, 2), "rows"
    data_files = ("frames.npy", "frame_index.npy", "tracks.npy")
    optional_files = (CONFIDENCE,)

    layout: Layout
    """The skeleton."""
    frames: np.ndarray
    """Memory-mapped [R, V, 3]."""
    frame_index: np.ndarray
    """Memory-mapped int32 [R]."""
    confidence: np.ndarray | None
    """Memory-mapped float16 [R, V]; None where the recordings do not tell."""
    tracks: np.ndarray
    """Structured: sequence, slot, row, count, body."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the store's files beside store.json."""
        listed = self.meta.get("files")
        return (*FILES, CONFIDENCE) if isinstance(listed, dict) and CONFIDENCE in listed else FILES

    @property
    def rows(self) -> int:
        """R: frames of bodies."""
        return len(self.frames)

    def _check_meta(self) -> None:
        super()._check_meta()
        self._check_counts("sequences", "rows", "tracks")
        where = str(self.path / HEADER)
        self.layout = replace(Layout.from_dict(self.meta["layout"], where=where), dimensions=(self.dimensions,))

    def _load(self) -> None:
        meta = self.meta
        with naming(self.path / "frames.npy") as path:
            self.frames = np.load(path, mmap_mode="r", allow_pickle=False)
            expect(self.frames, (meta["counts"]["rows"], self.layout.num_joints, 3), meta["dtype"])
        with naming(self.path / "frame_index.npy") as path:
            self.frame_index = np.load(path, mmap_mode="r", allow_pickle=False)
            expect(self.frame_index, (meta["counts"]["rows"],), "int32")
        self.confidence = None
        if CONFIDENCE in self.files:
            with naming(self.path / CONFIDENCE) as path:
                self.confidence = np.load(path, mmap_mode="r", allow_pickle=False)
                expect(self.confidence, (meta["counts"]["rows"], self.layout.num_joints), "float16")
        with naming(self.path / "tracks.npy") as path:
            self.tracks = np.load(path, allow_pickle=False)
            expect(self.tracks, (meta["counts"]["tracks"],))
            check_tracks(self.tracks, meta["counts"]["sequences"], meta["counts"]["rows"])
            self.max_bodies = int(self.tracks["slot"].max()) + 1
        super()._load()

    def _check_sequences(self, table: Any) -> None:
        longest = np.zeros(len(self.names), dtype=np.int64)
        np.maximum.at(longest, self.tracks["sequence"], self.tracks["count"])
        require((longest <= self.total_frames).all(), "a track longer than its sequence")

    def _check_frames(self) -> None:
        with naming(self.path / "frame_index.npy"):
            first, last = self.tracks["row"], self.tracks["row"] + self.tracks["count"] - 1
            ascends = np.ones(len(self.frame_index), dtype=bool)
            ascends[1:] = self.frame_index[1:] > self.frame_index[:-1]
            ascends[first] = self.frame_index[first] >= 0
            require(ascends.all(), "frame numbers of a track that do not ascend")
            ends = self.frame_index[last] < self.total_frames[self.tracks["sequence"]]
            require(ends.all(), "a frame number beyond the end of its sequence")
        check_finite(self.path / "frames.npy", self.frames)

    def track_table(self, bodies: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the first ``bodies`` tracks of every sequence lie in `frames`.

        Returns:
            (row int64 [Q, bodies], count int32 [Q, bodies]); an absent body has row 0 and count 0.
        """
        if bodies < 1:
            raise DataError(f"bodies: expected at least 1, found {bodies}")
        row = np.zeros((len(self), bodies), dtype=np.int64)
        count = np.zeros((len(self), bodies), dtype=np.int32)
        tracks = self.tracks[self.tracks["slot"] < bodies]
        row[tracks["sequence"], tracks["slot"]] = tracks["row"]
        count[tracks["sequence"], tracks["slot"]] = tracks["count"]
        return row, count

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sequence on its full time line, with zeros where a body is absent.

        Returns:
            (clip float32 [M, F, V, 3], present bool [M, F]); M is the number of bodies of this sequence.
        """
        if not 0 <= index < len(self):
            raise DataError(f"{self.path}: sequence {index} of {len(self)}")
        first, last = np.searchsorted(self.tracks["sequence"], [index, index + 1])
        length = int(self.total_frames[index])
        clip = np.zeros((last - first, length, self.layout.num_joints, 3), dtype=np.float32)  # [M, F, V, 3]
        present = np.zeros((last - first, length), dtype=bool)  # [M, F]
        for track in self.tracks[first:last]:
            rows = slice(int(track["row"]), int(track["row"]) + int(track["count"]))
            at = self.frame_index[rows]
            if at.min() < 0 or at.max() >= length:
                raise DataError(f"{self.path}: sequence {index}: a frame number beyond its end; import again")
            clip[track["slot"], at] = self.frames[rows]
            present[track["slot"], at] = True
        return clip, present


FILES = (*SkeletonStore.data_files, *TABLES)
"""Files beside the header that every store of skeletons has."""
