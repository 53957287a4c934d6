"""masked_mse: the loss at the masked tokens.

python -m benchmarks.bench_masked_mse [--shape ntu] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """Bandwidth alone."""
    return Cost()


BENCHMARK = Benchmark("masked_mse", cost, shapes=("ntu", "nwucla", "long", "wide"), light=True)


def test_masked_mse(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["masked_mse", *sys.argv[1:]]))
