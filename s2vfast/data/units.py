"""The unit of a store's coordinates and how many of them are recorded: facts of the data, guessed with a reason."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from s2vfast.errors import DataError

LIMITS = {"m": 20.0, "mm": 20_000.0, "px": 1e5, "normalised": 1e3}
"""Unit -> largest believable absolute coordinate; the Kinects see no farther than 8 m."""


def check_unit(unit: str, dimensions: int) -> None:
    """Raise DataError unless ``unit`` is one, and one for so many recorded coordinates."""
    if unit not in LIMITS:
        raise DataError(f"--unit {unit!r}: expected one of {', '.join(LIMITS)}")
    if unit == "px" and dimensions == 3:
        raise DataError("--unit px: the recordings have 3 coordinates a joint; expected m, mm or normalised")


def guess_unit(samples: Iterable[np.ndarray], dimensions: int) -> tuple[str, str]:
    """The unit that the size of bodies speaks for.

    Args:
        samples: some arrays [..., V, C]; zeros and NaN where a joint was not seen.
        dimensions: C, 2 or 3.

    Returns:
        (unit, why).
    """
    sizes, largest = [], 0.0
    for sample in samples:
        joints = np.asarray(sample, dtype=np.float64)
        joints = np.where(np.abs(joints) <= max(LIMITS.values()), joints, 0.0)  # also NaN
        joints = joints.reshape(-1, *joints.shape[-2:])
        seen = joints.any(axis=2)  # [n, V]
        joints, seen = joints[seen.sum(axis=1) > 1], seen[seen.sum(axis=1) > 1][..., None]
        if len(joints):
            low, high = np.where(seen, joints, np.inf).min(axis=1), np.where(seen, joints, -np.inf).max(axis=1)
            sizes.append(float(np.median(np.sqrt(((high - low) ** 2).sum(axis=1)))))
            largest = max(largest, float(np.abs(joints).max()))
    size = float(np.median(sizes)) if sizes else 0.0
    bodies = f"bodies measure {size:.3g} from corner to corner"
    if dimensions == 2:
        return (
            ("normalised", f"coordinates reach {largest:.3g}") if largest <= 2.0 else ("px", f"2 coordinates, {bodies}")
        )
    if 0.5 <= size <= 5.0:
        return "m", bodies
    if 300.0 <= size <= 5_000.0:
        return "mm", bodies
    return "normalised", f"{bodies}, as no person does in m or mm"


def third_is_score(samples: Iterable[np.ndarray]) -> bool:
    """Whether the third coordinate looks like a score: 0 to 1 beside pixels, or beside parts of a picture.

    Args:
        samples: some arrays [..., V, 3]; zeros and NaN where a joint was not seen.
    """
    low, high = np.zeros(3), np.zeros(3)
    for sample in samples:
        joints = np.nan_to_num(np.asarray(sample, dtype=np.float64)).reshape(-1, 3)
        low, high = np.minimum(low, joints.min(axis=0, initial=0.0)), np.maximum(high, joints.max(axis=0, initial=0.0))
    return bool(low[2] == 0.0 and 0.0 < high[2] <= 1.0 and (high[:2].min() > 10.0 or low[:2].min() == 0.0))
