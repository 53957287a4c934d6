"""Many short sequences of a page: main bodies in a few frames, 8 bits a number (read by assets/animations.js)."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2vfast.data.store import Store
from s2vfast.view import page

BUDGET = 1_500_000
"""Bytes for all of a page."""
FRAMES = 24
"""Frames of each at most."""


def collect(store: Store, ids: np.ndarray, budget: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The main bodies of sequences in as many frames as fit ``budget`` bytes.

    Args:
        store: sequences.
        ids: int64 [n].
        budget: bytes.

    Returns:
        (coordinates float32 [n, F, V, 3], in the store's unit; seen bool [n, F, V]); None twice where there is no room.
    """
    V = store.layout.num_joints
    F = min(FRAMES, budget // (len(ids) * V * 3))
    if F < 1:
        return None, None
    row, count = (column[ids, 0] for column in store.track_table(1))
    at = row[:, None] + (np.arange(F) + 0.5) / F * count[:, None]  # the middles of F equal stretches
    clips = np.asarray(store.frames[np.floor(at).astype(np.int64)], dtype=np.float32)
    return clips, (clips != 0).any(-1)


def entry(clips: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Skeletons in 8 bits a number, each sequence in a range of its own.

    Args:
        clips: [n, F, V, 3].
        seen: bool [n, F, V].

    Returns:
        ``stored`` uint8 [n, F, V, 3], 0 where the joint was not seen; ``low`` and ``step`` float32 [n]:
        value = low + (stored - 1) * step.
    """
    is_seen = np.broadcast_to(seen[..., None], clips.shape)
    low = np.where(is_seen, clips, np.inf).min(axis=(1, 2, 3))
    high = np.where(is_seen, clips, -np.inf).max(axis=(1, 2, 3))
    low = np.where(np.isfinite(low), low, 0.0)
    step = np.maximum(np.where(np.isfinite(high), high, 0.0) - low, 1e-6) / 254
    stored = np.rint((clips - low[:, None, None, None]) / step[:, None, None, None]) + 1
    return {
        "stored": page.packed(np.where(is_seen, np.clip(stored, 1, 255), 0).astype(np.uint8)),
        "low": page.packed(low.astype(np.float32)),
        "step": page.packed(step.astype(np.float32)),
    }
