"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence


def learning_rate(
    step: int,
    total: int,
    warmup: int,
    peak: float,
    last: float,
    schedule: str = "cosine",
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
) -> float:
    """Linear warm-up to ``peak`` over ``warmup`` steps, then the schedule.

    Args:
        step: steps taken so far, 0 to total - 1.
        total: steps of the run.
        warmup: steps of warm-up.
        peak: largest rate.
        last: rate at the end of a descent.
        schedule: ``cosine`` or ``linear``, a descent to ``last`` at the end of the run, or ``steps``.
        milestones: steps from which on the rate has one more factor ``gamma`` (steps).
        gamma: factor at a milestone.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "steps":
        return peak * gamma ** sum(step >= milestone for milestone in milestones)
    progress = (step - warmup) / max(total - warmup, 1)
    if schedule == "linear":
        return peak + (last - peak) * progress
    return last + (peak - last) * 0.5 * (1.0 + math.cos(math.pi * progress))
