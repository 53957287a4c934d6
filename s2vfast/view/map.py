"""The page of a map: the features of many sequences in two dimensions, coloured by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import s2vfast.errors as errors
from s2vfast.data.layout import Layout
from s2vfast.data.store import NO_LABEL
from s2vfast.evaluate import features, knn
from s2vfast.view import animations, page, pictures, source

Method = Literal["tsne", "pca"]
METHODS: tuple[str, ...] = ("tsne", "pca")
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#b4589a", "#3f9bd8", "#c98500", "#70757a", "#8c8a00", "#7800fc", "#fc00fc"),
    *("#006c00", "#cc84fc", "#fc789c", "#b41830", "#fc009c", "#0048f0", "#9c0cb4", "#a89c9c", "#786cf0", "#845400"),
)
"""The first eight after Okabe and Ito, for readers with colour blindness. Each of the others is farthest, in OKLab,
from those before it, among the colours that are visible on light and on dark (contrast 2.5)."""
MARKERS = "os^vD*<>"
"""Shapes, as matplotlib names them; colours and shapes distinguish 160 classes."""


@dataclass(frozen=True)
class Content:
    """The content of the page: n sequences as points."""

    names: list[str]
    labels: np.ndarray
    """int64 [n]."""
    parts: np.ndarray
    """int64 [n], into `part_names`."""
    part_names: tuple[str, ...]
    classes: list[str]
    layout: Layout
    points: np.ndarray
    """float64 [n, 2]: where each is on the map."""
    axes: tuple[str, str]
    """What the two directions are."""
    clips: np.ndarray | None
    """float32 [n, F, V, 3]: main bodies in a few frames, metres; None where the page would become too large."""
    seen: np.ndarray | None
    """bool [n, F, V]."""
    about: str
    """What was mapped, and how."""
    unit: str = "m"
    """Of the recordings' coordinates."""


def collect(
    run: str | Path,
    store_path: str | Path,
    *,
    method: Method = "tsne",
    split: str | None = None,
    parts: tuple[str, ...] = ("train", "test"),
    limit: int = 2000,
    seed: int = 0,
    pool: features.Pool = "mean",
    transform: knn.Transform = knn.DEFAULT_TRANSFORM,
    untrained: bool = False,
    device: str = "auto",
    budget: int = animations.BUDGET,
    log: Callable[[str], object] = print,
) -> Content:
    """Map the features of a split's parts.

    Args:
        run: a run's folder.
        store_path: a store of its layout.
        method: "tsne" (scikit-learn's) or "pca"; both of rows that `transform` and a length of 1 were given.
        split: named split of the store; None: the one of the run.
        parts: of it, each once. Split "all" has every sequence in any part, so that they are one.
        limit: sequences on the map at most; of more, that many are drawn at random.
        seed: of that draw and of t-SNE, in [0, 2**32).
        pool: how tokens become a vector.
        transform: of features, with the statistics of all that are mapped.
        untrained: the weights that the run started from.
        device: auto, cpu, cuda or cuda:N.
        budget: bytes for the animations.
        log: told of progress, of a draw, of damaged checkpoints that were passed over.

    Raises:
        S2vfastError: a run, store, split or option that cannot be used, or no scikit-learn for t-SNE.
    """
    if method not in METHODS:
        raise errors.ConfigError(f"--method: {method!r} is not one of {', '.join(METHODS)}")
    if not parts:
        raise errors.ConfigError("--parts: no part of the split is named")
    if twice := [part for i, part in enumerate(parts) if part in parts[:i]]:
        raise errors.ConfigError(f"--parts: {twice[0]!r} is named twice")
    if limit < 3:
        raise errors.ConfigError(f"--limit: {limit}; 3 or more are expected")
    if not 0 <= seed < 2**32:  # what scikit-learn takes
        raise errors.ConfigError(f"--seed: {seed}; a number from 0 to {2**32 - 1} is expected")
    if method == "tsne":
        _tsne_class()
    store = source.open_store(store_path, run)
    encoder, config, step = features.load_encoder(run, untrained=untrained, log=log)
    split = split or config.data.split
    if split == "all" and split not in store.splits:
        parts = ("all",)
    ids_by_part = [store.select(split, part) for part in parts]
    ids, number = (
        np.concatenate(ids_by_part),
        np.repeat(np.arange(len(parts)), [len(part_ids) for part_ids in ids_by_part]),
    )
    all_of_them = len(ids)
    if all_of_them > limit:
        log(f"{limit} of {all_of_them} sequences are mapped, drawn at random; --limit takes more")
        drawn = np.sort(np.random.default_rng(seed).permutation(all_of_them)[:limit])
        ids, number = ids[drawn], number[drawn]
    if len(ids) < 3:
        raise errors.DataError(f"{store.path}: {len(ids)} sequence(s) in {split!r} {', '.join(parts)}; 3 are needed")
    report = source.reporter(log, "features")
    where = features.resolve_device(device)
    table = features.extract(encoder, config, store, ids, pool=pool, device=where, progress=report)
    rows = knn.normalised(table, table[:0], transform)[0]
    points, axes = (_tsne if method == "tsne" else _pca)(rows.numpy().astype(np.float64), seed)
    clips, seen = animations.collect(store, ids, budget)
    encoded = features.called(step, untrained)
    whence = split if parts == ("all",) else f"{split}/{'+'.join(parts)}"
    count = f"{len(ids)}" if len(ids) == all_of_them else f"{len(ids)} of {all_of_them}"
    unlabelled = store.labels[ids] < 0
    return Content(
        [store.names[i] for i in ids],
        np.where(unlabelled, len(store.classes), store.labels[ids]),
        number,
        tuple(parts),
        [*store.classes, *([NO_LABEL] if unlabelled.any() else [])],
        store.layout,
        points,
        axes,
        clips,
        seen,
        f"{encoded}, {pool} features, transform {transform}, {count} sequences of {whence}",
        store.unit,
    )


def _tsne_class() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise errors.ConfigError(
            "--method tsne: needs scikit-learn; install it with `pip install s2vfast[eval]`, or give --method pca"
        ) from None
    return TSNE


def _tsne(rows: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = _tsne_class()(2, perplexity=perplexity, init="pca" if rows.shape[1] > 1 else "random", random_state=seed)
    return tsne.fit_transform(rows), ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)")


def _pca(rows: np.ndarray, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    """The two directions of most variance; each points where its largest weight is positive. ``seed`` is not used."""
    rows = rows - rows.mean(0)
    _, size, directions = np.linalg.svd(rows, full_matrices=False)
    directions = directions[:2] * np.sign(directions[[0, 1], np.abs(directions[:2]).argmax(1)])[:, None]
    percent = 100 * size**2 / max(float((size**2).sum()), 1e-300)
    return rows @ directions.T, tuple(f"component {i + 1} ({percent[i]:.0f} % of variance)" for i in range(2))


def style(label: int) -> tuple[int, int]:
    """(colour, shape) of a class, numbers into `COLOURS` and `MARKERS`: different for any two of 160."""
    return label % len(COLOURS), (label + label // len(COLOURS)) % len(MARKERS)


def write(content: Content, out: str | Path) -> Path:
    """Write the page."""
    data: dict[str, Any] = {
        "layout": source.layout_entry(content.layout, content.unit),
        "names": content.names,
        "classes": content.classes,
        "part_names": content.part_names,
        "axes": content.axes,
        "colours": COLOURS,
        "styles": [style(label) for label in range(len(content.classes))],
        "labels": page.packed(content.labels.astype(np.int32)),
        "parts": page.packed(content.parts.astype(np.uint8)),
        "places": page.packed(content.points.astype(np.float32)),
        "clips": None if content.clips is None else animations.entry(content.clips, content.seen),
    }
    return page.write(out, "map", "Map of features", content.about, data)


def draw(content: Content, out: str | Path) -> Path:
    """Draw the map as a PNG: the first part filled, the others outlined."""
    present = np.unique(content.labels)
    figure = pictures.figure(9, 6 + 0.12 * max(0, len(present) - 30))
    axes = figure.subplots()
    for label in present:
        colour, shape = style(int(label))
        for part in range(len(content.part_names)):
            in_group = (content.labels == label) & (content.parts == part)
            axes.scatter(
                *content.points[in_group].T,
                s=16,
                marker=MARKERS[shape],
                facecolors=COLOURS[colour] if part == 0 else "none",
                edgecolors=COLOURS[colour],
                linewidths=0.8,
                label=pictures.plain(content.classes[label]) if part == 0 else None,
            )
    if not (content.parts == 0).all():
        filled, *outlined = content.part_names
        axes.set_title(pictures.plain(f"filled: {filled}; outlined: {', '.join(outlined)}"), fontsize=9)
    axes.set_xlabel(content.axes[0])
    axes.set_ylabel(content.axes[1])
    figure.legend(loc="outside right upper", fontsize=7, ncols=1 + len(present) // 31)
    figure.suptitle(pictures.plain(content.about), fontsize=8)
    return pictures.save(figure, out)
