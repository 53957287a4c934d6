"""What the pages show of a store: a sequence found by name, its skeletons as recorded, and the clips made of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.config import Config
from s2vfast.data.layout import Layout
from s2vfast.data.store import Store
from s2vfast.train import rundir
from s2vfast.train.feed import Recordings
from s2vfast.view import page

BODIES = 2
"""Bodies that the pages draw, each in a colour of its own."""


def open_store(path: str | Path, run: str | Path | None = None) -> Store:
    """The store of skeletons at ``path``; where a run is named, one of its layout.

    Raises:
        DataError: no store, or one of point clouds.
        CheckpointError: no run, or one of another layout.
    """
    store = Store.open(path)
    if store.kind != "skeletons":
        raise errors.DataError(f"{path}: a store of {store.kind}, which have no joints; `s2vfast view cloud` shows it")
    if run is not None:
        rundir.check_store(run, store, path, exact=False)
    return store


def find(store: Store, which: str) -> int:
    """The number of a sequence that is named, or given by its number.

    Raises:
        DataError: no such sequence; the message has the names that come nearest.
    """
    if which in store.names:
        return store.names.index(which)
    if which.isascii() and which.isdecimal():
        if int(which) < len(store):
            return int(which)
        raise errors.DataError(f"{store.path}: no sequence {which}; numbers go from 0 to {len(store) - 1}")
    close = difflib.get_close_matches(which, store.names, n=3, cutoff=0.0)
    raise errors.DataError(f"{store.path}: no sequence {which!r}; the nearest names are {', '.join(close)}")


def facts_of(store: Store, index: int) -> list[tuple[str, str | int]]:
    """What a store's tables know of a sequence."""
    facts: list[tuple[str, str | int]] = [("name", store.names[index]), ("class", store.class_name(index))]
    facts.append(("number", index))
    columns = {what: int(getattr(store, f"{what}s")[index]) for what in ("subject", "view", "repetition", "setup")}
    return facts + [(what, value) for what, value in columns.items() if value >= 0]


def recorded(store: Store, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A sequence on its full time line.

    Returns:
        (coordinates float32 [M, F, V, 3], in the store's unit; seen bool [M, F, V]), M at most `BODIES`. Stores write a
        joint that was not seen as zeros.
    """
    clip, present = store.sequence(index)
    clip, present = clip[:BODIES], present[:BODIES]
    return clip, (clip != 0).any(-1) & present[..., None]


def make_clips(store: Store, config: Config, ids: np.ndarray, *, epoch: int | None = None) -> Tensor:
    """The clips of sequences ``ids`` that a run of ``config`` sees: float32 [n * bodies, T, V, C].

    Args:
        store: sequences.
        config: of the run.
        ids: int64 [n].
        epoch: draws them as this epoch of pretraining; None: the one deterministic clip of evaluation.
    """
    recordings = Recordings(config, store, torch.device("cpu"))
    return recordings.clips(torch.from_numpy(np.asarray(ids, dtype=np.int64)), epoch=epoch, seed=config.train.seed)


def coordinates(store: Store, config: Config, index: int, *, epoch: int | None = None) -> np.ndarray:
    """The joints of a clip of `make_clips`, whatever stream of them the network sees: float32 [bodies, T, V, 3]."""
    joints = replace(config, data=replace(config.data, stream="joint", velocity=0.0, confidence=False))
    return make_clips(store, joints, np.array([index]), epoch=epoch).numpy()


def body_count(store: Store, config: Config, index: int) -> int:
    """Bodies of a sequence that its clips hold and the pages draw."""
    here = int((store.tracks["sequence"] == index).sum())
    return min(here, config.data.bodies, BODIES)


def clip_unit(config: Config, recorded_unit: str) -> str:
    """What a unit of a clip's coordinates is, of recordings in ``recorded_unit``."""
    return "torso lengths" if config.data.scale == "torso" else recorded_unit


def basis(up: tuple[float, float, float]) -> np.ndarray:
    """Rows: right, up, and towards who looks along the recording's depth axis (z, or y where z is up), [3, 3]."""
    upward = np.asarray(up, dtype=np.float64)
    depth = np.array([0.0, 0.0, 1.0] if abs(upward[2]) < 0.9 else [0.0, 1.0, 0.0])
    ahead = depth - (depth @ upward) * upward
    ahead /= np.linalg.norm(ahead)
    return np.stack([np.cross(ahead, upward), upward, -ahead])


def right_joints(layout: Layout) -> set[int]:
    """Joints of the right side, which have a colour of their own; none where the layout knows no sides."""
    return {right for _, right in layout.mirror}


def layout_entry(layout: Layout, unit: str) -> dict[str, Any]:
    """What a page needs of a skeleton's layout."""
    return {
        "joints": list(layout.joints),
        "bones": [list(bone) for bone in layout.bones],
        "right": sorted(right_joints(layout)),
        "basis": basis(layout.up).round(9).tolist(),
        "unit": unit,
    }


def scene(coordinates: np.ndarray, seen: np.ndarray, bits: int = 16) -> dict[str, Any]:
    """Skeletons for a page.

    Args:
        coordinates: floating [M, F, V, 3].
        seen: bool [M, F, V].
        bits: of each coordinate; 16 keep a recording of 65 m to the millimetre.
    """
    # What was not seen should not widen the range of the numbers.
    seen_coordinates = coordinates[seen]
    low, high = (float(seen_coordinates.min()), float(seen_coordinates.max())) if seen_coordinates.size else (0.0, 0.0)
    return {
        "places": page.quantised(coordinates, bits, low, high),
        "seen": page.packed(seen.astype(np.uint8)),
    }


def reporter(log: Callable[[str], object], what: str) -> Callable[[int, int], None]:
    """A progress callback that says every tenth of long work."""
    reported_tenths = 0

    def report(done: int, of: int) -> None:
        nonlocal reported_tenths
        if of > 2000 and done * 10 // of > reported_tenths:
            reported_tenths = done * 10 // of
            log(f"{what}: {done} of {of}")

    return report
