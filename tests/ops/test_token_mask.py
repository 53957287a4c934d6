import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast import errors
from s2vfast.ops import token_mask
from s2vfast.reference import philox
from s2vfast.reference.token_mask import KINDS, draws
from s2vfast.reference.token_mask import token_mask as reference

PARTS = [[0, 1, 2], [3, 4], [5, 6]]


def clips_of(N, T, V, C=3, seed=0, dtype=torch.float32):
    return torch.randn(N, T, V, C, generator=torch.Generator().manual_seed(seed)).to(dtype).cumsum(1) * 0.05


def members(parts, V):
    table = torch.zeros(len(parts), V, dtype=torch.bool)
    for number, joints in enumerate(parts):
        table[number, joints] = True
    return table


OPTIONS = {
    "random": {"kind": "random", "keep": 9},
    "motion_token": {"kind": "motion_token", "keep": 9},
    "joints": {"kind": "frame_joint", "keep": 3, "whole_segments": 2},
    "parts": {
        "kind": "frame_joint",
        "keep": 2,
        "whole_segments": 1,
        "per_segment": True,
        "parts": members(PARTS, 8),
        "masked_parts": 2,
    },
}


@st.composite
def cases(draw, kinds=KINDS):
    """(clips, options) of any size, with any body parts."""
    N, S, s, V = draw(st.integers(0, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(2, 12))
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 2**63 - 1))
    options = {
        "kind": kind,
        "segment_frames": s,
        "seed": seed,
        "epoch": draw(st.integers(0, 9)),
        "ids": torch.arange(N),
    }
    if kind == "frame_joint":
        options |= {"whole_segments": draw(st.integers(0, S - 1)), "per_segment": draw(st.booleans())}
        P = draw(st.integers(0, 4))
        of = [draw(st.integers(-1, P - 1)) for _ in range(V)]  # the part of each joint; -1: none
        parts = [[joint for joint in range(V) if of[joint] == part] for part in range(P)]
        sizes = sorted(map(len, parts), reverse=True)
        masked = draw(st.integers(0, P))
        while masked and V - sum(sizes[:masked]) < 1:
            masked -= 1
        if masked:
            options |= {"parts": members(parts, V), "masked_parts": masked}
        options["keep"] = draw(st.integers(1, V - sum(sizes[:masked])))
    else:
        options["keep"] = draw(st.integers(1, S * V))
        options["tau"] = draw(st.floats(0.05, 5))
    return clips_of(N, S * s, V, seed=seed % 1000), options


@settings(max_examples=150, deadline=None)
@given(cases())
def test_laws(case):
    """Exact counts, a permutation of the tokens, ascending; segments and body parts whole."""
    clips, options = case
    N, T, V, _ = clips.shape
    S, keep = T // options["segment_frames"], options["keep"]
    whole = options.get("whole_segments", 0)
    K = (S - whole) * keep if options["kind"] == "frame_joint" else keep
    visible, masked = token_mask(clips, **options)
    assert visible.shape == (N, K)
    assert masked.shape == (N, S * V - K)
    assert visible.dtype == masked.dtype == torch.int32
    both = torch.cat([visible, masked], 1).sort(1).values
    assert torch.equal(both, torch.arange(S * V, dtype=torch.int32).expand(N, -1))
    assert (visible.diff(dim=1) > 0).all()
    assert (masked.diff(dim=1) > 0).all()
    if options["kind"] != "frame_joint":
        return
    seen = torch.zeros(N, S * V, dtype=torch.bool).scatter_(1, visible.long(), True).reshape(N, S, V)
    counts = seen.sum(-1)
    assert ((counts == 0).sum(-1) == whole).all(), "segments masked whole"
    assert (counts[counts > 0] == keep).all(), "joints of the others"
    for track in range(N):
        shown = seen[track][counts[track] > 0]  # [S - whole, V]
        if not options["per_segment"]:
            assert (shown == shown[:1]).all()
        for segment in shown:
            hidden = sum(not (segment & part).any() for part in options.get("parts", []))
            assert hidden >= options.get("masked_parts", 0), "body parts masked whole"


@settings(max_examples=15, deadline=None)
@given(cases())
def test_the_kernel_is_bit_equal(case):
    clips, options = case
    expected = reference(clips, **options)
    found = token_mask(clips, **options, impl="triton")
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("seed", [0, 2**64 - 5])
def test_drawn_bit_equal(name, seed, impl):
    clips, ids = clips_of(4, 10, 8), philox.track_ids(torch.arange(2) + 2**31, 2, mask=3)
    draw = {"segment_frames": 2, "seed": seed, "epoch": 2**32 - 1, "ids": ids}
    expected, found = reference(clips, **OPTIONS[name], **draw), token_mask(clips, **OPTIONS[name], **draw, impl=impl)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_mask_depends_on_its_own_track_alone(name, impl):
    """Any split of a batch, any order, gives every track the same mask; seed, epoch and id change it."""
    clips, ids = clips_of(6, 12, 8), philox.track_ids(torch.arange(3) + 7, 2, mask=1)
    options = OPTIONS[name] | {"segment_frames": 2, "impl": impl}
    whole = token_mask(clips, **options, seed=5, epoch=2, ids=ids)[0]
    for some in ([0, 1], [2, 3, 4, 5], [5, 0, 3]):
        part = token_mask(clips[some], **options, seed=5, epoch=2, ids=ids[some])[0]
        assert torch.equal(part, whole[some])
    for other in ({"seed": 6, "epoch": 2}, {"seed": 5, "epoch": 3}, {"seed": 5, "epoch": 2, "ids": ids + (1 << 40)}):
        assert not torch.equal(token_mask(clips, **options, **({"ids": ids} | other))[0], whole)
    assert len({tuple(row) for row in whole.tolist()}) > 1


def test_numpy_oracle_of_motion(impl):
    """MAMP's rule once more, in numpy and float64."""
    N, S, s, V, keep, tau = 5, 4, 3, 6, 7, 0.8
    clips, rng = clips_of(N, S * s, V, seed=4, dtype=torch.float64), np.random.default_rng(0)
    u = rng.random((N, S * V))
    x = clips.numpy().reshape(N, S, s, V, 3)
    intensity = np.empty((N, S, V))
    intensity[:, 1:] = np.abs(x[:, 1:] - x[:, :-1]).mean(axis=(2, 4))
    intensity[:, 0] = intensity[:, 1]
    flat = intensity.reshape(N, -1)
    logits = flat / (flat.max(1, keepdims=True) * tau + 1e-10)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    score = np.log(probability) - np.log(-np.log(u + 1e-10) + 1e-10)
    visible, _ = token_mask(
        clips, kind="motion_token", segment_frames=s, keep=keep, tau=tau, noise=torch.from_numpy(u), impl=impl
    )
    assert visible.tolist() == np.sort(np.argsort(score, 1)[:, :keep], 1).tolist()


def test_numpy_oracle_of_segments_and_parts(impl):
    N, S, V = 6, 5, 8
    noise = np.random.default_rng(1).random((N, S + S * (len(PARTS) + V))).astype(np.float32)
    before = noise.copy()
    clips = clips_of(N, S, V)
    visible, _ = token_mask(clips, **OPTIONS["parts"], segment_frames=1, noise=torch.from_numpy(noise), impl=impl)
    assert (noise == before).all()
    for n in range(N):
        hidden = np.argmin(noise[n, :S])
        expected = []
        for segment, numbers in enumerate(noise[n, S:].reshape(S, -1)):
            chosen = np.argsort(numbers[: len(PARTS)])[:2]
            masked = [joint for part in chosen for joint in PARTS[part]]
            others = [joint for joint in np.argsort(numbers[len(PARTS) :]) if joint not in masked]
            masked += others[: V - 2 - len(masked)]
            if segment != hidden:
                expected += [segment * V + joint for joint in range(V) if joint not in masked]
        assert visible[n].tolist() == expected


CHI_SQUARE = {14: 36.12, 5: 20.52, 9: 27.88}
"""The value that 1 of 1000 draws exceeds, by degrees of freedom."""


def sets_of(visible, L, K):
    """How often each set of visible tokens was drawn, in the order of itertools.combinations."""
    found = [tuple(row) for row in visible.tolist()]
    return np.array([found.count(chosen) for chosen in itertools.combinations(range(L), K)])


def chi_square(counted, probability):
    expected = counted.sum() * probability
    return float(((counted - expected) ** 2 / expected).sum())


def test_gumbel_frequencies_are_those_of_the_exact_distribution():
    """Masked tokens are drawn one after the other, without putting back, in proportion to the softmax."""
    L, K, N, tau = 6, 2, 20000, 0.8
    clips = torch.tensor([[1.0, 1.0, 1.0], [1.1, 1.5, 3.0]]).reshape(1, 2, 3, 1).repeat(1, 1, 1, 3)
    options = {"kind": "motion_token", "segment_frames": 1, "keep": K, "tau": tau}
    visible, _ = token_mask(clips.expand(N, -1, -1, -1), **options, seed=11, ids=torch.arange(N))
    weight = np.exp(np.array([0.1, 0.5, 2.0, 0.1, 0.5, 2.0]) / (2.0 * tau))
    probability = weight / weight.sum()
    exact = []
    for chosen in itertools.combinations(range(L), K):
        masked = [token for token in range(L) if token not in chosen]
        total = 0.0
        for order in itertools.permutations(masked):
            left, one = 1.0, 1.0
            for token in order:
                one *= probability[token] / left
                left -= probability[token]
            total += one
        exact.append(total)
    exact = np.array(exact)
    assert exact.sum() == pytest.approx(1.0)
    assert chi_square(sets_of(visible, L, K), exact) < CHI_SQUARE[14]
    assert chi_square(sets_of(visible, L, K), np.full(15, 1 / 15)) > 10 * CHI_SQUARE[14], "not uniform"


def test_other_kinds_choose_evenly():
    ids = torch.arange(5000)
    clips = clips_of(1, 2, 3).expand(5000, -1, -1, -1)
    visible, _ = token_mask(clips, kind="random", segment_frames=1, keep=2, seed=3, ids=ids)
    assert chi_square(sets_of(visible, 6, 2), np.full(15, 1 / 15)) < CHI_SQUARE[14]
    clips = clips_of(1, 4, 5).expand(5000, -1, -1, -1)
    visible, _ = token_mask(clips, kind="frame_joint", segment_frames=1, keep=3, whole_segments=2, seed=3, ids=ids)
    segments = visible.reshape(5000, 2, 3)[..., 0] // 5  # those that are seen
    assert chi_square(sets_of(segments, 4, 2), np.full(6, 1 / 6)) < CHI_SQUARE[5]
    assert chi_square(sets_of(visible[:, :3] % 5, 5, 3), np.full(10, 1 / 10)) < CHI_SQUARE[9]


def test_moving_tokens_are_masked_more_often(impl):
    clips = torch.zeros(400, 4, 10, 3)
    clips[:, :, 0, 0] = 1.0 + torch.arange(4) * 0.1
    options = {"segment_frames": 1, "keep": 20, "seed": 1, "ids": torch.arange(400), "impl": impl}
    still = token_mask(clips, kind="random", **options)[0]
    moving = token_mask(clips, kind="motion_token", tau=0.2, **options)[0]
    assert abs(int((still % 10 == 0).sum()) - 800) < 80
    assert (moving % 10 == 0).sum() < 80


def test_a_missing_joint_does_not_move(impl):
    """Joint 2 is missing in every other frame, 300 from the origin where it is seen; joint 0 moves a little."""
    clips = torch.full((1, 4, 3, 3), 300.0)
    clips[0, ::2, 2] = 0.0
    clips[0, ::2, 0] += 1.0
    options = {"kind": "motion_token", "segment_frames": 1, "keep": 8, "noise": torch.full((1, 12), 0.5)}
    _, masked = token_mask(clips, **options, impl=impl)
    assert masked[0].tolist() == [0, 3, 6, 9]


def test_one_segment_has_no_motion(impl):
    clips, ids = clips_of(3, 4, 6), torch.arange(3)
    visible, _ = token_mask(clips, kind="motion_token", segment_frames=4, keep=2, ids=ids, impl=impl)
    still, _ = token_mask(torch.zeros_like(clips), kind="motion_token", segment_frames=4, keep=2, ids=ids, impl=impl)
    assert torch.equal(visible, still)


@pytest.mark.parametrize("name", OPTIONS)
def test_not_contiguous(name, impl):
    clips, ids = clips_of(3, 12, 8), torch.arange(3)
    wide = torch.cat([clips, torch.full_like(clips, torch.nan)], -1)
    options = OPTIONS[name] | {"segment_frames": 2, "ids": ids}
    found = token_mask(wide[..., :3], **options, impl=impl)
    assert torch.equal(found[0], reference(clips, **options)[0])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kind": "tube"}, "kind"),
        ({"keep": 0}, "keep"),
        ({"keep": 9}, "keep"),
        ({"segment_frames": 5}, "clips"),
        ({"segment_frames": 0}, "segment_frames"),
        ({"whole_segments": 6}, "whole_segments"),
        ({"masked_parts": 4}, "masked_parts"),
        ({"parts": members(PARTS, 9)}, "parts"),
        ({"tau": 0.0}, "tau"),
        ({"ids": torch.arange(3)}, "ids"),
        ({"noise": torch.zeros(2, 3)}, "noise"),
    ],
)
def test_refuses_by_name(change, name):
    options = OPTIONS["parts"] | {"segment_frames": 2, "ids": torch.arange(2)}
    token_mask(clips_of(2, 12, 8), **options)
    with pytest.raises(errors.ShapeError, match=f"token_mask: {name}"):
        token_mask(clips_of(2, 12, 8), **options | change)


def test_draws_are_counted():
    assert draws("random", 4, 5) == draws("motion_token", 4, 5) == 20
    assert draws("frame_joint", 4, 5) == 9
    assert draws("frame_joint", 4, 5, per_segment=True, parts=3) == 4 + 4 * 8
