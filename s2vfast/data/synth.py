"""A synthetic dataset: procedural people before three cameras, written as a store like any recorded dataset.

Every subject performs every action a few times; three cameras see each performance at once, each with its own errors.
Names are NTU's (``SsssCcccPpppRrrrAaaa``: setup, camera, performer, repetition, action), and so are the two splits:
``xsub`` trains on every other subject, ``xview`` trains on cameras 2 and 3 and tests on camera 1.

Each random draw is a function of the seed and of what is drawn (subject, action, repetition, view), never of the order
of work: a store is the same whatever the number of processes, and a sequence whatever else is generated beside it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ListOf
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from s2vfast.data import synth_depth
from s2vfast.data import synth_sensor as sensor
from s2vfast.data.layout import LAYOUTS
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.data.store import Body, Recording, Sequence, Store
from s2vfast.data.store_writer import SequenceInfo, write_store
from s2vfast.data.synth_actions import ACTIONS, Action
from s2vfast.data.synth_actor import Actor, Clock
from s2vfast.data.synth_body import SPINE_BASE, Subject, draw_subject
from s2vfast.errors import DataError

GENERATOR_VERSION = 1
"""Raised when the same seed no longer makes the same data."""
SETUPS = 3
"""Arrangements of the cameras: heights and distances."""
VIEWS = len(sensor.VIEW_ANGLES)


def action_names() -> list[str]:
    """The names of all actions, in the order of their numbers."""
    return [action.name for action in ACTIONS]


def generate(
    out: str | Path,
    *,
    subjects: int = 10,
    views: int = VIEWS,
    repetitions: int = 3,
    actions: ListOf[str] | None = None,
    seed: int = 1,
    dtype: str | None = None,
    depth: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 0,
) -> Store:
    """Generate subjects x actions x repetitions x views sequences of 40 to 150 frames (30 a second) and store them.

    The layout is kinect_v2, or that of points; coordinates are the camera's in metres. The same arguments give the same
    bytes with the same release of NumPy on the same kind of machine.

    Args:
        out: folder of the store to write.
        subjects: people, at least 2; they differ in stature, proportions, handedness and habits.
        views: cameras, 1 to 3; with 1 there is no split ``xview``.
        repetitions: times that each subject does each action, towards camera 2 and 3 by turns.
        actions: names out of `action_names`; None for all. They become the classes, in the order of their numbers.
        seed: at least 0.
        dtype: "float32" or "float16" on disk; None: float32 of skeletons, float16 of points.
        depth: the points that depth cameras see of the same people at the same places, in place of their skeletons; a
            sequence has the name that its skeletons have in a store of the same arguments.
        overwrite: replace an existing store.
        progress: called with the sequences done and their total.
        workers: processes that generate; 0 for none beside this one.

    Returns:
        The store, open.

    Raises:
        DataError: an argument that cannot be, or a place that cannot be written.
    """
    numbers = _choose(actions)
    largest = {"subjects": 999, "views": VIEWS, "repetitions": 999}
    for name, value, least in (("subjects", subjects, 2), ("views", views, 1), ("repetitions", repetitions, 1)):
        if not least <= value <= largest[name]:
            raise DataError(f"{name}: {value}; {least} to {largest[name]} is expected")
    for name, value in (("seed", seed), ("workers", workers)):
        if value < 0:
            raise DataError(f"{name}: {value}; 0 or more is expected")
    jobs = [
        _Job(seed, subject, number, label, repetition, views, depth)
        for subject in range(1, subjects + 1)
        for label, number in enumerate(numbers)
        for repetition in range(1, repetitions + 1)
    ]
    source = {
        "format": "synthetic depth" if depth else "synthetic",
        "generator": GENERATOR_VERSION,
        "seed": seed,
        "subjects": subjects,
        "views": views,
        "repetitions": repetitions,
        "actions": [ACTIONS[number].name for number in numbers],
        **(synth_depth.DEPTH.facts() if depth else {}),
    }
    write_store(
        out,
        _record_all(jobs, workers, progress),
        layout=PointLayout() if depth else LAYOUTS["kinect_v2"],
        classes=source["actions"],
        splits=_splits,
        source=source,
        dropped=[],
        dtype=dtype,
        overwrite=overwrite,
    )
    return Store.open(out)


class _Job(NamedTuple):
    """One performance, seen by all cameras."""

    seed: int
    subject: int
    action: int
    label: int
    repetition: int
    views: int
    depth: bool


def _choose(actions: ListOf[str] | None) -> list[int]:
    names = action_names()
    if actions is None:
        return list(range(len(names)))
    if isinstance(actions, str) or not actions:
        raise DataError(f"actions: {actions!r}; a list of one or more of: {', '.join(names)}")
    if unknown := [name for name in actions if name not in names]:
        raise DataError(f"actions: there is no {unknown[0]!r}; known are {', '.join(names)}")
    return sorted({names.index(name) for name in actions})


def _splits(infos: list[SequenceInfo]) -> dict[str, dict[str, list[str]]]:
    splits = {
        "xsub": {
            "train": [info.name for info in infos if info.subject % 2 == 1],
            "test": [info.name for info in infos if info.subject % 2 == 0],
        }
    }
    if any(info.view > 1 for info in infos):
        splits["xview"] = {
            "train": [info.name for info in infos if info.view > 1],
            "test": [info.name for info in infos if info.view == 1],
        }
    return splits


def _record_all(jobs: list[_Job], workers: int, progress: Callable[[int, int], None] | None) -> Iterator[Recording]:
    done, total = 0, sum(job.views for job in jobs)
    for recordings in _in_order(jobs, workers):
        yield from recordings
        done += len(recordings)
        if progress is not None:
            progress(done, total)


def _in_order(jobs: list[_Job], workers: int) -> Iterator[list[Recording]]:
    if workers == 0:
        yield from map(_record, jobs)
        return
    # Forking a process that runs threads (as PyTorch does) can hang, so workers start afresh.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(_record, jobs, chunksize=8)
    finally:
        pool.shutdown(cancel_futures=True)


def _random(seed: int, purpose: str, *what: int) -> np.random.Generator:
    """The generator for one purpose; what tells subject, action, repetition, view."""
    key = (zlib.crc32(purpose.encode()), *what)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def subject_body(seed: int, subject: int) -> Subject:
    """The body of a numbered subject of a generated store."""
    return draw_subject(_random(seed, "subject", subject))


def perform(seed: int, subject: int, action: int, repetition: int) -> list[np.ndarray]:
    """One performance without any sensor: joints [F, 25, 3] in the world of each person, the subject first.

    Args:
        seed: of the store.
        subject: number from 1.
        action: place in `action_names`, from 0.
        repetition: number from 1.
    """
    act: Action = ACTIONS[action]
    rng = _random(seed, "performance", subject, action, repetition)
    body = subject_body(seed, subject)
    clock = Clock(rng, rng.uniform(*act.seconds) / body.tempo)
    turn = np.deg2rad(sensor.VIEW_ANGLES[1 + repetition % 2] + rng.normal(0.0, 15.0))
    position = rng.normal(0.0, 0.25, 2)
    people = [Actor(rng, body, clock, position, turn)]
    if act.persons == 2:
        # The other is a stranger each time, so that no subject of the test part appears in the training part.
        people.append(Actor(rng, draw_subject(rng), clock, position, turn + np.pi + rng.normal(0.0, 0.08)))
    act.perform(*people)
    return [person.joints() for person in people]


def _record(job: _Job) -> list[Recording]:
    """What each camera records of a performance."""
    seed, subject, action, repetition = job.seed, job.subject, job.action, job.repetition
    people = perform(seed, subject, action, repetition)
    frames = len(people[0])
    setup = 1 + (subject + repetition) % SETUPS
    rig = _random(seed, "setup", setup)
    distance, height = rig.uniform(2.9, 3.8), rig.uniform(0.9, 1.7)
    closeness = np.zeros(frames)
    if len(people) == 2:
        gap = np.linalg.norm(people[0][:, SPINE_BASE] - people[1][:, SPINE_BASE], axis=-1)
        closeness = np.clip((0.9 - gap) / 0.5, 0.0, 1.0)
    recordings = []
    for view in range(1, job.views + 1):
        rng = _random(seed, "sensor", subject, action, repetition, view)
        camera = sensor.draw_camera(rng, view, distance, height)
        visible = [camera.see(person) for person in people]
        facts = {"subject": subject, "view": view, "repetition": repetition, "setup": setup}
        name = f"S{setup:03d}C{view:03d}P{subject:03d}R{repetition:03d}A{action + 1:03d}"
        if job.depth:
            noise = _random(seed, "depth", subject, action, repetition, view)
            recordings.append(
                PointSequence(name, job.label, frames, *synth_depth.points_of(noise, np.stack(visible)), **facts)
            )
            continue
        present = sensor.keep_frames(rng, frames, len(people), closeness)
        bodies = []
        for number, body in enumerate(visible):
            other_bodies = [other for at, other in enumerate(visible) if at != number]
            noisy = sensor.disturb(rng, body, other_bodies)
            index = np.flatnonzero(present[number]).astype(np.int32)
            bodies.append(Body(f"body{number + 1}", index, noisy[index].astype(np.float32)))
        if len(people) == 1 and rng.random() < 0.03:
            start, joints = sensor.ghost(rng, visible[0])
            index = np.arange(start, start + len(joints), dtype=np.int32)
            bodies.append(Body("ghost", index, joints.astype(np.float32)))
        recordings.append(Sequence(name, job.label, frames, bodies, **facts))
    return recordings
