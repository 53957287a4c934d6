"""clip_sample: clips out of a store's frames: frames chosen, centred, scaled, turned.

    python -m benchmarks.bench_clip_sample [--shape ntu] [--device cuda] [--out DIR]

400 sequences of 40 to 250 frames, a third of them with a second body; half precision, as stores keep them.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast import ops
from s2vfast.inputs import Shape

SEQUENCES = 400


def store(joints: int, sequences: int = SEQUENCES) -> dict[str, Tensor]:
    """A store's frames [F, V, 3], float32, and tables; see `s2vfast.ops.clip_sample`."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 251, (sequences,), generator=generator)
    second = torch.rand(sequences, generator=generator) < 1 / 3
    count = torch.stack([lengths, torch.where(second, lengths, 0)], dim=1)  # [Q, 2]
    row = count.flatten().cumsum(0).reshape(sequences, 2) - count
    index = torch.cat([torch.arange(n, dtype=torch.int32) for n in count.flatten().tolist()])
    frames = torch.randn(int(count.sum()), joints, 3, generator=generator)
    return {"frames": frames, "frame_index": index, "row": row, "count": count.int()}


def cost(shape: Shape, backward: bool) -> Cost:
    """A clip's frames are read in half precision and written in float32, velocities with them."""
    numbers = float(shape.N) * shape.S * shape.s * shape.V
    return Cost(bytes=numbers * (3 * 2 + shape.C * 4))


def recordings(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """A store's frames and tables, and the sequences of a batch."""
    made = store(shape.V)
    made["frames"] = made["frames"].half()
    spec = ops.ClipSpec(shape.S * shape.s, rotate=(0.3, 0.3, 0.3), velocity=4.0 if shape.C == 6 else 0.0)
    if shape.C == 6:  # NW-UCLA's choices
        more = {"scale": "torso", "align": "yaw", "scale_jitter": 0.1, "torso": (0, 1), "sides": (4, 8)}
        spec = dataclasses.replace(spec, sampling="crop", **more)
    return {
        **{name: tensor.to(device) for name, tensor in made.items()},
        "ids": torch.randint(SEQUENCES, (shape.N // 2,), generator=torch.Generator().manual_seed(1)).to(device),
        "spec": spec,
        "seed": 1,
        "epoch": 1,
    }


BENCHMARK = Benchmark("clip_sample", cost, shapes=("ntu", "nwucla", "long"), make=recordings, light=True, plain=False)


def test_clip_sample(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["clip_sample", *sys.argv[1:]]))
