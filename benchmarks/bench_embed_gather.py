"""embed_gather: the visible tokens' linear embedding plus position, out of the clips.

python -m benchmarks.bench_embed_gather [--shape ntu] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """A product of the visible tokens' numbers with [D, s * C]; backward one more, as clips need no gradient.

    Of the clips, float32, only the visible tokens are read; what is written is of the operands' dtype.
    """
    width, times = shape.s * shape.C, 2 if backward else 1
    rows = float(shape.N) * shape.K * times
    return Cost(flop=2 * rows * width * shape.D, bytes=4 * rows * width, operands=rows * shape.D)


BENCHMARK = Benchmark("embed_gather", cost, shapes=("ntu", "nwucla", "long", "wide"), light=True)


def test_embed_gather(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["embed_gather", *sys.argv[1:]]))
