"""mask_fill: native against torch (a broadcast and a scatter), forward and forward with backward.

    python -m benchmarks.bench_mask_fill [--repeat 40] [--json] [--out benchmarks/results]

An implementation that does not agree with the reference is not timed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from benchmarks._compare import IMPLS, Case, main, nothing
from s2vfast import ops
from s2vfast.inputs import SHAPES, inputs
from s2vfast.verify import verify

TRACKS = 32


def cases() -> dict[str, Case]:
    """By name; N = 32, L = 750, K = 60, D = 256."""
    shape = dataclasses.replace(SHAPES["ntu"], N=TRACKS)
    for impl in IMPLS:
        if not all(row.good for row in verify("mask_fill", impl, dataclasses.replace(shape, N=2))):
            raise SystemExit(f"mask_fill: {impl} differs from the reference; nothing is reported")
    given = inputs("mask_fill", shape)
    leaves = {name: given[name].clone().requires_grad_() for name in ("latents", "mask_token", "positions")}
    upstream = torch.randn(shape.N, shape.L, shape.D)

    def forward(impl: str) -> Any:
        with torch.no_grad():
            return ops.mask_fill(**given, impl=impl)

    def both(impl: str) -> Any:
        out = ops.mask_fill(**given | leaves, impl=impl)
        return torch.autograd.grad(out, list(leaves.values()), upstream)

    name = f"ntu60, {TRACKS} tracks"
    return {f"{name}, forward": (nothing, forward), f"{name}, forward and backward": (nothing, both)}


if __name__ == "__main__":
    main("mask_fill", cases, __doc__)
