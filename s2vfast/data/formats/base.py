"""What every format gives the importer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np

from s2vfast.data.layout import Layout
from s2vfast.data.limits import printable
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.store import Recording
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.data.units import LIMITS
from s2vfast.errors import DataError

MAX_METRES = LIMITS["m"]
"""Largest believable coordinate of a depth camera's recording."""


class BrokenRecording(DataError):
    """One recording that cannot be read. The rest of the dataset is not affected."""

    def __init__(self, file: str, reason: str, line: int | None = None, name: str | None = None) -> None:
        # Names of files, of arrays in them and of their entries are theirs, and may hold anything.
        file, reason, name = printable(file), printable(reason), printable(file if name is None else name)
        self.file, self.reason, self.line, self.name = file, reason, line, name
        super().__init__(f"{file}{'' if line is None else f':{line}'}: {reason}")


Read = Callable[[Any], "list[Recording | BrokenRecording]"]


@dataclass
class Source:
    """A dataset, opened: what is in it and how to read it."""

    layout: Layout | PointLayout
    """The skeleton of all its recordings; or that they are points."""
    items: Iterable[Any]
    """Units of reading, in the order of their sequences in the store. With ``parallel`` a sorted list of paths."""
    read: Read
    """Item -> its sequences, `Sequence` or `PointSequence` as the layout says. A recording that cannot be read is a
    `BrokenRecording`, raised or in the list."""
    _: KW_ONLY
    total: int = -1
    """Number of items; needed where they are no list."""
    classes: list[str] = field(default_factory=list)
    """Class names by label."""
    splits: Callable[[list[SequenceInfo]], Splits] = lambda infos: {}
    """Named splits of the sequences that were kept; ones with an empty part are left out by the importer."""
    layout_reason: str = ""
    """What that layout was taken for, where nobody and nothing names it; empty where the format or its files do."""
    parallel: bool = True
    """Items may be read by other processes: ``read`` must be a function of a module."""
    unit: str = "m"
    """Of the coordinates, a key of `s2vfast.data.units.LIMITS`."""
    unit_reason: str = ""
    """Why that unit, where it is a guess; empty where the format says so."""
    dimensions: int = 3
    """Recorded coordinates of a joint; with 2, z is 0."""
    notes: list[str] = field(default_factory=list)
    """Said in the report: what was converted or left out for the whole dataset."""
    names: list[str] | None = None
    """Names of the recordings, one an item, folders included, in a format whose files say nothing of classes:
    ``--labels`` takes classes from them."""
    exclude: str | None = None
    """List of `s2vfast.data.names` that an import leaves out if nobody asks for another."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the store's source says of how it was read, as JSON."""
    labelled: bool = True
    """Whether its sequences must have labels, and names that tell what the format's names tell. Else label, subject,
    view, repetition and setup are -1, and classes and splits say nothing."""

    def __post_init__(self) -> None:
        if self.total < 0:
            self.total = len(self.items)  # type: ignore[arg-type]

    @property
    def limit(self) -> float:
        """Largest believable absolute coordinate, in the unit."""
        return LIMITS[self.unit]


def parts_of(by_part: dict[str, list[str]]) -> dict[str, list[str]]:
    """The parts of a split: of train and val alone, val is the test."""
    return {"test" if part == "val" and "test" not in by_part else part: names for part, names in by_part.items()}


def find_absurd(joints: np.ndarray, limit: float) -> tuple[int, int, str] | None:
    """The first joint in [n, V, 3] that no recording can have: (row, joint, what is wrong), or None."""
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(joints) <= limit)  # [n, V, 3]; catches NaN too
    if not bad.any():
        return None
    row, joint, axis = (int(at) for at in np.argwhere(bad)[0])
    value = float(joints[row, joint, axis])
    coordinate = "xyz"[axis]
    if not np.isfinite(value):
        return row, joint, f"joint {joint}: {coordinate} is {value}, not a finite number"
    return row, joint, f"joint {joint}: {coordinate} is {value:g}, absurd (more than {limit:g} from the camera)"
