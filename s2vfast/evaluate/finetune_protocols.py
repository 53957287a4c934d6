"""Measures that fine-tune: the whole encoder, the same from scratch, and either on a share of the labels."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.evaluate import features, finetune, finetune_config, measures, metrics, subsets
from s2vfast.evaluate.context import EvalContext
from s2vfast.evaluate.finetune_config import FinetuneConfig
from s2vfast.networks import build_network

FOLDER = "finetuned"
"""Folder of a run that holds its fine-tuned runs, where no other is named."""
SEMI_MEASURES = ("linear", "probe", "knn", "finetune")


def tuned(
    context: EvalContext,
    options: FinetuneConfig,
    *,
    mode: str,
    seeds: Sequence[int],
    out: Path | None = None,
    ids: np.ndarray | None = None,
    labels: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tune, and measure on the test part with deterministic clips; mean over seeds.

    Args:
        context: encoder and sequences.
        options: the recipe; its seed is replaced.
        mode: "finetune", or "supervised": from the weights that a run of this config and seed starts from.
        seeds: one run each.
        out: folder of the fine-tuned run (of several: ``out/seed-N``); None: one under the run, named by what it is.
        ids: sequences that are learned from; None: the training part.
        labels: which list these are.
    """
    results = []
    ids = context.ids[0] if ids is None else ids
    for seed in seeds:
        recipe = replace(options, seed=seed)
        config = finetune_config.run_config(context.config, recipe, sequences=len(ids), split=context.split)
        config.train.device = str(context.device)
        initial, weights = context.encoder.state_dict(), context.weights
        if mode == "supervised":
            initial, weights = None, finetune.digest(build_network(config, context.store.layout))
        source = finetune.Source(
            mode=mode,
            run=str(context.run),
            step=0 if mode == "supervised" else context.step,
            weights=weights,
            pretrained_on=None if mode == "supervised" else context.pretrained_on,
            split=context.split,
            part=context.parts[0],
            ids=finetune.digest_ids(ids),
            objective=context.objective,
            labels=labels,
        )
        folder = _folder(context, recipe, source) if out is None else out if len(seeds) == 1 else out / f"seed-{seed}"
        context.log(_heading(mode, len(ids), labels, seed if len(seeds) > 1 else None, folder))
        seconds = finetune.tune(
            folder, config, context.store, ids, recipe, source, initial=initial, ranks=context.ranks
        )
        results.append(measure(context, folder) | {"seconds": round(seconds, 2), "folder": str(folder)})
    about = {
        "recipe": {name: value for name, value in options.to_dict().items() if name != "seed"},
        "seeds": list(seeds),
        "folders": [one["folder"] for one in results],
        "training_seconds": [one["seconds"] for one in results],
    }
    if mode == "supervised":  # whatever the run is whose network it has
        about |= {"step": 0, "pretrained_on": None, "overlap": 0, "transfer": False}
    scores = [
        measures.accuracies(one) | {name: one[name] for name in ("per_class", *measures.DETAILS)} for one in results
    ]
    return measures.aggregate(scores) | about


def _heading(mode: str, sequences: int, labels: dict[str, Any] | None, seed: int | None, folder: Path) -> str:
    """What is trained next, where several trainings follow each other."""
    what = "fine-tuning" if mode == "finetune" else "training from scratch"
    subset = f", list {labels['number'] + 1} of {labels['percent']:g} % of the labels" if labels else ""
    return f"{what} on {sequences:,} sequences{subset}{'' if seed is None else f', seed {seed}'}: {folder}"


def from_scratch(options: FinetuneConfig) -> FinetuneConfig:
    """The recipe for an encoder that has learned nothing: all layers learn at the same rate."""
    return replace(options, layer_decay=1.0)


def measure(context: EvalContext, folder: Path) -> dict[str, Any]:
    """How right a fine-tuned run is on the context's test part.

    Raises:
        CheckpointError: a run that was not fine-tuned, or to other classes.
    """
    ranked = metrics.rank_scores(class_logits(context, folder, 1))
    return measures.scores(ranked, context.labels[1].cpu(), context.store.classes)


def class_logits(context: EvalContext, folder: Path, part: int) -> Tensor:
    """Logits [n, classes], on the host, of a run that has classes; errors as of `measure`."""
    model, config, about = finetune.load_classifier(folder, log=context.log)
    if about["classes"] != list(context.store.classes):
        raise errors.CheckpointError(
            f"{folder}: was fine-tuned to {len(about['classes'])} classes that are not those of {context.store.path} "
            f"({len(context.store.classes)}); name a store of the same classes with --data, or fine-tune to these"
        )
    model.to(context.device)
    pooled = features.extract(
        model.encoder,
        config,
        context.store,
        context.ids[part],
        pool=model.head_pool,
        batch=context.clips,
        device=context.device,
        ranks=context.ranks,
    )
    return model.head(pooled.to(context.device)).detach().cpu()


def semi(
    context: EvalContext,
    options: FinetuneConfig,
    *,
    percents: Sequence[float],
    lists: int,
    seed: int,
    measure_names: Sequence[str],
    out: Path | None,
    linear: dict[str, Any],
    transform: str,
) -> dict[str, Any]:
    """Measures on shares of the labels, each of them mean and sample standard deviation over several lists.

    Args:
        context: encoder and sequences; features are those of the whole training part.
        options: the recipe of fine-tuning; list i is learned with its seed + i.
        percents: shares, see `s2vfast.evaluate.subsets`.
        lists: lists of each share.
        seed: of the lists.
        measure_names: some of `SEMI_MEASURES`.
        out: folder of the fine-tuned runs, or None.
        linear: settings of the published probe.
        transform: of features before kNN.
    """
    row_of = {int(number): row_number for row_number, number in enumerate(context.ids[0])}
    train, test, rows = context.features(0), context.features(1), []
    for percent in percents:
        by_measure: dict[str, list[dict[str, Any]]] = {name: [] for name in measure_names}
        counts = []
        for number in range(lists):
            names, parts = (context.store, context.split), {"part": context.parts[0], "seed": seed, "number": number}
            ids = subsets.subset(*names, percent, **parts)
            subset_rows = [row_of[int(i)] for i in ids]
            arguments = (train[subset_rows], context.labels[0][subset_rows], test, context.labels[1], context)
            counts.append(len(ids))
            for name in measure_names:
                if name == "linear":
                    result = measures.linear_probe(*arguments, seeds=[number], **linear)
                elif name == "probe":
                    result = measures.fast_probe(*arguments)
                elif name == "knn":
                    result = measures.neighbours(*arguments, k=1, transform=transform)
                else:
                    label = {"percent": percent, "seed": seed, "number": number}
                    folder = None if out is None else out / f"{percent:g}-percent-{number}"
                    seeds = [options.seed + number]
                    result = tuned(context, options, mode="finetune", seeds=seeds, out=folder, ids=ids, labels=label)
                by_measure[name].append(result)
        for name, results in by_measure.items():
            row: dict[str, Any] = {"percent": percent, "measure": name, "lists": lists, "n_train": counts[0]}
            for key in measures.accuracies(results[0]):
                values = [result[key] for result in results]
                row[key], row[f"{key}_each"] = statistics.fmean(values), values
                row[f"{key}_std"] = statistics.stdev(values) if lists > 1 else None
            rows.append(row)
    return {"rows": rows, "lists": lists, "seed": seed}


def _folder(context: EvalContext, recipe: FinetuneConfig, source: finetune.Source) -> Path:
    """A folder under the run that is named by all that a fine-tuned run depends on."""
    if context.run.is_file():
        raise errors.ConfigError(f"--out: needed, a folder; {context.run} is a file, under which no run can be made")
    about = {
        "recipe": {
            name: value for name, value in recipe.to_dict().items() if name not in finetune.finetune_config.FREE
        },
        "store": context.store.fingerprint,
        **{name: getattr(source, name) for name in ("mode", "weights", "split", "part", "ids")},
    }
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    percent = f"-{source.labels['percent']:g}-percent" if source.labels else ""
    return context.run / FOLDER / f"{source.mode}{percent}-{name}"
