"""Streams in plain NumPy: matrices by their definition, and loops over samples, frames and joints.

The specification of `s2vfast.data.streams`.
"""

from __future__ import annotations

import numpy as np


def bones(clip: np.ndarray, parents: list[int]) -> np.ndarray:
    """Joint minus its parent, a root 0: [M, T, V, C]."""
    out = np.zeros_like(clip)
    for joint, parent in enumerate(parents):
        if parent >= 0:
            out[:, :, joint] = clip[:, :, joint] - clip[:, :, parent]
    return out


def mode(clip: np.ndarray, parents: list[int], k: int, descendants: bool = False) -> np.ndarray:
    """(I - P^k) x over joints (InfoGCN, multi-modal representation): [M, T, V, C].

    Args:
        clip: [M, T, V, C].
        parents: parent of every joint, -1 at the root.
        k: the power.
        descendants: P[parent, joint] = 1 in place of P[joint, parent] = 1.
    """
    adjacency = np.zeros((len(parents), len(parents)))
    for joint, parent in enumerate(parents):
        if parent >= 0:
            adjacency[joint, parent] = 1
    if descendants:
        adjacency = adjacency.T
    matrix = np.eye(len(parents)) - np.linalg.matrix_power(adjacency, k)
    return np.einsum("vw,mtwc->mtvc", matrix, clip)


def motion(clip: np.ndarray, length: int, backward: bool = False) -> np.ndarray:
    """x[t + 1] - x[t], the last frame 0; or x[t] - x[t - 1], the first frame 0: [M, T, V, C].

    Args:
        clip: [M, T, V, C].
        length: frames that the clip has; those after them give 0.
        backward: the second of the two.
    """
    out = np.zeros_like(clip)
    for t in range(length):
        if backward and t > 0:
            out[:, t] = clip[:, t] - clip[:, t - 1]
        if not backward and t + 1 < length:
            out[:, t] = clip[:, t + 1] - clip[:, t]
    return out
