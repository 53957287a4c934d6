"""Who the bodies of a recording are: one rule for every format.

A tracker also follows chairs and reflections, puts what it saw for two frames first, and gives a person whom it lost a
new id. Clips are made of the frames of the main body, so that a ghost in its place spoils a whole recording. The rule
looks at the tracks alone, never at the label. Lengths are measured in body sizes, so that metres, millimetres and
pixels are treated alike. A recording with one track keeps it.

1. **Join.** A track that begins after another has ended goes on with it if both are about as large and near enough
   (`JOIN_GAP`, `JOIN_DISTANCE`, `JOIN_SIZE`): one person has one body. Of several ends the nearest is taken.
2. **Drop ghosts.** A track is a ghost if it is short (at most `SHORT_TRACK` frames and less than half of the longest);
   if it is wide (furniture is wide, people are tall) and moves less than the best track that is not; if it is less
   than half as long as the longest and jumps about (`NOISE`); or if it does not move at all (`STILL`) beside one that
   does. If nothing else is there, the track of the best rank stays.
3. **Rank** by presence times plausible motion. Presence is the share of the recording's frames. Plausible motion is the
   spread of the joints over time without what jumps from frame to frame explain: half the mean square of successive
   differences is the variance of noise (von Neumann, 1941). A jittery ghost moves much and plausibly little.
   `MOTION_FLOOR` lets presence decide between bodies that hardly move. Equal ranks keep the file's order.

A joint of zeros was not seen and counts nowhere. No real body is left out; a run takes the first ``data.bodies``.

What finds people in every frame anew gives sightings, not tracks. `link` makes tracks of them, before the rule: by the
ids of a tracker where there are some; into one track where no frame has more than one person; else to the track that is
nearest, at most `LINK_DISTANCE` away and missed for at most `LINK_GAP` frames, the nearest pairs first. An id that two
people of one frame have is none: where nothing followed people, some detectors give all of them the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from s2vfast.data.layout import Layout
from s2vfast.data.store import Body

JOIN_GAP = 30
"""Frames between the end of a track and the beginning of its continuation: one second of a Kinect."""
JOIN_DISTANCE = 0.5
"""Body sizes between the middles of both, at the end of one and the beginning of the other."""
JOIN_SIZE = 1.6
"""The larger of both over the smaller: the arms may be raised in one."""
JOIN_FRAMES = 3
"""Frames at either end whose median says where a body is: one frame may jump."""
SHORT_TRACK = 11
"""Frames. A person seen for less than 0.4 s shows no action."""
SPREAD = 0.8
"""Width over height, above which a frame looks like furniture."""
SPREAD_SHARE = 0.7
"""Share of such frames above which a track is wide: a person may lie for a while."""
STILL = 0.0035
"""Root mean square of a joint's movement, in body sizes: 6 mm of 1.8 m, below what a Kinect's noise alone gives."""
NOISE = 0.5
"""Share of the movement's variance that jumps from frame to frame explain, above which a track jumps about."""
MOTION_FLOOR = 0.02
"""Added to the motion of a body, in body sizes."""
LINK_GAP = 5
"""Frames that a body may be missed for while its track goes on: later `JOIN_GAP` decides."""
LINK_DISTANCE = 0.5
"""Body sizes that a joint moves on average from one sighting to the next, at most."""
MAX_TRACKS = 128
"""Tracks that are linked from sightings; of more the longest are taken."""


@dataclass
class BodyCounts:
    """What the rule did, over sequences."""

    joined: int = 0
    """Sequences in which tracks were joined."""
    reranked: int = 0
    """Sequences whose main body is not the file's first."""
    ghosts: int = 0
    """Tracks left out."""
    ghost_sequences: int = 0
    """Sequences that they were left out of."""

    def add(self, other: BodyCounts) -> None:
        """Add the counts of other sequences."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Sighting:
    """One person in one frame."""

    joints: np.ndarray
    """[V, 3], zeros where one was not seen."""
    confidence: np.ndarray | None = None
    """[V]; None where the detector does not tell."""
    track: str | None = None
    """Id that a tracker gave; None where nothing followed people."""
    position: np.ndarray | None = None
    """[V, k]: where the joints are, if ``joints`` are relative to the person; what sightings are linked by."""


def link(frames: Iterable[tuple[int, list[Sighting]]], notes: list[str] | None = None) -> list[Body]:
    """Tracks of what was seen frame by frame.

    Args:
        frames: (frame number, sightings), the numbers ascending.
        notes: what was left out is added here, if given.

    Returns:
        The tracks in the order in which they begin, `MAX_TRACKS` at most.
    """
    seen = [(number, [s for s in sightings if s.joints.any()]) for number, sightings in frames]
    if any(sighting.position is None for _, sightings in seen for sighting in sightings):
        # Positions of some people alone compare with nothing.
        seen = [(number, [replace(s, position=None) for s in sightings]) for number, sightings in seen]
    alone = all(len(sightings) <= 1 for _, sightings in seen)
    repeated: set[str | None] = set()
    for _, sightings in seen:
        ids = [sighting.track for sighting in sightings]
        repeated.update(id for id in ids if id is not None and ids.count(id) > 1)
    if repeated:
        seen = [(number, [replace(s, track=None) if s.track in repeated else s for s in each]) for number, each in seen]
        if notes is not None:
            notes.append(
                f"{len(repeated):,} id(s) that two people of a frame have say nothing: who is who is told by place"
            )
    tracks: list[list[tuple[int, Sighting]]] = []
    by_id: dict[str, list[tuple[int, Sighting]]] = {}
    for number, sightings in seen:
        nameless = []
        for sighting in sightings:
            key = "0" if alone and sighting.track is None else sighting.track
            if key is None:
                nameless.append(sighting)
            elif key not in by_id:
                by_id[key] = [(number, sighting)]
                tracks.append(by_id[key])
            else:
                by_id[key].append((number, sighting))
        if nameless:
            pairs = _nearest([t for t in tracks if t[-1][1].track is None and number - t[-1][0] <= LINK_GAP], nameless)
            for sighting in nameless:
                if (track := pairs.get(id(sighting))) is not None:
                    track.append((number, sighting))
                else:
                    tracks.append([(number, sighting)])
    if notes is not None and len(tracks) > MAX_TRACKS:
        notes.append(f"{len(tracks) - MAX_TRACKS:,} of {len(tracks):,} tracks left out: the shortest")
    longest = sorted(range(len(tracks)), key=lambda at: -len(tracks[at]))[:MAX_TRACKS]
    return [_body(tracks[at], str(at)) for at in sorted(longest)]


def in_order(before: list[Sighting], after: list[Sighting]) -> list[Sighting]:
    """The people of a frame in the order of those of the frame before, new ones behind them; as `link` follows them."""
    earlier, later = before, after
    if any(sighting.position is None for sighting in [*before, *after]):
        earlier, later = ([replace(sighting, position=None) for sighting in each] for each in (before, after))
    ids = {sighting.track: rank for rank, sighting in enumerate(before) if sighting.track is not None}
    ranks = {id(sighting): rank for rank, sighting in enumerate(earlier)}
    pairs = _nearest([[(0, sighting)] for sighting in earlier], later) if later else {}
    order = []
    for number, sighting in enumerate(later):
        track = pairs.get(id(sighting))
        rank = ids.get(sighting.track) if sighting.track is not None else ranks[id(track[-1][1])] if track else None
        order.append((len(before) if rank is None else rank, number))
    return [after[number] for _, number in sorted(order)]


def _nearest(tracks: list[list[tuple[int, Sighting]]], sightings: list[Sighting]) -> dict[int, Any]:
    """id of a sighting -> the track that it goes on with, the nearest pairs first."""
    if not tracks:
        return {}
    before = np.stack([_position(track[-1][1]) for track in tracks])[:, None]  # [t, 1, V, k]
    after = np.stack([_position(sighting) for sighting in sightings])[None]  # [1, s, V, k]
    both = before.any(axis=3) & after.any(axis=3)  # [t, s, V]
    steps = np.sqrt(((after - before) ** 2).sum(axis=3))  # [t, s, V]
    sizes = np.maximum(_sizes(before), _sizes(after))  # [t, s]
    count = both.sum(axis=2)
    distance = np.where(both, steps, 0.0).sum(axis=2) / np.maximum(count, 1) / np.maximum(sizes, 1e-12)
    distance[count == 0] = np.inf
    pairs: dict[int, Any] = {}
    continued: set[int] = set()
    for at in np.argsort(distance, axis=None, kind="stable"):
        t, s = divmod(int(at), len(sightings))
        if not distance[t, s] <= LINK_DISTANCE:
            break
        if t not in continued and id(sightings[s]) not in pairs:
            continued.add(t)
            pairs[id(sightings[s])] = tracks[t]
    return pairs


def _position(sighting: Sighting) -> np.ndarray:
    joints = sighting.joints if sighting.position is None else sighting.position
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(np.abs(joints) <= 1e6, joints, 0.0).astype(np.float64)  # also NaN


def _sizes(positions: np.ndarray) -> np.ndarray:
    """Diagonals of the boxes around the joints that were seen, of [..., V, k]."""
    low, high = _box(positions.reshape(-1, *positions.shape[2:]))
    return np.sqrt(((high - low) ** 2).sum(axis=1)).reshape(positions.shape[:2])


def _body(track: list[tuple[int, Sighting]], name: str) -> Body:
    sightings = [sighting for _, sighting in track]
    confidence = [sighting.confidence for sighting in sightings]
    return Body(
        sightings[0].track or name,
        np.array([number for number, _ in track], dtype=np.int32),
        np.stack([sighting.joints for sighting in sightings]),
        None if any(values is None for values in confidence) else np.stack(confidence).astype(np.float32),
    )


def arrange(
    bodies: list[Body], layout: Layout, total_frames: int, notes: list[str] | None = None
) -> tuple[list[Body], BodyCounts]:
    """The bodies of one recording by the rule of this module, the main one first.

    Args:
        bodies: tracks in the file's order; joints [n, V, 3] in any unit, zeros where one was not seen.
        layout: the skeleton, for its vertical.
        total_frames: length of the recording.
        notes: what was joined and left out is added here, if given.

    Returns:
        (bodies, counts). A single track comes back as it is.
    """
    notes, counts = [] if notes is None else notes, BodyCounts()
    if len(bodies) == 1 and bodies[0].joints.any():
        return bodies, counts
    tracks = []
    for body in bodies:
        present = body.joints.any(axis=(1, 2))
        if present.any():
            tracks.append(Body(body.body_id, body.frame_index[present], body.joints[present], _rows(body, present)))
        else:
            notes.append(f"body {body.body_id}: dropped, all its frames are zero")
    if len(tracks) <= 1:
        return tracks, counts
    first = tracks[0].body_id
    tracks = _join(tracks, notes)
    counts.joined = int(len(tracks) < sum(1 for body in bodies if body.joints.any()))
    size = max(body_size(track) for track in tracks) or 1.0
    ranked = sorted(tracks, key=lambda track: _rank(track, size, total_frames), reverse=True)
    reasons = _ghosts(ranked, layout, size)
    if len(reasons) == len(ranked):
        notes.append(f"body {ranked[0].body_id}: kept as the best, no track looks like a person")
        reasons.pop(0)
    real = [track for at, track in enumerate(ranked) if at not in reasons]
    notes.extend(f"body {ranked[at].body_id}: dropped, {reason}" for at, reason in sorted(reasons.items()))
    counts.ghosts, counts.ghost_sequences = len(reasons), int(bool(reasons))
    counts.reranked = int(first not in real[0].body_id.split("+"))
    return real, counts


def body_size(body: Body) -> float:
    """Median over the frames of the diagonal of the box around the joints that were seen."""
    low, high = _box(body.joints)
    return float(np.median(np.sqrt(((high - low) ** 2).sum(axis=1))))


def motion(body: Body) -> float:
    """Root mean square of the movement of a joint about its mean place, in the unit of the joints."""
    variance, _ = _variances(body)
    return float(np.sqrt(variance))


def plausible_motion(body: Body) -> float:
    """As `motion`, without what jumps from one frame to the next explain."""
    variance, noise = _variances(body)
    return float(np.sqrt(max(variance - noise, 0.0)))


def wide_share(body: Body, layout: Layout) -> float:
    """Share of a track's frames in which it is wider than `SPREAD` of its height."""
    up = max(range(3), key=lambda axis: abs(layout.up[axis]))
    low, high = _box(body.joints)
    extent = high - low  # [n, 3]
    return float((extent[:, 1 if up == 0 else 0] > SPREAD * extent[:, up]).mean())


def _rank(body: Body, size: float, total_frames: int) -> float:
    return len(body.frame_index) / max(total_frames, 1) * (plausible_motion(body) / size + MOTION_FLOOR)


def _ghosts(ranked: list[Body], layout: Layout, size: float) -> dict[int, str]:
    """Place in ``ranked`` -> why that track is no person."""
    longest = max(len(track.frame_index) for track in ranked)
    wide = [wide_share(track, layout) for track in ranked]
    moves = [plausible_motion(track) for track in ranked]
    upright = max((move for move, fraction in zip(moves, wide, strict=True) if fraction <= SPREAD_SHARE), default=0.0)
    still = [motion(track) < STILL * size for track in ranked]
    reasons = {}
    for at, track in enumerate(ranked):
        length = len(track.frame_index)
        if length <= SHORT_TRACK and 2 * length < longest:
            reasons[at] = f"seen in {length} frames, {SHORT_TRACK} or fewer"
        elif wide[at] > SPREAD_SHARE and moves[at] < upright:
            reasons[at] = f"wider than a person in {wide[at]:.0%} of its frames, and another moves more"
        elif 2 * length < longest and not still[at] and plausible_motion(track) ** 2 < (1 - NOISE) * motion(track) ** 2:
            reasons[at] = f"it jumps from frame to frame, and is seen in {length} frames of the longest's {longest}"
        elif still[at] and not all(still):
            reasons[at] = "it does not move"
    return reasons


def _join(tracks: list[Body], notes: list[str]) -> list[Body]:
    """Tracks with their continuations, in the order of the first of each."""
    order = sorted(range(len(tracks)), key=lambda at: int(tracks[at].frame_index[0]))  # stable: the file's order
    chains: list[list[int]] = []
    for at in order:
        fits = [(distance, chain) for chain in chains if (distance := _fit(tracks[chain[-1]], tracks[at])) is not None]
        if fits:
            min(fits, key=lambda fit: fit[0])[1].append(at)
        else:
            chains.append([at])
    joined = []
    for chain in sorted(chains, key=min):
        members = [tracks[at] for at in chain]
        if len(members) == 1:
            joined.append(members[0])
            continue
        ids = [member.body_id for member in members]
        notes.append(f"bodies {', '.join(ids)}: joined, one ends where the next begins")
        confidence = [member.confidence for member in members]
        joined.append(
            Body(
                "+".join(ids),
                np.concatenate([member.frame_index for member in members]),
                np.concatenate([member.joints for member in members]),
                None if any(part is None for part in confidence) else np.concatenate(confidence),
            )
        )
    return joined


def _fit(before: Body, after: Body) -> float | None:
    """Distance in body sizes between the end of a track and the beginning of another; None where they do not fit."""
    gap = int(after.frame_index[0]) - int(before.frame_index[-1])
    if not 0 < gap <= JOIN_GAP:
        return None
    sizes = sorted((body_size(before), body_size(after)))
    if sizes[0] <= 0.0 or sizes[1] > JOIN_SIZE * sizes[0]:
        return None
    step = _middle(after.joints[:JOIN_FRAMES]) - _middle(before.joints[-JOIN_FRAMES:])
    distance = float(np.sqrt((step**2).sum())) / sizes[1]
    return distance if distance <= JOIN_DISTANCE else None


def _middle(joints: np.ndarray) -> np.ndarray:
    """[3]: the median of the joints that were seen."""
    return np.median(joints[joints.any(axis=2)].astype(np.float64), axis=0)


def _box(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates [n, 3] of the joints that were seen."""
    seen = joints.any(axis=2, keepdims=True)
    low = np.where(seen, joints, np.inf).min(axis=1)
    high = np.where(seen, joints, -np.inf).max(axis=1)
    return low.astype(np.float64), high.astype(np.float64)


def _variances(body: Body) -> tuple[float, float]:
    """(variance of the joints over time, variance of noise), summed over axes, mean of the joints ever seen."""
    x = body.joints.astype(np.float64)  # [n, V, 3]
    seen = x.any(axis=2)  # [n, V]
    number = seen.sum(axis=0)  # [V]
    mean = x.sum(axis=0) / np.maximum(number, 1)[:, None]  # zeros where unseen add nothing
    variance = (((x - mean) ** 2).sum(axis=2) * seen).sum(axis=0) / np.maximum(number, 1)  # [V]
    pairs = seen[1:] & seen[:-1] & (np.diff(body.frame_index) == 1)[:, None]  # [n - 1, V]
    jumps = (((x[1:] - x[:-1]) ** 2).sum(axis=2) * pairs).sum(axis=0) / np.maximum(pairs.sum(axis=0), 1)
    joints = max(int((number > 0).sum()), 1)
    return float(variance.sum() / joints), float(jumps.sum() / 2 / joints)


def _rows(body: Body, rows: np.ndarray) -> np.ndarray | None:
    return None if body.confidence is None else body.confidence[rows]
