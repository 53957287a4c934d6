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
from s2vfast.view import page, pictures, source
from s2vfast.view.mask import motion_of

BUDGET = 2_000_000
"""Bytes for similarities and attention in a page, before base64 makes them a third longer."""


@dataclass(frozen=True)
class Shown:
    """What is shown of an encoder on a sequence. Tokens are numbered segment * V + joint."""

    name: str
    class_name: str
    layout: Layout
    config: Config
    segment_frames: int
    encoder: str
    """What to call it."""
    places: np.ndarray
    """float32 [M, T, V, 3] of the deterministic clip; M at most 2."""
    seen: np.ndarray
    """bool [M, T, V]."""
    similarity: np.ndarray
    """float32 [M, L, L]: cosine similarity of the tokens' features."""
    attention: dict[tuple[int, int | None], np.ndarray]
    """(block, head) → float32 [M, L, L], a query's weights a row, each sum 1; blocks and heads from 0, head None: the
    mean over heads."""
    asked: tuple[int, int | None]
    """The block and head that were asked for."""
    token: int
    """The one that is chosen first."""
    body: int
    """Its body."""

    @property
    def segments(self) -> int:
        """S."""
        return self.config.data.frames // self.segment_frames


def shown_layers(
    depth: int, heads: int, size: int, budget: int = BUDGET, block: int | None = None, head: int | None = None
) -> tuple[tuple[int, int | None], list[tuple[int, int | None]]]:
    """(block, head) that is asked for, and all that a page has room for, that one at any rate, in their order.

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
    asked = (depth - 1 if block is None else block, head)
    means: list[tuple[int, int | None]] = [(number, None) for number in reversed(range(depth))]
    single: list[tuple[int, int | None]] = [(b, h) for b in reversed(range(depth)) for h in range(heads)]
    wanted = list(dict.fromkeys([asked, *means, *single]))[: max(1, budget // size)]
    return asked, sorted(wanted, key=lambda found: (found[0], -1 if found[1] is None else found[1]))


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
) -> Shown:
    """Run a run's encoder on a sequence.

    Args:
        run: a run's folder.
        store_path: a store of its layout.
        which: the sequence's name or number.
        untrained: the weights that the run started from.
        block: whose attention is wanted, from 0; None: the last. Others are kept as far as there is room.
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
    clips = source.make_clips(store, config, np.array([index]))[:M]  # [M, T, V, C]
    layers = encoder.attention(clips)
    if layers is None or encoder.grid is None:
        raise errors.ConfigError(
            f"{run}: model.name: {config.model.name} has no attention of joints and segments to show; "
            f"`s2vfast view neighbours` and `view map` show its features"
        )
    with torch.no_grad():
        tokens = F.normalize(encoder(clips), dim=-1)  # [M, L, D]
        similarity = tokens @ tokens.transpose(1, 2)
        attention: dict[tuple[int, int | None], np.ndarray] = {}
        for number, weights in enumerate(layers):  # [M, H, L, L]
            if number == 0:
                size = weights[:, 0].numel()
                asked, shown = shown_layers(encoder.depth, weights.shape[1], size, budget - size // 2, block, head)
            for layer, h in shown:
                if layer == number:
                    attention[number, h] = (weights.mean(1) if h is None else weights[:, h]).numpy()
    if not torch.isfinite(similarity).all():
        raise errors.DataError(f"{store.path}: the encoder's features of {store.names[index]} are not finite")
    places = clips[..., :3].numpy()
    body, token = _first_token(places, encoder.segment_frames, store.layout, joint, segment)
    return Shown(
        store.names[index],
        store.classes[store.labels[index]],
        store.layout,
        config,
        encoder.segment_frames,
        features.called(step, untrained),
        places,
        source.seen_in(places, store.layout.root),
        similarity.numpy(),
        attention,
        asked,
        token,
        body,
    )


def _first_token(
    places: np.ndarray, segment_frames: int, layout: Layout, joint: str | None, segment: int | None
) -> tuple[int, int]:
    """(body, token) that is asked for, or of those left open the one that moves most."""
    motion = motion_of(places, segment_frames)  # [M, S, V]
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


def write(shown: Shown, out: str | Path) -> Path:
    """Write the page."""
    L = shown.similarity.shape[-1]
    # A symmetric matrix with ones on its diagonal: above it is all there is to know.
    rows, columns = np.triu_indices(L, 1)
    above = shown.similarity[:, rows, columns]  # [M, L * (L - 1) / 2]
    data: dict[str, Any] = {
        "name": shown.name,
        "layout": source.layout_entry(shown.layout, source.clip_unit(shown.config)),
        "segments": shown.segments,
        "segment_frames": shown.segment_frames,
        "scene": source.scene(shown.places, shown.seen),
        "similarity": page.quantised(above, 8),
        "attention": [
            {"block": block, "head": head, **row_wise(weights)} for (block, head), weights in shown.attention.items()
        ],
        "token": shown.token,
        "body": shown.body,
    }
    title = f"Similarity and attention: {shown.name}"
    subtitle = f"{shown.class_name}; {shown.encoder}"
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


def draw(shown: Shown, out: str | Path) -> Path:
    """Draw similarity and attention of the chosen token, in the block and head asked for, as a PNG."""
    layout, S, V = shown.layout, shown.segments, shown.layout.num_joints
    block, head = shown.asked
    segment, joint = divmod(shown.token, V)
    of = f"{pictures.spoken(layout.joints[joint])}, segment {segment + 1}"
    heads = "mean over heads" if head is None else f"head {head + 1}"
    panels = (
        (f"cosine similarity to {of}", shown.similarity[shown.body, shown.token], "similarity"),
        (
            f"attention of {of}\nblock {block + 1}, {heads}",
            shown.attention[block, head][shown.body, shown.token],
            "weight",
        ),
    )
    figure = pictures.figure(11, 0.17 * V + 1.6)
    axes = figure.subplots(1, 4, width_ratios=[3.4, 1.6, 3.4, 1.6])
    frame = segment * shown.segment_frames + shown.segment_frames // 2
    seen = shown.seen[shown.body, frame]
    points = pictures.flat(shown.places[shown.body, frame], layout)  # [V, 2]
    pictures.same_scale([axes[1], axes[3]], points[seen])
    for i, (title, values, label) in enumerate(panels):
        values = values.reshape(S, V)
        colours = {"cmap": "viridis", "vmin": values.min() if i == 0 else 0, "vmax": values.max()}
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
    figure.suptitle(pictures.plain(f"{shown.name}: {shown.class_name}; {shown.encoder}"), fontsize=10)
    return pictures.save(figure, out)
