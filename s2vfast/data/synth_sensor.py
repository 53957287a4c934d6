"""The synthetic depth camera: where it stands, what it cannot see, how it errs, and which frames it loses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from s2vfast.data.synth_body import (
    ANKLE,
    FOOT,
    HAND,
    HAND_TIP,
    HEAD,
    HIP,
    JOINTS,
    KNEE,
    SPINE_BASE,
    SPINE_SHOULDER,
    THUMB,
    WRIST,
)

VIEW_ANGLES = (0.0, -45.0, 45.0)
"""Degrees about the scene of cameras 1, 2 and 3: camera 1 stands in the middle, as in NTU RGB+D."""


@dataclass(frozen=True)
class Camera:
    """A camera at ``position`` [3] in the world; rows of ``axes`` [3, 3] are its x (its left), y (up), z (view)."""

    position: np.ndarray
    axes: np.ndarray

    def see(self, joints: np.ndarray) -> np.ndarray:
        """World coordinates [..., 3] in the camera's own, metres, z away from the sensor."""
        return (joints - self.position) @ self.axes.T


def draw_camera(rng: np.random.Generator, view: int, distance: float, height: float) -> Camera:
    """Camera ``view`` (1 to 3) aimed at about the middle of the scene, with the errors of setting it up."""
    angle = np.deg2rad(VIEW_ANGLES[view - 1] + rng.normal(0.0, 4.0))
    distance = distance * rng.uniform(0.94, 1.06)
    height = height + rng.normal(0.0, 0.03)
    look = angle + np.pi + np.deg2rad(rng.normal(0.0, 3.0))
    down = np.deg2rad(np.clip(rng.normal(0.0, 3.0), -7.0, 7.0))
    z = np.array([np.sin(look) * np.cos(down), -np.sin(down), np.cos(look) * np.cos(down)])
    x = np.array([np.cos(look), 0.0, -np.sin(look)])
    position = np.array([distance * np.sin(angle), height, distance * np.cos(angle)])
    return Camera(position, np.stack([x, np.cross(z, x), z]))


def _scale() -> np.ndarray:
    """[25] noise of the joints at 3 m in metres: least on the trunk, most at the ends of hands and feet."""
    scale = np.full(JOINTS, 0.004)
    for joints, value in ((WRIST, 0.008), (HAND, 0.011), (HAND_TIP, 0.018), (THUMB, 0.018)):
        scale[list(joints)] = value
    for joints, value in ((HIP, 0.005), (KNEE, 0.006), (ANKLE, 0.009), (FOOT, 0.012)):
        scale[list(joints)] = value
    return scale


_NOISE = _scale()


def occluded(body: np.ndarray, other_bodies: list[np.ndarray]) -> np.ndarray:
    """How far each joint is behind a trunk or head, [F, 25] in [0, 1], for joints in camera coordinates.

    Trunks are rows of spheres, heads one sphere; a joint is hidden where its line of sight passes through one that is
    nearer to the camera.
    """
    ray = body / np.linalg.norm(body, axis=-1, keepdims=True)  # [F, V, 3]
    depth = np.linalg.norm(body, axis=-1)
    worst = np.zeros(body.shape[:2])
    for other in (body, *other_bodies):
        low, high = other[:, SPINE_BASE], other[:, SPINE_SHOULDER]
        spheres = [(low + part * (high - low), 0.145) for part in (0.0, 0.3, 0.6, 0.85)] + [(other[:, HEAD], 0.10)]
        for center, radius in spheres:
            along = np.einsum("fvc,fc->fv", ray, center)
            miss = np.sqrt(np.maximum(np.sum(center * center, axis=-1)[:, None] - along**2, 0.0))
            inside = np.clip((radius - miss) / 0.05, 0.0, 1.0)
            worst = np.maximum(worst, inside * np.clip((depth - along - 0.5 * radius) / 0.08, 0.0, 1.0))
    return worst


def _smooth(noise: np.ndarray, memory: float) -> np.ndarray:
    """White noise [F, ...] made to linger: each frame keeps a share ``memory`` of the one before; same variance."""
    result = noise.copy()
    fresh = np.sqrt(1.0 - memory * memory)
    for frame in range(1, len(noise)):
        result[frame] = memory * result[frame - 1] + fresh * noise[frame]
    return result


def disturb(rng: np.random.Generator, body: np.ndarray, other_bodies: list[np.ndarray]) -> np.ndarray:
    """What the sensor reports for a body it sees, [F, 25, 3] -> [F, 25, 3], camera coordinates in metres.

    Jitter that grows with the square of the depth (as the Kinect's does), a lasting offset of every joint, hidden
    joints guessed many centimetres off, and now and then a joint that snaps elsewhere for a few frames.
    """
    frames = len(body)
    far = (body[..., 2:] / 3.0) ** 2  # [F, V, 1]
    scale = _NOISE[:, None] * np.clip(far, 0.3, 4.0)
    jitter = 0.55 * rng.normal(size=body.shape) + 0.85 * _smooth(rng.normal(size=body.shape), 0.8)
    offset = rng.normal(size=(JOINTS, 3)) * (0.008 + 0.5 * _NOISE[:, None])
    lost = occluded(body, other_bodies)[..., None]
    guess = 0.055 * _smooth(rng.normal(size=body.shape), 0.9) + 0.012 * rng.normal(size=body.shape)
    # A guess lies between where the joint is and the surface before it.
    ray = body / np.linalg.norm(body, axis=-1, keepdims=True)
    measurement = body + scale * jitter + offset + lost * (guess - 0.06 * ray)
    chance = (0.0008 + 0.012 * lost[..., 0]) * (_NOISE / 0.008)
    for frame, joint in np.argwhere(rng.random((frames, JOINTS)) < chance):
        length = int(rng.integers(1, 4))
        measurement[frame : frame + length, joint] += rng.normal(0.0, 0.09, 3)
    return measurement


def keep_frames(rng: np.random.Generator, frames: int, bodies: int, closeness: np.ndarray) -> np.ndarray:
    """Which frames the tracker has for each body, bool [M, F].

    Single frames are dropped for everybody; a body is lost for 3 to 14 frames now and then, the second more often
    and most of all where the two come close (closeness [F] in [0, 1]). A body keeps at least half its frames.
    """
    present = np.ones((bodies, frames), dtype=bool)
    present[:, rng.random(frames) < rng.choice([0.0, 0.006, 0.03])] = False
    for body in range(bodies):
        losses = int(rng.random() < 0.12) if body == 0 else int(rng.random() < 0.25 + 0.4 * closeness.max())
        for _ in range(losses):
            weight = 0.15 + closeness
            start = int(rng.choice(frames, p=weight / weight.sum()))
            present[body, start : start + int(rng.integers(3, 15))] = False
        if present[body].sum() * 2 < frames:
            present[body] = True
    return present


def ghost(rng: np.random.Generator, body: np.ndarray) -> tuple[int, np.ndarray]:
    """First frame and joints [n, 25, 3] of a spurious body: furniture beside the person taken for one, for a moment."""
    length = int(rng.integers(4, 13))
    start = int(rng.integers(0, len(body) - length))
    shape = body[start] + np.array([rng.choice([-1.0, 1.0]) * rng.uniform(0.7, 1.3), 0.0, rng.uniform(-0.3, 0.9)])
    shape = shape[SPINE_BASE] + rng.uniform(0.5, 0.9) * (shape - shape[SPINE_BASE]) + rng.normal(0.0, 0.05, (JOINTS, 3))
    return start, shape + rng.normal(0.0, 0.03, (length, JOINTS, 3))
