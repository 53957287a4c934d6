"""clip_sample: native against torch, interleaved in one process, at one thread and all.

    python -m benchmarks.bench_clip_sample [--repeat 40] [--json] [--out benchmarks/results]

64 sequences of two bodies, a third of which have a second body, 40 to 250 frames. An implementation that does not agree
with the reference is not timed.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._compare import IMPLS, Case, main, nothing
from s2vfast import ops
from s2vfast.inputs import SHAPES
from s2vfast.verify import verify

SEQUENCES, BATCH, JOINTS = 400, 64, 25
SPECS = {
    "ntu60": ops.ClipSpec(120, rotate=(0.3, 0.3, 0.3)),
    "nwucla's choices": ops.ClipSpec(
        32, "crop", scale="torso", align="yaw", rotate=(0.1, 0.5, 0.1), scale_jitter=0.1, velocity=4.0, sides=(4, 8)
    ),
}


def recordings(generator: torch.Generator, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A store's frames and tables."""
    lengths = torch.randint(40, 251, (SEQUENCES,), generator=generator)
    second = torch.rand(SEQUENCES, generator=generator) < 1 / 3
    count = torch.stack([lengths, torch.where(second, lengths, 0)], dim=1)  # [Q, 2]
    row = count.flatten().cumsum(0).reshape(SEQUENCES, 2) - count
    index = torch.cat([torch.arange(n, dtype=torch.int32) for n in count.flatten().tolist()])
    frames = torch.randn(int(count.sum()), JOINTS, 3, generator=generator).to(dtype)
    return {"frames": frames, "frame_index": index, "row": row, "count": count.int()}


def cases() -> dict[str, Case]:
    """By name."""
    for impl in IMPLS:
        if not all(row.good for shape in ("tiny", "odd") for row in verify("clip_sample", impl, SHAPES[shape])):
            raise SystemExit(f"clip_sample: {impl} differs from the reference; nothing is reported")
    found = {}
    for name, spec in SPECS.items():
        for dtype in (torch.float32, torch.float16):
            generator = torch.Generator().manual_seed(0)
            given = recordings(generator, dtype)
            ids = torch.randint(SEQUENCES, (BATCH,), generator=generator)

            def run(impl: str, given: dict = given, ids: torch.Tensor = ids, spec: ops.ClipSpec = spec) -> Any:
                return ops.clip_sample(**given, ids=ids, spec=spec, seed=1, epoch=1, impl=impl)

            found[f"{name}, {BATCH} sequences, {str(dtype)[6:]}"] = (nothing, run)
    return found


if __name__ == "__main__":
    main("clip_sample", cases, __doc__)
