"""pytest-benchmark's door to the registry: one contender, shape and pass a test, with its statistics and storage.

    pytest benchmarks/bench_ops.py --benchmark-enable -k "attention and ntu and torch"

What does not agree with the reference fails and is not timed. Calls are timed as they come, not in turns, and not out
of a graph: for a ratio, `python -m benchmarks.run`. On a machine with a GPU they run there.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from benchmarks._calls import timed_call
from benchmarks._harness import COMPILED, contenders, gate
from benchmarks._program import begin, dtype_of
from benchmarks.cases import CASES, PASSES
from s2vfast.ops import IMPLEMENTATIONS


def pytest_generate_tests(metafunc: Any) -> None:
    """All of the registry; what cannot run here is skipped when its turn comes."""
    names = {
        f"{op}-{shape}-{one_pass}-{impl}": (op, shape, one_pass, impl)
        for op, case in CASES.items()
        for shape in case.shapes
        for one_pass in case.passes
        for impl in (*IMPLEMENTATIONS, *case.rivals, *([COMPILED] if case.plain else []))
    }
    metafunc.parametrize(("op", "shape", "one_pass", "impl"), list(names.values()), ids=list(names))


@functools.cache
def refused(op: str, shape: str, impl: str, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """`benchmarks._harness.gate` of one contender at one shape."""
    return gate(CASES[op], [shape], dtype, device, [impl])


def test_op(op: str, shape: str, one_pass: str, impl: str, benchmark: Any) -> None:
    """Time one contender."""
    import pytest

    device = begin("cuda" if torch.cuda.is_available() else "cpu")
    case, dtype = CASES[op], dtype_of(None, device)
    arguments = case.inputs(case.shape(shape, device), dtype, device)
    functions = contenders(case, device, arguments, shape == case.shapes[0], [impl])
    if impl not in functions:
        pytest.skip(f"{op} has no {impl} that can run here at this shape")
    if wrong := refused(op, shape, impl, device, dtype):
        pytest.fail(f"{impl} is not timed: {wrong[impl]}", pytrace=False)
    call = timed_call(functions[impl], arguments, one_pass == PASSES[1])
    benchmark.group = f"{op}, {shape}, {one_pass}"
    benchmark.extra_info |= {"impl": impl, "device": str(device), "dtype": str(dtype)}

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, warmup_rounds=2, rounds=10)
