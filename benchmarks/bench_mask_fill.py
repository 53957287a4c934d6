"""mask_fill: the decoder's input: latents at their places, the mask token at all others, plus position.

python -m benchmarks.bench_mask_fill [--shape ntu] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """Bandwidth alone."""
    return Cost()


BENCHMARK = Benchmark("mask_fill", cost, shapes=("ntu", "nwucla", "long", "wide"), light=True)


def test_mask_fill(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["mask_fill", *sys.argv[1:]]))
