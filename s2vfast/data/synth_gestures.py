"""What one synthetic person does with hands and arms.

Points are outward, up and forward of the shoulder in arm lengths, times run from 0 to 1 over the action
(see `Actor.reach`).
"""

from __future__ import annotations

import numpy as np

from s2vfast.data.synth_actor import Actor, keys, rounds, window
from s2vfast.data.synth_body import LEFT, RIGHT, min_jerk


def _mouth(actor: Actor, side: int) -> np.ndarray:
    """Where the wrist is when the hand is at the mouth."""
    body = actor.subject
    up = body.spine[2] + 0.4 * body.spine[3] + body.shoulder[1] - 0.085
    return np.array([-body.shoulder[0] + 0.05, up, 0.12]) / body.arm


def _before(actor: Actor) -> np.ndarray:
    """Where a raised hand is: one distribution for all that a raised hand does, so that it tells nothing."""
    high = actor.some(-0.10, 0.70)
    ahead = np.sqrt(max(0.80**2 - high**2, 0.04)) * actor.some(0.55, 0.95)
    return np.array([actor.some(-0.15, 0.40), high, ahead])


def _hold_up(actor: Actor) -> np.ndarray:
    """Bring the acting hand before the body for the length of the action; where it is."""
    point = _before(actor)
    rise, fall = np.clip(actor.rng.uniform(0.36, 0.60, 2) / actor.clock.seconds, 0.14, 0.30)
    times = (0.0, rise, 1.0 - fall, 1.0)
    actor.reach(actor.hand, times, (None, point, actor.near(point, 0.03), None))
    return point


def wave(actor: Actor) -> None:
    """One hand up, swinging from side to side."""
    _hold_up(actor)
    swing = np.sin(actor.beat(actor.some(1.0, 2.2))) * window(actor.u, 0.12, 0.90)
    actor.sway_wrist(actor.hand, np.outer(swing, np.array([0.20, -0.03, 0.03]) * actor.amplitude))
    actor.pose.bend[actor.hand, :, 1] += 0.35 * swing


def knock(actor: Actor) -> None:
    """One hand up, beating to the front."""
    _hold_up(actor)
    beat = np.sin(actor.beat(actor.some(1.2, 2.4))) * window(actor.u, 0.12, 0.90)
    actor.sway_wrist(actor.hand, np.outer(beat, np.array([0.0, -0.08, 0.20]) * actor.amplitude))
    actor.pose.bend[actor.hand, :, 0] += 0.25 * beat


def raise_hand(actor: Actor) -> None:
    """One hand up and held there."""
    _hold_up(actor)


def _swipe(actor: Actor, left: float) -> None:
    side = actor.hand
    out = left if side == LEFT else -left
    half = min(actor.some(0.28, 0.46) * actor.amplitude, 0.55)
    point = _before(actor) * (1.0, 0.7, 1.0)
    count = actor.count(2, 0.9)
    v = rounds((actor.u - 0.16) / 0.68, count)
    actor.reach(side, (0.0, 0.18, 0.82, 1.0), (None, point, point, None))
    # Fast across, then back at leisure and lower.
    across = keys(v, (0.0, 0.15, 0.45, 1.0), (-1.0, -1.0, 1.0, 1.0 if count == 1 else -1.0), blend=0.0)
    within = window(actor.u, 0.02, 0.98, 0.2)
    dip = -0.12 * min_jerk((v - 0.5) / 0.2) * min_jerk((1.0 - v) / 0.2)
    actor.sway_wrist(side, np.stack([out * half * across * within, dip, 0.0 * dip], axis=-1))


def swipe_left(actor: Actor) -> None:
    """One hand sweeps to the person's left, with either hand."""
    _swipe(actor, 1.0)


def swipe_right(actor: Actor) -> None:
    """One hand sweeps to the person's right, with either hand."""
    _swipe(actor, -1.0)


def raise_both_arms(actor: Actor) -> None:
    """Both arms up, through the front or through the sides, and down again."""
    a = min(actor.amplitude, 1.15)
    out, ahead = (0.85, 0.05) if actor.rng.random() < 0.5 else (0.2, 0.85)
    top = actor.near((actor.some(0.05, 0.4), 0.88 * a, 0.08), 0.04)
    hold = actor.some(0.42, 0.5)
    for side in (LEFT, RIGHT):
        mid = actor.near((out, 0.05, ahead), 0.05)
        times, points = (0.0, 0.2, hold, 1.1 - hold, 0.82, 1.0), (None, mid, top, top, mid, None)
        actor.reach(side, times, points, elbow=0.6)
    actor.pose.head[:, 0] -= 0.2 * window(actor.u, 0.1, 0.9, 0.4)


def clap(actor: Actor) -> None:
    """Both hands meet again and again."""
    half = actor.subject.shoulder[0] / actor.subject.arm
    high, ahead = actor.some(-0.45, 0.35), actor.some(0.35, 0.6)
    apart = actor.some(0.10, 0.28) * actor.amplitude
    beat = 0.5 - 0.5 * np.cos(actor.beat(actor.some(1.3, 2.6)))
    within = window(actor.u, 0.1, 0.92)
    for side in (LEFT, RIGHT):
        point = (-half + 0.06, high + actor.some(-0.03, 0.03), ahead)
        actor.reach(side, (0.0, 0.18, 0.84, 1.0), (None, point, point, None), elbow=0.7)
        actor.sway_wrist(side, np.outer(within * beat, (apart, 0.03, -0.04)))
        actor.pose.bend[side, :, 1] += 0.5 * window(actor.u, 0.0, 1.0)


def drink(actor: Actor) -> None:
    """A cup to the mouth, the head back, and down again."""
    side, pose = actor.hand, actor.pose
    count = actor.count(2, 1.3)
    cup = actor.near((actor.some(-0.15, 0.1), actor.some(-0.55, -0.3), 0.42))
    mouth = actor.near(_mouth(actor, side), 0.02)
    actor.reach(side, (0.0, 0.15, 0.85, 1.0), (None, cup, cup, None), elbow=actor.some(0.3, 0.7))
    v = rounds((actor.u - 0.12) / 0.76, count)
    sip = keys(v, (0.0, 0.35, 0.65, 1.0), (0.0, 1.0, 1.0, 0.0))
    actor.sway_wrist(side, sip[:, None] * (mouth - cup))
    tilt = min_jerk((v - 0.3) / 0.2) * min_jerk((0.75 - v) / 0.2)
    pose.head[:, 0] -= actor.some(0.25, 0.5) * tilt
    pose.bend[side, :, 0] += 0.9 * sip
    pose.bend[side, :, 1] += 0.3 * tilt


def _draw_circle(actor: Actor, clockwise: float) -> None:
    side = actor.hand
    turns = min(actor.some(1.4, 3.2), 1.3 * actor.clock.seconds)
    radius = min(actor.some(0.18, 0.32) * actor.amplitude, 0.36)
    _hold_up(actor)
    within = window(actor.u, 0.08, 0.94, 0.12)
    phase = 2.0 * np.pi * turns * clockwise * actor.u + actor.some(0.0, 2.0 * np.pi)
    mirror = 1.0 if side == RIGHT else -1.0  # clockwise is as the person sees it, with either hand
    circle = np.stack([mirror * np.sin(phase), np.cos(phase), 0.15 * np.sin(phase)], axis=-1)
    actor.sway_wrist(side, (radius * within)[:, None] * circle)


def circle_clockwise(actor: Actor) -> None:
    """A large circle in the air, clockwise as the person sees it."""
    _draw_circle(actor, 1.0)


def circle_counterclockwise(actor: Actor) -> None:
    """The same circle the other way round."""
    _draw_circle(actor, -1.0)


def punch(actor: Actor) -> None:
    """Fists up, then quick straight blows to the front."""
    first = actor.hand
    count = actor.count(3, 0.6)
    both = actor.rng.random() < 0.4
    aim = actor.near((-0.22, actor.some(-0.1, 0.2), 0.95 * min(1.0, actor.amplitude)), 0.03)
    v = rounds((actor.u - 0.2) / 0.62, count)
    number = np.clip(np.floor((actor.u - 0.2) / 0.62 * count), 0, count - 1)
    blow = min_jerk((v - 0.12) / 0.32) * min_jerk((0.92 - v) / 0.4)
    back = min_jerk(v / 0.2) * min_jerk((0.4 - v) / 0.25)
    for side in (LEFT, RIGHT):
        guard = actor.near((-0.15, actor.some(-0.12, 0.10), 0.32), 0.04)
        if side == first or both:
            actor.reach(side, (0.0, 0.18, 0.85, 1.0), (None, guard, guard, None), elbow=0.35)
        own_blow = (
            blow * ((number % 2 == 0) if side == first else (number % 2 == 1)) if both else blow * (side == first)
        )
        actor.sway_wrist(side, own_blow[:, None] * (aim - guard) - np.outer(back * (own_blow > 0), (0.0, 0.05, 0.12)))
        actor.twist((1.0 if side == RIGHT else -1.0) * 0.45 * actor.amplitude * own_blow)
    actor.shift[:, 1] += 0.05 * blow


def throw(actor: Actor) -> None:
    """Wind up and throw, over the shoulder or from below."""
    side = actor.hand
    if actor.rng.random() < 0.7:
        points = [(0.30, 0.25, -0.30), (0.10, 0.55, 0.25), (-0.05, 0.25, 0.85), (-0.45, -0.5, 0.55)]
        elbow = 1.0
    else:
        points = [(0.15, -0.80, -0.50), (0.10, -0.93, 0.15), (0.0, -0.15, 0.92), (-0.15, 0.45, 0.75)]
        elbow = 0.2
    start, release = actor.some(0.34, 0.46), actor.some(0.60, 0.68)
    times = (0.0, start, 0.5 * (start + release), release, release + 0.12, 1.0)
    actor.reach(side, times, (None, *(actor.near(point, 0.05) for point in points), None), elbow=elbow)
    towards = 1.0 if side == RIGHT else -1.0
    size = actor.some(0.3, 0.6) * actor.amplitude
    actor.twist(towards * size * keys(actor.u, (0.0, start, release, 1.0), (0.0, -0.8, 1.0, 0.0)))
    actor.lean(0.25 * size * keys(actor.u, (0.0, start, release + 0.05, 1.0), (0.0, -0.4, 1.0, 0.0)), hips=0.4)
    actor.shift[:, 1] += 0.07 * keys(actor.u, (0.0, start, release, 1.0), (0.0, -1.0, 1.0, 0.0))
    off = actor.near((0.25, -0.3, 0.55), 0.08)
    if actor.rng.random() < 0.6:  # the other arm balances
        actor.reach(1 - side, (0.0, start, release, 1.0), (None, off, None, None))
