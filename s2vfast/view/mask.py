"""The page of a drawn mask: which tokens of a sequence a student sees, and how the joints move there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import s2vfast.errors as errors
from s2vfast import presets
from s2vfast.config import Config
from s2vfast.data.layout import Layout
from s2vfast.objectives import build_objective
from s2vfast.train import rundir
from s2vfast.view import page, pictures, source


@dataclass(frozen=True)
class Draw:
    """One epoch's clip of a sequence, and its masks."""

    epoch: int
    coordinates: np.ndarray
    """float32 [M, T, V, 3] of the clip; M at most 2."""
    seen: np.ndarray
    """bool [M, T, V]."""
    motion: np.ndarray
    """float32 [M, S, V]: mean over a token's frames and coordinates of what `Content.motion` says."""
    visible: np.ndarray
    """bool [masks, M, S, V]."""


@dataclass(frozen=True)
class Content:
    """The content of the page: a sequence's masks."""

    name: str
    class_name: str
    layout: Layout
    config: Config
    segment_frames: int
    motion: str
    """Which motion is shown: the one that the draw of the mask looks at, where it looks at any."""
    decides: bool
    """Whether it does."""
    draws: list[Draw]
    unit: str = "m"
    """Of the recordings' coordinates."""

    @property
    def segments(self) -> int:
        """S."""
        return self.config.data.frames // self.segment_frames


FRAME_MOTION = "mean |difference to the next frame|"
SEGMENT_MOTION = "mean |difference to the same frame of the segment before|"


def choose_config(store: Any, config: str | None = None, run: str | Path | None = None) -> Config:
    """The config of a run, or of a preset or YAML file; one of the two is named.

    Raises:
        ConfigError: both or none is named, or there is no such config.
        CheckpointError: no run there, or one of another layout.
    """
    if (config is None) == (run is None):
        raise errors.ConfigError("--config, --run: one of the two is needed, a preset or YAML file or a run's folder")
    if run is None:
        return presets.load(config)
    rundir.check_store(run, store, store.path, exact=False)
    return rundir.read_config(run)


def collect(
    store_path: str | Path,
    which: str,
    *,
    config: str | Config | None = None,
    run: str | Path | None = None,
    epoch: int = 0,
    epochs: int = 8,
) -> Content:
    """Draw the masks that pretraining draws for a sequence in some epochs.

    Args:
        store_path: a store.
        which: the sequence's name or number.
        config: a preset, a YAML file, or a config.
        run: or the run whose config it is.
        epoch: the first, from 0.
        epochs: how many, one after the other, all below 2**32.

    Raises:
        S2vfastError: a store, sequence, run or config that cannot be used.
    """
    store = source.open_store(store_path)
    index = source.find(store, which)
    if not isinstance(config, Config):
        config = choose_config(store, config, run)
    if epoch < 0 or epochs < 1:
        raise errors.ConfigError(f"--epoch {epoch}, --draws {epochs}: an epoch from 0 and 1 draw or more are expected")
    if epoch + epochs > 2**32:
        raise errors.ConfigError(f"--epoch {epoch}, --draws {epochs}: epochs go up to {2**32 - 1}")
    config.validate(store.layout)
    if not config.objective_class.masks_tokens:
        raise errors.ConfigError(f"objective.name: {config.objective.name} masks nothing; there are no masks to show")
    model = build_objective(config, store.layout)
    M = source.body_count(store, config, index)
    draws = [_draw(store, config, model, index, M, number) for number in range(epoch, epoch + epochs)]
    return Content(
        store.names[index],
        store.class_name(index),
        store.layout,
        config,
        model.sampler.segment_frames,
        SEGMENT_MOTION if model.sampler.kind == "motion_token" else FRAME_MOTION,
        model.sampler.kind == "motion_token" or model.sampler.motion_weight > 0,
        draws,
        store.unit,
    )


def _draw(store: Any, config: Config, model: Any, index: int, bodies: int, epoch: int) -> Draw:
    V, s = store.layout.num_joints, model.sampler.segment_frames
    S = config.data.frames // s
    clips = source.make_clips(store, config, np.array([index]), epoch=epoch)  # [data.bodies, T, V, C]
    masks = model.draw(clips, seed=config.train.seed, epoch=epoch, sample_ids=torch.tensor([index]))
    visible = torch.zeros(len(masks.visible), S * V, dtype=torch.bool)
    visible.scatter_(1, masks.visible.long(), True)  # [masks * data.bodies, L]
    coordinates = source.coordinates(store, config, index, epoch=epoch)[:bodies]
    motion = segment_motion_of if model.sampler.kind == "motion_token" else motion_of
    return Draw(
        epoch,
        coordinates,
        (coordinates != 0).any(-1),
        motion(coordinates, s),
        visible.view(-1, len(clips), S, V)[:, :bodies].numpy(),
    )


def motion_of(coordinates: np.ndarray, segment_frames: int) -> np.ndarray:
    """How far joints go from frame to frame, the mean over a token's frames and coordinates.

    Args:
        coordinates: [M, T, V, 3].
        segment_frames: s.

    Returns:
        [M, T / s, V], in the unit of ``coordinates``; the last frame goes nowhere.
    """
    M, T, V, _ = coordinates.shape
    step = np.zeros_like(coordinates)
    seen = (coordinates != 0).any(-1, keepdims=True)  # a joint of zeros was not seen and does not move
    step[:, :-1] = np.where(seen[:, 1:] & seen[:, :-1], np.abs(np.diff(coordinates, axis=1)), 0.0)
    return step.reshape(M, T // segment_frames, segment_frames, V, 3).mean(axis=(2, 4))


def segment_motion_of(coordinates: np.ndarray, segment_frames: int) -> np.ndarray:
    """How far joints are from where they were one segment before, as ``motion_token`` sees it.

    Args:
        coordinates: [M, T, V, 3].
        segment_frames: s.

    Returns:
        [M, T / s, V], in the unit of ``coordinates``; the first segment has the second's, or zeros where it is alone.
    """
    M, T, V, _ = coordinates.shape
    S = T // segment_frames
    motion = np.zeros((M, S, V), dtype=coordinates.dtype)
    x = coordinates.reshape(M, S, segment_frames, V, 3)
    seen = (x != 0).any(-1, keepdims=True)  # as above
    motion[:, 1:] = np.where(seen[:, 1:] & seen[:, :-1], np.abs(np.diff(x, axis=1)), 0.0).mean(axis=(2, 4))
    motion[:, 0] = motion[:, min(1, S - 1)]
    return motion


def write(content: Content, out: str | Path) -> Path:
    """Write the page."""
    config = content.config
    V, S, s = content.layout.num_joints, content.segments, content.segment_frames
    visible = int(content.draws[0].visible[0, 0].sum())
    data: dict[str, Any] = {
        "name": content.name,
        "layout": source.layout_entry(content.layout, source.clip_unit(config, content.unit)),
        "segments": S,
        "segment_frames": s,
        "motion": content.motion,
        "draws": [
            {
                "epoch": draw.epoch,
                "scene": source.scene(draw.coordinates, draw.seen),
                "motion": page.packed(draw.motion.astype(np.float32)),
                "visible": page.packed(draw.visible.astype(np.uint8)),
            }
            for draw in content.draws
        ],
        "facts": [
            ("objective", config.objective.name),
            ("seed", config.train.seed),
            ("tokens", f"{S} segments of {s} frames × {V} joints = {S * V}"),
            ("visible", f"{visible} ({100 * visible / (S * V):.0f} %)"),
            (
                "motion",
                f"{content.motion}; the masks {'are drawn by it' if content.decides else 'do not depend on it'}",
            ),
            *((f"mask.{name}", str(value)) for name, value in config.to_dict()["mask"].items() if value is not None),
        ],
    }
    return page.write(out, "mask", f"Masks of {content.name}", content.class_name, data)


def draw(content: Content, out: str | Path) -> Path:
    """Draw the first epoch's first mask of the main body as a PNG."""
    first = content.draws[0]
    S, s = content.segments, content.segment_frames
    picked = np.unique(np.linspace(0, S - 1, min(S, 6)).round().astype(int))
    figure = pictures.figure(4.6 + 1.1 * len(picked), 0.17 * content.layout.num_joints + 1.4)
    axes = figure.subplots(1, 1 + len(picked), width_ratios=[4.6] + [1.1] * len(picked))
    unit = source.clip_unit(content.config, content.unit)
    label = f"motion ({unit} a {'segment' if content.motion == SEGMENT_MOTION else 'frame'})"
    pictures.grid(axes[0], first.motion[0], content.layout, label, vmin=0, vmax=first.motion[0].max() or 1)
    at = np.argwhere(first.visible[0, 0])  # segment, joint
    axes[0].scatter(*at.T, s=22, c="white", edgecolors="black", linewidths=1)
    axes[0].set_title("visible tokens (discs)", fontsize=9)
    points = pictures.flat(first.coordinates[0], content.layout.up)  # [T, V, 2]
    middles = picked * s + s // 2
    pictures.same_scale(list(axes[1:]), points[middles][first.seen[0][middles]])
    for ax, segment, frame in zip(axes[1:], picked, middles, strict=True):
        shows = first.visible[0, 0, segment]
        faces = np.where(shows, pictures.COLOURS[0], "white")
        edges = np.where(shows, pictures.COLOURS[0], "gray")[first.seen[0, frame]]
        sizes = np.where(shows, 24, 9)[first.seen[0, frame]]
        pictures.skeleton(
            ax, points[frame], first.seen[0, frame], content.layout, "lightgray", c=faces, s=sizes, edgecolors=edges
        )
        ax.set_title(f"segment {segment + 1}", fontsize=8)
    figure.suptitle(pictures.plain(f"{content.name}: {content.class_name}, epoch {first.epoch}"), fontsize=10)
    return pictures.save(figure, out)
