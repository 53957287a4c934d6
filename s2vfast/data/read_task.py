"""Reading and checking recordings, in this process or another: each becomes one that a store may hold, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.formats.base import BrokenRecording, Read, Source, find_absurd
from s2vfast.data.layout import Layout
from s2vfast.data.limits import MAX_REASON, NotRead
from s2vfast.data.names import key, stem
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.data.point_writer import check_points
from s2vfast.data.skeleton_writer import check_sequence
from s2vfast.data.store import Body, Recording, Sequence
from s2vfast.data.tracks import BodyCounts, arrange
from s2vfast.errors import DataError


@dataclass
class Tally:
    """Oddities that are kept but said."""

    zero_joints: int = 0
    repeated_frames: int = 0
    unsure_joints: int = 0
    bodies: BodyCounts = field(default_factory=BodyCounts)

    def add(self, other: Tally) -> None:
        """Count what another has counted too."""
        self.zero_joints += other.zero_joints
        self.repeated_frames += other.repeated_frames
        self.unsure_joints += other.unsure_joints
        self.bodies.add(other.bodies)

    def facts(self, layout: Layout | PointLayout) -> dict[str, Any]:
        """What a store's source says of them."""
        if layout.kind == PointLayout.kind:
            return {}
        facts: dict[str, Any] = {"zero_joints": self.zero_joints, "repeated_frames": self.repeated_frames}
        if self.unsure_joints:
            facts["unsure_joints"] = self.unsure_joints
        if bodies := {name: value for name, value in asdict(self.bodies).items() if value}:
            facts["bodies"] = bodies
        return facts


Result = tuple["list[Recording | dict[str, Any]]", Tally]


@dataclass
class ReadTask:
    """Reads and checks a chunk of items of a source."""

    read: Read
    layout: Layout | PointLayout
    classes: int | None
    limit: float
    min_confidence: float = 0.0
    exclude: frozenset[str] = frozenset()
    exclude_reason: str = ""

    @classmethod
    def of(cls, source: Source, min_confidence: float = 0.0) -> ReadTask:
        """The task of a source. Of one that was opened without labels, labels are not looked at."""
        classes = len(source.classes) if source.labelled else None
        return cls(source.read, source.layout, classes, source.limit, min_confidence)

    def __call__(self, chunk: list[tuple[Any, str | None]]) -> Result:
        """Read items: their recordings or what a header says of those that are none, and the oddities.

        Args:
            chunk: items, and the names of their recordings where these are known without reading.
        """
        out: list[Recording | dict[str, Any]] = []
        tally = Tally()
        check: Callable[[Any, Tally], Recording | dict[str, Any]]
        check = self._check_points if self.layout.kind == PointLayout.kind else self._check_bodies
        for item, name in chunk:
            try:
                recordings = self.read(item)
            except BrokenRecording as error:
                recordings = [error]
            except NotRead as error:
                recordings = [BrokenRecording(Path(str(error.path)).name, error.reason)]
            except OSError as error:
                file = Path(error.filename or str(item)).name
                recordings = [BrokenRecording(file, f"cannot be read: {error.strerror or error}")]
            for entry in recordings:
                if isinstance(entry, BrokenRecording) and name is not None:
                    entry.name = name
                if self.exclude and key(entry.name) in self.exclude:  # even where it cannot be read
                    out.append({"name": stem(entry.name), "reason": self.exclude_reason, "kind": "excluded"})
                else:
                    out.append(broken_entry(entry) if isinstance(entry, BrokenRecording) else check(entry, tally))
        return out, tally

    def _check_points(self, entry: PointSequence, tally: Tally) -> PointSequence | dict[str, Any]:
        try:
            check_points(entry, self.layout, self.classes)
        except DataError as error:
            return _refused(entry, error)
        return entry if entry.counts.any() else _empty(entry, "no point in any frame")

    def _check_bodies(self, entry: Sequence, tally: Tally) -> Sequence | dict[str, Any]:
        for body in entry.bodies:
            where = f"body {body.body_id}"
            self._blank(body, tally)
            if body.joints.ndim == 3 and (absurd := find_absurd(body.joints, self.limit)):
                row, _, reason = absurd
                return broken_entry(BrokenRecording(entry.name, f"{where}, frame {body.frame_index[row]}, {reason}"))
        try:
            check_sequence(entry, self.layout, self.classes)
        except DataError as error:
            return _refused(entry, error)
        entry.bodies, counts = arrange(entry.bodies, self.layout, entry.total_frames, entry.notes)
        tally.bodies.add(counts)
        if not any(body.joints.any() for body in entry.bodies):
            return _empty(entry, "no body in any frame")
        for body in entry.bodies:
            present = body.joints[body.joints.any(axis=(1, 2))]  # [n, V, 3]
            tally.zero_joints += int((~present.any(axis=2)).sum())
            tally.repeated_frames += int((present[1:] == present[:-1]).all(axis=(1, 2)).sum())
            body.joints = body.joints.astype(np.float32, copy=False)
        return entry

    def _blank(self, body: Body, tally: Tally) -> None:
        """A joint with a NaN, and one that the detector was not sure of, becomes zeros: it was not seen.

        A confidence that is no number is none: 0.
        """
        missing = np.isnan(body.joints).any(axis=-1)  # [n, V]
        if body.confidence is not None:
            body.confidence = np.nan_to_num(body.confidence)
        if self.min_confidence > 0.0 and body.confidence is not None and body.confidence.shape == missing.shape:
            unsure = body.confidence < self.min_confidence
            tally.unsure_joints += int((unsure & body.joints.any(axis=-1)).sum())
            missing |= unsure
        if missing.any():
            body.joints = np.where(missing[..., None], 0.0, body.joints)


def read_checked(source: Source, item: Any, min_confidence: float = 0.0) -> list[Recording | dict[str, Any]]:
    """The recordings of one item of a source, each one that a store may hold, or why it is none.

    The latter is a dictionary with name, reason, kind, and file and line where known. Joints that the detector was less
    sure of than ``min_confidence`` were not seen.
    """
    return ReadTask.of(source, min_confidence)([(item, None)])[0]


def broken_entry(error: BrokenRecording) -> dict[str, Any]:
    """What a store's header says of a recording that cannot be read, and the whole ``message``."""
    texts = {"name": error.name, "reason": error.reason, "file": error.file, "message": str(error)}
    # Half a character of a name, which may be what is wrong with it, can be printed as \udXXX only.
    printed = {key: text[:MAX_REASON].encode("utf-8", "backslashreplace").decode() for key, text in texts.items()}
    entry: dict[str, Any] = dict(printed)
    entry["kind"] = "broken"
    if error.line is not None:
        entry["line"] = error.line
    return entry


def _refused(entry: Recording, error: DataError) -> dict[str, Any]:
    return broken_entry(BrokenRecording(entry.name, str(error).removeprefix(str(entry.name)).lstrip(":, ")))


def _empty(entry: Recording, reason: str) -> dict[str, Any]:
    return {"name": entry.name, "reason": "; ".join([reason, *entry.notes]), "kind": "empty"}
