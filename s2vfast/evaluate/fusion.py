"""Several runs that see other streams of the same sequences, measured together: the weighted sum of their scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import s2vfast.errors as errors
from s2vfast.evaluate import finetune_protocols, linear, measures, metrics, protocols
from s2vfast.evaluate.checks import check_choice

FUSED = ("linear", "classify")
"""Protocols whose scores can be summed."""


def evaluate_streams(
    run_dirs: Sequence[str | Path],
    store_path: str | Path,
    split: str | None = None,
    protocol: str = "linear",
    *,
    weights: Sequence[float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate runs one by one and together (published for joints, bones and motion).

    Args:
        run_dirs: folders of the runs, two or more.
        store_path: a store of their layout.
        split: named split of the store; None: the one of the first run.
        protocol: "linear": probes are fitted run by run; "classify": runs that were fine-tuned.
        weights: of the runs' scores in the sum; None: equal ones.
        options: as of `s2vfast.evaluate.protocols.evaluate`.

    Returns:
        Plain values for JSON, as of `s2vfast.evaluate.protocols.evaluate`, of the sum; ``streams`` has each run's.

    Raises:
        S2vfastError: a run, store, split or option that cannot be used, or runs that differ in bodies measured.
    """
    check_choice("protocol", protocol, FUSED)
    weights = [1.0] * len(run_dirs) if weights is None else list(weights)
    if len(run_dirs) < 2:
        raise errors.ConfigError(f"--streams: {len(run_dirs)} run; two or more are expected")
    if len(weights) != len(run_dirs):
        raise errors.ConfigError(f"--stream_weights: {len(weights)} for {len(run_dirs)} runs; one a run is expected")
    began, total, streams, about = time.perf_counter(), 0.0, [], {}
    for run, weight in zip(run_dirs, weights, strict=True):
        context, how = protocols.opened(run, store_path, split, [protocol], options)
        split = context.split
        if protocol == "classify":
            of_run = finetune_protocols.classifier_scores(context, context.run)
        else:
            train, test = measures.train_features(context, how.draws), context.features(1)
            fitted = linear.fit(train, context.labels[0], classes=context.classes, seed=how.seed, **how.probe)
            of_run = fitted.scores(test)
        result = measures.scores(metrics.rank_scores(of_run), context.labels[1], context.store.classes)
        streams.append({"run": str(run), "weight": weight, **measures.accuracies(result)})
        total = total + weight * of_run
        about = about or context.describe() | {"protocol": protocol}
    result = measures.scores(metrics.rank_scores(total), context.labels[1], context.store.classes)
    settings = {"settings": how.probe | {"seed": how.seed}} if protocol == "linear" else {}
    return about | result | {"streams": streams, **settings, "seconds": round(time.perf_counter() - began, 2)}
