"""The preset ``own``: values that depend on somebody's recordings, chosen from their store with a reason each."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2vfast import errors, presets
from s2vfast.data.store import Store

NAME = "own"
KEEP = 0.2
"""Share of the joints that a student sees."""
SECOND_BODY = 0.1
"""From what share of the sequences on a second body counts."""
SIZES = (
    (5_000, {"dim": 64, "depth": 4, "heads": 2, "mlp_ratio": 2.0}, {"batch": 32, "lr": 4e-3, "steps": 4_000}),
    (20_000, {"dim": 128, "depth": 6, "heads": 4, "mlp_ratio": 4.0}, {"batch": 64, "lr": 2e-3, "steps": 20_000}),
    (None, {"dim": 256, "depth": 8, "heads": 8, "mlp_ratio": 4.0}, {"batch": 128, "lr": 1e-3, "steps": 100_000}),
)
"""Up to how many training sequences; a transformer; batch, peak rate, and about how many steps."""


def tree(store: Store, split: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The preset for a store.

    Args:
        store: any, with labels or without.
        split: whose training part is learned from; None: the store's first, of one without splits ``all``.

    Returns:
        (sections and fields as `s2vfast.presets.read` gives them, the reasons, a line each).

    Raises:
        ConfigError: a store of point clouds.
        DataError: the store has no such split, or nothing in its training part.
    """
    if store.kind != "skeletons":
        raise errors.ConfigError(f"--config own: for stores of skeletons; {store.path} holds {store.kind}")
    changes: dict[str, dict[str, Any]] = {
        "data": {},
        "model": {},
        "mask": {},
        "objective": {},
        "optim": {},
        "train": {},
    }
    reasons: list[str] = []
    changes["data"]["split"] = split = split or next(iter(store.splits), "all")
    ids = store.select(split, "train")
    if not len(ids):
        raise errors.DataError(f"{store.path}: the training part of split {split} has no sequence")
    names = ", ".join(name for name in [*store.splits, "all"] if name != split)
    reasons.append(
        f"split {split}: {len(ids):,} sequences to learn from" + (f" (other splits: {names})" if names else "")
    )
    _clips(store, ids, changes, reasons)
    _size(len(ids), changes, reasons)
    joints = store.layout.num_joints
    changes["mask"]["keep"] = max(1, round(KEEP * joints))
    reasons.append(f"mask.keep {changes['mask']['keep']}: a fifth of the {joints} joints of {store.layout.name}")
    return presets.merge(presets.read(NAME), changes), reasons


def replaced(tree: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """What of the preset somebody's settings, sections of fields, replace: a line each."""
    return [
        f"{section}.{name} {value}, as given, in place of {tree[section][name]}"
        for section, fields in settings.items()
        for name, value in fields.items()
        if tree.get(section, {}).get(name, value) != value
    ]


def _clips(store: Store, ids: np.ndarray, changes: dict[str, dict[str, Any]], reasons: list[str]) -> None:
    """Bodies, frames, segments, alignment."""
    data, model = changes["data"], changes["model"]
    _, count = store.track_table(2)
    second = float((count[ids, 1] > 0).mean())
    data["bodies"] = 2 if second >= SECOND_BODY else 1
    reasons.append(f"data.bodies {data['bodies']}: {second:.0%} of the sequences have a second body")
    median = int(np.median(count[ids, 0]))
    data["frames"] = next((frames for frames in (64, 32) if frames <= median), 16)
    model["segment_frames"] = 8 if data["frames"] > 16 else 4
    reasons.append(
        f"data.frames {data['frames']}, in segments of {model['segment_frames']}: half of the main bodies have "
        f"{median} frames or more"
    )
    vertical = [axis for axis in range(3) if abs(abs(store.layout.up[axis]) - 1.0) <= 1e-3]
    if store.dimensions == 2 or store.layout.planar:
        data["align"], data["rotate"] = "none", [0.0, 0.0, 0.3]
        reasons.append("data.align none: recordings of 2 coordinates turn in their plane alone")
    elif not vertical:
        data["align"], data["rotate"] = "none", [0.3, 0.3, 0.3]
        reasons.append(f"data.align none: up is no coordinate axis in layout {store.layout.name}")
    else:
        data["align"], data["rotate"] = "yaw", [0.52 if axis == vertical[0] else 0.1 for axis in range(3)]
        reasons.append(f"data.align yaw: up is {'xyz'[vertical[0]]}, and bodies are turned to face one way")


def _size(sequences: int, changes: dict[str, dict[str, Any]], reasons: list[str]) -> None:
    """The network, the batch and the length."""
    network, length = next((network, length) for most, network, length in SIZES if most is None or sequences < most)
    changes["model"].update(network)
    changes["objective"]["top_k"] = network["depth"]
    batch = min(length["batch"], sequences)
    epochs = max(20, round(length["steps"] / -(-sequences // batch)))
    changes["train"].update(batch=batch, epochs=epochs)
    warmup = max(1, round(0.04 * epochs))
    changes["optim"].update(lr=length["lr"], warmup_epochs=warmup)
    reasons.append(
        f"model.dim {network['dim']}, depth {network['depth']}, heads {network['heads']}: {sequences:,} sequences"
    )
    steps = epochs * -(-sequences // batch)
    reasons.append(f"train.epochs {epochs}, batch {batch}: {steps:,} steps; warm-up over {warmup} epochs")
