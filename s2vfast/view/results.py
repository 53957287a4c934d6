"""The page of an evaluation: confusion matrix, accuracy of each class, and the sequences behind every number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors
from s2vfast.data.skeleton_store import SkeletonStore
from s2vfast.data.store import Store
from s2vfast.evaluate import comparison, table
from s2vfast.evaluate.metrics import ACCURACIES
from s2vfast.view import animations, page, pictures, source


@dataclass(frozen=True)
class Measure:
    """One measure that names classes."""

    name: str
    accuracies: dict[str, float]
    """By what tables call them, per cent."""
    confusion: np.ndarray
    """int64 [classes, classes], rows are true classes; the sum over seeds."""
    predicted: np.ndarray | None
    """int64 [seeds, n]; None of results that do not have it."""


@dataclass(frozen=True)
class Content:
    """An evaluation, and where there is a store the n sequences that were measured."""

    classes: list[str]
    measures: list[Measure]
    about: str
    note: str
    """Why there are no sequences; empty where there are."""
    store: SkeletonStore | None = None
    ids: np.ndarray | None = None
    """int64 [n], in the order of `Measure.predicted`."""


def collect(path: str | Path, store_path: str | Path | None = None) -> Content:
    """Read what ``evaluate --out`` wrote.

    Args:
        path: the file, or a folder with results.json.
        store_path: the store that was measured; None: the one that the results name, where it is still there.

    Raises:
        DataError: no results, none with a confusion matrix, or another store.
    """
    path, content = comparison.content_of(path)
    parts = content.get("results") or {content["protocol"]: content}
    named = [(label, values) for name, part in parts.items() for label, values in _named(name, part)]
    if not named:
        raise errors.DataError(
            f"{path}: has no confusion matrix; evaluate with --out FILE.json, or --json --confusion, by a protocol "
            f"that names classes"
        )
    part = content["test_part"] if "test_part" in content else content["parts"][1]
    measures = [_measure(label, values) for label, values in named]
    about = f"{content.get('objective') or content['protocol']}, {part} of split {content['split']}, {content['store']}"
    store, note = _store(store_path or content["store"], content["store_fingerprint"], required=store_path is not None)
    ids = None
    if store is not None:
        ids = store.select(content["split"], part)
        measures = [_fitting(measure, len(ids), path) for measure in measures]
        if all(measure.predicted is None for measure in measures):
            store, ids, note = None, None, f"{path} has no predictions of single sequences: evaluate the run again"
    return Content(list(named[0][1]["per_class"]), measures, about, note, store, ids)


def _named(protocol: str, part: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What a protocol has measured with a confusion matrix, by the names of tables."""
    named = [(table.NAMES.get(protocol, protocol), part)]
    named += [(table.NAMES[solver], part[solver]) for solver in table.SOLVERS if solver in part]
    return [(name, values) for name, values in named if "confusion" in values]


def _measure(name: str, values: dict[str, Any]) -> Measure:
    return Measure(
        name,
        {metric: values[key] for key, metric in ACCURACIES.items() if key in values},
        np.array(values["confusion"], dtype=np.int64),
        np.array(values["predicted"], dtype=np.int64) if "predicted" in values else None,
    )


def _store(path: str | Path, fingerprint: str, required: bool) -> tuple[SkeletonStore | None, str]:
    """The store of the results, or why there is none."""
    try:
        store = Store.open(path)
    except errors.DataError:
        if required:
            raise
        return None, f"the store {path} is not there: name it with --data"
    if store.fingerprint != fingerprint:
        message = f"{path}: is not the store that was measured (another fingerprint)"
        if required:
            raise errors.DataError(message)
        return None, f"{message}: name it with --data"
    if not isinstance(store, SkeletonStore):
        return None, f"{path} holds {store.kind}: `s2vfast view cloud` shows them"
    return store, ""


def _fitting(measure: Measure, count: int, path: Path) -> Measure:
    if measure.predicted is not None and measure.predicted.shape[1] != count:
        raise errors.DataError(
            f"{path}: {measure.name}: {measure.predicted.shape[1]} predictions, and the part has {count} sequences"
        )
    return measure


def write(content: Content, out: str | Path) -> Path:
    """Write the page."""
    data: dict[str, Any] = {
        "classes": content.classes,
        "note": content.note,
        "measures": [
            {
                "name": measure.name,
                "accuracies": list(measure.accuracies.items()),
                "confusion": page.packed(measure.confusion.astype(np.int32)),
                "predicted": None
                if content.ids is None or measure.predicted is None
                else page.packed(measure.predicted.astype(np.int32)),
            }
            for measure in content.measures
        ],
        "sequences": None,
    }
    if content.store is not None and content.ids is not None:
        store, ids = content.store, content.ids
        clips, seen = animations.collect(store, ids, animations.BUDGET)
        data["sequences"] = {
            "names": [store.names[i] for i in ids],
            "labels": page.packed(store.labels[ids].astype(np.int32)),
            "layout": source.layout_entry(store.layout, store.unit),
            "clips": None if clips is None or seen is None else animations.entry(clips, seen),
        }
    return page.write(out, "results", "Results", content.about, data)


def draw(content: Content, out: str | Path) -> Path:
    """Draw the first measure's confusion matrix as a PNG, rows in per cent of the true class."""
    measure, classes = content.measures[0], len(content.classes)
    size = min(4.0 + 0.25 * classes, 24.0)
    figure = pictures.figure(size + 1.0, size)
    axes = figure.subplots()
    totals = np.maximum(measure.confusion.sum(1, keepdims=True), 1)
    percent = 100.0 * measure.confusion / totals
    image = axes.imshow(percent, vmin=0, vmax=100, cmap="Blues")
    names = [pictures.plain(name) for name in content.classes]
    axes.set_xticks(range(classes), names, rotation=90, fontsize=6)
    axes.set_yticks(range(classes), names, fontsize=6)
    if classes <= 30:
        for row, column in zip(*np.nonzero(measure.confusion), strict=True):
            colour = "white" if percent[row, column] > 60 else "black"
            number = f"{percent[row, column]:.0f}"
            axes.text(column, row, number, ha="center", va="center", fontsize=5, color=colour)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(image, label="per cent of the true class", shrink=0.7)
    accuracies = ", ".join(f"{name} {value:.1f} %" for name, value in measure.accuracies.items())
    figure.suptitle(pictures.plain(f"{measure.name}: {accuracies}\n{content.about}"), fontsize=8)
    return pictures.save(figure, out)
