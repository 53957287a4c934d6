"""embed_gather: native against torch (gather, matrix product, embedding), forward and forward with backward.

    python -m benchmarks.bench_embed_gather [--repeat 40] [--json] [--out benchmarks/results]

Visible tokens as the student sees them, all tokens as the teacher does (forward alone). An implementation that does not
agree with the reference is not timed.
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
    """By name; N = 32, L = 750, K = 60, D = 256, 12 numbers a token."""
    shape = dataclasses.replace(SHAPES["ntu"], N=TRACKS)
    for impl in IMPLS:
        if not all(row.good for row in verify("embed_gather", impl, dataclasses.replace(shape, N=2))):
            raise SystemExit(f"embed_gather: {impl} differs from the reference; nothing is reported")
    given = inputs("embed_gather", shape)
    leaves = {name: given[name].clone().requires_grad_() for name in ("weight", "bias", "positions")}
    upstream = torch.randn(shape.N, shape.K, shape.D)

    def forward(impl: str) -> Any:
        with torch.no_grad():
            return ops.embed_gather(**given, impl=impl)

    def both(impl: str) -> Any:
        out = ops.embed_gather(**given | leaves, impl=impl)
        return torch.autograd.grad(out, list(leaves.values()), upstream)

    def teacher(impl: str) -> Any:
        with torch.no_grad():
            return ops.embed_gather(**given | {"visible": None}, impl=impl)

    name = f"ntu60, {TRACKS} tracks"
    return {
        f"{name}, visible, forward": (nothing, forward),
        f"{name}, visible, forward and backward": (nothing, both),
        f"{name}, all tokens, forward": (nothing, teacher),
    }


if __name__ == "__main__":
    main("embed_gather", cases, __doc__)
