"""A million drawn masks against their exact distribution: the reference, and what a CPU can run so often."""

import itertools

import numpy as np
import pytest
import torch

from s2vfast import ops
from s2vfast.reference.tube_mask import tube_scores

V, KEEP, TUBES, DRAWS = 5, 2, 4, 1_000_000
IMPLS = ["reference"] + [
    impl for impl in ("native",) if not ops.availability("cpu")["tube_mask"][impl]
]  # Triton's interpreter would take hours


def exact_probabilities(offsets: np.ndarray) -> dict[tuple[int, ...], float]:
    """P(these joints have the lowest u + offset), u independent and uniform: for every set of KEEP joints.

    P(A) = sum over a in A of the integral of [a is the highest of A, and all others are above it]. The integrand is a
    polynomial between the points where a distribution begins or ends, so that Gauss-Legendre is exact on each piece.
    """
    points = np.unique(np.concatenate([offsets, offsets + 1.0]))
    nodes, weights = np.polynomial.legendre.leggauss(V)
    found = dict.fromkeys(itertools.combinations(range(V), KEEP), 0.0)
    for low, high in itertools.pairwise(points):
        t = low + (high - low) * (nodes + 1) / 2
        below = np.clip(t[None] - offsets[:, None], 0.0, 1.0)  # [V, nodes]
        density = ((t[None] > offsets[:, None]) & (t[None] < offsets[:, None] + 1.0)).astype(float)
        for chosen in found:
            others = [j for j in range(V) if j not in chosen]
            above = np.prod(1.0 - below[others], axis=0)
            for last in chosen:
                rest = [j for j in chosen if j != last]
                value = density[last] * np.prod(below[rest], axis=0) * above
                found[chosen] += float((weights * value).sum() * (high - low) / 2)
    return found


def counts(impl: str, clip: torch.Tensor, weight: float) -> dict[int, dict[tuple[int, ...], int]]:
    """How often each set of joints was visible, by tube, over DRAWS masks of one clip."""
    total = {tube: dict.fromkeys(itertools.combinations(range(V), KEEP), 0) for tube in range(TUBES)}
    tracks = DRAWS // TUBES
    for first in range(0, tracks, 50_000):
        ids = torch.arange(first, first + 50_000)
        clips = clip.expand(len(ids), -1, -1, -1)
        visible, _ = ops.tube_mask(
            clips, segment_frames=1, tube_len=1, keep=KEEP, motion_weight=weight, seed=7, epoch=3, ids=ids, impl=impl
        )
        joints = (visible % V).reshape(len(ids), TUBES, KEEP)  # ascending
        code = joints[..., 0] * V + joints[..., 1]
        for tube in range(TUBES):
            for value, count in zip(*torch.unique(code[:, tube], return_counts=True), strict=True):
                total[tube][divmod(int(value), V)] += int(count)
    return total


@pytest.mark.parametrize("weight", [0.0, 0.6])
@pytest.mark.parametrize("impl", IMPLS)
def test_a_million_masks_have_the_exact_distribution(impl, weight):
    stats = pytest.importorskip("scipy.stats")
    clip = torch.randn(1, TUBES, V, 3, generator=torch.Generator().manual_seed(5))
    zero = torch.zeros(1, TUBES, V)
    offsets = tube_scores(clip, segment_frames=1, tube_len=1, motion_weight=weight, noise=zero)[0].double().numpy()
    drawn = counts(impl, clip, weight)
    for tube in range(TUBES):
        probability = exact_probabilities(offsets[tube])
        assert sum(probability.values()) == pytest.approx(1.0)
        seen = np.array([drawn[tube][chosen] for chosen in probability])
        expected = np.array(list(probability.values())) * DRAWS / TUBES
        assert seen.sum() == DRAWS // TUBES
        # The draws are fixed by the seed, so this either always holds or never.
        assert stats.chisquare(seen, expected).pvalue > 1e-3, (tube, seen, expected)


def test_a_wrong_distribution_is_noticed():
    stats = pytest.importorskip("scipy.stats")
    clip = torch.randn(1, TUBES, V, 3, generator=torch.Generator().manual_seed(5))
    drawn = counts(IMPLS[-1], clip, 0.6)
    uniform = np.full(10, DRAWS / TUBES / 10)
    assert stats.chisquare(np.array(list(drawn[0].values())), uniform).pvalue < 1e-6
