"""What one synthetic person does with the whole body: legs, trunk, and where the person goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from s2vfast.data.synth_actor import Actor, keys, rounds, window
from s2vfast.data.synth_body import LEFT, RIGHT, min_jerk


def kick(actor: Actor) -> None:
    """A foot swings back and up to the front, and returns."""
    side, leg = actor.foot, actor.subject.leg
    v = rounds(actor.u, actor.count(2, 0.95))
    size = min(actor.amplitude, 1.25)
    high, far = actor.some(0.25, 0.75) * size * leg, actor.some(0.75, 1.0) * leg
    across = actor.some(-0.12, 0.12)
    times = (0.0, 0.28, 0.52, 0.72, 1.0)
    points = ((0, 0, 0), (0.0, 0.20, -0.30 * leg), (across, high, far), (0.5 * across, 0.22, 0.15 * leg), (0, 0, 0))
    actor.foot_offset[side] += keys(v, times, points)
    toe = keys(v, times, (0.0, 0.6, actor.some(-0.5, 0.2), 0.3, 0.0))
    actor.pose.toe[side] += toe
    direction = 1.0 if side == RIGHT else -1.0  # the hips go over the other foot
    weight = keys(actor.u, (0.0, 0.15, 0.85, 1.0), (0.0, 1.0, 1.0, 0.0))
    actor.shift[:, 0] += direction * 0.8 * actor.stance * weight
    actor.lean(keys(v, times, (0.0, 0.12, -0.30 * size, -0.05, 0.0)), hips=0.7)
    swing = keys(v, times, (0.0, -0.25, 0.35, 0.1, 0.0))
    for arm in (LEFT, RIGHT):
        forward = swing if arm != side else -swing
        actor.sway_wrist(arm, np.stack([0.3 * weight, 0.15 * weight, forward], axis=-1))


def squat(actor: Actor) -> None:
    """Knees bend deeply and stretch again, once or more."""
    v = rounds(actor.u, actor.count(3, 0.95))
    depth = np.clip(actor.some(0.38, 0.58) * actor.amplitude, 0.3, 0.62)
    low = keys(v, (0.0, actor.some(0.42, 0.5), actor.some(0.52, 0.62), 1.0), (0.0, 1.0, 1.0, 0.0))
    actor.crouch(depth * low, lean=actor.some(0.7, 1.2))
    if actor.rng.random() < 0.75:  # arms to the front
        for side in (LEFT, RIGHT):
            point = actor.near((-0.05, actor.some(-0.1, 0.15), 0.85), 0.05)
            actor.pose.hang[side] *= 1.0 - low
            actor.sway_wrist(side, low[:, None] * (point - actor.pose.wrist[side]))


def jump(actor: Actor) -> None:
    """Off the ground with both feet, once or more, the arms swinging."""
    count = actor.count(3, 0.95)
    v = rounds(actor.u, count)
    seconds = actor.some(0.28, 0.44) * min(actor.amplitude, 1.2)  # in the air
    half = min(0.5 * seconds * count / actor.clock.seconds, 0.24)
    take_off, landing = 0.56 - half, 0.56 + half
    flight = np.clip((v - take_off) / (landing - take_off), 0.0, 1.0)
    actor.pose.lift = 9.81 / 8.0 * seconds**2 * 4.0 * flight * (1.0 - flight)
    deep = actor.some(0.14, 0.26)
    times = (0.0, take_off - 0.16, take_off, landing, landing + 0.10, 1.0)
    actor.crouch(deep * keys(v, times, (0.0, 1.0, 0.0, 0.0, 0.7, 0.0)), lean=1.1)
    for side in (LEFT, RIGHT):
        actor.pose.toe[side] += 0.8 * np.sin(np.pi * flight)
    up = actor.some(0.1, 0.9)
    swing = keys(v, (0.0, take_off - 0.16, 0.54, 0.9, 1.0), (0.0, -0.4, 1.0, 0.0, 0.0))
    lift = np.stack([0.1 * np.abs(swing), up * np.maximum(swing, 0.0) + 0.1 * np.abs(swing), 0.5 * swing], axis=-1)
    for side in (LEFT, RIGHT):
        actor.sway_wrist(side, lift)


def _sit(actor: Actor, progress: Callable[[float], float], descent: np.ndarray) -> None:
    """Between standing (descent 0) and sitting on a chair (descent 1); progress mirrors times for the way back."""
    body, pose = actor.subject, actor.pose
    seat = actor.some(0.22, 0.27) * body.height
    hips = body.ankle_height + 0.99 * body.leg
    pose.drop = pose.drop + descent * (hips - seat)
    actor.shift[:, 1] -= descent * actor.some(0.80, 0.95) * body.thigh[0]
    down = keys(actor.u, sorted((progress(0.0), progress(0.45), progress(1.0))), (0.0, 1.0, 0.0))
    actor.pose.pelvis[:, 0] += actor.some(0.35, 0.65) * down - 0.10 * descent
    actor.pose.spine[:, 0] += actor.some(0.05, 0.25) * down
    if actor.rng.random() < 0.75:  # hands on the thighs
        for side in (LEFT, RIGHT):
            point = actor.near((-0.05, -0.62, 0.55), 0.05)
            pose.wrist[side] = pose.wrist[side] + descent[:, None] * (point - pose.wrist[side])


def sit_down(actor: Actor) -> None:
    """From standing onto a chair."""
    _sit(actor, lambda t: t, min_jerk((actor.u - 0.12) / 0.76))


def stand_up(actor: Actor) -> None:
    """From a chair to standing: sitting down backwards in time."""
    _sit(actor, lambda t: 1.0 - t, 1.0 - min_jerk((actor.u - 0.12) / 0.76))


def _stoop(actor: Actor, u: np.ndarray) -> None:
    """Hands to the floor at u = 0.5, what they hold comes up with them until u = 1."""
    side, body = actor.hand, actor.subject
    low = keys(u, (0.0, actor.some(0.38, 0.46), actor.some(0.50, 0.58), 1.0), (0.0, 1.0, 1.0, 0.0), blend=0.05)
    knees = actor.some(0.15, 0.52)
    actor.crouch(knees * low, lean=0.8)
    actor.lean((1.75 - 1.6 * knees) * low, hips=actor.some(0.55, 0.75))
    actor.pose.head[:, 0] -= 0.35 * low
    hands = (LEFT, RIGHT) if actor.rng.random() < 0.35 else (side,)
    hold = actor.near((-0.1, actor.some(-0.6, -0.3), 0.4))
    cos, sin = np.cos(actor.turn), np.sin(actor.turn)
    ahead, height = actor.some(0.16, 0.26) * body.height, actor.some(0.03, 0.16) * body.height
    for hand in hands:
        actor.reach(hand, (0.25, 0.55, 1.0), (None, hold, hold), u=u)
        left = (1.0 if hand == LEFT else -1.0) * actor.some(0.03, 0.10)
        x, z = actor.path.T + np.stack([left * cos + ahead * sin, ahead * cos - left * sin])
        actor.grasp(hand, np.stack([x, np.full_like(x, height), z], axis=-1), low**2)
    for hand in {LEFT, RIGHT} - set(hands):
        actor.sway_wrist(hand, np.outer(low, (0.05, 0.25, 0.1)))


def pick_up(actor: Actor) -> None:
    """Something from the floor, with bent back or bent knees, then held."""
    _stoop(actor, actor.u)


def put_down(actor: Actor) -> None:
    """Something held put on the floor: picking up backwards in time."""
    _stoop(actor, 1.0 - actor.u)


def bow(actor: Actor) -> None:
    """The trunk bends forward from the hips, and rises."""
    down, up = actor.some(0.36, 0.44), actor.some(0.54, 0.66)
    low = keys(actor.u, (0.0, down, up, 1.0), (0.0, 1.0, 1.0, 0.0))
    depth = np.clip(actor.some(0.5, 1.15) * actor.amplitude, 0.4, 1.4)
    actor.lean(depth * low, hips=actor.some(0.5, 0.8))
    actor.pose.head[:, 0] += actor.some(-0.1, 0.35) * low
    if actor.rng.random() < 0.6:  # hands stay at the thighs
        for side in (LEFT, RIGHT):
            actor.pose.hang[side] *= 1.0 - 0.7 * low


def _walk(actor: Actor, stride: float, steps: int, swinging: float) -> None:
    forward = stride * (steps - 1)
    actor.path -= 0.5 * forward * np.array([np.sin(actor.turn[0]), np.cos(actor.turn[0])])
    actor.walk(0.0, 1.0, forward, steps, turn=actor.some(-0.3, 0.3))
    going = window(actor.u, -0.1, 1.1, 0.25)
    phase = np.pi * steps * np.clip(actor.u, 0.0, 1.0)
    swing = (1.0 if actor.foot == LEFT else -1.0) * np.sin(phase) * going
    for side, ahead in ((LEFT, -swinging), (RIGHT, swinging)):  # arms against legs
        actor.sway_wrist(side, np.stack([0.0 * swing, 0.08 * going, ahead * swing], axis=-1))
    actor.pose.pelvis[:, 1] -= 0.08 * swing
    actor.pose.spine[:, 1] += 0.16 * swing
    actor.pose.spine[:, 0] += 0.05 * going
    actor.shift[:, 0] -= 0.02 * swing


def walk(actor: Actor) -> None:
    """A few steps forward, the arms swinging against the legs."""
    stride = actor.some(0.28, 0.38) * actor.subject.height * min(actor.amplitude, 1.1)
    steps = int(np.clip(round(actor.clock.seconds / 0.55), 3, 6))
    _walk(actor, stride, steps, actor.some(0.15, 0.35) * actor.amplitude)


def walk_backward(actor: Actor) -> None:
    """A few shorter steps backward."""
    stride = -actor.some(0.22, 0.32) * actor.subject.height * min(actor.amplitude, 1.1)
    steps = int(np.clip(round(actor.clock.seconds / 0.5), 3, 6))
    _walk(actor, stride, steps, actor.some(0.08, 0.22) * actor.amplitude)


def turn_round(actor: Actor) -> None:
    """On the spot to face the other way."""
    way = 1.0 if actor.rng.random() < 0.5 else -1.0
    turn = way * actor.some(0.8, 1.1) * np.pi
    actor.foot = LEFT if way > 0 else RIGHT  # the inner foot opens the turn
    actor.pose.head[:, 1] += way * 0.5 * window(actor.u, -0.12, 0.75, 0.35)
    actor.walk(0.0, 1.0, actor.some(-0.1, 0.15), int(actor.rng.integers(4, 7)), turn=turn)
