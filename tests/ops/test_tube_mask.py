import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast import errors, ops
from s2vfast.ops import IMPLEMENTATIONS, _dispatch, tube_mask
from s2vfast.reference import philox
from s2vfast.reference.tube_mask import published_slots, tube_scores
from s2vfast.reference.tube_mask import tube_mask as reference


def clips_of(N, T, V, C=3, seed=0, dtype=torch.float32):
    return torch.randn(N, T, V, C, generator=torch.Generator().manual_seed(seed)).to(dtype).cumsum(1) * 0.05


def tubes_of(N, tubes, tube_len, s, V, keep, w, seed, dtype=torch.float32):
    clips = clips_of(N, tubes * tube_len * s, V, seed=seed, dtype=dtype)
    return clips, {"segment_frames": s, "tube_len": tube_len, "keep": keep, "motion_weight": w}


cases = st.tuples(
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 26),
    st.floats(0, 2),
    st.integers(0, 2**63 - 1),
    st.data(),
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_laws(drawn):
    """Exact counts, whole tubes, a permutation of the tokens, ascending."""
    N, tubes, tube_len, s, V, w, seed, data = drawn
    keep = data.draw(st.integers(1, V))
    clips, options = tubes_of(N, tubes, tube_len, s, V, keep, w, seed % 1000)
    visible, masked = reference(clips, **options, seed=seed, epoch=3, ids=torch.arange(N))
    S = tubes * tube_len
    assert visible.shape == (N, S * keep)
    assert masked.shape == (N, S * (V - keep))
    assert visible.dtype == masked.dtype == torch.int32
    both = torch.cat([visible, masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(S * V, dtype=torch.int32).expand(N, -1))
    assert (visible.diff(dim=1) > 0).all()
    assert (masked.diff(dim=1) > 0).all()
    joints = (visible % V).reshape(N, tubes, tube_len, keep)
    assert torch.equal(joints, joints[:, :, :1].expand_as(joints))


@settings(max_examples=60, deadline=None)
@given(cases)
def test_implementations_are_bit_equal(drawn):
    N, tubes, tube_len, s, V, w, seed, data = drawn
    keep = data.draw(st.integers(1, V))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    clips, options = tubes_of(N, tubes, tube_len, s, V, keep, w, seed % 1000, dtype)
    ids = philox.track_ids(torch.arange(N), 1, mask=2)
    expected = reference(clips, **options, seed=seed, epoch=5, ids=ids)
    for impl in [name for name in IMPLEMENTATIONS if not _dispatch._OPS["tube_mask"].why_not(name, "cpu", clips)]:
        found = tube_mask(clips, **options, seed=seed, epoch=5, ids=ids, impl=impl)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True)), impl


def test_with_noise_bit_equal(impl):
    clips, options = tubes_of(6, 3, 5, 3, 25, 2, 0.1, seed=1)
    noise = torch.rand(6, 3, 25, generator=torch.Generator().manual_seed(0))
    noise[:, :, 5:10] = 0.0  # ties where motion is equal too
    clips[:, :, 5:10] = 0.0
    expected, found = reference(clips, **options, noise=noise), tube_mask(clips, **options, noise=noise, impl=impl)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_equal_scores_keep_the_lower_joints(impl):
    visible, _ = tube_mask(
        torch.zeros(1, 4, 6, 3),
        segment_frames=2,
        tube_len=2,
        keep=2,
        motion_weight=1.0,
        noise=torch.full((1, 1, 6), 0.5),
        impl=impl,
    )
    assert visible.tolist() == [[0, 1, 6, 7]]


def test_numpy_oracle():
    """The published rule written once more, in numpy and float64."""
    clips, options = tubes_of(5, 2, 3, 2, 25, 3, 0.7, seed=4, dtype=torch.float64)
    noise = np.random.default_rng(0).random((5, 2, 25))
    x = clips.numpy()
    motion = np.abs(np.concatenate([x[:, 1:] - x[:, :-1], np.zeros_like(x[:, :1])], 1))
    intensity = motion.reshape(5, 2, 6, 25, 3).mean(axis=(2, 4))
    score = noise + 0.7 * intensity / (intensity.max(-1, keepdims=True) + 1e-6)
    visible, _ = reference(clips, **options, noise=torch.from_numpy(noise))
    for n in range(5):
        expected = [
            segment * 25 + joint
            for segment in range(6)
            for joint in sorted(np.argsort(score[n, segment // 3])[:3].tolist())
        ]
        assert visible[n].tolist() == expected


def test_a_root_at_the_origin_is_there(impl):
    """Centred on the first frame's root, which moves from zero on: the published rule, which knows no missing joint."""
    walk = clips_of(8, 12, 5, seed=2) + torch.linspace(0, 9, 12)[:, None, None] + 1.0
    table = torch.arange(12, dtype=torch.int32).repeat(8), torch.arange(8)[:, None] * 12, torch.full((8, 1), 12)
    spec = ops.ClipSpec(frames=12, center="first", root=3)
    clips = ops.clip_sample(walk.flatten(0, 1), *table, torch.arange(8), spec, training=False)
    assert clips[0, 0, 3].abs().max() < 1e-20
    intensity = (clips[:, 1:].double() - clips[:, :-1]).abs()
    intensity = torch.cat([intensity, torch.zeros_like(intensity[:, :1])], 1).reshape(8, 4, 3, 5, 3).mean((2, 4))
    noise = torch.rand(8, 4, 5, generator=torch.Generator().manual_seed(1))
    score = noise + 1.0 * intensity / (intensity.amax(-1, keepdim=True) + 1e-6)
    joints = torch.argsort(score, dim=-1)[..., :2].sort(-1).values
    expected = (joints + 5 * torch.arange(4)[:, None]).flatten(1).int()
    options = {"segment_frames": 3, "tube_len": 1, "keep": 2, "motion_weight": 1.0}
    assert torch.equal(tube_mask(clips, **options, noise=noise, impl=impl)[0], expected)
    zeros = torch.where(clips.abs() < 1e-20, 0.0, clips)  # a root that was not seen hardly moves in the first tube
    assert not torch.equal(tube_mask(zeros, **options, noise=noise, impl=impl)[0], expected)


def test_moving_joints_are_masked_more_often():
    clips = torch.zeros(400, 6, 10, 3)
    clips[:, :, 0, 0] = torch.arange(6) * 0.1
    ids = torch.arange(400)
    still = reference(clips, segment_frames=3, tube_len=2, keep=5, motion_weight=0.0, seed=1, ids=ids)[0]
    moving = reference(clips, segment_frames=3, tube_len=2, keep=5, motion_weight=0.5, seed=1, ids=ids)[0]
    assert (still % 10 == 0).sum() > 2 * 180
    assert (moving % 10 == 0).sum() < 2 * 60


def test_not_contiguous(impl):
    clips, options = tubes_of(3, 2, 2, 3, 25, 4, 0.5, seed=0)
    wide = torch.cat([clips, torch.full_like(clips, torch.nan)], -1)
    ids = torch.arange(3)
    found = tube_mask(wide[..., :3], **options, ids=ids, impl=impl)
    assert torch.equal(found[0], reference(clips, **options, ids=ids)[0])


def test_published_slots_by_hand():
    # Two segments in one tube, four joints, two stay: joint 2 has the lowest score, then joint 0.
    score = torch.tensor([[[0.2, 0.9, 0.1, 0.5]]])
    # Latents in published order: (segment 0: joints 2, 0), (segment 1: joints 2, 0). All four go to segment 0, to the
    # joints of rank 0, 1, 2, 3: 2, 0, 3, 1. Ascending tokens are (0, joint 0), (0, joint 2), (1, 0), (1, 2).
    assert published_slots(score, tube_len=2, keep=2).tolist() == [[0, 2, 1, 3]]


def test_published_slots_are_different_tokens():
    clips, options = tubes_of(4, 2, 5, 3, 25, 2, 0.1, seed=0)
    keep = options.pop("keep")
    places = published_slots(tube_scores(clips, **options, ids=torch.arange(4)), options["tube_len"], keep)
    assert all(len(set(row)) == 20 and max(row) < 25 for row in places.tolist())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"keep": 0}, "keep"),
        ({"keep": 26}, "keep"),
        ({"tube_len": 4}, "clips"),
        ({"segment_frames": 0}, "segment_frames"),
    ],
)
def test_refuses_by_name(change, name):
    clips, options = tubes_of(2, 2, 3, 2, 25, 3, 0.1, seed=0)
    with pytest.raises(errors.ShapeError, match=f"tube_mask: {name}"):
        tube_mask(clips, **options | change, ids=torch.arange(2))


def test_refuses_ids_of_another_shape():
    clips, options = tubes_of(2, 2, 3, 2, 25, 3, 0.1, seed=0)
    with pytest.raises(errors.ShapeError, match="tube_mask: ids"):
        tube_mask(clips, **options)
    with pytest.raises(errors.ShapeError, match="tube_mask: ids"):
        tube_mask(clips, **options, ids=torch.arange(3))


def test_a_missing_joint_does_not_move(impl):
    """Joint 2 is missing in every other frame, 300 from the origin where it is seen; joint 0 moves a little."""
    clips = torch.full((1, 8, 4, 3), 300.0)
    clips[0, ::2, 2] = 0.0
    clips[0, ::2, 0] += 1.0
    visible, _ = tube_mask(
        clips,
        segment_frames=4,
        tube_len=2,
        keep=3,
        motion_weight=1.0,
        noise=torch.zeros(1, 1, 4),
        impl=impl,
    )
    assert visible[0].tolist() == [1, 2, 3, 5, 6, 7]
