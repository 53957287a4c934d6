"""How often a run of the objective ``clip_order`` tells the order of shuffled clips of sequences that it has not seen.

Every sequence gives one tuple, in the middle of it, and is asked for all of its orders: chance is 1 / clips!. A number
says little without its shortcuts, so three more are measured. Without a gap, the last frame of a clip and the first of
the next are almost one picture. With a larger gap, a tuple covers more of its sequence, and its clips differ more. A
sequence that is shorter than the tuple is stretched: its clips repeat frames. An action that goes out and comes back
looks alike at both ends, so that no network reaches 100 %.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.evaluate import features
from s2vfast.evaluate.context import EvalContext
from s2vfast.objectives.clip_order import ClipOrder, permutations, span
from s2vfast.train.feed import Recordings

_LENGTHS = {"stretched": (0.0, 1.0), "up to 1.5 tuples": (1.0, 1.5), "longer": (1.5, float("inf"))}
"""Recorded frames of a sequence, in those that a tuple covers: from, and below."""


def measure(context: EvalContext) -> dict[str, Any]:
    """Order accuracies of the context's test part.

    Returns:
        ``top1`` at the run's gap, ``chance``, ``by_gap`` (recorded frames between two clips: none, the run's, twice
        it) and ``by_length`` (``top1`` and ``sequences`` by how the sequence compares with the tuple), all in per cent.

    Raises:
        ConfigError: a run of another objective.
    """
    objective, config, _ = features.load_objective(context.run, untrained=context.untrained, log=context.log)
    if not isinstance(objective, ClipOrder):
        raise errors.ConfigError(
            f"--protocol order: {context.run} is a run of objective.name: {config.objective.name}; clip_order is "
            f"expected"
        )
    objective.to(context.device)
    options, stride = config.objective, config.data.stride
    orders = permutations(options.clips)
    by_gap, right = {}, torch.zeros(0)
    gaps = dict.fromkeys((0, options.gap, 2 * options.gap))
    for gap in gaps:
        at_gap = _answers(objective, context, gap)
        by_gap[str(gap * stride)] = _per_cent(at_gap)
        right = at_gap if gap == options.gap else right
    frames = torch.from_numpy(context.store.total_frames[context.ids[1]])
    tuples = frames / ((span(options) - 1) * stride + 1)
    by_length = {}
    for name, (low, high) in _LENGTHS.items():
        rows = right[(tuples >= low) & (tuples < high)]
        by_length[name] = {"top1": _per_cent(rows) if len(rows) else None, "sequences": len(rows)}
    scores = {"top1": _per_cent(right), "chance": 100.0 / len(orders), "by_gap": by_gap, "by_length": by_length}
    return scores | {"settings": {"clips": options.clips, "frames": options.frames, "gap": options.gap * stride}}


def _per_cent(right: Tensor) -> float:
    return 100.0 * float(right.double().mean())


@torch.no_grad()
def _answers(objective: ClipOrder, context: EvalContext, gap: int) -> Tensor:
    """bool [n, clips!]: which orders of each test sequence's tuple are told, with so many frames between clips."""
    options, ids, ranks = objective.options, torch.from_numpy(context.ids[1]), context.ranks
    data = replace(context.config.data, frames=span(options, gap))
    recordings = Recordings(replace(context.config, data=data), context.store, context.device)
    orders = permutations(options.clips).to(context.device)
    right = torch.zeros(len(ids), len(orders))
    for start in range(ranks.rank * context.clips, len(ids), ranks.world_size * context.clips):
        clips = recordings.clips(ids[start : start + context.clips]).to(context.device)
        shuffled = orders.expand(len(clips), -1, -1)
        logits = objective.logits(objective.features(clips, gap), shuffled).unflatten(0, (len(clips), -1))
        right[start : start + len(clips)] = (logits.argmax(2) == torch.arange(len(orders), device=logits.device)).cpu()
        if context.progress is not None:
            context.progress(f"orders, gap {gap}", start + len(clips), len(ids))
    ranks.all_reduce(right)
    return right > 0
