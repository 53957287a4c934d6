"""The synthetic depth picture: people made of capsules before a Kinect, with its noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from s2vfast.data.camera import CAMERAS
from s2vfast.data.depth import Depth
from s2vfast.data.synth_body import (
    ANKLE,
    ELBOW,
    FOOT,
    HAND_TIP,
    HEAD,
    HIP,
    KNEE,
    LEFT,
    NECK,
    RIGHT,
    SHOULDER,
    SPINE_BASE,
    SPINE_MID,
    SPINE_SHOULDER,
    WRIST,
)

DEPTH = Depth.of("kinect_v2", 0.001)
"""How depth becomes points."""
_CAMERA = CAMERAS["kinect_v2"]
_FARTHEST = 8.0
"""Metres that the sensor sees."""

# Joints that a capsule joins, and its radius in metres.
_TRUNK = ((SPINE_BASE, SPINE_MID, 0.13), (SPINE_MID, SPINE_SHOULDER, 0.13), (SPINE_SHOULDER, NECK, 0.06))
_ACROSS = ((SHOULDER[LEFT], SHOULDER[RIGHT], 0.075), (HIP[LEFT], HIP[RIGHT], 0.11), (HEAD, HEAD, 0.105))
_LIMBS = ((SHOULDER, ELBOW, 0.05), (ELBOW, WRIST, 0.04), (WRIST, HAND_TIP, 0.035), (HIP, KNEE, 0.08))
_LIMBS += ((KNEE, ANKLE, 0.055), (ANKLE, FOOT, 0.045))
CAPSULES = (*_TRUNK, *_ACROSS, *((a[side], b[side], radius) for a, b, radius in _LIMBS for side in (LEFT, RIGHT)))
_RAYS = _CAMERA.rays(_CAMERA.height, _CAMERA.width).reshape(_CAMERA.height, _CAMERA.width, 3)
_X, _Y = _RAYS[0, :, 0], _RAYS[:, 0, 1]
_RAY_RAY = (_RAYS * _RAYS).sum(2)  # [H, W]
Vector = tuple[float, float, float]


def render(people: np.ndarray) -> Iterator[np.ndarray]:
    """The depth of every pixel, exact.

    Args:
        people: [M, F, 25, 3], joints in the camera's axes, metres.

    Yields:
        float32 [H, W] for each frame: metres along the optical axis, 0 where nobody is.
    """
    for bodies in people.transpose(1, 0, 2, 3).tolist():
        nearest = np.full(_RAY_RAY.shape, np.inf, dtype=np.float32)
        with np.errstate(invalid="ignore"):  # of a ray that misses
            for joints in bodies:
                for start, end, radius in CAPSULES:
                    # A capsule is two spheres and the side of a cylinder; what is nearest of them is seen.
                    _draw_sphere(nearest, joints[start], radius)
                    if start != end:
                        _draw_sphere(nearest, joints[end], radius)
                        _draw_side(nearest, joints[start], joints[end], radius)
        nearest[nearest > _FARTHEST] = 0.0
        yield nearest


def _box(radius: float, *centres: Vector) -> tuple[slice, slice] | None:
    """Rows and columns of the pixels that may see spheres; None: no pixel, or something is at the camera."""
    left, right, top, bottom = [], [], [], []
    for x, y, z in centres:
        if z < radius + 0.1:
            return None
        u, v = _CAMERA.cx + _CAMERA.fx * x / z, _CAMERA.cy - _CAMERA.fy * y / z
        reach = 1.2 * _CAMERA.fx * radius / (z - radius) + 1.0  # 1.2: at the edge of the picture spheres are longer
        left.append(u - reach)
        right.append(u + reach)
        top.append(v - reach)
        bottom.append(v + reach)
    u0, u1 = max(int(min(left)), 0), min(int(max(right)) + 1, _CAMERA.width)
    v0, v1 = max(int(min(top)), 0), min(int(max(bottom)) + 1, _CAMERA.height)
    return (slice(v0, v1), slice(u0, u1)) if u0 < u1 and v0 < v1 else None


def _draw_sphere(nearest: np.ndarray, centre: Vector, radius: float) -> None:
    """Put a sphere before what is farther: a ray is z * (x, y, 1), so that the smaller root is its depth."""
    if (box := _box(radius, centre)) is None:
        return
    ray_centre = _product(centre, box)
    root = ray_centre * ray_centre - _RAY_RAY[box] * (_dot(centre, centre) - radius * radius)
    np.fmin(nearest[box], (ray_centre - np.sqrt(root)) / _RAY_RAY[box], out=nearest[box])


def _draw_side(nearest: np.ndarray, a: Vector, b: Vector, radius: float) -> None:
    """Put the side of the cylinder between ``a`` and ``b`` before what is farther."""
    if (box := _box(radius, a, b)) is None:
        return
    axis = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
    axis_axis, axis_a = _dot(axis, axis), _dot(axis, a)
    ray_axis = _product(axis, box)
    quadratic = axis_axis * _RAY_RAY[box] - ray_axis * ray_axis
    linear = axis_axis * _product(a, box) - axis_a * ray_axis
    root = linear * linear - quadratic * (axis_axis * (_dot(a, a) - radius * radius) - axis_a * axis_a)
    z = (linear - np.sqrt(root)) / quadratic
    along = z * ray_axis - axis_a  # from 0 at a to axis_axis at b
    np.fmin(nearest[box], z, out=nearest[box], where=(along > 0.0) & (along < axis_axis))


def _dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _product(vector: Vector, box: tuple[slice, slice]) -> np.ndarray:
    """float32 [v, u]: a vector's product with the rays of pixels."""
    return (vector[1] * _Y[box[0]] + vector[2])[:, None] + vector[0] * _X[box[1]]


def measured(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """What the sensor gives for a picture of exact depth: uint16 [H, W], millimetres, 0 where it gives nothing.

    Depth errs by 1.2 + 1.9 (z - 0.4)^2 mm, z in metres (Nguyen, Izadi and Lovell, 3DIMPVT 2012). Some pixels at the
    edges of things are lost, and a few elsewhere.

    Args:
        rng: of the draws.
        picture: float32 [H, W], metres, 0 where nobody is.
    """
    at = np.flatnonzero(picture)
    flat = picture.reshape(-1)
    z = flat[at]
    edge = np.zeros(len(at), dtype=bool)
    for step in (-1, 1, -picture.shape[1], picture.shape[1]):
        edge |= np.abs(flat[(at + step) % flat.size] - z) > 0.1
    chance = rng.random(len(at), dtype=np.float32)
    noise = rng.standard_normal(len(at), dtype=np.float32)
    z = z + noise * (0.0012 + 0.0019 * (z - 0.4) ** 2)
    z[chance < np.where(edge, 0.4, 0.002)] = 0.0
    result = np.zeros(flat.size, dtype=np.uint16)
    result[at] = np.rint(1000.0 * z)
    return result.reshape(picture.shape)


def points_of(rng: np.random.Generator, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a depth camera sees of people, as points.

    Args:
        rng: of the noise.
        people: as of `render`.

    Returns:
        As of `s2vfast.data.depth.Depth.points_of`.
    """
    return DEPTH.points_of(measured(rng, picture) for picture in render(people))
