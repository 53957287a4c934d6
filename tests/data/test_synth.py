"""The synthetic dataset: an anatomy that holds, a sensor that errs as a Kinect does, and draws that repeat."""

import hashlib
import re

import numpy as np
import pytest

from s2vfast.data import synth, synth_sensor
from s2vfast.data.layout import LAYOUTS
from s2vfast.data.store import Store
from s2vfast.data.synth_actions import ACTIONS
from s2vfast.data.synth_body import (
    ANKLE,
    ELBOW,
    FOOT,
    HAND,
    HEAD,
    HIP,
    KNEE,
    LEFT,
    RIGHT,
    SHOULDER,
    SPINE_BASE,
    SPINE_SHOULDER,
    WRIST,
)
from s2vfast.errors import DataError

LAYOUT = LAYOUTS["kinect_v2"]
PAIRS = [number for number, action in enumerate(ACTIONS) if action.persons == 2]
SMALL = {"subjects": 2, "repetitions": 1, "actions": ["wave", "sit down", "hug"]}


def number(name: str) -> int:
    return synth.action_names().index(name)


@pytest.fixture(scope="module")
def performances() -> dict[tuple[int, int], list[np.ndarray]]:
    """(action, subject) -> joints of each person, before any sensor."""
    return {(a, s): synth.perform(3, s, a, 1 + s % 2) for a in range(len(ACTIONS)) for s in (1, 2, 3)}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return synth.generate(tmp_path_factory.mktemp("synth") / "store", subjects=4, repetitions=2, seed=5)


def bone_lengths(joints: np.ndarray) -> np.ndarray:
    return np.stack([np.linalg.norm(joints[:, a] - joints[:, b], axis=-1) for a, b in LAYOUT.bones], axis=-1)


def angle(joints: np.ndarray, a: int, b: int, c: int) -> np.ndarray:
    """Angle at joint b in degrees."""
    u, v = joints[:, a] - joints[:, b], joints[:, c] - joints[:, b]
    cosine = np.sum(u * v, axis=-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def test_there_are_enough_actions():
    assert sum(action.persons == 1 for action in ACTIONS) >= 12
    assert len(PAIRS) >= 3
    assert len(set(synth.action_names())) == len(ACTIONS)


def test_bones_keep_their_length_within_a_performance(performances):
    for key, people in performances.items():
        for joints in people:
            lengths = bone_lengths(joints)
            assert np.isfinite(lengths).all(), key
            assert np.ptp(lengths, axis=0).max() < 1e-6, (key, LAYOUT.bones[np.ptp(lengths, axis=0).argmax()])


def test_bones_are_the_subjects_own(performances):
    one, other = performances[0, 1][0], performances[0, 2][0]
    assert np.allclose(bone_lengths(one)[0], bone_lengths(performances[number("kick"), 1][0])[0], atol=1e-9)
    assert np.abs(bone_lengths(one)[0] - bone_lengths(other)[0]).max() > 0.005
    heights = [synth.subject_body(1, subject).height for subject in range(1, 41)]
    assert 0.05 < np.std(heights) < 0.15
    assert 1.4 < min(heights) < max(heights) < 2.0
    assert any(synth.subject_body(1, subject).left_handed for subject in range(1, 41))


def test_feet_are_on_the_floor(performances):
    for (action, subject), people in performances.items():
        for joints in people:
            feet = joints[:, list(FOOT) + list(ANKLE), 1]
            assert feet.min() > -0.01, (ACTIONS[action].name, subject)
            lower = joints[:, list(FOOT), 1].min(axis=1)
            if ACTIONS[action].name != "jump":
                assert lower.max() < 0.06, (ACTIONS[action].name, subject)
    assert max(performances[number("jump"), s][0][:, list(FOOT), 1].min(axis=1).max() for s in (1, 2, 3)) > 0.06


def test_standing_feet_do_not_slide(performances):
    for (action, subject), people in performances.items():
        for joints in people:
            for side in (LEFT, RIGHT):
                ankle = joints[:, ANKLE[side]]
                flat = ankle[:, 1] < ankle[:, 1].min() + 0.002
                speed = 30.0 * np.linalg.norm(np.diff(ankle[:, [0, 2]], axis=0), axis=-1)
                sliding = speed[flat[1:] & flat[:-1]]
                assert sliding.size == 0 or sliding.max() < 0.35, (ACTIONS[action].name, subject)


def test_feet_follow_the_body(performances):
    for (action, subject), people in performances.items():
        for joints in people:
            between = joints[:, list(ANKLE)].mean(axis=1) - joints[:, SPINE_BASE]
            away = np.linalg.norm(between[[0, -1]][:, [0, 2]], axis=-1).max()
            limit = 0.55 if ACTIONS[action].name in ("sit down", "stand up") else 0.22
            assert away < limit, (ACTIONS[action].name, subject)


def test_knees_bend_forward_and_elbows_do_not_fold(performances):
    for key, people in performances.items():
        for joints in people:
            up = joints[:, SPINE_SHOULDER] - joints[:, SPINE_BASE]
            for side in (LEFT, RIGHT):
                hip, knee, ankle = (joints[:, part[side]] for part in (HIP, KNEE, ANKLE))
                left = joints[:, HIP[LEFT]] - joints[:, HIP[RIGHT]]
                bend = knee - 0.5 * (hip + ankle)
                forward = np.cross(ankle - hip, left)  # before a standing leg, over a lifted one
                assert (np.sum(bend * forward, axis=-1) > -1e-3).all(), key
                assert angle(joints, HIP[side], KNEE[side], ANKLE[side]).min() > 25.0, key
                assert angle(joints, SHOULDER[side], ELBOW[side], WRIST[side]).min() > 20.0, key
            assert (up[:, 1] > 0.0).all() or ACTIONS[key[0]].name in ("pick up", "put down", "bow"), key


def test_movement_is_as_fast_as_people_are(performances):
    for key, people in performances.items():
        for joints in people:
            speed = 30.0 * np.linalg.norm(np.diff(joints, axis=0), axis=-1)
            assert speed.max() < 14.0, (ACTIONS[key[0]].name, key)
            assert speed[:, SPINE_BASE].max() < 3.5, (ACTIONS[key[0]].name, key)


def test_actions_do_what_their_names_say(performances):
    def each(name: str) -> list[np.ndarray]:
        return [performances[number(name), subject][0] for subject in (1, 2, 3)]

    for joints in each("sit down"):
        assert joints[0, SPINE_BASE, 1] - joints[-1, SPINE_BASE, 1] > 0.25
    for joints in each("stand up"):
        assert joints[-1, SPINE_BASE, 1] - joints[0, SPINE_BASE, 1] > 0.25
    for joints in each("raise both arms"):
        assert (joints[:, list(WRIST), 1].max(axis=0) > joints[:, HEAD, 1].mean()).all()
    for joints in [*each("pick up"), *each("put down")]:
        assert joints[:, list(HAND), 1].min() < 0.40
    for joints in each("drink"):
        nearest = np.linalg.norm(joints[:, list(HAND)] - joints[:, [HEAD]], axis=-1).min()
        assert nearest < 0.24  # the mouth is 0.1 before and below the head joint, and a cup lies between
    for joints in each("clap"):
        gap = np.linalg.norm(joints[:, WRIST[LEFT]] - joints[:, WRIST[RIGHT]], axis=-1)
        assert gap.min() < 0.16
    for name, sign in (("walk", 1.0), ("walk backward", -1.0)):
        for joints in each(name):
            across = joints[0, HIP[LEFT]] - joints[0, HIP[RIGHT]]
            forward = np.cross(across, np.array([0.0, 1.0, 0.0]))
            forward /= np.linalg.norm(forward)
            assert sign * np.dot(joints[-1, SPINE_BASE] - joints[0, SPINE_BASE], forward) > 0.3
    for joints in each("turn round"):
        across = joints[:, SHOULDER[LEFT]] - joints[:, SHOULDER[RIGHT]]
        cosine = across[0] @ across[-1] / np.linalg.norm(across[0]) / np.linalg.norm(across[-1])
        assert cosine < -0.6


def test_two_people_face_each_other_and_hands_meet(performances):
    for action in PAIRS:
        for subject in (1, 2, 3):
            people = performances[action, subject]
            assert len(people) == 2
            first, second = people
            between = second[:, SPINE_BASE] - first[:, SPINE_BASE]
            for joints, towards in ((first, between), (second, -between)):
                across = joints[:, HIP[LEFT]] - joints[:, HIP[RIGHT]]
                forward = np.cross(across, np.array([0.0, 1.0, 0.0]))
                cosine = np.sum(forward * towards, axis=-1)
                cosine /= np.linalg.norm(forward, axis=-1) * np.linalg.norm(towards, axis=-1)
                assert cosine.min() > 0.7
            assert np.linalg.norm(between, axis=-1).min() > 0.2
    for subject in (1, 2, 3):
        first, second = performances[number("shake hands"), subject]
        gap = np.linalg.norm(first[:, HAND[RIGHT]] - second[:, HAND[RIGHT]], axis=-1)
        assert gap.min() < 0.08


def test_circles_go_the_way_they_are_named():
    for name, sign in (("circle clockwise", 1.0), ("circle counterclockwise", -1.0)):
        for subject in range(1, 7):
            joints = synth.perform(1, subject, number(name), 1)[0]
            across = joints[:, SHOULDER[LEFT]] - joints[:, SHOULDER[RIGHT]]
            right = -across / np.linalg.norm(across, axis=-1, keepdims=True)
            swept = []
            for side in (LEFT, RIGHT):
                hand = joints[:, WRIST[side]] - joints[:, SHOULDER[side]]
                x, y = np.sum(hand * right, axis=-1), hand[:, 1]
                middle = slice(len(x) // 4, 3 * len(x) // 4)
                x, y = x[middle] - x[middle].mean(), y[middle] - y[middle].mean()
                swept.append(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
            assert sign * swept[int(np.argmax(np.abs(swept)))] < 0.0, (name, subject)


def test_store_holds_every_sequence_once(store):
    assert len(store.names) == 4 * len(ACTIONS) * 2 * 3 == len(set(store.names))
    assert store.classes == synth.action_names()
    assert store.layout.name == "kinect_v2"
    for i, name in enumerate(store.names):
        match = re.fullmatch(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", name)
        setup, view, subject, repetition, action = map(int, match.groups())
        assert (setup, view, subject, repetition, action - 1) == (
            store.setups[i],
            store.views[i],
            store.subjects[i],
            store.repetitions[i],
            store.labels[i],
        )
    assert store.total_frames.min() >= 40
    assert store.total_frames.max() <= 150
    assert len(set(store.setups.tolist())) > 1
    store.verify()


def test_splits_share_no_subject_and_no_camera(store):
    for split, part_of in (("xsub", store.subjects), ("xview", store.views)):
        train, test = store.select(split, "train"), store.select(split, "test")
        assert sorted([*train, *test]) == list(range(len(store.names)))
        assert not set(part_of[train]) & set(part_of[test])
        for part in (train, test):
            assert set(store.labels[part]) == set(range(len(ACTIONS)))
    assert set(store.views[store.select("xview", "train")]) == {2, 3}


def test_coordinates_are_a_cameras(store):
    frames = np.asarray(store.frames)
    assert np.isfinite(frames).all()
    assert frames[..., 2].min() > 0.5  # before the sensor
    assert frames[..., 2].max() < 7.0
    assert np.abs(frames[..., 0]).max() < 4.0


def test_bodies_vanish_and_return_and_pairs_have_two(store):
    row, count = store.track_table(2)
    gaps = long = 0
    for i in range(len(store.names)):
        index = store.frame_index[row[i, 0] : row[i, 0] + count[i, 0]]
        assert count[i, 0] * 2 >= store.total_frames[i]
        gaps += bool((np.diff(index) > 1).any())
        long += bool((np.diff(index) > 3).any())
        if ACTIONS[store.labels[i]].persons == 2:
            assert count[i, 1] * 2 >= store.total_frames[i]
        else:
            assert count[i, 1] < 20  # at most a ghost
    assert 0.05 < gaps / len(store.names) < 0.95  # single frames that were dropped
    assert 0.03 < long / len(store.names) < 0.4  # a body that was lost for a while
    alone = np.array([ACTIONS[label].persons == 1 for label in store.labels])
    assert 0 < np.sum(count[alone, 1] > 0) < 0.1 * alone.sum()


def test_views_show_one_performance_with_noise_of_their_own():
    records = synth._record(synth._Job(1, 1, number("sit down"), 0, 1, 3, depth=False))
    world = synth.perform(1, 1, number("sit down"), 1)[0]
    errors = []
    for record in records:
        body = record.bodies[0]
        truth = world[body.frame_index]
        # The best rigid motion from the world to what the camera saw (Kabsch).
        a, b = truth.reshape(-1, 3), body.joints.reshape(-1, 3).astype(float)
        u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
        spin = vt.T @ np.diag([1.0, 1.0, np.linalg.det(vt.T @ u.T)]) @ u.T
        residual = b - b.mean(0) - (a - a.mean(0)) @ spin.T
        errors.append(np.full((len(world), 25, 3), np.nan))
        errors[-1][body.frame_index] = residual.reshape(-1, 25, 3)
    for error in errors:
        assert 0.003 < np.sqrt(np.nanmean(error**2)) < 0.08
    for one, other in ((0, 1), (0, 2), (1, 2)):
        both = np.isfinite(errors[one]) & np.isfinite(errors[other])
        assert abs(np.corrcoef(errors[one][both], errors[other][both])[0, 1]) < 0.3


def test_noise_grows_with_depth_and_at_the_hidden_side():
    rng = np.random.default_rng(0)
    world = synth.perform(1, 1, number("bow"), 1)[0]

    def error(distance: float) -> np.ndarray:
        camera = synth_sensor.draw_camera(np.random.default_rng(1), 1, distance, 1.2)
        body = camera.see(world)
        noisy = np.stack([synth_sensor.disturb(rng, body, []) for _ in range(8)])
        return np.sqrt(((noisy - body) ** 2).mean(axis=(0, 1, 3)))

    near, far = error(2.0), error(4.5)
    assert far.mean() > 1.5 * near.mean()
    assert near[[21, 23]].mean() > 1.5 * near[[0, 1, 20]].mean()  # hand tips against the spine
    # Seen exactly from its left, the right hand hangs behind the trunk.
    camera = synth_sensor.Camera(np.array([3.0, 1.0, 0.0]), np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]))
    body = np.repeat(camera.see(_profile())[None], 5, axis=0)
    lost = synth_sensor.occluded(body, [])
    assert lost[:, HIP[RIGHT]].min() > 0.9
    assert lost[:, [HIP[LEFT], WRIST[LEFT]]].max() < 0.1


def _profile() -> np.ndarray:
    """A stiff figure [25, 3] that faces +z, its left hand before the trunk for a camera at +x."""
    joints = np.zeros((25, 3))
    joints[:, 1] = 1.0
    joints[SPINE_SHOULDER, 1], joints[HEAD, 1] = 1.4, 1.6
    joints[HIP[LEFT]], joints[HIP[RIGHT]] = (0.15, 1.0, 0.0), (-0.15, 1.0, 0.0)
    joints[WRIST[LEFT]] = (0.3, 1.0, 0.0)
    return joints


def digest(folder) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_same_seed_same_bytes_whatever_the_workers(tmp_path):
    for name, seed, workers in (("a", 7, 0), ("b", 7, 0), ("workers", 7, 2), ("other", 8, 0)):
        synth.generate(tmp_path / name, **SMALL, seed=seed, workers=workers)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "workers")
    assert digest(tmp_path / "a")["frames.npy"] != digest(tmp_path / "other")["frames.npy"]


def test_a_sequence_does_not_depend_on_what_is_beside_it(tmp_path):
    few = synth.generate(tmp_path / "few", **SMALL, seed=7)
    more = synth.generate(tmp_path / "more", subjects=3, repetitions=2, actions=["hug", "bow", "wave"], seed=7)
    shared = set(few.names) & set(more.names)
    assert len(shared) == 2 * 2 * 3
    for name in shared:
        clips = [store.sequence(store.names.index(name)) for store in (few, more)]
        bodies = min(len(clip) for clip, _ in clips)  # stores pad to their own largest number of bodies
        assert np.array_equal(clips[0][0][:bodies], clips[1][0][:bodies])
        assert np.array_equal(clips[0][1][:bodies], clips[1][1][:bodies])


def test_progress_and_subset(tmp_path):
    calls = []
    store = synth.generate(tmp_path / "s", **SMALL, views=1, progress=lambda done, total: calls.append((done, total)))
    assert store.classes == ["wave", "sit down", "hug"]
    assert calls == [(i, 6) for i in range(1, 7)]
    assert list(store.splits) == ["xsub"]
    assert set(store.labels.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subjects": 1}, "subjects: 1; 2 to 999"),
        ({"views": 4}, "views: 4; 1 to 3"),
        ({"repetitions": 0}, "repetitions: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"workers": -1}, "workers: -1"),
        ({"actions": ["wafe"]}, "there is no 'wafe'; known are wave, "),
        ({"actions": []}, "a list of one or more"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, change, words):
    with pytest.raises(DataError, match=re.escape(words)):
        synth.generate(tmp_path / "s", **{**SMALL, **change})
    assert list(tmp_path.iterdir()) == []


def test_existing_store_stays_unless_told(tmp_path):
    synth.generate(tmp_path / "s", **SMALL)
    before = digest(tmp_path / "s")
    with pytest.raises(DataError, match="exists"):
        synth.generate(tmp_path / "s", **SMALL, seed=2)
    assert digest(tmp_path / "s") == before
    synth.generate(tmp_path / "s", **SMALL, seed=2, overwrite=True)
    assert digest(tmp_path / "s") != before
