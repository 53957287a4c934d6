"""Augmentations in plain NumPy, one sample at a time: the specification of `s2vfast.data.augment`.

``clip`` is a sample's [M, T, V, 3], ``length`` the frames that it has, ``bits`` its draws, whole numbers in [0, 2**32)
in the order in which the augmentation takes them. A body that is all zeros in a frame is absent there. The modules of
`s2vfast.data.augment` name the sources of the forms.
"""

from __future__ import annotations

import math

import numpy as np


def uniform(bits: int, low: float, high: float) -> float:
    """A draw as a number in [low, high): its upper 24 bits."""
    return low + (high - low) * (int(bits) >> 8) / 2**24


def below(bits: int, limit: int) -> int:
    """A draw as a whole number in [0, limit)."""
    return int(bits) * int(limit) >> 32


def choose(bits: list[int], count: int) -> list[int]:
    """``count`` different numbers below len(bits): those of the smallest draws."""
    return sorted(range(len(bits)), key=lambda number: int(bits[number]))[:count]


def present(clip: np.ndarray) -> np.ndarray:
    """bool [M, T]: which bodies are there."""
    return (clip != 0).any(axis=(2, 3))


def each_point(clip: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """matrix @ x for every point."""
    out = np.zeros_like(clip)
    for at in np.ndindex(clip.shape[:3]):
        out[at] = matrix @ clip[at]
    return out


def shear(clip, bits, amplitude):
    """R x, R = [[1, a0, b0], [a1, 1, b1], [a2, b2, 1]], draws a0 a1 a2 b0 b1 b2."""
    a0, a1, a2, b0, b1, b2 = (uniform(draw, -amplitude, amplitude) for draw in bits)
    return each_point(clip, np.array([[1, a0, b0], [a1, 1, b1], [a2, b2, 1]]))


def axis_rotation(axis: int, angle: float) -> np.ndarray:
    """The right-handed rotation about an axis."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array(
        [
            [[1, 0, 0], [0, c, -s], [0, s, c]],
            [[c, 0, s], [0, 1, 0], [-s, 0, c]],
            [[c, -s, 0], [s, c, 0], [0, 0, 1]],
        ][axis]
    )


def rotate(clip, bits, ranges, order, unit, minor_range=None):
    """R x, R the product of rotations in ``order``; with ``minor_range``, one drawn axis by its range, two by that."""
    product = np.eye(3)
    main = below(bits[3], 3)
    angles = []
    for axis in range(3):
        low, high = ranges[axis] if minor_range is None or axis == main else minor_range
        if unit == "whole_degrees":
            angles.append(math.radians(low + below(bits[axis], int(high - low) + 1)))
        else:
            angle = uniform(bits[axis], low, high)
            angles.append(math.radians(angle) if unit == "degrees" else angle)
    for name in order:
        axis = "xyz".index(name)
        product = product @ axis_rotation(axis, angles[axis])
    return each_point(clip, product)


def scale(clip, bits, low, high, per_axis):
    """s x, one s for all axes or one for each."""
    return clip * np.array([uniform(draw, low, high) for draw in (bits[:3] if per_axis else bits[:1] * 3)])


def flip(clip, bits, axis, probability, pairs):
    """One coordinate negated, left and right joints exchanged."""
    if not uniform(bits[0], 0, 1) < probability:
        return clip
    out = clip.copy()
    for left, right in pairs:
        out[:, :, left], out[:, :, right] = clip[:, :, right], clip[:, :, left]
    out[..., axis] *= -1
    return out


def jitter(clip, bits, joints, amplitude):
    """Some joints moved by constants, in frames where the body is there."""
    out, V = clip.copy(), clip.shape[2]
    for number, joint in enumerate(choose(bits[:V], joints)):
        move = [uniform(draw, -amplitude, amplitude) for draw in bits[V + 3 * number : V + 3 * number + 3]]
        for m, t in np.argwhere(present(clip)):
            out[m, t, joint] += move
    return out


def drop_joints(clip, bits, joints):
    """Some joints become zeros."""
    out = clip.copy()
    out[:, :, choose(bits, joints)] = 0
    return out


def drop_axis(clip, bits, probability):
    """One coordinate becomes zero."""
    out = clip.copy()
    if uniform(bits[0], 0, 1) < probability:
        out[..., below(bits[1], 3)] = 0
    return out


def swap_region(bits, frames, parts, num_joints, part_range, cell_range, cell_frames):
    """The block of some body parts × frames: bool [T, V]."""
    region = np.zeros((frames, num_joints), bool)
    count = part_range[0] + below(bits[len(parts) + 1], part_range[1] - part_range[0] + 1)
    grid = frames // cell_frames
    low, high = min(cell_range[0], grid), min(cell_range[1], grid)
    length = low + below(bits[len(parts) + 2], high - low + 1)
    start = below(bits[len(parts) + 3], grid - length + 1)
    for part in choose(bits[: len(parts)], count):
        for joint in parts[part]:
            region[start * cell_frames : (start + length) * cell_frames, joint] = True
    return region


def swap(clips, bits, parts, part_range, cell_range, cell_frames, per_sample):
    """Blocks of other samples: clips [B, M, T, V, 3], bits of all samples [B][parts + 4]."""
    B, out = len(clips), clips.copy()
    shift = 1 + below(bits[0][len(parts)], max(B - 2, 1)) if B > 1 else 0
    for i in range(B):
        draws = bits[i] if per_sample else bits[0]
        region = swap_region(draws, clips.shape[2], parts, clips.shape[3], part_range, cell_range, cell_frames)
        out[i][:, region] = clips[(i + shift) % B][:, region]
    return out


def resample(clip, start, length, frames):
    """Frames [start, start + length) interpolated to ``frames``, half-pixel centres, the edge repeated."""
    out = np.zeros((clip.shape[0], frames, *clip.shape[2:]), clip.dtype)
    for t in range(frames):
        position = min(max((t + 0.5) * length / frames - 0.5, 0), length - 1)
        lower = math.floor(position)
        upper = min(lower + 1, length - 1)
        weight = position - lower
        out[:, t] = (1 - weight) * clip[:, start + lower] + weight * clip[:, start + upper]
    return out


def crop_resize(clip, length, bits, frames, low, high, least, central):
    """A random or the middle stretch, resampled."""
    ratio = uniform(bits[0], low, high)
    if central:
        start = int((1 - ratio) * length / 2)
        return resample(clip, start, length - 2 * start, frames)
    stretch = min(max(math.floor(length * ratio), least), length)
    return resample(clip, below(bits[1], length - stretch + 1), stretch, frames)


def mirror_crop(clip, length, bits, ratio):
    """``length`` frames of the clip with length // ratio mirrored ones at both ends."""
    pad = length // ratio
    real = [clip[:, t] for t in range(length)]
    padded = real[:pad][::-1] + real + real[length - pad :][::-1]
    start = below(bits[0], 2 * pad + 1)
    out = np.zeros_like(clip)
    out[:, :length] = np.stack(padded[start : start + length], axis=1)
    return out


def sample_frames(clip, length, bits, frames, copies):
    """Frames drawn without replacement from copies of every frame, in order, by Floyd's algorithm."""
    population = max(copies * length, frames)
    subset = []
    for at in range(frames):
        newest = population - frames + at
        candidate = below(bits[at], newest + 1)
        subset.append(newest if candidate in subset else candidate)
    return clip[:, [number * length // population for number in sorted(subset)]]


def even_frames(clip, length, frames):
    """floor(linspace(0, length - 1, frames))."""
    return clip[:, np.floor(np.linspace(0, length - 1, frames)).astype(int)]


def interpolate(clip, length, bits):
    """x[t] + r (x[t + 1] - x[t]), the last frame as it is."""
    out, ratio = clip.copy(), uniform(bits[0], 0, 1)
    for t in range(length - 1):
        out[:, t] = clip[:, t] + ratio * (clip[:, t + 1] - clip[:, t])
    return out


def pad(clip, frames):
    """The clip's frames, then zeros up to ``frames``; what is longer is cut."""
    out = np.zeros((clip.shape[0], frames, *clip.shape[2:]), clip.dtype)
    shorter = min(frames, clip.shape[1])
    out[:, :shorter] = clip[:, :shorter]
    return out


def trim(clip, length, bits, most):
    """Without round(u · length) frames at start and end; returns the clip and its new length."""
    cut = round(length * uniform(bits[0], 0, most))
    start = below(bits[1], cut + 1)
    out = np.zeros_like(clip)
    out[:, : length - cut] = clip[:, start : start + length - cut]
    return out, length - cut


def first_present(clip, body):
    """The first frame in which a body is there; 0 for one that never is."""
    return int(present(clip)[body].argmax())


def centre(clip, joint, every_frame, per_body):
    """A joint becomes the origin, of every frame or by its first position, each body's own or the first body's."""
    out = clip.copy()
    for m, t in np.argwhere(present(clip)):
        body = m if per_body else 0
        frame = t if every_frame else first_present(clip, body)
        out[m, t] = clip[m, t] - clip[body, frame, joint]
    return out


def min_max(clip, low, high):
    """Every axis to [low, high] by the extremes over what is there."""
    out, mask = np.zeros_like(clip), present(clip)
    for axis in range(3):
        values = clip[..., axis][mask]
        if values.size:
            smallest, extent = values.min(), values.max() - values.min()
            relative = (values - smallest) / extent if extent > 0 else np.full_like(values, 0.5)
            out[..., axis][mask] = low + (high - low) * relative
    return out


def person_frame(clip, spine, hips, first_seen):
    """R⁻¹ x with the columns v2, v3, v1 of R from each body's spine and hips in one frame."""
    out = np.zeros_like(clip)
    for m in range(len(clip)):
        pose = clip[m, first_present(clip, m) if first_seen else 0]
        if not pose.any():
            continue  # all zeros: no frame of its own, as published
        v1 = pose[spine[1]] - pose[spine[0]]
        v1 = v1 / np.linalg.norm(v1)
        v2 = pose[hips[0]] - pose[hips[1]]
        v2 = v2 - (v2 @ v1) * v1
        v2 = v2 / np.linalg.norm(v2)
        v3 = np.cross(v2, v1)
        v3 = v3 / np.linalg.norm(v3)
        out[m] = each_point(clip[m : m + 1], np.linalg.inv(np.stack([v2, v3, v1], axis=1)))[0]
    return out


def align_shoulders(clip, left, right):
    """Every body turned about y, frame by frame, with one sign a body."""
    out = clip.copy()
    for m in range(len(clip)):
        line = clip[m, :, right] - clip[m, :, left]
        for t in range(clip.shape[1]):
            x, z = line[t, 0], line[t, 2]
            angle = math.acos(x / (math.hypot(x, z) + 1e-4))
            angle = -angle if line[:, 2].sum() >= 0 else angle
            c, s = math.cos(angle), math.sin(angle)
            out[m, t, :, 0] = clip[m, t, :, 0] * c - clip[m, t, :, 2] * s
            out[m, t, :, 2] = clip[m, t, :, 0] * s + clip[m, t, :, 2] * c
    return out
