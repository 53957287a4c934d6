"""The page of one sequence: its skeletons in three dimensions, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.layout import Layout
from s2vfast.view import page, pictures, source


@dataclass(frozen=True)
class Content:
    """The content of the page: a sequence."""

    name: str
    class_name: str
    layout: Layout
    coordinates: np.ndarray
    """float32 [M, F, V, 3], in `unit`; M at most 2."""
    seen: np.ndarray
    """bool [M, F, V]."""
    facts: list[tuple[str, str | int]]
    """What is known of it."""
    unit: str = "m"
    """Of the recordings' coordinates."""


def collect(store_path: str | Path, which: str) -> Content:
    """Read a sequence.

    Args:
        store_path: a store.
        which: the sequence's name or number.

    Raises:
        DataError: no such store or sequence.
    """
    store = source.open_store(store_path)
    index = source.find(store, which)
    coordinates, seen = source.recorded(store, index)
    name, class_name = store.names[index], store.class_name(index)
    facts = [
        *source.facts_of(store, index),
        ("frames", len(seen[0])),
        ("bodies", int((store.tracks["sequence"] == index).sum())),
    ]
    facts += [("skeleton", f"{store.layout.name}, {store.layout.num_joints} joints")]
    facts += [("note", note) for note in store.notes.get(name, ())]
    return Content(name, class_name, store.layout, coordinates, seen, facts, store.unit)


def write(content: Content, out: str | Path) -> Path:
    """Write the page."""
    data: dict[str, Any] = {
        "name": content.name,
        "layout": source.layout_entry(content.layout, content.unit),
        "scene": source.scene(content.coordinates, content.seen),
        "facts": content.facts,
    }
    return page.write(out, "sequence", content.name, content.class_name, data)


def draw(content: Content, out: str | Path, pictures_shown: int = 8) -> Path:
    """Draw frames at even distances side by side as a PNG."""
    frames = np.unique(np.linspace(0, content.seen.shape[1] - 1, pictures_shown).round().astype(int))
    figure = pictures.figure(1.3 * len(frames) + 0.6, 2.6)
    axes = figure.subplots(1, len(frames), squeeze=False)[0]
    pictures.strip(list(axes), content.coordinates, content.seen, content.layout, frames)
    pictures.scale_bar(axes[0], content.unit)
    figure.suptitle(pictures.plain(f"{content.name}: {content.class_name}"), fontsize=10)
    return pictures.save(figure, out)
