"""Makes NTU `.skeleton` files as the recorder writes them."""

from __future__ import annotations

import numpy as np

JOINTS = 25
IDS = ("72057594037931101", "72057594037931102", "72057594037931103", "72057594037931104")
"""Ids that differ in the last digit: as floating-point numbers they would be the same."""


def person(frames: int, *, seed: int = 0, motion: float = 0.1, x: float = 0.0, wide: bool = False) -> np.ndarray:
    """A standing (or, if wide, lying) body that moves, [frames, 25, 3], rounded as in a file."""
    rng = np.random.default_rng(seed)
    still = rng.uniform(-0.5, 0.5, (JOINTS, 3)) * np.array([0.4, 1.8, 0.3])
    if wide:
        still = still[:, [1, 0, 2]]
    swing = np.sin(np.arange(frames) / 3.0)[:, None, None] * rng.uniform(-1, 1, (JOINTS, 3)) * motion
    return np.round(still + swing + np.array([x, 0.0, 3.0]), 6)


def frames_of(*tracks: tuple[str, int, np.ndarray], total: int) -> list[list[tuple[str, np.ndarray]]]:
    """Lay tracks (id, first frame, joints) on a time line of ``total`` frames."""
    frames: list[list[tuple[str, np.ndarray]]] = [[] for _ in range(total)]
    for body, first, joints in tracks:
        for at, row in enumerate(joints):
            frames[first + at].append((body, row))
    return frames


def skeleton_text(frames: list[list[tuple[str, np.ndarray]]], newline: str = "\r\n") -> str:
    """The text of a file: frame count, body counts, ten fields a body, joint count, twelve numbers a joint."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body, joints in bodies:
            lines.append(f"{body} 0 1 1 1 1 0 0.02764709 0.05745083 2")
            lines.append(str(len(joints)))
            for x, y, z in joints:
                lines.append(f"{x:.6f} {y:.6f} {z:.6f} 277.419 191.82 1036.23 519.1677 -0.2059 0.0510 0.9692 -0.1255 2")
    return newline.join(lines) + newline
