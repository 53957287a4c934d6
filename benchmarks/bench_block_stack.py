"""block_stack: all blocks of the student, which sees so few tokens that a track fits a tile.

python -m benchmarks.bench_block_stack [--shape ntu_student] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """Of k blocks: products with matrices of 4 D * D + 2 D * E numbers, and attention."""
    rows, scores = float(shape.k) * shape.N * shape.L, float(shape.k) * shape.N * shape.L * shape.L
    matrices = 2 * rows * (4 * shape.D * shape.D + 2 * shape.D * shape.E)
    flop = (3 if backward else 1) * matrices + (3.5 if backward else 1) * 4 * scores * shape.D
    return Cost(flop=flop, exps=(2 if backward else 1) * scores * shape.H)


# Tracks of at most 64 tokens: what it is for. NW-UCLA's student sees 16.
BENCHMARK = Benchmark("block_stack", cost, shapes=("ntu_student", "nwucla_student"))


def test_block_stack(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["block_stack", *sys.argv[1:]]))
