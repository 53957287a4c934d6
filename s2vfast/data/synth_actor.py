"""One synthetic person at work: the idle body that every action starts from, and the means that actions are told with.

Times of actions run in u from 0, where the action begins, to 1, where it ends; the recording may start before or
after and stop before or after, and the clock may hurry and linger. Everything a person does differently from one time
to the next (hand, amplitude, posture, resting arms, sway) is drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s2vfast.data.synth_body import LEFT, RIGHT, SIGN, Pose, Subject, min_jerk, solve

FPS = 30.0
SHORTEST, LONGEST = 40, 150
"""Frames in a recording."""

# Where an idle hand is: outward, up, forward of the shoulder in arm lengths; how far the elbow is lifted outward;
# the last number is how often.
_RESTS = (
    ((0.13, -0.975, 0.04), 0.25, 0.56),
    ((-0.22, -0.74, 0.28), 0.35, 0.12),  # clasped in front
    ((-0.14, -0.76, -0.24), 0.25, 0.09),  # behind the back
    ((0.00, -0.62, 0.04), 1.15, 0.10),  # on the hip
    ((-0.06, -0.32, 0.50), 0.15, 0.13),  # holding something
)


class Clock:
    """The frames of one performance, shared by everyone in it.

    Attributes:
        time: [F] seconds from the first frame.
        u: [F] progress of the action; below 0 before it begins, above 1 after it ends.
        seconds: how long the action takes.
    """

    def __init__(self, rng: np.random.Generator, seconds: float) -> None:
        self.seconds = float(np.clip(seconds, 0.9, 4.2))
        lead, tail = rng.uniform(-0.06 * self.seconds, 0.7, 2)
        frames = int(np.clip(round((lead + self.seconds + tail) * FPS), SHORTEST, LONGEST))
        self.time = np.arange(frames) / FPS
        self.u = (self.time - lead) / self.seconds
        inside = np.clip(self.u, 0.0, 1.0)
        hurry, when = rng.uniform(-0.3, 0.3), rng.uniform(-0.15, 0.15)
        # du/du stays above 0: the clock hurries and lingers but never goes back.
        bump = hurry * np.sin(np.pi * inside) / np.pi + when * np.sin(2.0 * np.pi * inside) / (2.0 * np.pi)
        self.u = self.u + bump


def keys(u: np.ndarray, times: Sequence[float], values: np.ndarray | Sequence, blend: float = 0.25) -> np.ndarray:
    """Values [K] or [K, D] at ascending times joined by smooth steps -> [F] or [F, D].

    Each step begins a share ``blend`` of its length before the step before has ended, so that a movement of several
    parts flows (superposed minimum-jerk strokes, Flash & Henis 1991).
    """
    values = np.asarray(values, dtype=float)
    result = np.broadcast_to(values[0], (len(u), *values.shape[1:])).copy()
    for k in range(1, len(times)):
        start = times[k - 1] - (blend * (times[k] - times[k - 1]) if k > 1 else 0.0)
        step = min_jerk((u - start) / max(times[k] - start, 1e-6))
        result += step.reshape(-1, *[1] * (values.ndim - 1)) * (values[k] - values[k - 1])
    return result


def window(u: np.ndarray, start: float, end: float, ramp: float = 0.15) -> np.ndarray:
    """[F] 0 outside (start, end), 1 inside, with smooth ramps of a share ``ramp`` of the window."""
    width = ramp * (end - start)
    return min_jerk((u - start) / width) * min_jerk((end - u) / width)


def rounds(u: np.ndarray, count: int) -> np.ndarray:
    """[F] progress within each of ``count`` equal repeats; stays 0 before the first and 1 after the last."""
    at = np.clip(u, 0.0, 1.0) * count
    return at - np.clip(np.floor(at), 0, count - 1)


class Actor:
    """One person in one performance; actions change ``pose`` and `joints` gives the result."""

    def __init__(
        self, rng: np.random.Generator, subject: Subject, clock: Clock, position: tuple[float, float], turn: float
    ) -> None:
        self.rng, self.subject, self.clock = rng, subject, clock
        self.u, self.frames = clock.u, len(clock.u)
        self.amplitude = float(np.clip(subject.amplitude * np.exp(rng.normal(0.0, 0.14)), 0.6, 1.45))
        self.hand = LEFT if rng.random() < (0.85 if subject.left_handed else 0.2) else RIGHT
        self.foot = LEFT if rng.random() < (0.7 if subject.left_handed else 0.3) else RIGHT
        self.path = np.tile(np.asarray(position, dtype=float), (self.frames, 1))  # [F, 2] x, z: where the feet go
        self.turn = np.full(self.frames, float(turn))
        self.shift = np.zeros((self.frames, 2))  # [F, 2] hips to the left of and before the feet
        self.foot_offset = np.zeros((2, self.frames, 3))  # outward, up, forward of where the foot stands, metres
        self.walks: list[tuple[float, float, int]] = []
        self.pose = self._idle()

    def some(self, low: float, high: float) -> float:
        """A number between low and high."""
        return float(self.rng.uniform(low, high))

    def near(self, point: Sequence[float], deviation: float = 0.05) -> np.ndarray:
        """A point [3] about ``point``, each coordinate off by ``deviation`` (standard deviation)."""
        return np.asarray(point, dtype=float) + self.rng.normal(0.0, deviation, 3)

    def slow(self, scale: float) -> np.ndarray:
        """[F] a slow wander about 0 of standard deviation ``scale``: three sines below 0.7 Hz."""
        rate, phase = self.rng.uniform(0.08, 0.7, 3), self.rng.uniform(0.0, 2.0 * np.pi, 3)
        waves = np.sin(2.0 * np.pi * rate * self.clock.time[:, None] + phase)
        return scale * np.sqrt(2.0 / 3.0) * waves.sum(axis=1)

    def count(self, most: int, least_seconds: float) -> int:
        """How often to repeat something that takes ``least_seconds`` or longer each time: 1 to ``most``."""
        return int(self.rng.integers(1, np.clip(self.clock.seconds / least_seconds, 1, most) + 1))

    def beat(self, hertz: float) -> np.ndarray:
        """[F] the phase in radians of something that repeats ``hertz`` times a second, from anywhere in its cycle."""
        cycles = hertz * self.clock.seconds * self.u
        return 2.0 * np.pi * cycles + self.some(0.0, 2.0 * np.pi)

    def _idle(self) -> Pose:
        f, subject, rng = self.frames, self.subject, self.rng
        zero = np.zeros(f)
        self.shift += np.stack([self.slow(0.010), self.slow(0.010)], axis=-1)
        self.stance = subject.stance * self.some(0.85, 1.25)
        self.stagger = np.array([1.0, -1.0]) * rng.normal(0.0, 0.04)
        self.toes = subject.toe_out * rng.uniform(0.6, 1.4, 2)
        slouch = subject.slouch + rng.normal(0.0, 0.04)
        wrist, elbow = np.empty((2, f, 3)), np.empty((2, f))
        frequencies = np.array([frequency for _, _, frequency in _RESTS])
        common = rng.choice(len(_RESTS), p=frequencies)
        for side in (LEFT, RIGHT):
            # Both arms rest alike more often than not.
            pose = common if rng.random() < 0.6 else rng.choice(len(_RESTS), p=frequencies)
            point = self.near(_RESTS[pose][0], 0.04)
            elbow[side] = rng.normal(_RESTS[pose][1], 0.12)
            wrist[side] = point + np.stack([self.slow(0.015) for _ in range(3)], axis=-1)
        hand = np.stack([np.stack([self.slow(0.08) + 0.15, self.slow(0.06)], axis=-1) for _ in (LEFT, RIGHT)])
        return Pose(
            root=np.zeros((f, 2)),
            turn=self.turn,
            drop=zero + 0.004,
            lift=zero.copy(),
            pelvis=np.stack([self.slow(0.015) + 0.3 * slouch, self.slow(0.03), self.slow(0.012)], axis=-1),
            spine=np.stack([self.slow(0.02) + slouch, self.slow(0.03), self.slow(0.015)], axis=-1),
            head=np.stack(
                [self.slow(0.05) - 0.8 * slouch + rng.normal(0.0, 0.08), self.slow(0.10), self.slow(0.03)], axis=-1
            ),
            wrist=wrist,
            hang=np.ones((2, f)),
            elbow=elbow,
            goal=np.zeros((2, f, 3)),
            goal_weight=np.zeros((2, f)),
            bend=hand,
            ankle=np.zeros((2, f, 3)),
            foot_turn=np.zeros((2, f)),
            toe=np.zeros((2, f)),
            support=np.ones((2, f)),
        )

    def reach(
        self,
        side: int,
        times: Sequence[float],
        points: Sequence[Sequence[float] | None],
        u: np.ndarray | None = None,
        elbow: float | None = None,
    ) -> None:
        """Move a wrist through points (outward, up, forward of the shoulder in arm lengths); None is at rest.

        The elbow is lifted outward by ``elbow`` radians on the way, where given.
        """
        u = self.u if u is None else u
        pose = self.pose
        away = np.array([0.0 if point is None else 1.0 for point in points])
        values = np.array([(0.0, 0.0, 0.0) if point is None else point for point in points])
        weight = keys(u, times, away)[:, None]
        pose.wrist[side] = (1.0 - weight) * pose.wrist[side] + keys(u, times, values)
        pose.hang[side] *= 1.0 - weight[:, 0]
        if elbow is not None:
            pose.elbow[side] += weight[:, 0] * (elbow - pose.elbow[side])

    def sway_wrist(self, side: int, offset: np.ndarray) -> None:
        """Add [F, 3] (outward, up, forward in arm lengths) to a wrist."""
        self.pose.wrist[side] = self.pose.wrist[side] + offset

    def grasp(self, side: int, goal: np.ndarray, weight: np.ndarray) -> None:
        """Bring a wrist to goal [F, 3] or [3] in the world as far as weight [F] says."""
        self.pose.goal[side] = goal
        self.pose.goal_weight[side] = weight

    def lean(self, angle: np.ndarray, hips: float = 0.6) -> None:
        """Bend forward by angle [F]: a share ``hips`` in the hips, the rest in the back; the hips balance it."""
        self.pose.pelvis[:, 0] += hips * angle
        self.pose.spine[:, 0] += (1.0 - hips) * angle
        self.shift[:, 1] -= 0.11 * self.subject.height * np.sin(np.clip(hips * angle, -0.5, 1.6))

    def crouch(self, depth: np.ndarray, lean: float = 0.55) -> None:
        """Bend the knees: lower the hips by depth [F] of the leg, with the trunk leaning forward to balance."""
        self.pose.drop = self.pose.drop + depth * self.subject.leg
        self.lean(lean * depth, hips=0.85)
        self.shift[:, 1] -= 0.06 * self.subject.height * depth

    def twist(self, angle: np.ndarray) -> None:
        """Turn the shoulders by angle [F] against the feet; positive to the left, the head half as far."""
        self.pose.pelvis[:, 1] += 0.3 * angle
        self.pose.spine[:, 1] += 0.7 * angle
        self.pose.head[:, 1] -= 0.5 * angle

    def walk(self, start: float, end: float, forward: float, steps: int, left: float = 0.0, turn: float = 0.0) -> None:
        """Go ``forward`` and ``left`` metres and turn by ``turn`` radians between two times u, in whole steps."""
        done = min_jerk((self.u - start) / (end - start))
        heading = self.turn[0] + 0.5 * turn
        ahead = np.array([np.sin(heading), np.cos(heading)])
        side = np.array([np.cos(heading), -np.sin(heading)])
        self.path = self.path + done[:, None] * (forward * ahead + left * side)
        self.turn = self.turn + done * turn
        self.walks.append((start, end, steps))

    def _plant_feet(self) -> None:
        """Feet stand where the body will be in the middle of each stance and swing there in between."""
        pose, u = self.pose, self.u
        for side in (LEFT, RIGHT):
            position = np.array([self._stand(side, -np.inf)])
            done, clearance = np.zeros(self.frames), np.zeros(self.frames)
            landings, swings = [position[0]], []
            for start, end, steps in sorted(self.walks):
                length = (end - start) / steps
                for k in range(steps):
                    if (k + self.foot) % 2 == side:
                        land = start + (k + 1) * length
                        last = k >= steps - 2
                        landings.append(self._stand(side, np.inf if last else land + 0.5 * length, start, end))
                        swings.append((start + k * length, land))
            track = np.broadcast_to(landings[0], (self.frames, 3)).copy()  # x, z, heading
            for before, after, (begin, land) in zip(landings, landings[1:], swings, strict=False):
                inside = np.clip((u - begin) / (land - begin), 0.0, 1.0)
                done = min_jerk((inside - 0.06) / 0.9)  # off the ground first
                track += done[:, None] * (after - before)
                far = np.clip(np.hypot(*(after - before)[:2]) / 0.5, 0.35, 1.0)
                clearance += far * min_jerk(inside / 0.4) * min_jerk((1.0 - inside) / 0.4)
                pose.toe[side] += 0.7 * far * np.sin(np.pi * inside) ** 2 * (1.0 - 1.3 * inside)
            up = 0.055 * self.subject.height * clearance + self.foot_offset[side, :, 1] + pose.lift
            sideways, ahead = SIGN[side] * self.foot_offset[side, :, 0], self.foot_offset[side, :, 2]
            cos, sin = np.cos(self.turn), np.sin(self.turn)
            pose.ankle[side, :, 0] = track[:, 0] + sideways * cos + ahead * sin
            pose.ankle[side, :, 1] = up
            pose.ankle[side, :, 2] = track[:, 1] - sideways * sin + ahead * cos
            pose.foot_turn[side] = track[:, 2]
            pose.support[side] = min_jerk(1.0 - (up - pose.lift) / (0.03 * self.subject.height))

    def _stand(self, side: int, at: float, start: float = -np.inf, end: float = np.inf) -> np.ndarray:
        """x, z, heading of a standing foot for where the body is at time u = at, kept within start and end."""
        at = np.clip(at, max(start, self.u[0]), min(end, self.u[-1]))
        x, z = (np.interp(at, self.u, self.path[:, axis]) for axis in (0, 1))
        turn = np.interp(at, self.u, self.turn)
        out, ahead = SIGN[side] * self.stance, self.stagger[side]
        return np.array(
            [
                x + out * np.cos(turn) + ahead * np.sin(turn),
                z - out * np.sin(turn) + ahead * np.cos(turn),
                turn + SIGN[side] * self.toes[side],
            ]
        )

    def joints(self) -> np.ndarray:
        """Joints [F, 25, 3] in the world, metres."""
        self._plant_feet()
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        left, ahead = self.shift.T
        self.pose.root = self.path + np.stack([left * cos + ahead * sin, ahead * cos - left * sin], axis=-1)
        self.pose.turn = self.turn
        return solve(self.subject, self.pose)
