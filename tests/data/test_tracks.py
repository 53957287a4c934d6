"""Who the bodies are: one rule for every format, on tracks made here and on what people bring."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast.data import report
from s2vfast.data.importer import import_dataset
from s2vfast.data.layout import get_layout
from s2vfast.data.store import Body, Store
from s2vfast.data.tracks import STILL, arrange, motion, plausible_motion, wide_share
from s2vfast.ops import ClipSpec, clip_sample

from .ntu_files import person

V2 = get_layout("kinect_v2")
CASES = Path(os.environ.get("S2VFAST_DATA", "/nowhere")).parent / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no folder cases beside S2VFAST_DATA")


def track(name, first, joints):
    return Body(name, np.arange(first, first + len(joints), dtype=np.int32), joints.astype(np.float32))


def arranged(*tracks, total, scale=1.0):
    """(ids of the bodies, notes, counts), the same in every unit."""
    notes = []
    scaled = [Body(body.body_id, body.frame_index, body.joints * np.float32(scale)) for body in tracks]
    bodies, counts = arrange(scaled, V2, total, notes)
    return [body.body_id for body in bodies], notes, counts


@pytest.mark.parametrize("scale", [1.0, 1000.0, 0.1])
class TestTheRule:
    def test_a_ghost_of_two_frames_is_dropped(self, scale):
        ghost = np.random.default_rng(0).normal(size=(2, 25, 3))
        ids, notes, counts = arranged(track("0", 3, ghost), track("1", 0, person(30)), total=30, scale=scale)
        assert ids == ["1"]
        assert notes == ["body 0: dropped, seen in 2 frames, 11 or fewer"]
        assert (counts.reranked, counts.ghosts, counts.ghost_sequences, counts.joined) == (1, 1, 1, 0)

    def test_a_new_id_goes_on_with_the_old_one(self, scale):
        joints = person(80)
        ids, _, counts = arranged(track("7", 0, joints[:40]), track("8", 45, joints[45:]), total=80, scale=scale)
        assert ids == ["7+8"]
        assert (counts.joined, counts.reranked) == (1, 0)

    def test_somebody_else_does_not(self, scale):
        tracks = track("7", 0, person(40)), track("8", 45, person(35, x=2.0))
        assert sorted(arranged(*tracks, total=80, scale=scale)[0]) == ["7", "8"]
        late = track("8", 75, person(40))
        assert sorted(arranged(tracks[0], late, total=120, scale=scale)[0]) == ["7", "8"], "35 frames later"

    def test_a_jittery_ghost_is_no_main_body(self, scale):
        jitter = person(30, motion=0) + np.random.default_rng(1).normal(scale=0.5, size=(30, 25, 3))
        ids, notes, _ = arranged(track("0", 9, jitter), track("1", 0, person(80)), total=80, scale=scale)
        assert ids == ["1"]
        assert "jumps from frame to frame" in notes[0]

    def test_furniture_is_dropped_but_who_lies_and_moves_is_not(self, scale):
        chair = track("0", 0, person(40, motion=0.02, wide=True))
        ids, notes, _ = arranged(chair, track("1", 0, person(40)), total=40, scale=scale)
        assert ids == ["1"]
        assert "wider than a person in 100% of its frames" in notes[0]
        exercise = track("0", 0, person(40, motion=0.3, wide=True))
        assert arranged(exercise, track("1", 0, person(40, motion=0.05)), total=40, scale=scale)[0] == ["0", "1"]

    def test_who_does_not_move_is_dropped_beside_one_who_does(self, scale):
        ids, notes, _ = arranged(track("0", 0, person(40, motion=0)), track("1", 0, person(40)), total=40, scale=scale)
        assert ids == ["1"]
        assert notes == ["body 0: dropped, it does not move"]

    def test_presence_counts_as_motion_does(self, scale):
        brief, whole = track("0", 0, person(30, motion=0.12, x=3)), track("1", 0, person(80, motion=0.1))
        assert arranged(brief, whole, total=80, scale=scale)[0] == ["1", "0"]
        lively = track("0", 0, person(70, motion=0.3, x=3))
        assert arranged(whole, lively, total=80, scale=scale)[0] == ["0", "1"]


def test_one_track_stays_as_it_is():
    body = track("0", 3, person(2))
    assert arrange([body], V2, 60)[0][0] is body


def test_the_best_stays_where_nobody_looks_like_a_person():
    tracks = [track(str(k), 0, person(40, seed=k, motion=0.01 * k, wide=True)) for k in (1, 2)]
    assert len(arranged(*tracks, total=40)[0]) >= 1


def test_measures():
    joints = np.zeros((4, 25, 3))
    joints[:, 0, 1], joints[:3, 1, 0], joints[3, 1, 0] = 1.0, 0.81, 0.79
    joints[:, 2, 2] = 0.1  # seen, neither wide nor high
    assert wide_share(track("0", 0, joints), V2) == 0.75
    noise = track("0", 0, 5 + np.random.default_rng(0).normal(size=(4000, 25, 3)))
    assert motion(noise) == pytest.approx(np.sqrt(3), rel=0.01)
    assert plausible_motion(noise) < 0.2 * motion(noise)
    smooth = track("0", 0, 5 + np.sin(np.arange(4000) / 20)[:, None, None] * np.ones((25, 3)))
    assert plausible_motion(smooth) == pytest.approx(motion(smooth), rel=0.01)
    assert 0 < STILL < motion(smooth)


def test_a_missing_joint_counts_nowhere():
    joints = person(40)
    lacking = joints.copy()
    lacking[::2, 3] = 0.0
    whole, partial = track("0", 0, joints), track("0", 0, lacking)
    assert motion(partial) == pytest.approx(motion(whole), rel=0.1)
    assert wide_share(partial, V2) == pytest.approx(wide_share(whole, V2), abs=0.1)


def import_case(tmp_path, name, **options):
    summary = import_dataset(CASES / name, tmp_path / "store", **options)
    return summary, Store.open(tmp_path / "store")


@needs_cases
@pytest.mark.parametrize(
    ("name", "frames", "counts"),
    [
        ("ghost_half.pkl", 30, {"reranked": 80, "ghosts": 80, "ghost_sequences": 80}),
        ("ghost_none.pkl", 30, {}),
        ("j_slot.pkl", 60, {"reranked": 3, "ghosts": 3, "ghost_sequences": 3}),
        ("j_slot_CS.npz", 60, {"reranked": 4, "ghosts": 4, "ghost_sequences": 4}),
        ("j_pku", 60, {"reranked": 3, "ghosts": 3, "ghost_sequences": 3}),
        ("n_ntu_newid", 80, {"joined": 2}),
        ("o_ntu_jitter", 80, {"ghosts": 1, "ghost_sequences": 1}),
    ],
)
def test_main_bodies_of_what_people_bring(tmp_path, name, frames, counts):
    summary, store = import_case(tmp_path, name)
    assert store.track_table(1)[1][:, 0].tolist() == [frames] * len(store)
    assert store.total_frames.tolist() == [frames] * len(store)
    assert {key: value for key, value in summary.bodies.items() if key in counts} == counts
    assert all(phrase in report.imported(summary) for phrase in report.body_counts(store.meta["source"]))
    assert report.main_bodies(store, 2) == []


@needs_cases
def test_ghosts_leave_no_trace(tmp_path):
    clean = import_case(tmp_path, "ghost_none.pkl")[1]
    half = import_case(tmp_path / "half", "ghost_half.pkl")[1]
    np.testing.assert_array_equal(clean.frames, half.frames)


@needs_cases
@pytest.mark.parametrize(
    ("name", "unit", "dimensions"),
    [("b_mm.pkl", "mm", 3), ("f_nan.pkl", "m", 3), ("t_coco_px_missing.pkl", "px", 2), ("root_missing.pkl", "px", 2)],
)
def test_units_of_what_people_bring(tmp_path, name, unit, dimensions):
    summary, store = import_case(tmp_path, name)
    assert (store.unit, store.dimensions, store.meta["version"]) == (unit, dimensions, 1 if unit == "m" else 2)
    assert any(f"unit {unit} taken" in note for note in summary.notes)
    assert summary.dropped == []
    assert f"{unit}, {dimensions} coordinates" in report.show(store)


@needs_cases
@pytest.mark.parametrize(("clean", "faulty"), [("root_full", "root_missing"), ("ghost_none", "ghost_half")])
@pytest.mark.parametrize("center", ["first", "frame"])
def test_neighbours_survive_what_trackers_do(tmp_path, clean, faulty, center):
    """1-NN of raw clips, by the joints that two clips both have, loses at most 2 points."""
    accuracy = []
    for name in (clean, faulty):
        _, store = import_case(tmp_path / name, f"{name}.pkl")
        tables = [torch.from_numpy(np.array(x)) for x in (store.frames, store.frame_index, *store.track_table(1))]
        spec = ClipSpec(frames=16, center=center, root=store.layout.root)
        x = clip_sample(*tables, torch.arange(len(store)), spec, training=False)
        seen = (x != 0).any(dim=-1, keepdim=True).expand_as(x).flatten(1).double()
        x = x.flatten(1).double()
        train, test = (store.select("default", part) for part in ("train", "test"))
        # Of |a - b|^2 the terms in which both are seen.
        squares = (x[test] ** 2) @ seen[train].T - 2 * x[test] @ x[train].T + seen[test] @ (x[train] ** 2).T
        nearest = (squares / (seen[test] @ seen[train].T)).argmin(dim=1).numpy()
        accuracy.append((store.labels[train][nearest] == store.labels[test]).mean())
    assert accuracy[1] >= accuracy[0] - 0.02
