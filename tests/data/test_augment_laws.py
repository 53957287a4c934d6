"""What every augmentation must hold to, whatever its reference says: laws of the maps, and of the draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast.data.augment import AUGMENTATIONS, Compose, ViewBatch, ViewKey, augmentation, spatial, temporal
from s2vfast.data.layout import LAYOUTS

LAYOUT = LAYOUTS["kinect_v2"]
FEW = settings(max_examples=25, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**64 - 1)
LENGTHS = st.integers(1, 40)


def clips(samples, frames=12, bodies=2, seed=0, joints=25):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(samples, bodies, frames, joints, 3)))


def key(samples, seed=1, view=0, epoch=0):
    return ViewKey(seed, epoch, torch.arange(samples), view)


def view(*steps):
    return Compose(steps, LAYOUT)


def distances(x):
    return torch.cdist(x, x)


def uniform_p(values, low, high):
    """The p-value of a Kolmogorov-Smirnov test of uniformity (Kolmogorov's limit law)."""
    ranks = np.sort((np.asarray(values, dtype=np.float64).ravel() - low) / (high - low))
    n = len(ranks)
    gap = max((np.arange(1, n + 1) / n - ranks).max(), (ranks - np.arange(n) / n).max())
    at = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * gap
    return min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * at) ** 2) for k in range(1, 101))))


def chi_square_z(counts, expected):
    """Standard deviations by which a chi-square statistic is above its mean (Wilson and Hilferty)."""
    counts, expected = np.asarray(counts, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    degrees = counts.size - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))


def test_the_tests_of_distributions_see_what_is_wrong():
    draws = np.random.default_rng(0).random(4000)
    assert uniform_p(draws, 0, 1) > 0.01 > uniform_p(draws**1.1, 0, 1)
    counts = np.bincount((draws * 6).astype(int), minlength=6)
    assert (
        abs(chi_square_z(counts, np.full(6, 4000 / 6)))
        < 3
        < chi_square_z([800, 640, 640, 640, 640, 640], [4000 / 6] * 6)
    )


@FEW
@given(seed=SEEDS, order=st.sampled_from(["xyz", "zyx", "yzx"]))
def test_rotation_preserves_distances_and_orientation(seed, order):
    x = clips(3)
    output, _ = view({"name": "rotate", "x": [-3, 3], "y": [-3, 3], "z": [-3, 3], "order": order})(x, key(3, seed))
    torch.testing.assert_close(distances(output), distances(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(output.norm(dim=-1), x.norm(dim=-1))
    triple = torch.linalg.det(x[:, :, :, :3]) / torch.linalg.det(output[:, :, :, :3])
    torch.testing.assert_close(triple, torch.ones_like(triple))


@FEW
@given(seed=SEEDS, factor=st.floats(-3, 3))
def test_shear_is_linear_and_nothing_at_zero(seed, factor):
    x, y = clips(2), clips(2, seed=1)
    shear = view({"name": "shear"})
    of_sum = shear(x + factor * y, key(2, seed))[0]
    torch.testing.assert_close(of_sum, shear(x, key(2, seed))[0] + factor * shear(y, key(2, seed))[0])
    torch.testing.assert_close(view({"name": "shear", "amplitude": 0.0})(x, key(2, seed))[0], x, rtol=0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flip_twice_is_nothing(layout):
    layout = LAYOUTS[layout]
    x = clips(2, joints=layout.num_joints)
    flip = Compose([{"name": "flip", "probability": 1.0}], layout)
    once = flip(x, key(2))[0]
    assert not torch.equal(once, x)
    assert torch.equal(flip(once, key(2))[0], x)
    left, right = layout.mirror[0]
    assert torch.equal(once[:, :, :, left, 0], -x[:, :, :, right, 0])
    assert torch.equal(once[:, :, :, left, 1:], x[:, :, :, right, 1:])
    assert all(name.replace("left", "right") == layout.joints[b] for name, b in named_pairs(layout))


def named_pairs(layout):
    return [(layout.joints[left], right) for left, right in layout.mirror]


def straight(lengths, frames=40):
    """A motion x(t) = a + b t."""
    t = torch.arange(frames, dtype=torch.float64)[None, None, :, None, None]
    start, speed = clips(len(lengths), 1), clips(len(lengths), 1, seed=1)
    return start + speed * t, start, speed


@FEW
@given(length=LENGTHS, frames=st.integers(1, 90))
def test_a_straight_motion_stays_straight(length, frames):
    x, start, speed = straight([length])
    output = temporal.resample(x, torch.tensor([0]), torch.tensor([length]), frames)
    at = ((torch.arange(frames, dtype=torch.float64) + 0.5) * length / frames - 0.5).clamp(0, length - 1)
    torch.testing.assert_close(output, start + speed * at[None, None, :, None, None], rtol=1e-9, atol=1e-9)


@FEW
@given(start=st.integers(0, 20), length=st.integers(1, 20))
def test_a_crop_covers_its_frames_and_no_other(start, length):
    t = torch.arange(40, dtype=torch.float64)[None, None, :, None, None].expand(1, 1, 40, 25, 3)
    same = temporal.resample(t, torch.tensor([start]), torch.tensor([length]), length)
    assert torch.equal(same, t[:, :, start : start + length])
    dense = temporal.resample(t, torch.tensor([start]), torch.tensor([length]), 500)
    assert dense.min() == start
    assert dense.max() == start + length - 1


@FEW
@given(seed=SEEDS, length=LENGTHS, low=st.floats(0.01, 1.0), least=st.integers(1, 64))
def test_stretches_lie_in_the_sample(seed, length, low, least):
    step = augmentation({"name": "crop_resize", "low": low, "least": least})
    lengths = torch.full((64,), length)
    start, stretch = step.stretch(key(64, seed).draws(step.stream, 2), lengths)
    assert (start >= 0).all()
    assert (start + stretch <= length).all()
    assert (stretch >= min(least, length)).all()
    assert (stretch <= length).all()
    assert (stretch >= math.floor(low * length)).all()


def test_crops_start_anywhere_alike():
    step = augmentation({"name": "crop_resize", "low": 0.5, "high": 0.5, "least": 1})
    start, stretch = step.stretch(key(6000).draws(step.stream, 2), torch.full((6000,), 20))
    assert (stretch == 10).all()
    assert chi_square_z(np.bincount(start.numpy(), minlength=11), [6000 / 11] * 11) < 3
    step = augmentation({"name": "crop_resize", "least": 1})
    _, stretch = step.stretch(key(6000).draws(step.stream, 2), torch.full((6000,), 2**40))
    assert uniform_p(stretch.numpy() / 2**40, 0.5, 1.0) > 0.01


@FEW
@given(seed=SEEDS, n=st.integers(1, 20), more=st.integers(0, 30))
def test_without_replacement_takes_nothing_twice(seed, n, more):
    subsets = temporal.without_replacement(key(16, seed).draws(29, n), torch.full((16,), n + more))
    assert (subsets.diff(dim=1) > 0).all()
    assert (subsets >= 0).all()
    assert (subsets < n + more).all()


def test_all_subsets_are_alike():
    """Each of the 10 pairs of 5 equally often."""
    subsets = temporal.without_replacement(key(8000).draws(29, 2), torch.full((8000,), 5)).numpy()
    _, counts = np.unique(subsets[:, 0] * 5 + subsets[:, 1], return_counts=True)
    assert len(counts) == 10
    assert abs(chi_square_z(counts, [800] * 10)) < 3


@FEW
@given(length=st.integers(52, 80))
def test_no_frame_comes_twice_from_one_copy(length):
    t = torch.arange(80, dtype=torch.float64)[None, None, :, None, None].expand(4, 1, 80, 25, 3)
    output, _ = view({"name": "sample_frames", "copies": 1})(t, key(4), torch.full((4,), length))
    assert (output[:, 0, :, 0, 0].diff(dim=1) > 0).all()
    assert output.max() < length


@pytest.mark.parametrize("frames", [1, 2, 52])
def test_even_frames_are_numpys(frames):
    lengths = torch.arange(1, 400)
    expected = np.stack([np.floor(np.linspace(0, n - 1, frames)) for n in range(1, 400)])
    assert np.array_equal(temporal.even_frames(lengths, frames).numpy(), expected)


def test_jitter_is_uniform_and_leaves_the_others():
    x = clips(1200, frames=1, bodies=1)
    moved = (view({"name": "jitter", "joints": 5, "amplitude": 0.3})(x, key(1200))[0] - x)[:, 0, 0]
    touched = (moved != 0).any(-1)
    assert (touched.sum(1) == 5).all()
    values = moved[touched].numpy()
    assert values.var() == pytest.approx(0.3**2 / 3, rel=0.02)
    assert uniform_p(values, -0.3, 0.3) > 0.01
    # A joint's count is hypergeometric: the spread of 25 counts is below a multinomial's, by 20 / 24.
    counts = touched.sum(0).numpy()
    assert abs(chi_square_z(counts, [240] * 25)) < 4


def entries(step, samples=3000, point=(1.0, 0.0, 0.0)):
    """The images of one point."""
    x = torch.zeros(samples, 1, 1, 25, 3, dtype=torch.float64)
    x[..., :] = torch.tensor(point)
    return view(step)(x, key(samples))[0][:, 0, 0, 0].numpy()


def test_draws_have_the_published_laws():
    sheared = entries({"name": "shear", "amplitude": 0.5})
    assert (sheared[:, 0] == 1).all()
    assert uniform_p(sheared[:, 1], -0.5, 0.5) > 0.01
    assert uniform_p(sheared[:, 2], -0.5, 0.5) > 0.01
    assert abs(np.corrcoef(sheared[:, 1], sheared[:, 2])[0, 1]) < 0.06
    assert uniform_p(entries({"name": "scale", "low": 0.5, "high": 1.5})[:, 0], 0.5, 1.5) > 0.01
    axes = entries({"name": "scale", "low": 0.5, "high": 1.5, "per_axis": True}, point=(1.0, 1.0, 1.0))
    assert np.abs(np.corrcoef(axes.T) - np.eye(3)).max() < 0.06
    turned = entries({"name": "rotate", "x": [0, 0], "y": [0, 0], "z": [-1, 2]})
    assert uniform_p(np.arctan2(turned[:, 1], turned[:, 0]), -1, 2) > 0.01
    whole = {"name": "rotate", "x": [0, 0], "y": [0, 0], "z": [-3, 3], "unit": "whole_degrees"}
    degrees = np.rad2deg(np.arctan2(*entries(whole, 7000)[:, [1, 0]].T))
    assert np.abs(degrees - degrees.round()).max() < 1e-9
    assert abs(chi_square_z(np.bincount(degrees.round().astype(int) + 3, minlength=7), [1000] * 7)) < 3
    one = {"name": "rotate", "x": [1, 1], "y": [1, 1], "z": [1, 1], "axes": "one"}
    still = (np.abs(entries(one, point=(1.0, 0.0, 0.0)) - [1, 0, 0]).max(1) < 1e-12).sum()
    assert abs(chi_square_z([still, 3000 - still], [1000, 2000])) < 3
    flipped = (entries({"name": "flip", "probability": 0.3})[:, 0] < 0).sum()
    assert abs(flipped - 900) < 3 * math.sqrt(3000 * 0.3 * 0.7)
    lost = entries({"name": "drop_axis", "probability": 0.6}, point=(1.0, 1.0, 1.0)) == 0
    assert (lost.sum(1) <= 1).all()
    assert abs(chi_square_z([*lost.sum(0), (~lost.any(1)).sum()], [600, 600, 600, 1200])) < 3


def test_swapped_blocks_have_the_published_law():
    step = augmentation({"name": "swap", "block": "sample"})
    region = step.region(key(4000).draws(step.stream, 9), 64, LAYOUT).numpy()
    joints, frames = region.any(1), region.any(2)
    assert (region == frames[:, :, None] & joints[:, None, :]).all()
    whole = np.stack([joints[:, list(part)].all(1) for part in LAYOUT.parts.values()], axis=1)
    assert (joints.sum(1) == (whole * [len(part) for part in LAYOUT.parts.values()]).sum(1)).all()
    _, counts = np.unique(whole @ (2 ** np.arange(5)), return_counts=True)
    assert len(counts) == 15  # 10 of three parts, 5 of four: each size as likely
    sizes = whole.sum(1)
    assert abs(chi_square_z([(sizes == 3).sum(), (sizes == 4).sum()], [2000, 2000])) < 3
    start, length = frames.argmax(1), frames.sum(1)
    assert (start % 4 == 0).all()
    assert (length % 4 == 0).all()
    assert abs(chi_square_z(np.bincount(length // 4, minlength=8)[4:], [1000] * 4)) < 3
    shortest = start[length == 16] // 4
    assert abs(chi_square_z(np.bincount(shortest, minlength=13), [len(shortest) / 13] * 13)) < 3


def test_donors_are_other_samples():
    x = torch.arange(6, dtype=torch.float64).reshape(6, 1, 1, 1, 1).expand(6, 1, 64, 25, 3) + 1
    shifts = []
    for seed in range(400):
        output = view({"name": "swap"})(x, key(6, seed))[0]
        donors = output.amax(dim=(1, 2, 3, 4)) + output.amin(dim=(1, 2, 3, 4)) - x[:, 0, 0, 0, 0]
        shifts.append(set(((donors - x[:, 0, 0, 0, 0]) % 6).long().tolist()))
    assert all(len(shift) == 1 for shift in shifts)  # one for the whole batch
    assert abs(chi_square_z([shifts.count({n}) for n in (1, 2, 3, 4)], [100] * 4)) < 3  # 1 … N - 2


def test_a_swap_in_the_gathered_batch_is_that_of_one_rank():
    """Steps before the swap are done rank by rank, the swap on what was gathered."""
    x, ids = clips(6, frames=64), torch.arange(6) + 40
    before, swap = view({"name": "mirror_crop"}, {"name": "shear"}), view({"name": "swap"})
    whole = view({"name": "mirror_crop"}, {"name": "shear"}, {"name": "swap"})(x, ViewKey(1, 0, ids))[0]
    gathered = torch.cat([before(x[rank::2], ViewKey(1, 0, ids[rank::2]))[0] for rank in (0, 1)])
    order = torch.tensor([0, 3, 1, 4, 2, 5])  # from rank by rank to the batch's own
    assert torch.equal(swap(gathered[order], ViewKey(1, 0, ids))[0], whole)


def test_trim_and_interpolate_have_the_published_law():
    x, _, speed = straight([40] * 500)
    output, lengths = view({"name": "trim"})(x, key(500))
    cut = 40 - lengths.numpy()
    assert cut.min() == 0
    assert cut.max() == 8
    assert abs(chi_square_z(np.bincount(cut, minlength=9), [500 / 16] + [500 / 8] * 7 + [500 / 16])) < 3
    start = ((output - x)[:, 0, 0, 0, 0] / speed[:, 0, 0, 0, 0]).round().long().numpy()
    assert (start >= 0).all()
    assert (start <= cut).all()
    assert all((output[sample, :, length:] == 0).all() for sample, length in enumerate(lengths.tolist()))
    between, _ = view({"name": "interpolate"})(x, key(500))
    ratio = ((between - x) / speed)[:, 0, :, 0, 0]
    torch.testing.assert_close(ratio[:, :-1], ratio[:, :1].expand(-1, 39))
    assert (ratio[:, -1] == 0).all()
    assert uniform_p(ratio[:, 0].numpy(), 0, 1) > 0.01


@FEW
@given(length=LENGTHS, ratio=st.integers(1, 8), seed=SEEDS)
def test_a_mirror_crop_moves_by_one_frame_at_most(length, ratio, seed):
    t = torch.arange(40, dtype=torch.float64)[None, None, :, None, None].expand(8, 1, 40, 25, 3)
    output, lengths = view({"name": "mirror_crop", "ratio": ratio})(t + 1, key(8, seed), torch.full((8,), length))
    frames = output[:, 0, :length, 0, 0] - 1
    assert (lengths == length).all()
    assert (output[:, :, length:] == 0).all()
    assert (frames.diff(dim=1).abs() <= 1).all()
    assert (frames >= 0).all()
    assert (frames < length).all()


def test_the_same_draws_in_any_batch():
    steps = [
        {"name": "crop_resize", "frames": 20, "least": 4},
        {
            "name": "one_of",
            "options": [[{"name": "scale"}, {"name": "jitter"}], [{"name": "shear"}], [{"name": "flip"}]],
        },
        {"name": "maybe", "steps": [{"name": "rotate"}, {"name": "drop_joints"}]},
        {"name": "mirror_crop"},
        {"name": "drop_axis"},
    ]
    x, ids = clips(9, frames=30), torch.arange(9) * 1000
    lengths = torch.arange(22, 31)
    output, after = view(*steps)(x, ViewKey(5, 2, ids), lengths)
    for order in ([4], [8, 0, 3], list(range(8, -1, -1))):
        again, again_after = view(*steps)(x[order], ViewKey(5, 2, ids[order]), lengths[order])
        assert torch.equal(again, output[order])
        assert torch.equal(again_after, after[order])
    for other in (ViewKey(5, 2, ids, view=1), ViewKey(5, 3, ids), ViewKey(6, 2, ids), ViewKey(5, 2, ids + 1)):
        different = view(*steps)(x, other, lengths)[0]
        assert ((different - output).abs().amax(dim=(1, 2, 3, 4)) > 1e-3).all()


def test_a_step_put_before_another_leaves_its_draws():
    x = clips(4)
    alone = view({"name": "shear"})(view({"name": "scale"})(x, key(4))[0], key(4))[0]
    assert torch.equal(view({"name": "scale"}, {"name": "shear"})(x, key(4))[0], alone)


def test_views_and_occurrences_are_independent():
    draws = [key(500, view=v).draws(18, 4, occurrence=o).double() for v in (0, 1) for o in (0, 1)]
    correlation = np.corrcoef(torch.stack([d.flatten() for d in draws]).numpy())
    assert np.abs(correlation - np.eye(4)).max() < 4 / math.sqrt(2000)


ABSENT_STAYS = [name for name in AUGMENTATIONS if name not in ("swap", "one_of", "maybe")]


@pytest.mark.parametrize("name", ABSENT_STAYS)
def test_an_absent_body_stays_all_zeros(name):
    x = clips(3, frames=70)
    x[1, 1] = 0
    output, _ = view({"name": name})(x, key(3))
    assert (output[1, 1] == 0).all()
    assert torch.isfinite(output).all()
    x[:] = 0
    output, _ = view({"name": name})(x, key(3), torch.zeros(3, dtype=torch.int64))
    assert (output == 0).all()


def test_choices_are_alike_and_whole():
    x = clips(3000, frames=1, bodies=1)
    pipeline = view({"name": "one_of", "options": [[{"name": "scale", "low": s, "high": s}] for s in (1, 2, 3)]})
    factor = (pipeline(x, key(3000))[0] / x)[:, 0, 0]
    assert (factor.amax(dim=(1, 2)) - factor.amin(dim=(1, 2)) < 1e-9).all()
    assert abs(chi_square_z(np.bincount(factor[:, 0, 0].round().long(), minlength=4)[1:], [1000] * 3)) < 3
    sometimes = view({"name": "maybe", "probability": 0.2, "steps": [{"name": "scale", "low": 2, "high": 2}]})
    assert abs((sometimes(x, key(3000))[0] != x).any(-1).any(-1).sum() - 600) < 3 * math.sqrt(3000 * 0.16)


def test_person_frame_and_min_max_do_what_they_say():
    x = clips(3, frames=5)
    output, _ = view({"name": "person_frame"})(x, key(3))
    up = output[:, :, 0, 1] - output[:, :, 0, 0]
    torch.testing.assert_close(up[..., :2], torch.zeros_like(up[..., :2]))
    assert (up[..., 2] > 0).all()
    across = output[:, :, 0, 12] - output[:, :, 0, 16]
    torch.testing.assert_close(across[..., 1], torch.zeros_like(across[..., 1]))
    assert (across[..., 0] > 0).all()
    torch.testing.assert_close(distances(output), distances(x), rtol=0, atol=1e-6)
    output, _ = view({"name": "min_max"})(x, key(3))
    torch.testing.assert_close(output.amax(dim=(1, 2, 3)), torch.ones(3, 3, dtype=torch.float64))
    torch.testing.assert_close(output.amin(dim=(1, 2, 3)), -torch.ones(3, 3, dtype=torch.float64))
    # Centring and size before it make no difference, as on NW-UCLA.
    before, _ = view({"name": "centre"}, {"name": "scale"}, {"name": "min_max"})(x, key(3))
    torch.testing.assert_close(before, output, rtol=0, atol=1e-12)


def test_shoulders_lie_along_x():
    x = clips(4, frames=3)
    x[..., 8, 2] = x[..., 4, 2] + x[..., 8, 2].abs()  # one sign of vz in a clip
    output, _ = view({"name": "align_shoulders"})(x, key(4))
    line = output[..., 8, :] - output[..., 4, :]
    assert (line[..., 2].abs() < 0.02 * line.norm(dim=-1) + 0.02).all()
    assert (line[..., 0] > 0).all()


def test_a_batch_reaches_every_step_unread():
    """On the meta device nothing can be read back: a step that waits for a number fails there."""
    steps = [{"name": name} for name in ABSENT_STAYS if name != "sample_frames"] + [{"name": "sample_frames"}]
    nested = [{"name": "one_of", "options": [[{"name": "flip"}], [{"name": "scale"}]]}, {"name": "swap"}]
    pipeline = view(*steps, *nested)
    x = torch.empty(5, 2, 30, 25, 3, device="meta")
    output, lengths = pipeline(x, ViewKey(1, 0, torch.empty(5, dtype=torch.int64, device="meta")))
    assert output.shape == (5, 2, 52, 25, 3)
    assert lengths.shape == (5,)
    assert pipeline.frames_out(30) == 52


def test_empty_batches():
    for name in (*ABSENT_STAYS, "swap"):
        output, lengths = view({"name": name})(torch.zeros(0, 2, 30, 25, 3), key(0))
        assert output.shape[0] == 0 == lengths.shape[0]


def test_a_body_is_present_unless_all_zeros():
    x = clips(1, frames=2)
    x[0, 0, 0, 1:] = 0  # one joint is enough
    x[0, 1, 1] = 0
    present = ViewBatch(x, torch.tensor([2]), LAYOUT, key(1)).present
    assert present.flatten().tolist() == [True, True, True, False]
    assert spatial.mirror_order(LAYOUT)[4] == 8
