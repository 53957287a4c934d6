"""add_norm: projection, LayerScale, residual addition and layer norm: what follows attention.

python -m benchmarks.bench_add_norm [--shape ntu] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """A product with [D, D]; backward two more."""
    return Cost(flop=(3 if backward else 1) * 2.0 * shape.N * shape.L * shape.D * shape.D)


BENCHMARK = Benchmark("add_norm", cost)


def test_add_norm(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["add_norm", *sys.argv[1:]]))
