"""Every operation on a GPU at real shapes; the same comparisons as elsewhere, and what only a GPU can get wrong."""

import dataclasses

import pytest
import torch
from torch import Tensor

from s2vfast import ops, verify
from s2vfast.inputs import OPS, SHAPES, WITHOUT_GRADIENT, inputs

pytestmark = pytest.mark.gpu
PAIRS = [
    (op, impl) for op in OPS for impl in ("torch", "triton", "native") if impl in ops.operation(op).implementations
]
ids = [f"{op}-{impl}" for op, impl in PAIRS]
# Every shape is compiled anew: what matters most, in what is used most.
CASES = [(name, torch.bfloat16) for name in ("ntu", "ntu_student", "odd", "wide", "one", "empty")]
CASES += [(name, torch.float32) for name in ("ntu_student", "odd")]


def runnable(op, impl):
    """Skip, with the reasons, what has no implementation for a GPU."""
    if reasons := ops.operation(op).why_not(impl, "cuda"):
        pytest.skip("; ".join(reasons))


def operands(op, impl):
    """bfloat16, as in a step; what is compiled is run in float32 where it can be."""
    return torch.float32 if impl == "native" and op != "attention" else torch.bfloat16


def on_device(given):
    """What changes from step to step as device tensors: a graph keeps the host's numbers as they were."""
    changing = {name: given[name] for name in ("step", "lr", "tau") if name in given}
    return given | {name: torch.tensor(float(x), dtype=torch.float64, device="cuda") for name, x in changing.items()}


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in CASES])
@pytest.mark.parametrize(("op", "impl"), PAIRS, ids=ids)
def test_agrees_with_the_reference(op, impl, name, dtype):
    runnable(op, impl)
    if (op, impl, dtype) == ("attention", "native", torch.float32):
        pytest.skip("it takes bfloat16 and float16")
    shape = dataclasses.replace(SHAPES[name], N=min(SHAPES[name].N, 4 if name == "wide" else 8))
    for row in verify.verify(op, impl, shape, dtype=dtype, device="cuda"):
        assert row.good, f"{row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}"


@pytest.mark.parametrize(("op", "impl"), [p for p in PAIRS if p[1] != "torch"])
def test_250_launches_give_the_same_bits(op, impl):
    runnable(op, impl)
    dtype = operands(op, impl)
    given = inputs(op, dataclasses.replace(SHAPES["ntu"], N=4), dtype=dtype, device="cuda")
    public = getattr(ops, op)

    def once() -> list[Tensor]:
        leaves = {n: v.detach().clone() for n, v in given.items() if isinstance(v, Tensor)}
        floating = [v for v in leaves.values() if v.is_floating_point()]
        differentiable = op not in WITHOUT_GRADIENT
        for leaf in floating:
            leaf.requires_grad_(differentiable)
        outputs = public(**{**given, **leaves}, impl=impl)
        outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out is not None]
        found = [out.detach() for out in outputs]
        if differentiable:
            total = sum(out.float().square().sum() for out in outputs)
            found += [g for g in torch.autograd.grad(total, floating, allow_unused=True) if g is not None]
        return found + ([leaves["param"], leaves["teacher"]] if op == "adamw_ema" else [])

    first = once()
    for _ in range(250):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@pytest.mark.parametrize(("op", "impl"), [p for p in PAIRS if p[1] != "torch"])
def test_captured_in_a_graph_it_computes_the_same(op, impl):
    runnable(op, impl)
    dtype = operands(op, impl)
    given = on_device(inputs(op, dataclasses.replace(SHAPES["ntu"], N=4), dtype=dtype, device="cuda"))
    public = getattr(ops, op)

    def call():
        out = public(**given, impl=impl)
        return [o for o in (out if isinstance(out, tuple) else (out,)) if o is not None]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = call()
    graph.replay()
    if op == "adamw_ema":  # works in place: a further call has other inputs
        assert all(torch.isfinite(value).all() for value in captured)
        return
    with torch.no_grad():
        expected = call()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize(("op", "impl"), [p for p in PAIRS if p[1] != "torch"])
def test_runs_on_the_current_stream(op, impl):
    """On a stream that waits, nothing may have been computed yet; afterwards all has."""
    runnable(op, impl)
    dtype = operands(op, impl)
    given = inputs(op, dataclasses.replace(SHAPES["ntu"], N=4), dtype=dtype, device="cuda")
    if op == "adamw_ema":
        pytest.skip("works in place")
    public = getattr(ops, op)
    with torch.no_grad():
        expected = public(**given, impl=impl)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = {n: torch.zeros_like(v) if _floating(v) else v for n, v in given.items()}
            torch.cuda._sleep(50_000_000)
            for name, value in late.items():
                if _floating(value):
                    value.copy_(given[name])
            found = public(**late, impl=impl)
        stream.synchronize()
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (expected, found)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs if a is not None)


def _floating(value):
    return isinstance(value, Tensor) and value.is_floating_point()
