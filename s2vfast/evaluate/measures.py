"""Measures of features: linear probes, nearest neighbours, retrieval; each takes an `EvalContext`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s2vfast.evaluate import knn, linear, metrics, probe, retrieval, ridge
from s2vfast.evaluate.context import EvalContext

DETAILS = ("confusion", "predicted")
"""What is large in a result: it goes into files, and is printed where it is asked for."""


def scores(ranked: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The accuracies, ``per_class`` in per cent, and `DETAILS`: ``confusion`` (rows are true classes), ``predicted``.

    ``mean_class`` is the mean of ``per_class`` over the classes that have a test sample. ``predicted`` is a list a seed
    of the class predicted for each sequence, in the order of the part.

    Args:
        ranked: int64 [n, classes], the best class first.
        labels: int64 [n].
        classes: names.
    """
    matrix = metrics.confusion_matrix(ranked[:, 0], labels, len(classes))
    per_class = metrics.per_class_accuracy(matrix)
    return {
        "top1": metrics.top_k(ranked, labels, 1),
        **({"top5": metrics.top_k(ranked, labels, 5)} if len(classes) > 5 else {}),
        "mean_class": statistics.fmean(value for value in per_class if value is not None),
        "per_class": dict(zip(classes, per_class, strict=True)),
        "confusion": matrix.tolist(),
        "predicted": [ranked[:, 0].tolist()],
    }


def without_details(result: dict[str, Any]) -> dict[str, Any]:
    """A result without `DETAILS`, nor those of the results in it."""
    return {
        name: without_details(value) if isinstance(value, dict) else value
        for name, value in result.items()
        if name not in DETAILS
    }


def accuracies(result: dict[str, Any]) -> dict[str, float]:
    """Those that a result has."""
    return {name: result[name] for name in metrics.ACCURACIES if name in result}


def aggregate(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Several results of `scores` as one: means, sample standard deviations, confusions added, all predictions."""
    if len(results) == 1:
        return results[0]
    result: dict[str, Any] = {}
    for name in accuracies(results[0]):
        values = [one[name] for one in results]
        result |= {name: statistics.fmean(values), f"{name}_std": statistics.stdev(values), f"{name}_each": values}
    classes = results[0]["per_class"]
    result["per_class"] = {
        name: None if value is None else statistics.fmean(one["per_class"][name] for one in results)
        for name, value in classes.items()
    }
    confusion = torch.tensor([one["confusion"] for one in results]).sum(dim=0).tolist()
    return result | {"confusion": confusion, "predicted": [seed for one in results for seed in one["predicted"]]}


def drawn_features(context: EvalContext, part: int, draws: int) -> Tensor:
    """[1 + draws, n, F] of a part: of the deterministic clips, and of drawn ones as pretraining makes them."""
    name = context.parts[part]
    drawn = [context.features(part, draw, f"features of {name}, draw {draw + 1} of {draws}") for draw in range(draws)]
    return torch.stack([context.features(part), *drawn])


def linear_probe(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    context: EvalContext,
    *,
    seeds: Sequence[int],
    **settings: Any,
) -> dict[str, Any]:
    """The published linear probe, mean over seeds of its weights and order.

    ``train`` is [n, F] or [A, n, F], ``test`` [m, F].
    """
    results, report = [], context.progress
    for seed in seeds:
        fitted = linear.fit(
            train,
            labels,
            classes=context.classes,
            seed=seed,
            progress=None if report is None else lambda done, of: report("linear probe", done, of),
            **settings,
        )
        results.append(scores(metrics.rank_scores(fitted.scores(test)), test_labels, context.store.classes))
    return aggregate(results)


def fast_probe(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, context: EvalContext
) -> dict[str, Any]:
    """The probe by L-BFGS; ``train`` is [n, F]."""
    fitted = probe.fit(train, labels, classes=context.classes)
    result = scores(metrics.rank_scores(fitted.scores(test)), test_labels, context.store.classes)
    return result | {"penalty": fitted.penalty, "validation": fitted.validation}


def ridge_probe(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, context: EvalContext
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ridge regression fitted to all copies of the training sequences, [A, n, F].

    Returns:
        Its scores of the first of the copies of the test sequences, ``test`` [A', m, F], and those of the mean of the
        scores of all copies.
    """
    fitted = ridge.fit(train, labels, classes=context.classes)
    about = {"penalty": fitted.penalty, "validation": fitted.validation, "copies": len(train) - 1}
    logits = fitted.scores(test)  # [A', m, classes]
    single, mean = (
        scores(metrics.rank_scores(part), test_labels, context.store.classes) for part in (logits[0], logits.mean(0))
    )
    return single | about, mean | {"clips": len(test)}


def neighbours(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, context: EvalContext, *, k: int, transform: str
) -> dict[str, Any]:
    """kNN with k voters, and with one; ``train`` is [n, F]."""
    result: dict[str, Any] = {}
    by_k = {}
    for voters in dict.fromkeys((1, k)):
        ranked = knn.rank(train, labels, test, classes=context.classes, k=voters, transform=transform)
        result = scores(ranked, test_labels, context.store.classes)
        by_k[str(voters)] = accuracies(result)
    return result | {"by_k": by_k}


def retrieval_scores(context: EvalContext) -> dict[str, Any]:
    """Test against test, without the query itself, and test against train; of several clips each also by itself."""
    (train, test), (train_labels, test_labels) = (context.features(0), context.features(1)), context.labels
    own = retrieval.retrieve(test, test_labels, test, test_labels, leave_one_out=True)
    result = {"test_to_test": own, "test_to_train": retrieval.retrieve(train, train_labels, test, test_labels)}
    if context.windows > 1:
        clips = [(context.clip_features(part).flatten(0, 1), context.labels[part]) for part in range(2)]
        sides = [(rows, labels.repeat_interleave(context.windows)) for rows, labels in clips]
        result["clip_to_clip"] = retrieval.retrieve(*sides[0], *sides[1])
    return result
