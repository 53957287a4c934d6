"""The linear probe against scikit-learn's logistic regression, and its corner cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import s2vfast.errors as errors
from s2vfast.evaluate import linear, metrics


def _blobs(n=600, m=400, features=32, classes=8, distance=0.45, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = distance * torch.randn(classes, features, generator=generator)
    labels = torch.randint(classes, (n + m,), generator=generator)
    x = centers[labels] + torch.randn(n + m, features, generator=generator)
    x = 0.02 * x * torch.linspace(0.1, 3, features) + 4.0  # small, unequal and off-centre, as features are
    return x[:n], labels[:n], x[n:], labels[n:]


def _accuracy(probe, test, labels):
    return metrics.top_k(metrics.rank_scores(probe.scores(test)), labels, 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_accuracy_is_near_logistic_regression(seed):
    train, labels, test, test_labels = _blobs(seed=seed)
    scaler = StandardScaler().fit(train.numpy())
    reference = LogisticRegression(max_iter=2000).fit(scaler.transform(train.numpy()), labels.numpy())
    expected = 100.0 * reference.score(scaler.transform(test.numpy()), test_labels.numpy())
    assert 60 < expected < 95  # neither hopeless nor trivial
    probe = linear.fit(train, labels, classes=8, seed=seed)
    assert _accuracy(probe, test, test_labels) == pytest.approx(expected, abs=3.0)


def test_separable_classes_are_separated():
    train, labels, test, test_labels = _blobs(distance=3.0)
    assert _accuracy(linear.fit(train, labels, classes=8), test, test_labels) == 100.0


def test_steps_are_those_of_the_recipe():
    """Two epochs by hand in float64: batch statistics, momentum, cosine by the step, running statistics, draws."""
    train, labels, test, _ = _blobs(n=7, m=5, features=3, classes=3)
    train = torch.stack([train, train + 0.03 * torch.randn(7, 3, generator=torch.Generator().manual_seed(1))])
    probe = linear.fit(train, labels, classes=3, epochs=2, batch=4, lr=0.1, weight_decay=1.0, seed=5)

    generator = torch.Generator().manual_seed(5)
    weight = torch.nn.init.trunc_normal_(torch.empty(3, 3), std=0.01, generator=generator).double().numpy()
    bias, mean, var = np.zeros(3), np.zeros(3), np.ones(3)
    speed_w, speed_b = np.zeros((3, 3)), np.zeros(3)
    step = 0
    for epoch in range(2):
        order = torch.randperm(7, generator=generator).numpy()
        for rows in (order[:4], order[4:]):
            x, onehot = train[epoch].double().numpy()[rows], np.eye(3)[labels.numpy()[rows]]
            normed = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
            mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0, ddof=1)
            logits = normed @ weight.T + bias
            soft = np.exp(logits - logits.max(1, keepdims=True))
            delta = (soft / soft.sum(1, keepdims=True) - onehot) / len(rows)
            speed_w = 0.9 * speed_w + delta.T @ normed + weight
            speed_b = 0.9 * speed_b + delta.sum(0) + bias
            lr = 0.05 * (1 + math.cos(math.pi * step / 4))
            weight, bias, step = weight - lr * speed_w, bias - lr * speed_b, step + 1
    expected = (test.double().numpy() - mean) / np.sqrt(var + 1e-6) @ weight.T + bias
    np.testing.assert_allclose(probe.scores(test).numpy(), expected, rtol=2e-3, atol=2e-4)


def test_rates_fall_at_milestones_and_a_norm_may_be_left_out():
    """One row twice, one epoch a step: SGD with momentum by hand."""
    features, labels = torch.tensor([[1.0, 2.0]]).repeat(2, 1), torch.tensor([1, 1])
    settings = {**linear.RECIPES["skeattnclr"], "epochs": 3, "lr": 0.5, "milestones": (1, 2)}
    fitted = linear.fit(features, labels, classes=2, batch=2, **settings)
    torch.testing.assert_close(fitted.scores(features), features @ fitted.weight.T + fitted.bias)
    start = torch.nn.init.trunc_normal_(torch.empty(2, 2), std=0.01, generator=torch.Generator().manual_seed(0))
    weight, bias, velocity = start.double(), torch.zeros(2).double(), 0.0
    for rate in (0.5, 0.05, 0.005):
        error = torch.softmax(weight @ features[0].double() + bias, 0) - torch.tensor([0.0, 1.0])
        velocity = 0.9 * velocity + torch.cat([torch.outer(error, features[0].double()), error[:, None]], 1)
        weight, bias = weight - rate * velocity[:, :2], bias - rate * velocity[:, 2]
    torch.testing.assert_close(fitted.weight.double(), weight, rtol=1e-5, atol=1e-6)
    adam = linear.fit(features, labels, classes=2, batch=2, **linear.RECIPES["hitrs"] | {"epochs": 1})
    assert float((adam.weight - start).abs().max()) == pytest.approx(0.01, rel=1e-3), "AdamW's first step is its rate"


def test_the_seed_decides():
    train, labels, test, _ = _blobs(n=100, m=20)
    first, again, other = (linear.fit(train, labels, classes=8, epochs=3, seed=s).scores(test) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("rows", "batch", "sizes"), [(5, 2, [2, 3]), (4, 2, [2, 2]), (3, 8, [3]), (7, 4, [4, 3])])
def test_no_batch_is_a_single_row(rows, batch, sizes):
    assert linear._batch_sizes(rows, batch) == sizes
    train, labels, test, _ = _blobs(n=rows, m=3)
    assert linear.fit(train, labels, classes=8, epochs=2, batch=batch).scores(test).isfinite().all()


def test_a_feature_that_never_changes_does_no_harm():
    train, labels, test, _ = _blobs(n=50, m=3)
    train[:, 0] = test[:, 0] = 7.0
    assert linear.fit(train, labels, classes=8, epochs=2).scores(test).isfinite().all()


def test_progress_counts_epochs():
    train, labels, _, _ = _blobs(n=10, m=1)
    seen = []
    linear.fit(train, labels, classes=8, epochs=3, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("rows", "options", "error", "match"),
    [
        (1, {}, errors.DataError, "2 or more"),
        (9, {"batch": 1}, errors.ConfigError, "^batch: 1"),
        (9, {"epochs": 0}, errors.ConfigError, "^epochs: 0"),
        (9, {"lr": 0.0}, errors.ConfigError, "^lr: 0"),
        (9, {"weight_decay": -1.0}, errors.ConfigError, "^weight_decay: -1"),
    ],
)
def test_impossible_options_are_refused(rows, options, error, match):
    train, labels, _, _ = _blobs(n=rows, m=1)
    with pytest.raises(error, match=match):
        linear.fit(train, labels, classes=8, **options)
