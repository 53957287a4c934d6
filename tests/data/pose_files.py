"""Makes the JSON of pose detectors, as scripts write it."""

from __future__ import annotations

import numpy as np


def moving(frames: int, joints: int, *, seed: int = 0, size: float = 1.0, x: float = 0.0) -> np.ndarray:
    """A body that moves, [frames, joints, 3], about as high as ``size``."""
    rng = np.random.default_rng(seed)
    still = rng.uniform(-0.5, 0.5, (joints, 3)) * np.array([0.4, 1.8, 0.3])
    swing = np.sin(np.arange(frames) / 3.0)[:, None, None] * rng.uniform(-1, 1, (joints, 3)) * 0.05
    return np.round((still + swing) * size + np.array([x, 0.0, 0.0]), 5)


def world(frames: int, seed: int = 0) -> np.ndarray:
    """MediaPipe's world landmarks [frames, 33, 3]: the middle of the hips is the origin."""
    joints = moving(frames, 33, seed=seed)
    return np.round(joints - joints[:, 23:25].mean(axis=1, keepdims=True), 5)


def as_dicts(pose: np.ndarray, visibility: float = 0.9) -> list[dict[str, float]]:
    """Landmarks as objects."""
    return [{"x": x, "y": y, "z": z, "visibility": visibility} for x, y, z in pose.tolist()]


def as_lists(pose: np.ndarray, visibility: float = 0.9) -> list[list[float]]:
    """Landmarks as lists of four."""
    return [[*xyz, visibility] for xyz in pose.tolist()]
