"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, warmup: int, peak: float, last: float) -> float:
    """Linear warm-up to ``peak`` over ``warmup`` steps, then a cosine to ``last`` at the end of the run.

    Args:
        step: steps taken so far, 0 to total - 1.
        total: steps of the run.
        warmup: steps of warm-up.
        peak: largest rate.
        last: rate at the end.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return last + (peak - last) * 0.5 * (1.0 + math.cos(math.pi * progress))
