"""The table of all actions that synthetic people perform: the classes of a synthetic store.

Classes differ in how they move more than in how they look on average: circles drawn one way and the other, picking up
and putting down, sitting down and standing up, a raised hand and a waving one share their poses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from s2vfast.data import synth_gestures as gestures
from s2vfast.data import synth_moves as moves
from s2vfast.data import synth_pairs as pairs


@dataclass(frozen=True)
class Action:
    """One class: how many people it takes, how long it lasts in seconds, and what they do."""

    name: str
    persons: int
    seconds: tuple[float, float]
    perform: Callable[..., None]


ACTIONS: tuple[Action, ...] = (
    Action("wave", 1, (1.6, 3.1), gestures.wave),
    Action("raise hand", 1, (1.6, 3.1), gestures.raise_hand),
    Action("knock", 1, (1.6, 3.1), gestures.knock),
    Action("swipe left", 1, (1.5, 2.7), gestures.swipe_left),
    Action("swipe right", 1, (1.5, 2.7), gestures.swipe_right),
    Action("raise both arms", 1, (1.6, 3.1), gestures.raise_both_arms),
    Action("clap", 1, (1.6, 3.1), gestures.clap),
    Action("drink", 1, (1.6, 3.2), gestures.drink),
    Action("circle clockwise", 1, (1.6, 3.2), gestures.circle_clockwise),
    Action("circle counterclockwise", 1, (1.6, 3.2), gestures.circle_counterclockwise),
    Action("punch", 1, (1.4, 2.6), gestures.punch),
    Action("throw", 1, (1.2, 2.2), gestures.throw),
    Action("kick", 1, (1.2, 2.4), moves.kick),
    Action("squat", 1, (1.6, 3.4), moves.squat),
    Action("jump", 1, (1.2, 2.6), moves.jump),
    Action("sit down", 1, (1.2, 2.4), moves.sit_down),
    Action("stand up", 1, (1.2, 2.4), moves.stand_up),
    Action("pick up", 1, (1.5, 2.8), moves.pick_up),
    Action("put down", 1, (1.5, 2.8), moves.put_down),
    Action("bow", 1, (1.3, 2.8), moves.bow),
    Action("walk", 1, (1.7, 3.2), moves.walk),
    Action("walk backward", 1, (1.5, 3.0), moves.walk_backward),
    Action("turn round", 1, (1.6, 3.0), moves.turn_round),
    Action("shake hands", 2, (1.6, 3.2), pairs.shake_hands),
    Action("push", 2, (1.3, 2.4), pairs.push),
    Action("hug", 2, (1.8, 3.4), pairs.hug),
    Action("hand over", 2, (1.5, 2.8), pairs.hand_over),
)
"""All classes; an action's number in names (Aaaa) is its place here, from 1."""
