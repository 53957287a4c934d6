"""What two synthetic people do together. The second person stands before the first, facing back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from s2vfast.data.synth_actor import Actor, keys, window
from s2vfast.data.synth_body import LEFT, RIGHT, min_jerk


class _Meeting(NamedTuple):
    """How two people stand to each other when they begin: directions as [3] vectors of the world."""

    ahead: np.ndarray
    """From the first person to the second."""
    left: np.ndarray
    """To the first person's left."""


def _meeting(actor: Actor) -> _Meeting:
    turn = actor.turn[0]
    ahead = np.array([np.sin(turn), 0.0, np.cos(turn)])
    return _Meeting(ahead, np.array([np.cos(turn), 0.0, -np.sin(turn)]))


def _floor(path: np.ndarray) -> np.ndarray:
    """Points [F, 3] on the floor under a path [F, 2]."""
    return np.stack([path[:, 0], np.zeros(len(path)), path[:, 1]], axis=-1)


def _face(actor: Actor, partner: Actor, distance: float) -> None:
    """Put the two at a distance about the middle of where the first stood."""
    half = 0.5 * distance * _meeting(actor).ahead[[0, 2]]
    partner.path = actor.path + half
    actor.path = actor.path - half


def _approach(actor: Actor, partner: Actor, near: float, end: float) -> None:
    """Start apart and come to the distance ``near`` by the time ``end``; one of them may just wait."""
    ratio = actor.some(0.0, 1.0)
    ratio = float(np.round(ratio)) if actor.rng.random() < 0.5 else ratio
    gap = actor.some(0.0, 0.8)
    _face(actor, partner, near + gap)
    for person, part in ((actor, ratio), (partner, 1.0 - ratio)):
        if gap * part > 0.12:
            person.walk(-0.05, end, gap * part, max(2, round(gap * part / 0.45) + 1))


def _between(actor: Actor, partner: Actor, height: float) -> np.ndarray:
    """[F, 3] the point half way between the two, at a height."""
    return 0.5 * (_floor(actor.path) + _floor(partner.path)) + np.array([0.0, height, 0.0])


def shake_hands(actor: Actor, partner: Actor) -> None:
    """Right hands meet and go up and down."""
    meeting = _meeting(actor)
    near = (actor.subject.arm + partner.subject.arm) * actor.some(0.72, 0.88)
    _approach(actor, partner, near, 0.4)
    height = 0.25 * (actor.subject.height + partner.subject.height) * actor.some(1.05, 1.25)
    shake = np.sin(actor.beat(actor.some(1.5, 2.8))) * window(actor.u, 0.34, 0.82, 0.2)
    clasp = _between(actor, partner, height) + np.outer(0.055 * actor.amplitude * shake, (0.0, 1.0, 0.0))
    hold = window(actor.u, 0.12, 1.0, 0.3)
    for person, ahead in ((actor, meeting.ahead), (partner, -meeting.ahead)):
        person.grasp(RIGHT, clasp - 0.8 * person.subject.palm * ahead, hold)
        person.lean(person.some(0.05, 0.22) * hold, hips=0.5)


def hand_over(actor: Actor, partner: Actor) -> None:
    """One hand holds something out, a hand of the other takes it and draws it back."""
    meeting = _meeting(actor)
    near = (actor.subject.arm + partner.subject.arm) * actor.some(0.75, 0.95)
    _approach(actor, partner, near, 0.38)
    height = 0.25 * (actor.subject.height + partner.subject.height) * actor.some(1.05, 1.5)
    aside = actor.some(-0.08, 0.08) * meeting.left
    point = _between(actor, partner, height) + aside
    away = partner.near((-0.1, partner.some(-0.6, -0.25), 0.40))
    before = actor.near((-0.1, actor.some(-0.6, -0.25), 0.40))
    actor.reach(actor.hand, (-0.3, 0.0, 0.5, 0.75), (before, before, None, None))
    actor.grasp(actor.hand, point - 1.6 * actor.subject.palm * meeting.ahead, window(actor.u, 0.10, 0.85, 0.38))
    partner.reach(partner.hand, (0.5, 0.95, 2.0), (None, away, away))
    partner.grasp(partner.hand, point + 1.6 * partner.subject.palm * meeting.ahead, window(actor.u, 0.25, 0.98, 0.38))


def push(actor: Actor, partner: Actor) -> None:
    """Hands against the other's chest; the other staggers back."""
    meeting = _meeting(actor)
    near = actor.subject.arm * actor.some(0.78, 0.95)
    gap = actor.some(0.0, 0.6)
    _face(actor, partner, near + gap)
    if gap > 0.15:
        actor.walk(-0.1, 0.40, gap, 2 if gap < 0.5 else 3)
    strike = actor.some(0.44, 0.50)
    thrown = actor.some(0.30, 0.75) * actor.amplitude
    chest = _floor(partner.path) - 0.13 * meeting.ahead
    chest = chest + np.array([0.0, 0.74 * partner.subject.height, 0.0])
    partner.walk(strike, strike + 0.45, -thrown, 2 if thrown < 0.4 else 3)
    hands = (LEFT, RIGHT) if actor.rng.random() < 0.75 else (actor.hand,)
    # The hands follow the chest for a moment, then let go.
    weight = keys(actor.u, (0.1, strike, strike + 0.12, 1.0), (0.0, 1.0, 1.0, 0.0))
    for side in hands:
        out = (0.11 if side == LEFT else -0.11) * meeting.left
        ready = actor.near((-0.1, -0.05, 0.32))
        actor.reach(side, (0.0, 0.25, 0.6, 1.0), (None, ready, ready, None), elbow=0.6)
        actor.grasp(side, chest + out - 0.6 * actor.subject.palm * meeting.ahead, weight)
        actor.pose.bend[side, :, 0] -= 0.5 * weight
    blow = keys(actor.u, (0.2, strike, 1.0), (0.0, 1.0, 0.0))
    actor.lean(actor.some(0.12, 0.3) * blow, hips=0.6)
    actor.shift[:, 1] += 0.10 * blow
    jolt = keys(actor.u, (strike - 0.03, strike + 0.16, strike + 0.5), (0.0, 1.0, 0.0))
    partner.lean(-partner.some(0.15, 0.4) * jolt, hips=0.5)
    partner.pose.head[:, 0] += 0.3 * jolt
    partner.crouch(0.06 * jolt)
    for side in (LEFT, RIGHT):
        partner.sway_wrist(side, np.outer(jolt, (0.15, 0.30, partner.some(0.2, 0.55))))


def hug(actor: Actor, partner: Actor) -> None:
    """Come close, arms about each other, stay, and part."""
    meeting = _meeting(actor)
    near, gap = actor.some(0.27, 0.34), actor.some(0.35, 0.8)
    _face(actor, partner, near + gap)
    ratio = actor.some(0.2, 0.8)
    meet, part = actor.some(0.36, 0.44), actor.some(0.72, 0.8)
    leaves = actor.rng.random() < 0.6
    for person, way in ((actor, ratio), (partner, 1.0 - ratio)):
        person.walk(-0.05, meet, gap * way, 2)
        if leaves:
            person.walk(part, 1.1, -0.8 * gap * way, 2)
    hold = min_jerk((actor.u - meet + 0.28) / 0.32) * (1.0 - min_jerk((actor.u - part + 0.08) / 0.25))
    up = int(actor.rng.integers(2))  # which arm goes over the shoulder
    for person, other, ahead, left in (
        (actor, partner, meeting.ahead, meeting.left),
        (partner, actor, -meeting.ahead, -meeting.left),
    ):
        aside = (0.05 if up == LEFT else -0.05) * person.some(0.6, 1.4)
        person.shift[:, 0] += aside * hold  # heads pass each other on one side
        for side in (LEFT, RIGHT):
            high = 0.80 if side == up else 0.64
            behind = _floor(other.path) + 0.16 * ahead + (0.10 if side == LEFT else -0.10) * left
            behind[:, 1] = high * other.subject.height * person.some(0.97, 1.03)
            open_arms = person.near((0.35, -0.15, 0.65))
            person.reach(side, (meet - 0.35, meet - 0.1, part, 1.0), (None, open_arms, open_arms, None))
            person.grasp(side, behind, hold)
        person.lean(person.some(0.05, 0.2) * hold, hips=0.4)
        person.pose.head[:, 2] += (0.2 if up == LEFT else -0.2) * hold
