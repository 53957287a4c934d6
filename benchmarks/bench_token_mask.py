"""token_mask: draws, motion and a sort: masks of single tokens by their motion, as MAMP has them.

python -m benchmarks.bench_token_mask [--shape ntu] [--device cuda] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """Clips are read once, token numbers written."""
    return Cost(bytes=4.0 * shape.N * (shape.S * shape.s * shape.V * shape.C + shape.L))


BENCHMARK = Benchmark("token_mask", cost, shapes=("ntu", "nwucla", "long"), light=True, plain=False)


def test_token_mask(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["token_mask", *sys.argv[1:]]))
