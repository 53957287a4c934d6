"""teacher_target: the last blocks' outputs normalised, averaged and normalised again, at the masked tokens.

python -m benchmarks.bench_teacher_target [--shape ntu] [--device cuda] [--dtype bfloat16] [--out DIR]
"""

from __future__ import annotations

import sys

from benchmarks._ops import Benchmark, Cost
from benchmarks.run import main
from s2vfast.inputs import Shape


def cost(shape: Shape, backward: bool) -> Cost:
    """Bandwidth alone: instance norm needs all tokens, visible ones too."""
    return Cost()


BENCHMARK = Benchmark("teacher_target", cost, shapes=("ntu", "nwucla", "long", "wide"))


def test_teacher_target(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["teacher_target", *sys.argv[1:]]))
