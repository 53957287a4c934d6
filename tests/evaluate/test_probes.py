"""The fast probe and retrieval against scikit-learn, and the laws of the lists of labels."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

import s2vfast.errors as errors
from s2vfast.evaluate import probe, retrieval, subsets


def _blobs(n=200, m=80, features=12, classes=5, spread=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n + m,), generator=generator)
    x = centers[labels] + spread * torch.randn(n + m, features, generator=generator, dtype=torch.float64) + 3.0
    x *= torch.linspace(0.1, 10, features, dtype=torch.float64)
    return x[:n], labels[:n], x[n:], labels[n:]


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_regression_is_sklearns(penalty):
    x, y, test, _ = _blobs()
    found = probe.fit(x, y, classes=5, penalties=[penalty])
    scaler = StandardScaler().fit(x.numpy())
    reference = LogisticRegression(C=1 / (len(x) * penalty), max_iter=5000, tol=1e-10)
    reference.fit(scaler.transform(x.numpy()), y.numpy())
    # Logits are free up to a number a row, which both choose so that weights sum to nothing over classes.
    expected = torch.from_numpy(reference.decision_function(scaler.transform(test.numpy())))
    scores = found.scores(test)
    difference = (scores - scores.mean(1, keepdim=True)) - (expected - expected.mean(1, keepdim=True))
    assert difference.abs().max() < 3e-3
    assert found.validation is None
    assert found.penalty == penalty


def test_the_penalty_is_the_best_on_the_validation_share():
    x, y, _, _ = _blobs(n=150, spread=3.0)
    found = probe.fit(x, y, classes=5)
    held = probe.validation_rows(y).numpy()
    scaler = StandardScaler().fit(x.numpy()[~held])
    accuracies = {}
    for penalty in probe.PENALTIES:
        model = LogisticRegression(C=1 / ((~held).sum() * penalty), max_iter=5000, tol=1e-8)
        model.fit(scaler.transform(x.numpy()[~held]), y.numpy()[~held])
        accuracies[penalty] = 100 * model.score(scaler.transform(x.numpy()[held]), y.numpy()[held])
    assert found.validation == pytest.approx(max(accuracies.values()))
    assert found.penalty == max(p for p, a in accuracies.items() if a == max(accuracies.values()))
    assert len(set(accuracies.values())) > 1  # the test would see a wrong choice


def test_the_validation_share_leaves_every_class_something_to_fit():
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2, 2, 2])
    held = probe.validation_rows(labels)
    assert held.tolist() == [False, False, True, False, True, False, False, False, False, True]
    single = probe.fit(torch.randn(3, 4), torch.arange(3), classes=3)
    assert single.validation is None
    assert single.scores(torch.randn(2, 4)).isfinite().all()


def test_a_constant_weighs_nothing_in_spite_of_rounding():
    x, y, test, _ = _blobs(n=1000, m=40)
    x, test = x.float(), test.float()
    x[:, 3] = test[:, 3] = 0.1
    found = probe.fit(x, y, classes=5, penalties=[1e-3])
    assert found.deviation[3] == 1
    assert found.weight[:, 3].abs().max() < 1e-6


def test_probe_refuses():
    with pytest.raises(errors.DataError, match="2 or more"):
        probe.fit(torch.randn(1, 4), torch.zeros(1, dtype=torch.int64), classes=3)
    with pytest.raises(errors.ConfigError, match="penalties"):
        probe.fit(torch.randn(4, 4), torch.arange(4), classes=4, penalties=[0.0])


@pytest.mark.parametrize("chunk_entries", [1 << 20, 300])
def test_map_is_sklearns(chunk_entries):
    gallery, labels, queries, wanted = _blobs()
    gallery[7] = gallery[3] * 2.0  # equally similar to everything, and maybe of another class
    found = retrieval.retrieve(gallery, labels, queries, wanted, chunk_entries=chunk_entries)
    unit = torch.nn.functional.normalize
    similarity = (unit(queries, dim=1) @ unit(gallery, dim=1).T).numpy()
    truth = wanted.numpy()[:, None] == labels.numpy()
    expected = [average_precision_score(t, s) for t, s in zip(truth, similarity, strict=True)]
    assert found["map"] == pytest.approx(100 * np.mean(expected), abs=1e-9)
    order = np.argsort(-similarity, axis=1, kind="stable")
    for k in (1, 5, 10):
        hits = np.take_along_axis(truth, order[:, :k], axis=1).any(axis=1)
        assert found[f"recall@{k}"] == pytest.approx(100 * hits.mean())


def test_leave_one_out_never_finds_itself():
    x, y, _, _ = _blobs(n=60)
    found = retrieval.retrieve(x, y, x, y, leave_one_out=True, chunk_entries=500)
    unit = torch.nn.functional.normalize(x, dim=1)
    similarity, expected, first = (unit @ unit.T).numpy(), [], []
    for i in range(60):
        others = np.delete(np.arange(60), i)
        truth = y.numpy()[others] == int(y[i])
        expected.append(average_precision_score(truth, similarity[i, others]))
        first.append(truth[np.argmax(similarity[i, others])])
    assert found["map"] == pytest.approx(100 * np.mean(expected), abs=1e-9)
    assert found["recall@1"] == pytest.approx(100 * np.mean(first))


def test_a_class_that_the_gallery_lacks_is_left_out():
    x, y = torch.eye(4), torch.tensor([0, 0, 1, 1])
    found = retrieval.retrieve(x, y, x[:3], torch.tensor([0, 5, 1]))
    assert (found["queries"], found["left_out"]) == (2, 1)
    assert found["recall@1"] == 100.0
    alone = retrieval.retrieve(x[:3], y[:3], x[:3], y[:3], leave_one_out=True)
    assert (alone["queries"], alone["left_out"]) == (2, 1)


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, percent=st.sampled_from([1, 2.5, 5, 10, 20, 50, 100]), number=st.integers(0, 3), data=st.data())
def test_laws_of_a_list(labels, percent, number, data):
    names = [f"n{i}" for i in range(len(labels))]
    chosen = subsets.choose(names, labels, percent, 3, number)
    assert chosen == sorted(set(chosen))
    for label in set(labels):
        total = labels.count(label)
        assert sum(labels[i] == label for i in chosen) == max(1, int(percent * total / 100 + 0.5))
    # Names decide, whatever their order; a larger share holds a smaller one.
    order = data.draw(st.permutations(range(len(labels))))
    shuffled = subsets.choose([names[i] for i in order], [labels[i] for i in order], percent, 3, number)
    assert {names[order[i]] for i in shuffled} == {names[i] for i in chosen}
    assert set(chosen) <= set(subsets.choose(names, labels, min(100, 2 * percent), 3, number))


def test_halves_are_rounded_up():
    assert [subsets.subset_size(n, 10) for n in (1, 4, 5, 14, 15, 25, 100)] == [1, 1, 1, 1, 2, 3, 10]
    assert subsets.subset_size(3, 100) == 3
    assert subsets.subset_size(1000, 0.25) == 3  # 2.5


def test_lists_differ_by_number_and_seed():
    names, labels = [f"n{i}" for i in range(200)], [i % 4 for i in range(200)]
    lists = {tuple(subsets.choose(names, labels, 10, seed, number)) for seed in (0, 1) for number in range(5)}
    assert len(lists) == 10
    drawn = [subsets.choose(names, labels, 10, 0, number) for number in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=200)
    assert abs(counts - 40).max() < 30  # five standard deviations: everyone is drawn as often


def test_lists_are_the_same_for_ever():
    """What somebody published results with stays."""
    names, labels = [f"S{i:03d}" for i in range(300)], [i * i % 7 for i in range(300)]
    lists = [[names[i] for i in subsets.choose(names, labels, p, 0, n)] for p in (1, 5, 10, 20) for n in range(5)]
    assert lists[0] == EXPECTED_FIRST
    assert hashlib.sha256(json.dumps(lists).encode()).hexdigest() == EXPECTED_HASH


EXPECTED_FIRST = ["S013", "S128", "S231", "S277"]
EXPECTED_HASH = "d9223116cb9149c632faad453e4f7a4a5dc00e4d14d88711ade10390909d0382"


def test_impossible_shares():
    for percent in (0, -1, 101, float("nan")):
        with pytest.raises(errors.ConfigError, match="percent"):
            subsets.choose(["a"], [0], percent)
