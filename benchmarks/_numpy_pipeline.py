"""The clips and masks as skeleton loaders usually make them: NumPy and PyTorch, one sequence after the other.

Written to compute what s2vfast.reference does, from the same draws, in the manner of the loaders that published code
comes with: a sequence is an array of 300 padded frames, frames without a body are found one by one with np.isclose,
frames are chosen in a Python loop. The draws are given, so that their cost is nobody's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2vfast.ops import ClipSpec
from s2vfast.reference import clip_sample as reference
from s2vfast.reference import philox
from s2vfast.reference.tube_mask import tube_mask

PADDED = 300  # frames of a stored sequence


@dataclass(frozen=True)
class Draws:
    """What is random in one clip."""

    picks: np.ndarray  # int64 [T], of the frames that are kept
    angles: np.ndarray  # float32 [3]


def padded(given: dict[str, Tensor], sample: int) -> np.ndarray:
    """A sequence as the loaders read it: float32 [300, M, V, 3], the first frame first, zeros behind the last."""
    frames, row, count = given["frames"], given["row"][sample].tolist(), given["count"][sample].tolist()
    out = np.zeros((PADDED, len(row), *frames.shape[1:]), np.float32)
    for body, (first, length) in enumerate(zip(row, count, strict=True)):
        numbers = given["frame_index"][first : first + length].long().numpy()
        out[numbers, body] = frames[first : first + length].float().numpy()
    return out


def draws(count: int, sample: int, spec: ClipSpec, seed: int, epoch: int) -> Draws:
    """The draws of the counter-based generator."""
    picks, _ = reference.picks(count, sample, spec, seed, epoch, True)
    words = philox.random_bits(seed, epoch, torch.tensor([sample]), philox.CLIP, reference.CLIP_DRAWS)[0]
    u = philox.uniform(words)[reference.ANGLE : reference.ANGLE + 3]
    return Draws(picks.numpy(), ((2.0 * u - 1.0) * torch.tensor(spec.rotate)).numpy())


def clip(sequence: np.ndarray, spec: ClipSpec, given: Draws) -> np.ndarray:
    """float32 [M, T, V, 3] of a padded sequence."""
    kept = [frame for frame in range(len(sequence)) if not np.isclose(sequence[frame, 0], 0).all()]
    sequence = sequence[kept]
    root = sequence[0, 0, spec.root].copy()
    chosen = [sequence[pick] for pick in given.picks]
    x = np.stack(chosen)  # [T, M, V, 3]
    seen = (x != 0).any(axis=-1, keepdims=True)
    x = x - root
    cx, cy, cz = np.cos(given.angles)
    sx, sy, sz = np.sin(given.angles)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]], np.float32)
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], np.float32)
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]], np.float32)
    x = np.matmul(x, (rz @ ry @ rx).T)
    return np.where(seen, x, 0).transpose(1, 0, 2, 3).astype(np.float32)


def masks(clips: Tensor, ids: Tensor, options: dict, seed: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
    """The masks of one track after the other, each by torch.argsort, as a loader's worker makes them."""
    return [
        tube_mask(clips[n : n + 1], **options, seed=seed, epoch=epoch, ids=ids[n : n + 1]) for n in range(len(clips))
    ]
