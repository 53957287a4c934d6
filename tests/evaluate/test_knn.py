"""kNN against scikit-learn, and the rules for ties."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from s2vfast.evaluate import knn


def _blobs(n=300, m=120, features=16, classes=9, spread=1.0, seed=0):
    """Float64: scikit-learn and we then differ by rounding far below the distance of any two neighbours."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n + m,), generator=generator)
    noise = torch.randn(n + m, features, generator=generator, dtype=torch.float64)
    x = centers[labels] + spread * noise + 0.5
    return x[:n], labels[:n], x[n:], labels[n:]


def _sklearn(train, labels, k):
    return KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute").fit(train.numpy(), labels.numpy())


@pytest.mark.parametrize("chunk_entries", [1 << 24, 1000, 1])
def test_nearest_neighbour_is_sklearns(chunk_entries):
    train, labels, test, _ = _blobs()
    ranked = knn.rank(train, labels, test, classes=9, chunk_entries=chunk_entries)
    np.testing.assert_array_equal(ranked[:, 0].numpy(), _sklearn(train, labels, 1).predict(test.numpy()))


@pytest.mark.parametrize("k", [5, 10])
def test_votes_are_sklearns_where_no_two_classes_tie(k):
    train, labels, test, _ = _blobs()
    reference = _sklearn(train, labels, k)
    votes = np.sort(np.round(k * reference.predict_proba(test.numpy())), axis=1)
    clear = votes[:, -1] > votes[:, -2]
    assert clear.sum() > 60
    ranked = knn.rank(train, labels, test, classes=9, k=k)
    np.testing.assert_array_equal(ranked[:, 0].numpy()[clear], reference.predict(test.numpy())[clear])


@pytest.mark.parametrize("k", [1, 4, 5])
def test_the_whole_ranking_against_plain_python(k):
    train, labels, test, _ = _blobs(n=60, m=40)
    distances, order = _sklearn(train, labels, 60).kneighbors(test.numpy())
    assert (np.diff(distances, axis=1) > 0).all()
    for row, ranked in zip(order, knn.rank(train, labels, test, classes=9, k=k).tolist(), strict=True):
        owners = [int(labels[i]) for i in row]
        expected = sorted(set(owners), key=lambda c, o=owners: (-o[:k].count(c), o.index(c)))
        assert ranked == expected + [-1] * (9 - len(expected))


def test_a_tie_goes_to_the_nearest():
    # Angles from the test row: 1, 2 (class 2), 3, 4 (class 0): two votes each, class 2 is nearer.
    angles = torch.tensor([4.0, 2.0, 3.0, 1.0, 50.0]).deg2rad()
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 2, 0, 2, 1])
    assert knn.rank(train, labels, torch.tensor([[1.0, 0.0]]), classes=3, k=4).tolist() == [[2, 0, 1]]


def test_equal_similarities_give_the_vote_to_the_lower_row():
    train = torch.tensor([[1.0, 0.0]] * 50)
    labels = torch.tensor([2] + [0, 1] * 24 + [0])
    assert knn.rank(train, labels, train[:1], classes=3, k=1)[0, 0] == 2
    assert knn.rank(train, labels, train[:1], classes=3, k=4).tolist() == [[0, 1, 2]]  # votes 2 (0), 1 (1), 1 (2)


def test_k_beyond_the_training_part_takes_all_of_it():
    train, labels, test, _ = _blobs(n=12, m=5)
    everything = knn.rank(train, labels, test, classes=9, k=12)
    assert torch.equal(knn.rank(train, labels, test, classes=9, k=99), everything)


def test_classes_missing_from_training_are_never_ranked():
    train, labels, test, _ = _blobs(classes=4)
    ranked = knn.rank(train, labels + 2, test, classes=8)
    assert set(ranked[:, :4].unique().tolist()) == {2, 3, 4, 5}
    assert (ranked[:, 4:] == -1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_is_known_in_spite_of_rounding(dtype):
    train = torch.full((1000, 4), 0.1, dtype=dtype)
    train[::3, 1] = torch.nextafter(train[0, 1], torch.ones((), dtype=dtype))
    train[:, 2] += 1e-4 * torch.linspace(-1, 1, 1000, dtype=dtype)
    train[:, 3] = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    mean, deviation = knn.mean_and_deviation(train)
    assert (mean.dtype, deviation.dtype) == (dtype, dtype)
    assert deviation[:2].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(deviation[2:], train[:, 2:].double().numpy().std(axis=0), rtol=1e-3)
    # The constants say nothing of a row: its length is that of the other two.
    rows = knn.normalised(train, train[:0], "standardize")[0]
    assert rows[:, :2].abs().max() < 1e-5


def test_transforms_use_the_training_statistics():
    train, labels, test, _ = _blobs()
    train, test = train * torch.linspace(0.1, 10, 16), test * torch.linspace(0.1, 10, 16)
    train[:, 3] = test[:, 3] = 7.0  # a feature that never changes
    for transform, scaler in [("center", StandardScaler(with_std=False)), ("standardize", StandardScaler())]:
        scaler.fit(train.numpy())
        moved = [torch.from_numpy(scaler.transform(part.numpy())) for part in (train, test)]
        expected = _sklearn(moved[0], labels, 1).predict(moved[1].numpy())
        ranked = knn.rank(train, labels, test, classes=9, transform=transform)
        np.testing.assert_array_equal(ranked[:, 0].numpy(), expected)
