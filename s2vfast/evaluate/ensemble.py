"""Runs that name classes together: a weighted sum of their scores, as published for streams of the same recordings.

Joints, bones and their motions are learned by a run each. Runs that have classes are measured as they are; of others
linear probes are fitted. Weights are given, or chosen on the part that is fitted; the part that is measured is never
looked at for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast import errors
from s2vfast.data.store import Store
from s2vfast.evaluate import (
    finetune,
    finetune_protocols,
    linear,
    measures,
    metrics,
    probe,
    protocols,
    ridge,
    runs,
    table,
)
from s2vfast.evaluate.checks import check_choice
from s2vfast.evaluate.context import EvalContext

Scores = Literal["log_softmax", "softmax"]
PROTOCOLS = ("classify", "linear")
"""Those whose scores can be added."""
SCORES: tuple[str, ...] = ("log_softmax", "softmax")
_CANDIDATES = tuple(i / 10 for i in range(16))
"""Weights that are tried."""


def evaluate_ensemble(
    run_dirs: Sequence[str | Path],
    store_path: str | Path,
    split: str | None = None,
    protocol: str = "classify",
    *,
    weights: Sequence[float] | None = None,
    scores: Scores = "log_softmax",
    **options: Any,
) -> dict[str, Any]:
    """Measure several runs, each by itself and all together.

    Args:
        run_dirs: their folders, two or more, trained on the store and the split.
        store_path: the store.
        split: of the store; None: the first run's.
        protocol: "classify": runs that have classes; "linear": a linear classifier of each run's features, the first
            that `protocols.Options.linear` names.
        weights: one a run, 0 or more. None: of "linear" equal ones; of "classify" chosen on the part that is fitted,
            see `fitted_weights`. Where runs have learned that part, such weights say little: name a part that they
            have not.
        scores: what of a run is added.
        options: as of `protocols.evaluate`.

    Returns:
        Plain values for JSON: accuracies, ``per_class`` and ``confusion`` of the ensemble; ``weights``,
        ``weights_from`` (``given``, ``equal`` or ``folds``), ``folds`` (of those that were chosen: weights and accuracy
        on the fold, which they were not chosen on); ``runs``: of each ``run``, ``network``, ``stream``, ``weight`` and
        accuracies; ``table``, rows as `s2vfast.evaluate.table.rows` makes them; of "linear" which classifier, and how
        features were read.

    Raises:
        S2vfastError: a run, store, split or option that cannot be used.
    """
    check_choice("scores", scores, SCORES)
    check_choice("protocol", protocol, PROTOCOLS)
    if len(run_dirs) < 2:
        raise errors.ConfigError(f"--ensemble: {len(run_dirs)} run(s); two or more are expected")
    if weights is not None and (len(weights) != len(run_dirs) or min(weights) < 0 or not any(weights)):
        numbers = ",".join(f"{weight:g}" for weight in weights)
        raise errors.ConfigError(
            f"--weights: {numbers}; {len(run_dirs)} numbers of 0 or more, not all 0, are expected, one a run"
        )
    began = time.perf_counter()
    weights_from = "given"
    if weights is None:
        weights_from = "folds" if protocol == "classify" else "equal"
    split = split or runs.read(run_dirs[0])[0].data.split
    fingerprint = Store.open(store_path).fingerprint
    test_scores, fit_scores, about = [], [], []
    for run in run_dirs:
        if protocol == "classify":
            _check(run, store_path, fingerprint, split)
        context, how = protocols.opened(run, store_path, split, [protocol], options)
        of_parts = _logits(context, protocol, how, parts=(0, 1) if weights_from == "folds" else (1,))
        *fit, test = (getattr(F, scores)(logits.double(), dim=1) for logits in of_parts)
        fit_scores += fit
        test_scores.append(test)
        labels = tuple(part.cpu() for part in context.labels)
        single = measures.scores(metrics.rank_scores(test), labels[1], context.store.classes)
        data, model = context.config.data, context.config.model
        about.append(
            {
                "run": str(run),
                "network": model.name,
                "stream": " + ".join(getattr(model, "streams", (data.stream,))),
                "k": getattr(model, "k", None),
            }
            | measures.accuracies(single)
        )
    chosen_folds: list[dict[str, Any]] = []
    numbers = [1.0] * len(run_dirs) if weights is None else list(weights)
    if weights_from == "folds":
        numbers, chosen_folds = fitted_weights(torch.stack(fit_scores), labels[0])
    total = _mixed(torch.stack(test_scores), numbers)
    result = measures.scores(metrics.rank_scores(total), labels[1], context.store.classes)
    for one, weight in zip(about, numbers, strict=True):
        one["weight"] = weight
    return {
        "protocol": f"ensemble of {protocol}",
        **result,
        **(_read(context, how) if protocol == "linear" else {}),
        "weights": numbers,
        "weights_from": weights_from,
        "folds": chosen_folds,
        "scores": scores,
        "runs": about,
        "table": _rows(about, result),
        "split": split,
        "train_part": context.parts[0],
        "test_part": context.parts[1],
        "store": str(store_path),
        "store_fingerprint": context.store.fingerprint,
        "n_train": len(context.ids[0]),
        "n_test": len(context.ids[1]),
        "seconds": round(time.perf_counter() - began, 2),
    }


def _read(context: EvalContext, how: protocols.Options) -> dict[str, Any]:
    """Which classifier the scores are of, and how its features were read."""
    about = {name: getattr(context, name) for name in ("pool", "layers", "whiten", "windows", "untrained")}
    return {"linear": how.linear[0], **about, "draws": how.draws, "seed": how.seed}


def fitted_weights(scores: Tensor, labels: Tensor) -> tuple[list[float], list[dict[str, Any]]]:
    """Weights by cross-validation: those that the other folds choose, averaged over folds.

    Weights of all folds but one are those of `_CANDIDATES` of least cross-entropy of the sum, found a run at a time
    until none changes.

    Args:
        scores: [runs, n, classes].
        labels: int64 [n].

    Returns:
        The weights; and of each fold the weights that the others chose, with their accuracy on it in per cent.
    """
    fold_of, results = ridge.fold_numbers(labels), []
    for fold in fold_of.unique():
        inside = fold_of == fold
        if bool(inside.all()):
            raise errors.ConfigError(
                f"--weights: needed; {len(labels)} sequence(s) are too few to choose them on folds"
            )
        weights = _least_entropy(scores[:, ~inside], labels[~inside])
        ranked = metrics.rank_scores(_mixed(scores[:, inside], weights))
        results.append({"weights": weights, "top1": metrics.top_k(ranked, labels[inside], 1)})
    columns = zip(*(one["weights"] for one in results), strict=True)
    return [sum(column) / len(results) for column in columns], results


def _least_entropy(scores: Tensor, labels: Tensor) -> list[float]:
    weights = [1.0] * len(scores)
    for _ in range(20):
        before = list(weights)
        for i in range(len(scores)):
            losses = []
            for candidate in _CANDIDATES:
                trial = [*weights[:i], candidate, *weights[i + 1 :]]
                losses.append(float(F.cross_entropy(_mixed(scores, trial), labels)))
            weights[i] = _CANDIDATES[losses.index(min(losses))]
        if weights == before:
            break
    return weights if any(weights) else [1.0] * len(scores)


def _mixed(scores: Tensor, weights: Sequence[float]) -> Tensor:
    """[n, classes]: the weighted sum of [runs, n, classes]."""
    return (scores * torch.tensor(weights, dtype=scores.dtype, device=scores.device)[:, None, None]).sum(0)


def _logits(context: EvalContext, protocol: str, how: protocols.Options, parts: Sequence[int]) -> list[Tensor]:
    """[n, classes] of each part, on the host."""
    if protocol == "classify":
        return [finetune_protocols.class_logits(context, context.run, part) for part in parts]
    train, labels, classes = measures.drawn_features(context, 0, how.draws), context.labels[0], context.classes
    fitted: linear.LinearProbe | probe.Regression | ridge.Ridge
    if how.linear[0] == "published":
        fitted = linear.fit(train, labels, classes=classes, seed=how.seed, **how.probe)
    elif how.linear[0] == "probe":
        fitted = probe.fit(train[0], labels, classes=classes)
    else:
        protocols.check_ridge(train)
        fitted = ridge.fit(train, labels, classes=classes)
    return [fitted.scores(context.features(part)).cpu() for part in parts]


def _check(run: str | Path, store_path: str | Path, fingerprint: str, split: str) -> None:
    """Raise where a run is of another store or split than the one that is measured on."""
    finetune.require(run)
    config, about = runs.read(run)
    trained_on = about["store"]["fingerprint"]
    # Imported weights come without recordings; classes are compared by name in any case.
    if trained_on not in (None, fingerprint):
        raise errors.ConfigError(
            f"--ensemble: {run} was trained on the store {about['store']['path']}, not on {store_path}; scores of one "
            f"store are added"
        )
    if trained_on is not None and config.data.split != split:
        raise errors.ConfigError(
            f"--ensemble: {run} was trained on split {config.data.split!r}, not {split!r}; scores of one split are "
            f"added"
        )


def _rows(about: list[dict[str, Any]], result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, accuracies in [*((stream_name(one), one) for one in about), ("ensemble", result)]:
        for key, metric in metrics.ACCURACIES.items():
            if key in accuracies:
                row = {"measure": name, "labels": 100, "metric": metric, "value": accuracies[key], "std": None, "of": 1}
                rows.append(row)
    return rows


def stream_name(one: dict[str, Any]) -> str:
    """What to call a run of the result: its network, stream and mode."""
    return f"{one['network']}, {one['stream']}" + ("" if one["k"] is None else f", k = {one['k']}")


def text(result: dict[str, Any]) -> str:
    """The result, to read: a line a run, and one of all together."""
    names = [*(stream_name(one) for one in result["runs"]), "ensemble"]
    width = max(map(len, names))
    read = f"{result['linear']} on {table.pooled(result)}, " if "linear" in result else ""
    lines = [
        f"{len(result['runs'])} runs, {read}split {result['split']} ({result['n_test']} to measure), weights "
        f"{result['weights_from']}"
    ]
    for name, one in zip(names, [*result["runs"], result], strict=True):
        weight = f"weight {one['weight']:<5.3g}" if "weight" in one else " " * 12
        accuracies = "   ".join(f"{metrics.ACCURACIES[key]} {v:.2f} %" for key, v in measures.accuracies(one).items())
        lines.append(f"{name:{width}}  {weight}  {accuracies}")
    return "\n".join(lines)
