"""adamw_ema: native (two passes over the buffers) against torch (norm, scaling, fused AdamW, interpolation).

    python -m benchmarks.bench_adamw_ema [--repeat 40] [--json] [--out benchmarks/results]

An implementation that does not agree with the reference is not timed.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from benchmarks._compare import IMPLS, Case, main
from s2vfast import ops
from s2vfast.verify import verify

PARAMETERS, TEACHER, SPANS = 8_000_000, 6_000_000, 100
OPTIONS = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.05, "tau": 0.999}


def cases() -> dict[str, Case]:
    """By name: a gradient that is clipped, and one that is not."""
    for impl in IMPLS:
        if not all(row.good for row in verify("adamw_ema", impl)):
            raise SystemExit(f"adamw_ema: {impl} differs from the reference; nothing is reported")
    generator = torch.Generator().manual_seed(0)
    sizes = (PARAMETERS,) * 4 + (TEACHER,)
    param, grad, exp_avg, exp_avg_sq, teacher = (torch.randn(size, generator=generator) for size in sizes)
    exp_avg_sq.square_()
    edges = [0, *sorted(torch.randint(PARAMETERS, (SPANS - 1,), generator=generator).tolist()), PARAMETERS]
    spans = [ops.Span(a, b, i % 2 == 0) for i, (a, b) in enumerate(itertools.pairwise(edges))]

    def prepare() -> None:
        grad.fill_(0.01)  # norm 28; what is clipped must be made anew

    def step(impl: str, clip: float) -> Any:
        return ops.adamw_ema(param, grad, exp_avg, exp_avg_sq, teacher, spans, step=5, clip=clip, **OPTIONS, impl=impl)

    return {
        "8 million parameters, clipped": (prepare, lambda impl: step(impl, 1.0)),
        "8 million parameters, not clipped": (prepare, lambda impl: step(impl, 1e9)),
    }


if __name__ == "__main__":
    main("adamw_ema", cases, __doc__)
