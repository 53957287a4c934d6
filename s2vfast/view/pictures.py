"""Pictures for papers: what the PNG versions of the pages share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors
from s2vfast import files
from s2vfast.data.layout import Layout
from s2vfast.view.source import basis, right_joints

COLOURS = ("#0b66b8", "#c2500a")
"""Of the first and the second body."""
RIGHT = {COLOURS[0]: "#00857a", COLOURS[1]: "#a0328c"}
"""Of their right limbs."""
YAW, PITCH = 0.35, 0.15
"""The pages' first view, radians."""


def figure(width: float, height: float) -> Any:
    """An empty figure, inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise errors.ConfigError("--png: needs matplotlib; install it with `pip install s2vfast[plot]`") from None
    # Figure and canvas of their own: pyplot would look for a display and keep global state.
    picture = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    return picture


def plain(text: str) -> str:
    """A text that matplotlib draws as it is: between two bare $ it would read mathematics.

    Half a character (a lone surrogate), which no font has, becomes a question mark.
    """
    return text.replace("$", r"\$").encode("utf-8", "replace").decode()


def save(picture: Any, out: str | Path, dpi: int = 150) -> Path:
    """Write a figure as a PNG, which is there whole or as it was before.

    Raises:
        DataError: the file cannot be written.
    """
    content = io.BytesIO()
    picture.savefig(content, format="png", dpi=dpi)
    with files.disk_errors(out, errors.DataError):
        files.write_bytes(Path(out), content.getvalue())
    return Path(out)


def flat(coordinates: np.ndarray, up: tuple[float, float, float]) -> np.ndarray:
    """Where the pages' first view puts points [..., 3] to the right and up, [..., 2]; ``up`` as of a layout."""
    right, upward, near = np.moveaxis(coordinates @ basis(up).T, -1, 0)
    across, depth = right * np.cos(YAW) + near * np.sin(YAW), near * np.cos(YAW) - right * np.sin(YAW)
    return np.stack([across, upward * np.cos(PITCH) - depth * np.sin(PITCH)], axis=-1)


def skeleton(axes: Any, points: np.ndarray, seen: np.ndarray, layout: Layout, colour: str, **joints: Any) -> None:
    """Draw one body.

    Args:
        axes: of matplotlib.
        points: [V, 2] of `flat`.
        seen: bool [V].
        layout: whose bones there are.
        colour: of the bones; of `COLOURS`, right limbs have their own.
        joints: for ``axes.scatter``, of the joints that were seen: c [V] and s, edgecolors, cmap and so on.
    """
    right = right_joints(layout)
    for joint, parent in layout.bones:
        if seen[joint] and seen[parent]:
            own = RIGHT.get(colour, colour) if joint in right else colour
            axes.plot(*points[[joint, parent]].T, color=own, linewidth=1.5, zorder=1, solid_capstyle="round")
    values = joints.pop("c", None)
    colours = {"color": colour} if values is None else {"c": np.asarray(values)[seen]}
    axes.scatter(*points[seen].T, zorder=2, **{"s": 8, **colours, **joints})


def strip(
    axes: list[Any], coordinates: np.ndarray, seen: np.ndarray, layout: Layout, frames: np.ndarray, every: int = 1
) -> None:
    """Draw all bodies in one frame an axes, all at one scale, the frame's number above.

    Args:
        axes: n of matplotlib.
        coordinates: [M, F, V, 3].
        seen: bool [M, F, V].
        layout: of the skeleton.
        frames: int [n].
        every: frames of the recording from one of these to the next.
    """
    points = flat(coordinates, layout.up)  # [M, F, V, 2]
    same_scale(axes, points[:, frames][seen[:, frames]])
    for ax, frame in zip(axes, frames, strict=True):
        for body in range(len(points)):
            skeleton(ax, points[body, frame], seen[body, frame], layout, COLOURS[body % 2])
        ax.set_title(f"frame {frame * every + 1}", fontsize=8)


def scale_bar(axes: Any, unit: str) -> None:
    """Draw a line at the lower left of axes that is a round part of their height long, with its length."""
    (left, _), (low, high) = axes.get_xlim(), axes.get_ylim()
    length = next(
        size
        for size in (10.0**power * digit for power in range(6, -7, -1) for digit in (5, 2, 1))
        if size <= (high - low) / 3
    )
    axes.plot([left, left], [low, low + length], color="black", linewidth=1.5, solid_capstyle="butt", clip_on=False)
    axes.text(left, low + length / 2, f"{length:g} {unit} ", fontsize=7, ha="right", va="center", rotation=90)


def same_scale(axes: list[Any], points: np.ndarray) -> None:
    """Give axes the limits that hold all points [n, 2], no frame, and one scale in both directions."""
    low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(2), np.ones(2))
    margin = 0.05 * max(float((high - low).max()), 1e-3)
    for ax in axes:
        ax.set_xlim(low[0] - margin, high[0] + margin)
        ax.set_ylim(low[1] - margin, high[1] + margin)
        ax.set_aspect("equal")
        ax.set_axis_off()


def spoken(joint: str) -> str:
    """A joint's name as a picture has it."""
    return plain(joint.replace("_", " "))


def grid(axes: Any, values: np.ndarray, layout: Layout, label: str, **options: Any) -> None:
    """Draw joints × segments as a heat map with a colour bar.

    Args:
        axes: of matplotlib.
        values: [S, V].
        layout: whose joints name the rows.
        label: of the colour bar.
        options: for ``axes.imshow``.
    """
    image = axes.imshow(values.T, aspect="auto", interpolation="nearest", **{"cmap": "viridis", **options})
    axes.set_yticks(range(layout.num_joints), [spoken(name) for name in layout.joints], fontsize=7)
    every = max(1, len(values) // 10)
    axes.set_xticks(range(0, len(values), every), [str(s + 1) for s in range(0, len(values), every)], fontsize=7)
    axes.set_xlabel("segment")
    axes.figure.colorbar(image, ax=axes, label=label)
