"""The page of one recording of points: the cloud frame by frame, and the skeleton in it where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors
from s2vfast.data.layout import Layout
from s2vfast.data.store import Store
from s2vfast.view import page, pictures, source

MAX_FRAMES = 150
"""Frames that a page holds; of longer recordings every second one, or every third and so on."""
MAX_POINTS = 1000
"""Points of a frame that a page holds."""
_SECONDS = 5.0
"""That a page takes for a recording whose rate nobody knows, at most."""


@dataclass(frozen=True)
class Content:
    """The content of the page."""

    name: str
    class_name: str
    frames: np.ndarray
    """int64 [F], numbers of the frames that are shown."""
    counts: np.ndarray
    """int64 [F], points that each has."""
    points: np.ndarray
    """float32 [F, P, 3], metres as the camera saw them; zeros beyond a frame's points."""
    seen: np.ndarray
    """bool [F, P]: which are points; those of a frame come first."""
    up: tuple[float, float, float]
    """Unit vector."""
    facts: list[tuple[str, str | int]]
    """What is known of it."""
    layout: Layout | None = None
    """Of the skeleton; None: there is none."""
    joints: np.ndarray | None = None
    """float32 [M, F, V, 3]."""
    joints_seen: np.ndarray | None = None
    """bool [M, F, V]."""


def collect(store_path: str | Path, which: str, skeletons: str | Path | None = None) -> Content:
    """Read a recording.

    Args:
        store_path: a store of point clouds.
        which: the sequence's name or number.
        skeletons: a store of skeletons that has a sequence of its name, by the same camera.

    Raises:
        DataError: no such store or sequence, or skeletons that are not those of this recording.
    """
    store = Store.open(store_path)
    if store.kind != "points":
        raise errors.DataError(f"{store_path}: a store of {store.kind}; `s2vfast view sequence` shows it")
    index = source.find(store, which)
    clouds = store.cloud(index)
    every = -(-len(clouds) // MAX_FRAMES)
    frames = np.arange(0, len(clouds), every)
    counts = np.array([len(clouds[frame]) for frame in frames])
    most = min(MAX_POINTS, int(counts.max()))
    points, seen = np.zeros((len(frames), most, 3), np.float32), np.zeros((len(frames), most), bool)
    for at, frame in enumerate(frames):
        cloud = clouds[frame]
        if len(cloud) > most:  # evenly over the picture
            cloud = cloud[np.arange(most) * len(cloud) // most]
        points[at, : len(cloud)], seen[at, : len(cloud)] = cloud, True
    name, class_name = store.names[index], store.class_name(index)
    facts = [*source.facts_of(store, index), ("frames", len(clouds)), ("points", int(sum(map(len, clouds))))]
    facts += [("shown", f"{most} points of a frame at most" + (f", every {every}. frame" if every > 1 else ""))]
    facts += [("note", note) for note in store.notes.get(name, ())]
    content = Content(name, class_name, frames, counts, points, seen, store.layout.up, facts)
    return content if skeletons is None else _with_skeletons(content, skeletons, len(clouds))


def _with_skeletons(content: Content, path: str | Path, frames: int) -> Content:
    store = source.open_store(path)
    if content.name not in store.names:
        raise errors.DataError(f"{path}: no sequence {content.name!r}; skeletons are found by the name of the points")
    if (store.unit, store.dimensions) != ("m", 3):
        raise errors.DataError(f"{path}: its unit is {store.unit}; skeletons in metres can lie in a cloud")
    joints, seen = source.recorded(store, store.names.index(content.name))
    if joints.shape[1] != frames:
        raise errors.DataError(f"{path}: {content.name} has {joints.shape[1]} frames, its points have {frames}")
    facts = [*content.facts, ("skeleton", f"{store.layout.name}, {store.layout.num_joints} joints")]
    drawn = {"layout": store.layout, "joints": joints[:, content.frames], "joints_seen": seen[:, content.frames]}
    return Content(**{**vars(content), "facts": facts, **drawn})


def write(content: Content, out: str | Path) -> Path:
    """Write the page."""
    layout = {"joints": [], "bones": [], "basis": source.basis(content.up).round(9).tolist(), "unit": "m"}
    data: dict[str, Any] = {
        "name": content.name,
        "layout": layout if content.layout is None else source.layout_entry(content.layout, "m"),
        "cloud": source.scene(content.points[None], content.seen[None]),
        "scene": None if content.joints is None else source.scene(content.joints, content.joints_seen),
        "frames": content.frames.tolist(),
        "counts": content.counts.tolist(),
        "rate": max(15.0, len(content.frames) / _SECONDS),
        "facts": content.facts,
    }
    return page.write(out, "cloud", content.name, content.class_name, data)


def draw(content: Content, out: str | Path, pictures_shown: int = 8) -> Path:
    """Draw frames at even distances side by side as a PNG."""
    at = np.unique(np.linspace(0, len(content.frames) - 1, pictures_shown).round().astype(int))
    figure = pictures.figure(1.3 * len(at) + 0.6, 2.6)
    axes = list(figure.subplots(1, len(at), squeeze=False)[0])
    flat = pictures.flat(content.points, content.up)  # [F, P, 2]
    pictures.same_scale(axes, flat[at][content.seen[at]])
    joints = None if content.joints is None else pictures.flat(content.joints, content.up)
    for ax, frame in zip(axes, at, strict=True):
        ax.scatter(*flat[frame][content.seen[frame]].T, s=0.4, color=pictures.COLOURS[0], linewidths=0)
        if joints is not None:
            for body, seen in zip(joints[:, frame], content.joints_seen[:, frame], strict=True):
                pictures.skeleton(ax, body, seen, content.layout, pictures.COLOURS[1], s=4)
        ax.set_title(f"frame {content.frames[frame] + 1}", fontsize=8)
    pictures.scale_bar(axes[0], "m")
    figure.suptitle(pictures.plain(f"{content.name}: {content.class_name}"), fontsize=10)
    return pictures.save(figure, out)
