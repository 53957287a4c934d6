"""norm_linear: layer norm, then the queries, keys and values of a block.

python -m benchmarks.bench_norm_linear [--shape ntu] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """A product with [3 D, D]; backward two more."""
    return Cost(flop=(3 if backward else 1) * 2.0 * shape.N * shape.L * shape.D * 3 * shape.D)


BENCHMARK = Benchmark("norm_linear", cost)


def test_norm_linear(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["norm_linear", *sys.argv[1:]]))
