"""The synthetic human: bone lengths of a subject, and joints from the pose of a body.

The trunk is forward kinematics on rotation matrices. Arms and legs are given by where the wrist and the ankle are
to be: a two-bone chain with the elbow or knee on a stated side reaches for it, so that hands meet, feet stay planted
and no bone ever changes its length.

Axes of the world: y up, the floor at y = 0, metres. A body that faces +z has its left side at +x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JOINTS = 25
LEFT, RIGHT = 0, 1
SIGN = (1.0, -1.0)
"""The side's direction along the body's x axis."""

SPINE_BASE, SPINE_MID, NECK, HEAD, SPINE_SHOULDER = 0, 1, 2, 3, 20
SHOULDER, ELBOW, WRIST, HAND = (4, 8), (5, 9), (6, 10), (7, 11)
HIP, KNEE, ANKLE, FOOT = (12, 16), (13, 17), (14, 18), (15, 19)
HAND_TIP, THUMB = (21, 23), (22, 24)

# Arms as outward, up, forward. On an arm that points along _ARM the elbow hangs to _ELBOW_LOW and lifts to _ELBOW_OUT;
# on a forearm along _FOREARM the thumb points to _THUMB_UP and the palm faces _PALM_IN.
_ARM = np.array([0.53, 0.0, 0.848])
_ELBOW_LOW, _ELBOW_OUT = np.array([0.0, -1.0, 0.0]), np.array([0.848, 0.0, -0.53])
_FOREARM = np.array([-0.6, -0.6, 0.5292])
_THUMB_UP = np.array([0.0, 0.6614, 0.75])
_PALM_IN = np.cross(_FOREARM, _THUMB_UP)

_SOFT = np.hanning(11)[1:-1] / np.hanning(11).sum()


def min_jerk(x: np.ndarray) -> np.ndarray:
    """A smooth step from 0 at x <= 0 to 1 at x >= 1 with the speed profile of human reaching (Flash & Hogan 1985)."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * x * (10.0 - 15.0 * x + 6.0 * x * x)


def rotation(pitch: np.ndarray, yaw: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Matrices [F, 3, 3] = Ry(yaw) Rx(pitch) Rz(roll) of angles [F] in radians.

    Positive pitch bends forward, positive yaw turns to the body's left, positive roll lifts its left side.
    """
    cp, sp = np.cos(pitch), np.sin(pitch)
    cy, sy = np.cos(yaw), np.sin(yaw)
    cr, sr = np.cos(roll), np.sin(roll)
    matrix = np.empty((*np.shape(cp), 3, 3))
    matrix[..., 0, 0] = cy * cr + sy * sp * sr
    matrix[..., 0, 1] = sy * sp * cr - cy * sr
    matrix[..., 0, 2] = sy * cp
    matrix[..., 1, 0] = cp * sr
    matrix[..., 1, 1] = cp * cr
    matrix[..., 1, 2] = -sp
    matrix[..., 2, 0] = cy * sp * sr - sy * cr
    matrix[..., 2, 1] = cy * sp * cr + sy * sr
    matrix[..., 2, 2] = cy * cp
    return matrix


def apply(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotate a vector [3] or vectors [F, 3] by matrices [F, 3, 3] -> [F, 3]."""
    return np.einsum("fij,fj->fi", matrix, np.broadcast_to(vector, (len(matrix), 3)))


def unit(vector: np.ndarray) -> np.ndarray:
    """Vectors [..., 3] scaled to length 1."""
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9)


@dataclass(frozen=True)
class Subject:
    """One person: lengths in metres, and habits that colour everything the person does. Index 0 is the left side."""

    height: float
    spine: tuple[float, float, float, float]
    """Spine base to mid, mid to shoulder level, shoulder level to neck, neck to head."""
    hip: tuple[float, float]
    """Half width of the hips, and how far they lie below the spine base."""
    shoulder: tuple[float, float]
    """Half width of the shoulders, and how far they lie below the spine's shoulder level."""
    upper_arm: tuple[float, float]
    forearm: tuple[float, float]
    palm: float
    """Wrist to hand, and hand to its tip."""
    thigh: tuple[float, float]
    shin: tuple[float, float]
    foot: float
    ankle_height: float
    """Height of the ankle over the floor when the foot is flat."""
    left_handed: bool
    tempo: float
    amplitude: float
    slouch: float
    """Forward bend of the resting trunk in radians."""
    stance: float
    """Half the distance between the feet at rest."""
    toe_out: float

    @property
    def arm(self) -> float:
        """Length of the arm from shoulder to wrist."""
        return 0.5 * (sum(self.upper_arm) + sum(self.forearm))

    @property
    def leg(self) -> float:
        """Length of the shorter leg from hip to ankle."""
        return min(self.thigh[s] + self.shin[s] for s in (LEFT, RIGHT))


def draw_subject(rng: np.random.Generator) -> Subject:
    """A person at random: stature, proportions (Drillis & Contini's segment ratios, as a Kinect sees them), habits."""
    height = float(np.clip(rng.normal(1.70, 0.09), 1.46, 1.98))
    legs, arms, shoulders, hips = 1.0 + np.clip(rng.normal(0.0, (0.03, 0.035, 0.06, 0.06)), -0.12, 0.12)

    def both_sides(ratio: float, scale: float) -> tuple[float, float]:
        left, right = height * ratio * scale * (1.0 + rng.normal(0.0, 0.006, 2))
        return float(left), float(right)

    trunk = 2.0 - legs
    ankle_height = 0.045 * height
    return Subject(
        height=height,
        spine=tuple(float(height * ratio * trunk) for ratio in (0.160, 0.118, 0.040, 0.075)),
        hip=(float(0.048 * height * hips), 0.022 * height),
        shoulder=(float(0.102 * height * shoulders), 0.022 * height),
        upper_arm=both_sides(0.166, arms),
        forearm=both_sides(0.146, arms),
        palm=float(0.043 * height * arms),
        thigh=both_sides(0.245, legs),
        shin=both_sides(0.246, legs),
        foot=0.075 * height,
        ankle_height=ankle_height,
        left_handed=bool(rng.random() < 0.15),
        tempo=float(np.exp(rng.normal(0.0, 0.12))),
        amplitude=float(np.exp(rng.normal(0.0, 0.10))),
        slouch=float(rng.uniform(-0.02, 0.16)),
        stance=float(height * rng.uniform(0.055, 0.105)),
        toe_out=float(rng.uniform(0.05, 0.35)),
    )


@dataclass
class Pose:
    """What a body does over F frames; index 0 of a pair is the left side."""

    root: np.ndarray
    """[F, 2] x and z of the spine base."""
    turn: np.ndarray
    """[F] heading: 0 faces +z."""
    drop: np.ndarray
    """[F] how far the hips are lowered from standing."""
    lift: np.ndarray
    """[F] how far the whole body is off the ground."""
    pelvis: np.ndarray
    """[F, 3] pitch, yaw, roll of the pelvis against the heading."""
    spine: np.ndarray
    """[F, 3] pitch, yaw, roll of the shoulders against the pelvis."""
    head: np.ndarray
    """[F, 3] pitch, yaw, roll of the head against the shoulders."""
    wrist: np.ndarray
    """[2, F, 3] outward, up, forward of the shoulder in arm lengths."""
    hang: np.ndarray
    """[2, F] 1 where wrist is meant upright however the trunk bends, 0 where it moves with the trunk."""
    elbow: np.ndarray
    """[2, F] how far the elbow is lifted outward from where it hangs, radians."""
    goal: np.ndarray
    """[2, F, 3] a point of the world for the wrist."""
    goal_weight: np.ndarray
    """[2, F] 1 where the wrist is at the goal, 0 where it ignores it."""
    bend: np.ndarray
    """[2, F, 2] the hand against the forearm: flexion, and towards the thumb."""
    ankle: np.ndarray
    """[2, F, 3] ankles in the world, y over a flat foot's ankle."""
    foot_turn: np.ndarray
    """[2, F] heading of the feet."""
    toe: np.ndarray
    """[2, F] how far the toes point down from flat, radians."""
    support: np.ndarray
    """[2, F] 1 where the foot carries weight: the hips sink as far as it needs."""


def solve(subject: Subject, pose: Pose) -> np.ndarray:
    """Joints [F, 25, 3] float64 of a body in the world, metres, in the order of the Kinect v2 (NTU) skeleton."""
    frames = len(pose.turn)
    joints = np.empty((frames, JOINTS, 3))
    zero = np.zeros(frames)
    heading = rotation(zero, pose.turn, zero)
    pelvis = heading @ rotation(*pose.pelvis.T)
    middle = pelvis @ rotation(*(0.45 * pose.spine).T)
    chest = middle @ rotation(*(0.55 * pose.spine).T)
    _trunk(subject, pose, joints, pelvis, middle, chest)
    lateral = heading[:, :, 0]  # [F, 3] the body's left
    for side in (LEFT, RIGHT):
        _leg(subject, pose, joints, side, lateral)
        _arm(subject, pose, joints, side, chest, heading)
    return joints


def _trunk(subject, pose, joints, pelvis, middle, chest) -> None:
    half, below = subject.hip
    hips = [apply(pelvis, np.array([SIGN[s] * half, -below, 0.0])) for s in (LEFT, RIGHT)]
    height = subject.ankle_height + 0.99 * subject.leg + below - pose.drop + pose.lift
    sink = np.zeros_like(height)
    for side in (LEFT, RIGHT):
        ankle = pose.ankle[side]
        away = (pose.root + hips[side][:, [0, 2]]) - ankle[:, [0, 2]]
        reach = 0.99 * subject.leg
        highest = subject.ankle_height + ankle[:, 1] - hips[side][:, 1]
        highest = highest + np.sqrt(np.maximum(reach**2 - np.sum(away**2, axis=-1), 1e-4))
        sink = np.minimum(sink, highest + 0.6 * (1.0 - pose.support[side]) - height)
    # Hips follow the legs softly: a foot that starts or stops carrying makes no jerk.
    sink = np.convolve(np.pad(sink, 4, mode="edge"), _SOFT, mode="valid")
    base = np.stack([pose.root[:, 0], height + sink, pose.root[:, 1]], axis=-1)
    lower, upper, neck, skull = subject.spine
    joints[:, SPINE_BASE] = base
    joints[:, SPINE_MID] = base + apply(pelvis, np.array([0.0, lower, 0.0]))
    joints[:, SPINE_SHOULDER] = joints[:, SPINE_MID] + apply(middle, np.array([0.0, upper, 0.0]))
    joints[:, NECK] = joints[:, SPINE_SHOULDER] + apply(chest, np.array([0.0, neck, 0.0]))
    joints[:, HEAD] = joints[:, NECK] + apply(chest @ rotation(*pose.head.T), skull * np.array([0.0, 0.97, 0.24]))
    for side in (LEFT, RIGHT):
        joints[:, HIP[side]] = base + hips[side]
        # The collar bone rises with a raised arm.
        shrug = 0.30 * min_jerk(0.5 + 0.7 * pose.wrist[side, :, 1]) - 0.08
        half, below = subject.shoulder
        length = np.hypot(half, below)
        angle = shrug - np.arctan2(below, half)
        collar = np.stack([SIGN[side] * np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=-1)
        joints[:, SHOULDER[side]] = joints[:, SPINE_SHOULDER] + apply(chest, length * collar)


def _two_bones(start, target, upper, lower, pole) -> tuple[np.ndarray, np.ndarray]:
    """Middle and end [F, 3] of two bones from start towards target, the middle joint on the side of pole."""
    axis = target - start
    distance = np.linalg.norm(axis, axis=-1)
    axis = unit(axis)
    # A knee or elbow closes to about 30 degrees and never quite straightens.
    shortest = np.sqrt(upper**2 + lower**2 - 2.0 * upper * lower * np.cos(0.5))
    distance = np.clip(distance, shortest, 0.9985 * (upper + lower))
    along = (upper**2 - lower**2 + distance**2) / (2.0 * distance)
    across = np.sqrt(np.maximum(upper**2 - along**2, 0.0))
    side = unit(pole - np.sum(pole * axis, axis=-1, keepdims=True) * axis)
    return start + along[:, None] * axis + across[:, None] * side, start + distance[:, None] * axis


def _carry(vector: np.ndarray, start: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Vectors [F, 3] or [3] at right angles to ``start`` [3], carried along as start turns the short way to axis.

    Smooth for every axis [F, 3] but the opposite of start, so start is chosen where its opposite cannot be reached.
    """
    vector = np.broadcast_to(vector, axis.shape)
    scale = np.sum(vector * axis, axis=-1, keepdims=True) / np.maximum(1.0 + axis @ start[:, None], 1e-3)
    return vector - scale * (start + axis)


def _leg(subject, pose, joints, side, lateral) -> None:
    hip = joints[:, HIP[side]]
    ankle = pose.ankle[side] + np.array([0.0, subject.ankle_height, 0.0])
    flat = np.zeros(len(hip))
    left = rotation(flat, pose.foot_turn[side], flat)[:, :, 0]
    # Knees bend in the plane of the foot and the hip: forward below a standing body, upward under a lifted thigh.
    plane = unit(unit(ankle - hip) * 1e-3 + lateral + left)
    knee_side = np.cross(unit(ankle - hip), plane)
    joints[:, KNEE[side]], joints[:, ANKLE[side]] = _two_bones(
        hip, ankle, subject.thigh[side], subject.shin[side], knee_side
    )
    flat_angle = np.arcsin((subject.ankle_height - 0.012 * subject.height) / subject.foot)
    foot = rotation(np.minimum(flat_angle + pose.toe[side], 1.45), pose.foot_turn[side], flat)[:, :, 2]
    joints[:, FOOT[side]] = joints[:, ANKLE[side]] + subject.foot * foot


def _arm(subject, pose, joints, side, chest, heading) -> None:
    shoulder = joints[:, SHOULDER[side]]
    mirror = np.array([SIGN[side], 1.0, 1.0])
    hang = pose.hang[side][:, None]
    wrist = pose.wrist[side]
    # On its way from one side of the shoulder to the other a hand goes round the front, not through the joint.
    near = np.clip(1.0 - np.linalg.norm(wrist, axis=-1, keepdims=True) / 0.65, 0.0, 1.0) ** 2
    reach = subject.arm * mirror * (wrist + near * np.array([0.25, 0.0, 0.85]))
    target = shoulder + (1.0 - hang) * apply(chest, reach) + hang * apply(heading, reach)
    weight = pose.goal_weight[side][:, None]
    target = target + weight * (pose.goal[side] - target)
    local = mirror * np.einsum("fji,fj->fi", chest, unit(target - shoulder))  # outward, up, forward of the chest
    angle = pose.elbow[side][:, None]
    pole = _carry(np.cos(angle) * _ELBOW_LOW + np.sin(angle) * _ELBOW_OUT, _ARM, local)
    pole = apply(chest, mirror * pole)
    elbow, wrist = _two_bones(shoulder, target, subject.upper_arm[side], subject.forearm[side], pole)
    joints[:, ELBOW[side]], joints[:, WRIST[side]] = elbow, wrist
    # Wrist, hand, tip and thumb are one rigid piece; the thumb points forward on a hanging arm, up on a stretched one.
    along = unit(wrist - elbow)
    local = mirror * np.einsum("fji,fj->fi", chest, along)
    thumb = apply(chest, mirror * _carry(_THUMB_UP, _FOREARM, local))
    inward = apply(chest, mirror * _carry(_PALM_IN, _FOREARM, local))
    flex, deviate = pose.bend[side].T[..., None]
    along = unit(along + flex * inward + deviate * thumb)
    thumb = unit(thumb - np.sum(thumb * along, axis=-1, keepdims=True) * along)
    joints[:, HAND[side]] = wrist + subject.palm * along
    joints[:, HAND_TIP[side]] = wrist + 1.95 * subject.palm * along
    joints[:, THUMB[side]] = wrist + subject.palm * (0.75 * along + 0.80 * thumb)
