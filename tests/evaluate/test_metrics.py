"""Accuracies against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from s2vfast.evaluate import measures, metrics


def _scores(n=200, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    scores = torch.randn(n, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return scores, labels


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_sklearns(k):
    scores, labels = _scores()
    expected = 100.0 * sk.top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=np.arange(7))
    assert metrics.top_k(metrics.rank_scores(scores), labels, k) == pytest.approx(expected, abs=1e-9)


def test_confusion_and_per_class_are_sklearns():
    scores, labels = _scores()
    predicted = metrics.rank_scores(scores)[:, 0]
    confusion = metrics.confusion_matrix(predicted, labels, 7)
    np.testing.assert_array_equal(confusion.numpy(), sk.confusion_matrix(labels.numpy(), predicted.numpy()))
    recall = sk.recall_score(labels.numpy(), predicted.numpy(), average=None)
    np.testing.assert_allclose(metrics.per_class_accuracy(confusion), 100.0 * recall, rtol=1e-12)


def test_a_class_without_test_samples_has_no_accuracy():
    labels, predicted = torch.tensor([0, 0, 2]), torch.tensor([0, 1, 2])
    confusion = metrics.confusion_matrix(predicted, labels, 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert metrics.per_class_accuracy(confusion) == [50.0, None, 100.0]


def test_equal_scores_rank_the_lower_class_first():
    assert metrics.rank_scores(torch.tensor([[1.0, 3.0, 1.0, 3.0]])).tolist() == [[1, 3, 0, 2]]
    assert metrics.rank_scores(torch.zeros(1, 500)).tolist() == [list(range(500))]  # long enough for another sort


def test_fewer_ranked_classes_than_k():
    ranked, labels = torch.tensor([[1, 0, -1], [0, 1, -1]]), torch.tensor([0, 2])
    assert metrics.top_k(ranked, labels, 1) == 0.0
    assert metrics.top_k(ranked, labels, 5) == 50.0


def test_accuracies_of_classes_of_other_sizes():
    """Two of three classes are never predicted, and the third is nine tenths of the samples."""
    labels = torch.tensor([0] * 18 + [1, 2])
    ranked = torch.tensor([[0, 1, 2]] * 20)
    result = measures.scores(ranked, labels, ["a", "b", "c", "none of these"])
    assert measures.accuracies(result) == pytest.approx({"top1": 90.0, "mean_class": 100.0 / 3})
    six = measures.scores(ranked, labels, list("abcdef"))
    assert measures.accuracies(six) == pytest.approx({"top1": 90.0, "top5": 100.0, "mean_class": 100.0 / 3})
