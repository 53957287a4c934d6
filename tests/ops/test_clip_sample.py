import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast import errors
from s2vfast.ops import ClipSpec, clip_sample
from s2vfast.reference.clip_sample import AT_ORIGIN, picks, rotation
from s2vfast.reference.clip_sample import clip_sample as reference

PLAIN = ClipSpec(frames=12, center="none")
FULL = ClipSpec(
    frames=12,
    sampling="crop",
    center="frame",
    scale="torso",
    align="yaw",
    rotate=(0.1, 0.5, 0.1),
    scale_jitter=0.1,
    velocity=2.0,
    root=1,
    torso=(0, 2),
    sides=(3, 4),
)


def dataset(lengths, V=6, seed=0, second=True):
    """Sequences of one or two bodies: main bodies with gaps, second ones in some of the frames, zero joints."""
    rng = np.random.default_rng(seed)
    frames, index, row, count, at = [], [], [], [], 0
    for q, F in enumerate(lengths):
        numbers = np.sort(rng.choice(2 * F, F, replace=False))
        rows, counts = [at], [F]
        parts = [numbers]
        if second and q % 2:
            parts.append(np.sort(rng.choice(2 * F, max(1, F // 2), replace=False)))
        for k, part in enumerate(parts):
            joints = rng.normal(size=(len(part), V, 3)) + np.array([0.5, 1.0, 3.0])
            joints[rng.random((len(part), V)) < (0.1 if V > 5 else 0)] = 0.0
            if k:
                rows.append(at)
                counts.append(len(part))
            frames.append(joints)
            index.append(part)
            at += len(part)
        row.append(rows + [0] * (2 - len(rows)))
        count.append(counts + [0] * (2 - len(counts)))
    return (
        torch.tensor(np.concatenate(frames), dtype=torch.float32),
        torch.tensor(np.concatenate(index), dtype=torch.int32),
        torch.tensor(row, dtype=torch.int64),
        torch.tensor(count, dtype=torch.int32),
    )


LENGTHS = [1, 2, 5, 11, 12, 13, 17, 23, 24, 25, 60, 200]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"center": "first", "rotate": (0.3, 0.3, 0.3)},
        {"center": "frame", "velocity": 0.5},
        {"sampling": "crop", "crop_min": 0.3},
        {"scale": "torso", "scale_jitter": 0.2},
        {"align": "yaw", "up": 1},
        {"align": "yaw", "up": 2},
        {"align": "yaw", "up": 0},
        {"center": "first", "root": (1, 4), "scale": "torso", "torso": ((0, 5, 3), 2)},
        {"center": "frame", "sampling": "crop", "root": (4, 1, 0, 2), "scale": "torso", "torso": (3, (0, 5))},
    ],
)
def test_agrees_with_reference(impl, change, training):
    data = dataset(LENGTHS)
    spec = dataclasses.replace(PLAIN, **{"root": 1, "torso": (0, 2), "sides": (3, 4), **change})
    ids = torch.tensor([11, 0, 3, 4, 5, 8, 8, 1])
    for seed in (0, 7):
        expected = reference(*data, ids, spec, seed=seed, epoch=2, training=training)
        found = clip_sample(*data, ids, spec, seed=seed, epoch=2, training=training, impl=impl)
        assert found.shape == (16, 12, 6, spec.channels)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
        # Which frames are taken, and which joints are missing, is exact.
        assert torch.equal(found == 0, expected == 0)


def test_full_spec_agrees(impl):
    data = dataset(LENGTHS)
    ids = torch.arange(12)
    torch.testing.assert_close(
        clip_sample(*data, ids, FULL, seed=3, epoch=1, impl=impl),
        reference(*data, ids, FULL, seed=3, epoch=1),
        rtol=1e-4,
        atol=1e-4,
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 2**40), st.booleans(), st.integers(0, 1000))
def test_published_frame_laws(count, T, seed, training, sample):
    spec = dataclasses.replace(PLAIN, frames=T)
    index, weight = picks(count, sample, spec, seed, 0, training)
    assert index.shape == (T,)
    assert (weight == 0).all()
    assert index.min() >= 0
    assert index.max() < count
    steps = index.diff()
    if count < T:
        assert ((steps == 1) | (index[1:] == 0)).all()
    elif count < 2 * T and training:
        assert (steps >= 1).all()
    elif count >= 2 * T:
        bins = torch.arange(T) * count // T
        assert (index >= bins).all()
        assert (index < (torch.arange(T) + 1) * count // T).all()


def test_skips_are_uniform():
    """T <= F < 2T: every choice of F - T skips among T + 1 places is equally likely."""
    spec = dataclasses.replace(PLAIN, frames=3)
    seen = {}
    for sample in range(3000):
        key = tuple(picks(5, sample, spec, 0, 0, True)[0].tolist())
        seen[key] = seen.get(key, 0) + 1
    # The 6 pairs of skipped places among 4 give: two before the end count, later ones do not shift anything.
    skipped = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    expected = {}
    for pair in skipped:
        key = tuple(t + sum(place <= t for place in pair) for t in range(3))
        expected[key] = expected.get(key, 0) + 500
    assert seen.keys() == expected.keys()
    assert sum((seen[k] - e) ** 2 / e for k, e in expected.items()) < 25


def test_first_centring_and_zero_joints():
    data = dataset([20], seed=3)
    data[0][0, 1] = torch.tensor([1.0, 2.0, 3.0])
    spec = dataclasses.replace(PLAIN, center="first", root=1, frames=20)
    clip = clip_sample(*data, torch.tensor([0]), spec, training=False)[0]
    raw = data[0]
    seen = (raw != 0).any(-1, keepdim=True)
    torch.testing.assert_close(clip, torch.where(seen, raw - raw[0, 1], 0.0))


def test_a_second_body_keeps_its_frames():
    frames = torch.arange(1, 9, dtype=torch.float32)[:, None, None].expand(8, 2, 3).contiguous()
    index = torch.tensor([0, 1, 4, 5, 7, 1, 5, 6], dtype=torch.int32)  # the second body is seen in 1, 5 and 6
    row, count = torch.tensor([[0, 5]]), torch.tensor([[5, 3]], dtype=torch.int32)
    clips = clip_sample(frames, index, row, count, torch.tensor([0]), ClipSpec(frames=5, center="none"), training=False)
    assert clips[0, :, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert clips[1, :, 0, 0].tolist() == [0, 6, 0, 7, 0]


def test_yaw_alignment_undoes_a_turn():
    data = dataset([30], V=5, second=False)
    angles = torch.tensor([0.0, 1.1, 0.0])
    turned = (data[0] @ rotation(angles).T, *data[1:])
    spec = dataclasses.replace(PLAIN, align="yaw", sides=(3, 4), center="frame", root=1)
    ids = torch.tensor([0])
    torch.testing.assert_close(
        clip_sample(*data, ids, spec, training=False),
        clip_sample(*turned, ids, spec, training=False),
        rtol=1e-4,
        atol=1e-4,
    )


def test_rotation_is_rz_ry_rx():
    def about(axis, angle):
        c, s = np.cos(angle), np.sin(angle)
        a, b = [(1, 2), (2, 0), (0, 1)][axis]
        m = np.eye(3)
        m[a, a] = m[b, b] = c
        m[b, a], m[a, b] = s, -s
        return m

    expected = about(2, 0.3) @ about(1, 0.2) @ about(0, 0.1)
    found = rotation(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_draws_depend_on_sample_epoch_and_seed_alone(impl):
    data = dataset([50] * 4)
    spec = dataclasses.replace(FULL, root=1)
    alone = clip_sample(*data, torch.tensor([2]), spec, seed=1, epoch=4, impl=impl)
    together = clip_sample(*data, torch.tensor([0, 2, 3]), spec, seed=1, epoch=4, impl=impl)
    # The last bits of a matrix product may depend on the size of the batch.
    torch.testing.assert_close(together[2:4], alone, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(clip_sample(*data, torch.tensor([2]), spec, seed=1, epoch=5, impl=impl), alone)
    assert not torch.allclose(clip_sample(*data, torch.tensor([2]), spec, seed=2, epoch=4, impl=impl), alone)


def test_half_precision_frames(impl):
    frames, *rest = dataset([30, 40])
    half = clip_sample(frames.half(), *rest, torch.tensor([0, 1]), PLAIN, training=False, impl=impl)
    whole = clip_sample(frames.half().float(), *rest, torch.tensor([0, 1]), PLAIN, training=False, impl=impl)
    assert half.dtype == torch.float32
    assert torch.equal(half, whole)


def test_empty_batch(impl):
    clips = clip_sample(*dataset([5]), torch.zeros(0, dtype=torch.int64), FULL, impl=impl)
    assert clips.shape == (0, 12, 6, 6)


def test_refuses_by_name():
    frames, index, row, count = dataset([5, 6])
    with pytest.raises(errors.ShapeError, match="clip_sample: count"):
        clip_sample(frames, index, row, count[:1], torch.tensor([0]), PLAIN)


def test_the_number_of_threads_does_not_matter():
    given = dataset([9, 30, 61, 17] * 5)
    spec = ClipSpec(frames=20, scale="torso", align="yaw", rotate=(0.2, 0.2, 0.2), velocity=2.0, sides=(2, 3))
    ids, found = torch.arange(20), []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(clip_sample(*given, ids, spec, seed=1, epoch=2, impl="native"))
    torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_ids_of_no_sequence_are_refused(wrong):
    given = dataset([9, 30, 61, 17])
    with pytest.raises(errors.ShapeError, match="clip_sample: ids has a number that is no sequence's"):
        clip_sample(*given, torch.tensor([0, wrong]), ClipSpec(frames=8), impl="native")


@pytest.mark.parametrize("sampling", ["bins", "crop"])
@pytest.mark.parametrize("center", ["first", "frame"])
def test_missing_joints_measure_nothing(impl, center, sampling):
    """Root, torso and sides that are missing in some frames, in the first, or in all."""
    frames, index, row, count = dataset([9, 20, 40, 12], second=False)
    for sequence, missing in ((1, slice(0, 4)), (2, slice(0, 40, 3)), (3, slice(None))):
        first, length = int(row[sequence, 0]), int(count[sequence, 0])
        for joint in (1, 2, 4):
            frames[first : first + length][missing, joint] = 0.0
    spec = dataclasses.replace(
        FULL, center=center, sampling=sampling, rotate=(0.0,) * 3, scale_jitter=0.0, velocity=0.0
    )
    ids = torch.arange(4)
    for training in (True, False):
        expected = reference(frames, index, row, count, ids, spec, seed=4, training=training)
        actual = clip_sample(frames, index, row, count, ids, spec, seed=4, training=training, impl=impl)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)
        assert torch.equal(actual == 0, expected == 0)


@pytest.mark.parametrize("center", ["first", "frame"])
def test_a_missing_root_moves_nobody(impl, center):
    """A body that stands still in (300, 400, 0): without its root in frames 0, 1 and 5 the clip is the same."""
    frames = torch.tensor([[300.0, 400.0, 0.0], [310.0, 420.0, 0.0]]).expand(8, 2, 3).clone()
    table = torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), 8, dtype=torch.int32)
    frames[[0, 1, 5], 0] = 0.0
    clip = clip_sample(
        frames,
        torch.arange(8, dtype=torch.int32),
        *table,
        torch.tensor([0]),
        ClipSpec(frames=8, center=center),
        training=False,
        impl=impl,
    )
    assert clip[0, :, 1].tolist() == [[10.0, 20.0, 0.0]] * 8
    assert clip[0, [0, 1, 5], 0].tolist() == [[0.0] * 3] * 3
    # Where it was seen, it is at the origin, and that is told from zeros.
    torch.testing.assert_close(
        clip[0, [2, 3, 4, 6, 7], 0], torch.tensor([AT_ORIGIN, 0.0, 0.0]).expand(5, 3), atol=0, rtol=1e-6
    )


@pytest.mark.parametrize("center", ["first", "frame"])
def test_a_root_of_two_joints_is_the_mean_of_those_that_are_there(impl, center):
    """Hips at 2 and 4, each missing once, both missing once; once their mean is 0, which is not missing."""
    x = torch.tensor([[2.0, 4.0, 7.0], [0.0, 4.0, 7.0], [2.0, 0.0, 7.0], [0.0, 0.0, 7.0], [-3.0, 3.0, 7.0]])
    frames = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], dim=-1)
    table = torch.arange(5, dtype=torch.int32), torch.tensor([[0]]), torch.tensor([[5]], dtype=torch.int32)
    spec = ClipSpec(frames=5, center=center, root=(0, 1))
    clip = clip_sample(frames, *table, torch.tensor([0]), spec, training=False, impl=impl)
    origins = [3.0] * 5 if center == "first" else [3.0, 4.0, 2.0, 2.0, 0.0]
    assert clip[0, :, 2, 0].tolist() == [7.0 - origin for origin in origins]
    lacking = torch.cat([frames[3:4], frames[4:], frames[:3]])  # first: none of both, then a mean of 0
    clip = clip_sample(lacking, *table, torch.tensor([0]), spec, training=False, impl=impl)
    assert clip[0, 0, 2, 0] == 7.0


def test_a_torso_between_means(impl):
    """From the mean of hips to the mean of shoulders: 3 high, though either side is longer; one hip is missing once."""
    pose = torch.tensor([[-1.0, 1.0, 5.0], [1.0, 1.0, 5.0], [-5.0, 4.0, 5.0], [5.0, 4.0, 5.0]])
    frames = pose.expand(4, 4, 3).clone()
    table = torch.arange(4, dtype=torch.int32), torch.tensor([[0]]), torch.tensor([[4]], dtype=torch.int32)
    spec = ClipSpec(frames=4, center="none", scale="torso", torso=((0, 1), (2, 3)))
    clip = clip_sample(frames, *table, torch.tensor([0]), spec, training=False, impl=impl)
    torch.testing.assert_close(clip[0], frames / 3.0)
    frames[3, :2] = 0.0  # no end, no length
    frames[2, 0] = 0.0  # the mean of one hip is that hip
    clip = clip_sample(frames, *table, torch.tensor([0]), spec, training=False, impl=impl)
    torch.testing.assert_close(clip[0], frames / ((3.0 + 3.0 + 10.0**0.5) / 3.0))


def test_torso_and_sides_are_means_over_the_frames_that_have_them(impl):
    frames, index, row, count = dataset([30], V=5, second=False)
    spec = dataclasses.replace(PLAIN, frames=20, scale="torso", align="yaw", torso=(0, 2), sides=(3, 4))
    ids = torch.tensor([0])
    whole = clip_sample(frames[10:], index[10:], row, torch.full_like(count, 20), ids, spec, training=False, impl=impl)
    lacking = frames.clone()
    lacking[:10, [0, 4]] = 0.0
    spec = dataclasses.replace(spec, frames=30)
    clip = clip_sample(lacking, index, row, count, ids, spec, training=False, impl=impl)
    torch.testing.assert_close(clip[0, 10:], whole[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("table", "number"),
    [("row", 10**12), ("row", -1), ("row", 113), ("row", 2**63 - 1), ("count", 2**31 - 1), ("count", 0), ("count", -5)],
)
def test_tables_that_lead_out_of_the_frames_are_refused(table, number):
    frames, index, row, count = dataset([9, 30, 61, 17])
    {"row": row, "count": count}[table][1, 0] = number
    with pytest.raises(errors.ShapeError, match="row and count of a track are not within the frames"):
        clip_sample(frames, index, row, count, torch.tensor([0, 1]), ClipSpec(frames=8), impl="native")
    clip_sample(frames, index, row, count, torch.tensor([0, 2]), ClipSpec(frames=8), impl="native")
