"""What holds for every operation and every implementation that can run here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from s2vfast import errors, ops, verify
from s2vfast.inputs import OPS, SHAPES, WITHOUT_GRADIENT, Shape, inputs

CAN = [
    (op, impl)
    for op in OPS
    if op in ops.availability("cpu")
    for impl, reasons in ops.availability("cpu")[op].items()
    if not reasons and impl != "reference"
]
OURS = [(op, impl) for op, impl in CAN if impl in ("triton", "native")]
DIFFERENTIABLE = [(op, impl) for op, impl in CAN if op not in WITHOUT_GRADIENT]


def names(pairs):
    return [f"{op}-{impl}" for op, impl in pairs]


@pytest.mark.parametrize("shape", ["tiny", "odd", "one", "empty"])
@pytest.mark.parametrize(("op", "impl"), CAN, ids=names(CAN))
def test_agrees_with_the_reference(op, impl, shape):
    for row in verify.verify(op, impl, SHAPES[shape]):
        assert row.good, f"{row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}"


@st.composite
def shapes(draw):
    """Small and odd: any number of tracks, joints, channels; tubes of any length that fits."""
    tube_len, tubes, V = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 7))
    H, width = draw(st.integers(1, 3)), draw(st.sampled_from([8, 16, 24]))
    return Shape(
        N=draw(st.integers(1, 4)),
        S=tube_len * tubes,
        V=V,
        s=draw(st.integers(1, 4)),
        C=draw(st.sampled_from([3, 6])),
        D=H * width,
        H=H,
        E=draw(st.integers(1, 70)),
        k=draw(st.integers(1, 4)),
        tube_len=tube_len,
        keep=draw(st.integers(1, V)),
    )


@pytest.mark.parametrize(("op", "impl"), OURS, ids=names(OURS))
@settings(max_examples=5, deadline=None, derandomize=True)
@given(shape=shapes(), seed=st.integers(0, 1000))
def test_agrees_at_any_shape(op, impl, shape, seed):
    for row in verify.verify(op, impl, shape, seed=seed):
        assert row.good, f"{row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}"


@pytest.mark.parametrize(("op", "impl"), DIFFERENTIABLE, ids=names(DIFFERENTIABLE))
def test_gradients_only_where_they_are_wanted(op, impl):
    given = inputs(op)
    floating = [name for name, value in given.items() if isinstance(value, Tensor) and value.is_floating_point()]
    for name in floating:
        leaves = {n: given[n].detach().clone().requires_grad_(n == name) for n in floating}
        out = getattr(ops, op)(**{**given, **leaves}, impl=impl)
        sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,)) if o is not None).backward()
        assert leaves[name].grad is not None, name
        assert torch.isfinite(leaves[name].grad).all(), name


@pytest.mark.parametrize(("op", "impl"), CAN, ids=names(CAN))
def test_a_stride_does_not_matter(op, impl):
    given = inputs(op, SHAPES["odd"])
    if op == "adamw_ema":
        pytest.skip("works in place on flat buffers")

    def strided(value):
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [strided(item) for item in value]
        if not isinstance(value, Tensor) or not value.ndim or not value.numel():
            return value
        wide = value.new_zeros(*value.shape[:-1], 2 * value.shape[-1])
        wide[..., ::2] = value
        return wide[..., ::2]

    public = getattr(ops, op)
    expected, found = public(**given, impl=impl), public(**{n: strided(v) for n, v in given.items()}, impl=impl)
    as_tuple = [x if isinstance(x, tuple) else (x,) for x in (expected, found)]
    for e, f in zip(*as_tuple, strict=True):
        assert torch.equal(e, f) if not e.is_floating_point() else torch.allclose(e, f, rtol=1e-5, atol=1e-6)


class Recorded(TorchDispatchMode):
    """Calls of our own custom operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "s2vfast":
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", ["tiny", "odd", "empty"])
@pytest.mark.parametrize(("op", "impl"), OURS, ids=names(OURS))
def test_opcheck(op, impl, shape):
    if (op, shape) == ("masked_mse", "empty"):
        pytest.skip("the mean over nothing is NaN, which opcheck finds different from itself")
    given = inputs(op, SHAPES[shape])
    differentiable = op not in WITHOUT_GRADIENT
    for value in given.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            value.requires_grad_(differentiable)
    with Recorded() as recorded:
        outputs = getattr(ops, op)(**given, impl=impl)
        if differentiable:
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            sum(out.square().sum() for out in outputs if out is not None).backward()
    assert recorded.calls

    def fresh(value, leaf):
        if isinstance(value, (list, tuple)):
            return type(value)(fresh(item, leaf) for item in value)
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(leaf and value.is_floating_point())

    seen = set()
    for function, args, kwargs in recorded.calls:
        if function in seen:
            continue
        seen.add(function)
        leaf = differentiable and "backward" not in str(function)
        torch.library.opcheck(function, fresh(args, leaf), {k: fresh(v, leaf) for k, v in kwargs.items()})
    assert len(seen) >= (2 if differentiable else 1)


@pytest.mark.parametrize(("op", "impl"), DIFFERENTIABLE, ids=names(DIFFERENTIABLE))
def test_compiled_without_a_break_the_gradients_are_the_same(op, impl):
    given = inputs(op)
    floating = [name for name, value in given.items() if isinstance(value, Tensor) and value.is_floating_point()]
    public = getattr(ops, op)
    rest = {name: value for name, value in given.items() if name not in floating}

    def run(*leaves):
        out = public(**dict(zip(floating, leaves, strict=True)), **rest, impl=impl)
        return sum(o.square().sum() for o in (out if isinstance(out, tuple) else (out,)) if o is not None)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (run, compiled):
        leaves = [given[name].detach().clone().requires_grad_() for name in floating]
        function(*leaves).backward()
        results.append([leaf.grad for leaf in leaves])
    for name, plain, traced in zip(floating, *results, strict=True):
        assert torch.allclose(plain, traced, rtol=1e-5, atol=1e-6), name


@pytest.fixture(scope="module")
def guarded():
    """{OP:IMPL: what is wrong}, from processes whose buffers lie between forbidden pages; see guarded.py."""
    left, results = [f"{op}:{impl}" for op, impl in OURS], {}
    while left:
        command = [sys.executable, str(Path(__file__).with_name("guarded.py")), *left]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"})
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        results |= {line["case"]: line["wrong"] for line in lines if "wrong" in line}
        left = [case for case in left if case not in results]
        if left:
            results[left[0]] = [f"the process ended with {done.returncode}: {done.stderr[-1500:]}"]
            left = left[1:]
    return results


@pytest.mark.parametrize(("op", "impl"), OURS, ids=names(OURS))
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect as Linux has it")
def test_touches_only_its_own_memory_and_writes_every_output(op, impl, guarded):
    assert guarded[f"{op}:{impl}"] == []


@pytest.mark.parametrize("op", OPS)
def test_an_explicit_name_never_falls_back(op):
    given = inputs(op)
    for impl, reasons in ops.availability("cpu")[op].items():
        if reasons:
            with pytest.raises(errors.ImplementationError, match=f"{op}.*{impl}"):
                getattr(ops, op)(**given, impl=impl)


def test_every_reason_against_triton_is_named():
    prediction = torch.zeros(1, 2, 16, dtype=torch.float64)
    with pytest.raises(errors.ImplementationError, match="float32 and bfloat16, not float64"):
        ops.masked_mse(prediction, prediction, impl="triton")


def test_without_the_interpreter_triton_says_what_it_needs():
    code = (
        "import torch\nfrom s2vfast import ops\nx = torch.zeros(1, 2, 16)\n"
        "try:\n    ops.masked_mse(x, x, impl='triton')\n"
        "except ops._dispatch.errors.ImplementationError as error:\n    print(error)\n"
        "print(ops.masked_mse(x, x).item())"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "Triton runs on a GPU, not on the cpu" in done.stdout
    assert done.stdout.endswith("0.0\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["masked_mse", "--sizes", "N=3,L=77,D=48"], 0, "good"),
        (["masked_mse", "--sizes", "Q=3"], 2, "shape: Q=3: expected NAME=NUMBER"),
        (["maskedmse"], 2, "no operation 'maskedmse'"),
        (["masked_mse", "--impl", "native"], 2, "has no native implementation"),
    ],
)
def test_the_command_that_checks_any_shape(words, code, said, capsys):
    assert verify.main(words) == code
    printed = capsys.readouterr()
    assert said in printed.out + printed.err
