import inspect
import subprocess
import sys
import threading

import pytest
import torch

from s2vfast import errors, inputs, ops, verify
from s2vfast.ops import _dispatch

X = (torch.ones(1, 2, 3), torch.zeros(1, 2, 3))


@pytest.fixture
def calls(monkeypatch):
    """Names of the implementations of masked_mse that were run."""
    ran = []

    def spy(name):
        def run(prediction, target):
            ran.append(name)
            return prediction.sum()

        return run

    op = _dispatch._OPS["masked_mse"]
    monkeypatch.setattr(op, "implementations", {name: spy(name) for name in ("reference", "torch", "native")})
    monkeypatch.setattr(op, "reasons", {"native": lambda device, *a, **k: ["no wings"] if X[0] is a[0] else []} | {})
    monkeypatch.delenv("S2VFAST_IMPL", raising=False)
    return ran


def test_auto_takes_the_first_that_can(calls, monkeypatch):
    monkeypatch.setitem(_dispatch.PREFERENCE["cpu"], "masked_mse", ("native", "torch"))
    ops.masked_mse(*X)
    ops.masked_mse(X[0].clone(), X[1])
    assert calls == ["torch", "native"]


def test_a_name_never_falls_back(calls):
    with pytest.raises(errors.ImplementationError, match="masked_mse: impl='native' cannot run here: no wings"):
        ops.masked_mse(*X, impl="native")
    with pytest.raises(errors.ImplementationError, match="masked_mse has no triton implementation"):
        ops.masked_mse(*X, impl="triton")
    assert calls == []


def test_the_innermost_choice_wins(calls, monkeypatch):
    monkeypatch.setenv("S2VFAST_IMPL", "reference")
    ops.masked_mse(*X)
    with ops.use_impl("torch"):
        ops.masked_mse(*X)
        with ops.use_impl("torch,masked_mse=reference"):
            ops.masked_mse(*X)
            ops.masked_mse(*X, impl="torch")
        with ops.use_impl("tube_mask=reference"):
            ops.masked_mse(*X)
        with ops.use_impl("auto"):
            ops.masked_mse(*X)
    ops.masked_mse(*X)
    assert calls == ["reference", "torch", "reference", "torch", "torch", "torch", "reference"]


def test_use_impl_holds_in_other_threads_and_ends(calls):
    with ops.use_impl("reference"):
        thread = threading.Thread(target=ops.masked_mse, args=X)
        thread.start()
        thread.join()
    ops.masked_mse(*X)
    assert calls == ["reference", "torch"]


@pytest.mark.parametrize(
    ("text", "message"), [("tube_mask=cuda", "no implementation 'cuda'"), ("tube=torch", "no operation 'tube'")]
)
def test_unknown_names(text, message):
    with pytest.raises(errors.ImplementationError, match=message):
        ops.parse_choice(text)


def test_availability_names_every_operation_and_reason():
    found = ops.availability("cpu")
    assert set(found) == set(_dispatch._OPS)
    for reasons in found.values():
        assert reasons["reference"] == []
        assert reasons["torch"] == []
        assert list(reasons) == list(ops.IMPLEMENTATIONS)
    assert ops.availability("cuda")["tube_mask"]["native"]


@pytest.mark.parametrize("impl", ops.IMPLEMENTATIONS)
def test_tensors_of_two_devices_are_refused_before_anything_runs(impl):
    here, there = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, device="meta")
    with pytest.raises(errors.ShapeError, match="masked_mse: its tensors are on cpu and meta; put them on one device"):
        ops.masked_mse(here, there, impl=impl)
    with pytest.raises(errors.ShapeError, match="teacher_target: its tensors are on cpu and meta"):
        ops.teacher_target([here, there], None, impl=impl)


def test_a_choice_for_this_thread_alone():
    from s2vfast.ops import _dispatch

    seen = []
    with ops.use_impl("torch"), ops.use_impl("reference", everywhere=False):
        thread = threading.Thread(target=lambda: seen.append(_dispatch._chosen("mlp", None)))
        thread.start()
        thread.join()
        assert _dispatch._chosen("mlp", None) == "reference"
    assert seen == ["torch"]
    assert not _dispatch._own.overrides


def test_threads_that_choose_do_not_disturb_each_other():
    from s2vfast.ops import _dispatch

    wrong = []

    def choose(name, everywhere):
        for _ in range(3000):
            with ops.use_impl(name, everywhere=everywhere):
                if not everywhere and _dispatch._chosen("mlp", None) != name:
                    wrong.append(name)

    jobs = [("torch", True), ("triton", True), ("reference", False), ("native", False)]
    threads = [threading.Thread(target=choose, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert _dispatch._overrides == ()


@pytest.fixture
def added():
    """Takes out of masked_mse what a test adds to it."""
    op = _dispatch._OPS["masked_mse"]
    before = dict(op.implementations), dict(op.reasons)
    yield op
    op.implementations, op.reasons = before


def test_an_implementation_from_outside(added):
    def mine(prediction, target):
        return (prediction - target).square().mean() + 1

    def why_not(device, prediction=None, target=None):
        return ["it wants three channels"] if prediction is not None and prediction.shape[-1] != 3 else []

    ops.register_impl("masked_mse", "mine", mine, why_not)
    assert ops.masked_mse(*X) == 1
    assert ops.masked_mse(*X, impl="mine") == 2
    with ops.use_impl("torch,masked_mse=mine"):
        assert ops.masked_mse(*X) == 2
    with ops.use_impl("mine"):
        assert ops.masked_mse(*X) == 2
        with pytest.raises(errors.ImplementationError, match="teacher_target has no mine implementation"):
            ops.teacher_target([X[0]], None)
    with pytest.raises(errors.ImplementationError, match="impl='mine' cannot run here: it wants three channels"):
        ops.masked_mse(X[0][..., :2], X[1][..., :2], impl="mine")
    assert ops.availability("cpu")["masked_mse"]["mine"] == []
    assert "mine" not in ops.availability("cpu")["teacher_target"]
    with pytest.raises(errors.ImplementationError, match="teacher_target=mine: no implementation 'mine'; there are"):
        ops.parse_choice("teacher_target=mine")
    ops.register_impl("masked_mse", "mine", lambda prediction, target: prediction.sum())
    assert ops.masked_mse(X[0][..., :2], X[1][..., :2], impl="mine") == 4


@pytest.mark.parametrize("op", inputs.OPS)
def test_an_implementation_is_called_as_the_public_function_is(op, monkeypatch):
    public, calls = getattr(ops, op), []

    def spy(*args, **kwargs):
        calls.append((args, kwargs))
        return public(*args, **kwargs, impl="reference")

    for table in ("implementations", "reasons"):
        monkeypatch.setattr(_dispatch._OPS[op], table, dict(getattr(_dispatch._OPS[op], table)))
    ops.register_impl(op, "spy", spy)
    public(**inputs.inputs(op), impl="spy")
    kinds = {name: parameter.kind for name, parameter in inspect.signature(public).parameters.items() if name != "impl"}
    [(args, kwargs)] = calls
    assert len(args) == sum(kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds.values())
    # Groups of attention are handed on where there are any, so that implementations may do without.
    expected = {name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY} - {"group"}
    assert set(kwargs) == expected


@pytest.mark.parametrize(
    ("op", "name", "message"),
    [
        ("mse", "mine", "register_impl.*: no operation 'mse'; there are adamw_ema, "),
        ("masked_mse", "torch", "expected letters, digits and underscores, and not one of reference, torch"),
        ("masked_mse", "auto", "not one of reference"),
        ("masked_mse", "a,b", "expected letters"),
    ],
)
def test_names_that_cannot_be_given(op, name, message):
    with pytest.raises(errors.ImplementationError, match=message):
        ops.register_impl(op, name, print)


PLUGIN = """
from s2vfast import ops

def {name}(prediction, target):
    return (prediction - target).square().mean() * {factor}

ops.register_impl("masked_mse", "{name}", {name})
"""


@pytest.mark.parametrize(("name", "factor", "code"), [("right", 1, 0), ("wrong", 1.01, 1)])
def test_the_check_takes_a_plugin(name, factor, code, added, tmp_path, capsys):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN.format(name=name, factor=factor))
    assert verify.main(["masked_mse", "--impl", name, "--plugin", str(plugin)]) == code
    assert capsys.readouterr().out.count("WRONG") == 3 * code  # the loss and both gradients


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("import no_such", "ModuleNotFoundError: No module named 'no_such'")],
)
def test_a_plugin_that_does_not_run(text, message, tmp_path, capsys):
    plugin = tmp_path / "plugin.py"
    if text is not None:
        plugin.write_text(text)
    assert verify.main(["masked_mse", "--plugin", str(plugin)]) == 2
    assert f"--plugin {plugin}: {message}" in capsys.readouterr().err


def test_the_compiler_is_not_imported_where_nothing_is_compiled():
    """It takes a second, half of what a process takes to begin."""
    script = "import sys, s2vfast.ops, s2vfast.train.trainer; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
