"""The page of an encoder's tokens on one sequence: which of them are alike, and which ones attend to which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import s2vfast.errors as errors
from s2vfast.config import Config
from s2vfast.data.layout import Layout
from s2vfast.evaluate import features
from s2vfast.networks.base import TokenMaps
from s2vfast.view import page, pictures, source
from s2vfast.view.mask import motion_of

BUDGET = 2_000_000
"""Bytes for similarities and attention in a page, before base64 makes them a third longer."""


@dataclass(frozen=True)
class Content:
    """The content of the page: an encoder on a sequence. Tokens are numbered segment * V + joint."""

    name: str
    class_name: str
    layout: Layout
    config: Config
    segment_frames: int
    encoder: str
    """What to call it."""
    coordinates: np.ndarray
    """float32 [M, T, V, 3] of the deterministic clip; M at most 2."""
    seen: np.ndarray
    """bool [M, T, V]."""
    similarity: np.ndarray
    """float32 [M, L, L]: cosine similarity of the tokens' features."""
    attention: dict[tuple[int, int | None], np.ndarray]
    """(block, head) → float32 [M, L, L], a query's weights a row, each sum 1; blocks and heads from 0, head None: the
    mean over heads."""
    initial_layer: tuple[int, int | None]
    """The block and head that the page and the picture begin with."""
    token: int
    """The one that is chosen first."""
    body: int
    """Its body."""
    salience: np.ndarray | None = None
    """float32 [M, L] in [0, 1]: what network or objective looks at; None: there is no such thing."""
    unit: str = "m"
    """Of the recordings' coordinates."""

    @property
    def segments(self) -> int:
        """S."""
        return self.similarity.shape[-1] // self.layout.num_joints


def shown_layers(
    depth: int, heads: int, size: int, budget: int = BUDGET, block: int | None = None, head: int | None = None
) -> tuple[tuple[int, int | None], list[tuple[int, int | None]]]:
    """(block, head) of `Content.initial_layer`, and those that fit the budget, the initial one always, in order.

    Args:
        depth: blocks of the encoder.
        heads: of a block.
        size: bytes of one matrix.
        budget: bytes for all.
        block: asked for, from 0; None: the last.
        head: asked for, from 0; None: the mean over heads.

    Raises:
        ConfigError: no such block or head.
    """
    for name, value, of in (("block", block, depth), ("head", head, heads)):
        if value is not None and not 0 <= value < of:
            raise errors.ConfigError(f"--{name}: {value + 1}; this encoder has {name}s 1 to {of}")
    initial_layer = (depth - 1 if block is None else block, head)
    means: list[tuple[int, int | None]] = [(number, None) for number in reversed(range(depth))]
    single: list[tuple[int, int | None]] = [(b, h) for b in reversed(range(depth)) for h in range(heads)]
    layers = list(dict.fromkeys([initial_layer, *means, *single]))[: max(1, budget // size)]
    return initial_layer, sorted(layers, key=lambda layer: (layer[0], -1 if layer[1] is None else layer[1]))


def collect(
    run: str | Path,
    store_path: str | Path,
    which: str,
    *,
    untrained: bool = False,
    block: int | None = None,
    head: int | None = None,
    joint: str | None = None,
    segment: int | None = None,
    budget: int = BUDGET,
    log: Callable[[str], object] = print,
) -> Content:
    """Run a run's encoder on a sequence.

    Args:
        run: a run's folder.
        store_path: a store of its layout.
        which: the sequence's name or number.
        untrained: the weights that the run started from.
        block: whose attention is wanted, from 0; None: the last. Others are shown as far as they fit the budget.
        head: whose, from 0; None: the mean over heads.
        joint: name or number of the joint that is chosen first; None: the one that moves most.
        segment: likewise, from 0.
        budget: bytes for similarities and attention.
        log: told of damaged checkpoints that were passed over.

    Raises:
        S2vfastError: a run, store, sequence, block, head, joint or segment that is not there.
    """
    store = source.open_store(store_path, run)
    index = source.find(store, which)
    encoder, config, step = features.load_encoder(run, untrained=untrained, log=log)
    M = source.body_count(store, config, index)
    # Absent bodies too, without which some networks cannot tell which body is which.
    tracks = source.make_clips(store, config, np.array([index]))
    with torch.no_grad():
        maps = encoder.token_maps(tracks)
        if maps is None and encoder.grid is not None:
            objective, _, _ = features.load_objective(run, untrained=untrained, log=log)
            weights = objective.token_weights(tracks)
            if weights is not None:
                maps = TokenMaps(encoder.grid, encoder.segment_frames, encoder(tracks), weights[1:], 1, weights[0])
        if maps is None:
            raise errors.ConfigError(
                f"{run}: model.name: {config.model.name} has no attention of joints and segments to show; "
                f"`s2vfast view neighbours` and `view map` show its features"
            )
        tokens = F.normalize(maps.features[:M], dim=-1)  # [M, L, D]
        similarity = tokens @ tokens.transpose(1, 2)
        attention: dict[tuple[int, int | None], np.ndarray] = {}
        for number, weights in enumerate(maps.attention):
            weights = weights[:M]  # [M, H, L, L]
            if number == 0:
                size = weights[:, 0].numel()
                initial_layer, layers_shown = shown_layers(
                    maps.layers, weights.shape[1], size, budget - size // 2, block, head
                )
            for layer, h in layers_shown:
                if layer == number:
                    attention[number, h] = (weights.mean(1) if h is None else weights[:, h]).numpy()
    if not torch.isfinite(similarity).all():
        raise errors.DataError(f"{store.path}: the encoder's features of {store.names[index]} are not finite")
    coordinates = source.coordinates(store, config, index)[:M, : maps.grid[0] * maps.segment_frames]
    body, token = _first_token(coordinates, maps.segment_frames, store.layout, joint, segment)
    return Content(
        store.names[index],
        store.class_name(index),
        store.layout,
        config,
        maps.segment_frames,
        features.called(step, untrained),
        coordinates,
        (coordinates != 0).any(-1),
        similarity.numpy(),
        attention,
        initial_layer,
        token,
        body,
        None if maps.salience is None else maps.salience[:M].numpy(),
        store.unit,
    )


def _first_token(
    coordinates: np.ndarray, segment_frames: int, layout: Layout, joint: str | None, segment: int | None
) -> tuple[int, int]:
    """(body, token) that is asked for, or of those left open the one that moves most."""
    motion = motion_of(coordinates, segment_frames)  # [M, S, V]
    S = motion.shape[1]
    allowed = np.ones(motion.shape, dtype=bool)
    if joint is not None:
        if joint not in layout.joints and not (joint.isdecimal() and int(joint) < layout.num_joints):
            raise errors.ConfigError(f"--joint: {joint!r} is no joint of {layout.name}: {', '.join(layout.joints)}")
        allowed &= np.arange(layout.num_joints) == (
            layout.joints.index(joint) if joint in layout.joints else int(joint)
        )
    if segment is not None:
        if not 0 <= segment < S:
            raise errors.ConfigError(f"--segment: {segment + 1}; a clip has segments 1 to {S}")
        allowed &= np.arange(S)[:, None] == segment
    body, s, v = np.unravel_index(np.where(allowed, motion, -1.0).argmax(), motion.shape)
    return int(body), int(s) * layout.num_joints + int(v)


def write(content: Content, out: str | Path) -> Path:
    """Write the page."""
    L = content.similarity.shape[-1]
    # A symmetric matrix with ones on its diagonal: above it is all there is to know.
    rows, columns = np.triu_indices(L, 1)
    above = content.similarity[:, rows, columns]  # [M, L * (L - 1) / 2]
    data: dict[str, Any] = {
        "name": content.name,
        "layout": source.layout_entry(content.layout, source.clip_unit(content.config, content.unit)),
        "segments": content.segments,
        "segment_frames": content.segment_frames,
        "scene": source.scene(content.coordinates, content.seen),
        "similarity": page.quantised(above, 8),
        "attention": [
            {"block": block, "head": head, **row_wise(weights)} for (block, head), weights in content.attention.items()
        ],
        "salience": None if content.salience is None else page.quantised(content.salience, 8),
        "token": content.token,
        "body": content.body,
    }
    title = f"Similarity and attention: {content.name}"
    subtitle = f"{content.class_name}; {content.encoder}"
    return page.write(out, "attention", title, subtitle, data)


def row_wise(weights: np.ndarray) -> dict[str, Any]:
    """Attention [M, L, L] in 8 bits a number: ``weights`` are shares of their row's largest, which is in ``largest``.

    Weights differ by orders of magnitude from row to row, and a row is what is looked at.
    """
    largest = weights.max(-1, keepdims=True)
    return {
        "weights": page.packed(np.rint(255 * weights / largest).astype(np.uint8)),
        "largest": page.packed(largest[..., 0].astype(np.float32)),
    }


def draw(content: Content, out: str | Path) -> Path:
    """Draw similarity and attention of the chosen token, in the block and head asked for, and salience, as a PNG."""
    layout, S, V = content.layout, content.segments, content.layout.num_joints
    block, head = content.initial_layer
    segment, joint = divmod(content.token, V)
    of = f"{pictures.spoken(layout.joints[joint])}, segment {segment + 1}"
    heads = "mean over heads" if head is None else f"head {head + 1}"
    panels = [
        (f"cosine similarity to {of}", content.similarity[content.body, content.token], "similarity"),
        (
            f"attention of {of}\nblock {block + 1}, {heads}",
            content.attention[block, head][content.body, content.token],
            "weight",
        ),
    ]
    if content.salience is not None:
        panels.append(("salience of tokens", content.salience[content.body], "salience"))
    figure = pictures.figure(5.5 * len(panels), 0.17 * V + 1.6)
    axes = figure.subplots(1, 2 * len(panels), width_ratios=[3.4, 1.6] * len(panels))
    frame = segment * content.segment_frames + content.segment_frames // 2
    seen = content.seen[content.body, frame]
    points = pictures.flat(content.coordinates[content.body, frame], layout.up)  # [V, 2]
    pictures.same_scale(list(axes[1::2]), points[seen])
    for i, (title, values, label) in enumerate(panels):
        values = values.reshape(S, V)
        colours = {"cmap": "viridis", "vmin": 0 if i == 1 else values.min(), "vmax": values.max()}
        pictures.grid(axes[2 * i], values, layout, label, **colours)
        axes[2 * i].plot(segment, joint, "s", markersize=7, markerfacecolor="none", markeredgecolor="red")
        axes[2 * i].set_title(title, fontsize=8)
        body = axes[2 * i + 1]
        pictures.skeleton(
            body, points, seen, layout, "lightgray", c=values[segment], s=34, edgecolors="gray", **colours
        )
        if seen[joint]:
            body.plot(*points[joint], "o", markersize=10, markerfacecolor="none", markeredgecolor="red")
        body.set_title(f"segment {segment + 1}", fontsize=8)
    figure.suptitle(pictures.plain(f"{content.name}: {content.class_name}; {content.encoder}"), fontsize=10)
    return pictures.save(figure, out)
