"""pytest-benchmark's door to the operations: one contender, shape and pass at a time, with its statistics and storage.

    pytest benchmarks/bench_attention.py --benchmark-enable [--shape ntu] [--device cuda] [--dtype bfloat16]

Calls are timed as they come, not in turns, and not out of a graph: for a ratio, `python -m benchmarks.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks._calls import call_of
from benchmarks._ops import PASSES, check
from benchmarks._program import begin, dtype_of


def pytest_addoption(parser: Any) -> None:
    """Where and on what."""
    group = parser.getgroup("operations")
    group.addoption("--shape", action="append", help="a shape by name (default: those an operation names)")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    group.addoption("--dtype", default="", help="of matrix operands (default: bfloat16 on a GPU)")


def _where(config: Any) -> tuple[torch.device, torch.dtype]:
    device = begin(config.option.device)
    return device, dtype_of(config.option.dtype, device)


def pytest_generate_tests(metafunc: Any) -> None:
    """A test for each contender, shape and pass, once all have been compared with the reference."""
    bench = getattr(metafunc.module, "BENCHMARK", None)
    if bench is None or "case" not in metafunc.fixturenames:
        return
    device, dtype = _where(metafunc.config)
    names = metafunc.config.option.shape or list(bench.shapes)
    wrong, cases = check(bench, names, dtype, device), {}
    for number, name in enumerate(names):
        given = bench.inputs(bench.shape(name, device), dtype, device)
        for impl, function in bench.contenders(device, given, number == 0).items():
            for one in bench.passes():
                cases[f"{name}-{one}-{impl}"] = (bench, name, one, impl, function, wrong.get(impl))
    metafunc.parametrize("case", list(cases.values()), ids=list(cases), indirect=True)


@pytest.fixture
def case(request: Any, benchmark: Any) -> Callable[[], Any]:
    """Times one case; fails where it does not agree with the reference."""
    bench, name, one, impl, function, wrong = request.param
    if wrong:
        pytest.fail(f"{impl} is not timed: {wrong}", pytrace=False)
    device, dtype = _where(request.config)
    call = call_of(function, bench.inputs(bench.shape(name, device), dtype, device), one == PASSES[1])
    benchmark.group = f"{bench.stem}, {name}, {one}"
    benchmark.extra_info |= {"impl": impl, "device": str(device), "dtype": str(dtype)}

    def timed() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return lambda: benchmark.pedantic(timed, warmup_rounds=2, rounds=10)
