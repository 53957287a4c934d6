"""The page of a sequence's nearest neighbours in a run's features, as small animations side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors
from s2vfast.data.layout import Layout
from s2vfast.evaluate import features, knn
from s2vfast.view import page, pictures, source

FRAMES = 60
"""Frames of a small animation at most; longer sequences are shown every second frame, every third, and so on."""


@dataclass(frozen=True)
class Item:
    """A sequence that is shown."""

    name: str
    class_name: str
    similarity: float | None
    """Cosine similarity to the query; None for the query itself."""
    right: bool
    """Whether it has the query's class."""
    coordinates: np.ndarray
    """float32 [M, F, V, 3], in the store's unit."""
    seen: np.ndarray
    """bool [M, F, V]."""
    every: int
    """Frames of the recording from one shown frame to the next."""


@dataclass(frozen=True)
class Content:
    """A query and its neighbours, the nearest first."""

    layout: Layout
    query: Item
    neighbours: list[Item]
    about: str
    """What was compared."""
    unit: str = "m"
    """Of the recordings' coordinates."""


def collect(
    run: str | Path,
    store_path: str | Path,
    which: str,
    *,
    k: int = 8,
    split: str | None = None,
    part: str = "train",
    pool: features.Pool = "mean",
    transform: knn.Transform = knn.DEFAULT_TRANSFORM,
    untrained: bool = False,
    device: str = "auto",
    log: Callable[[str], object] = print,
) -> Content:
    """Find the nearest neighbours of a sequence, by the features and the similarity of `s2vfast.evaluate.knn`.

    Args:
        run: a run's folder.
        store_path: a store of its layout.
        which: the query's name or number; where it is in the part itself, it is left out there.
        k: neighbours.
        split: named split of the store; None: the one of the run.
        part: part of it in which neighbours are looked for.
        pool: how tokens become a vector.
        transform: of features before the comparison, with the statistics of the part.
        untrained: the weights that the run started from.
        device: auto, cpu, cuda or cuda:N.
        log: told of progress and of damaged checkpoints that were passed over.

    Raises:
        S2vfastError: a run, store, sequence, split or option that cannot be used.
    """
    if k < 1:
        raise errors.ConfigError(f"--k: {k}; 1 or more is expected")
    store = source.open_store(store_path, run)
    index = source.find(store, which)
    encoder, config, step = features.load_encoder(run, untrained=untrained, log=log)
    split = split or config.data.split
    ids = store.select(split, part)
    candidates = ids[ids != index]
    if not len(candidates):
        raise errors.DataError(f"{store.path}: part {part!r} of split {split!r} has no sequence but the query")
    where = features.resolve_device(device)
    table = features.extract(
        encoder,
        config,
        store,
        np.append(candidates, index),
        pool=pool,
        device=where,
        progress=source.reporter(log, "features"),
    )
    train, query = knn.normalised(table[:-1], table[-1:], transform)
    similarity = (train @ query[0]).numpy()
    nearest = np.argsort(-similarity, kind="stable")[:k]
    encoded = features.called(step, untrained)
    return Content(
        store.layout,
        _item(store, index, index, None),
        [_item(store, int(candidates[i]), index, float(similarity[i])) for i in nearest],
        f"{encoded}, {pool} features, transform {transform}, {len(candidates)} sequences of {split}/{part}",
        store.unit,
    )


def _item(store: Any, index: int, query: int, similarity: float | None) -> Item:
    coordinates, seen = source.recorded(store, index)
    every = -(-coordinates.shape[1] // FRAMES)
    right = store.labels[index] == store.labels[query] >= 0
    name, class_name = store.names[index], store.class_name(index)
    return Item(name, class_name, similarity, bool(right), coordinates[:, ::every], seen[:, ::every], every)


def write(content: Content, out: str | Path) -> Path:
    """Write the page."""
    data: dict[str, Any] = {
        "layout": source.layout_entry(content.layout, content.unit),
        "items": [
            {
                "name": item.name,
                "class": item.class_name,
                "similarity": item.similarity,
                "right": item.right,
                "every": item.every,
                "scene": source.scene(item.coordinates, item.seen),
            }
            for item in (content.query, *content.neighbours)
        ],
    }
    return page.write(out, "neighbours", f"Nearest neighbours of {content.query.name}", content.about, data)


def draw(content: Content, out: str | Path, frames: int = 5) -> Path:
    """Draw the query and its neighbours, a row each of ``frames`` pictures, as a PNG."""
    items = (content.query, *content.neighbours)
    figure = pictures.figure(1.1 * frames + 2.4, 1.3 * len(items) + 0.5)
    axes = figure.subplots(len(items), frames + 1, squeeze=False, width_ratios=[2.4] + [1.1] * frames)
    for row, item in zip(axes, items, strict=True):
        frame_numbers = np.linspace(0, item.seen.shape[1] - 1, frames).round().astype(int)
        pictures.strip(list(row[1:]), item.coordinates, item.seen, content.layout, frame_numbers, every=item.every)
        row[0].set_axis_off()
        similarity_text = "query" if item.similarity is None else f"similarity {item.similarity:.3f}"
        mark = "" if item.similarity is None else ("same class" if item.right else "another class")
        colour = "black" if item.similarity is None else ("#0a6b4d" if item.right else "#b3261e")
        text = pictures.plain(f"{item.name}\n{item.class_name}\n{similarity_text}\n{mark}".strip())
        row[0].text(0, 0.5, text, fontsize=7, va="center", color=colour, transform=row[0].transAxes)
    figure.suptitle(pictures.plain(f"Nearest neighbours: {content.about}"), fontsize=7)
    return pictures.save(figure, out)
