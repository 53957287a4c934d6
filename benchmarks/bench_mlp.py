"""mlp: layer norm, fc1, GELU, fc2, LayerScale, residual addition.

python -m benchmarks.bench_mlp [--shape ntu] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """Two products with [E, D]; backward four more. GELU's erf is not counted."""
    return Cost(flop=(3 if backward else 1) * 4.0 * shape.N * shape.L * shape.D * shape.E)


BENCHMARK = Benchmark("mlp", cost)


def test_mlp(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["mlp", *sys.argv[1:]]))
