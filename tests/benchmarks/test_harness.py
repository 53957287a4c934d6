"""The registry of cases: costs and rivals; the harness: nothing wrong is timed, and nothing measured is lost."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import _calls, _harness, _results, _timer, bench_ops, cases, run
from benchmarks.cases import CASES, Rival
from s2vfast import ops
from s2vfast.inputs import OPS, SHAPES, inputs

CPU = torch.device("cpu")
CEILINGS = {"copy_gb_s": 20.0, "matmul_float32": 0.1, "matmul_bfloat16": 0.1, "exp_g_s": 1.0}


def case_of(op, **changes):
    """A case in which nothing is compiled, with other fields."""
    return dataclasses.replace(CASES[op], plain=False, **changes)


def masked_mse_with(function):
    """masked_mse with a rival."""
    return case_of("masked_mse", rivals={"rival": Rival(lambda arguments: function)})


def refusals(rows, impl="rival"):
    return [row["refused"] for row in rows if row["impl"] == impl and "refused" in row]


def measured(case, shape="tiny", only=None):
    return _harness.measure(case, [shape], torch.float32, CPU, 0.0, CEILINGS, only)


@pytest.fixture
def quick(monkeypatch):
    """No ceilings are measured and nothing is compiled."""
    monkeypatch.setattr(run._ceilings, "ceilings", lambda device: CEILINGS)
    monkeypatch.setattr(run, "CASES", {op: case_of(op) for op in CASES})


@pytest.fixture
def broken(monkeypatch):
    """masked_mse's torch implementation is off by a tenth of a per cent."""
    implementations = ops.operation("masked_mse").implementations
    right = implementations["torch"]
    monkeypatch.setitem(implementations, "torch", lambda prediction, target: right(prediction, target) * 1.001)


def test_every_operation_has_one_case():
    assert set(CASES) == set(OPS)
    for op, case in CASES.items():
        assert case.op == op
        assert set(case.shapes) <= set(SHAPES)
        for name in case.shapes:
            for cost in (case.cost(case.shape(name, CPU), backward) for backward in (False, True)):
                assert cost.flop >= 0
                assert cost.bytes is None or cost.bytes > 0


@pytest.mark.parametrize("op", ["norm_linear", "attention", "add_norm", "mlp", "embed_gather"])
@pytest.mark.parametrize("backward", [False, True])
def test_operations_are_as_many_as_pytorch_counts(op, backward):
    shape = SHAPES["odd"]
    impl = "torch" if op == "embed_gather" else "reference"  # whose reference embeds all tokens
    arguments = CASES[op].inputs(shape, torch.float32, CPU)
    call = _calls.timed_call(lambda **kw: getattr(ops, op)(**kw, impl=impl), arguments, backward)
    with FlopCounterMode(display=False) as counter:
        call()
    flop = CASES[op].cost(shape, backward).flop
    if backward and op == "attention":
        # The reference keeps its scores; the cost has one of five products anew.
        flop -= 2 * shape.N * shape.L * shape.L * shape.D
    assert counter.get_total_flops() == flop


def test_what_must_cross_memory_is_counted_once():
    arguments = {"a": torch.zeros(10), "b": [torch.zeros(5)], "n": 3}
    double = lambda a, b, n: a * 2  # noqa: E731
    assert _harness.traffic(arguments, double, backward=False) == 4 * (15 + 10)
    assert _harness.traffic(arguments, double, backward=True) == 4 * (2 * 15 + 2 * 10 + 15)


@pytest.mark.parametrize("name", cases.STANDARD)
def test_the_gate_keeps_widths_and_cuts_sequences(name):
    whole = SHAPES[name]
    small, full = cases.gate_shape(whole), cases.gate_shape(whole, full=True)
    assert (small.D, small.H, small.E, small.V, small.C) == (whole.D, whole.H, whole.E, whole.V, whole.C)
    assert max(cases.GATE_TOKENS, whole.V * whole.tube_len) >= small.L
    assert small.S % small.tube_len == 0
    assert (full.L, full.k, full.N) == (whole.L, whole.k, cases.GATE_TRACKS)


@pytest.mark.parametrize(
    ("op", "names"), [("attention", {"sdpa math", "sdpa flash"}), ("adamw_ema", {"torch.optim fused"})]
)
def test_rivals_are_right(op, names):
    case = case_of(op)
    assert names <= set(_harness.contenders(case, CPU, inputs(op), first=True))
    assert _harness.gate(case, ["tiny", "odd"], torch.float32, CPU) == {}


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for libraries that need a GPU, with their calls and plain PyTorch behind."""

    def module(name, **members):
        for depth in range(name.count(".") + 1):
            parent = ".".join(name.split(".")[: depth + 1])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        vars(sys.modules[name]).update(members)

    def flash(q, k, v):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    def triangle_attention(q, k, v, bias, mask=None, scale=None):
        assert (q.ndim, bias.shape) == (5, (1, 1, q.shape[2], q.shape[3], k.shape[3]))
        return F.scaled_dot_product_attention(q, k, v, bias)

    norm = types.SimpleNamespace(apply=lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps))
    module("flash_attn_interface", flash_attn_func=flash)
    module("flash_attn.cute", flash_attn_func=lambda q, k, v: (flash(q, k, v), None))
    module("cuequivariance_torch", triangle_attention=triangle_attention)
    module("liger_kernel.ops.layer_norm", LigerLayerNormFunction=norm)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        *(("attention", name) for name in ("flash-attention 3", "flash-attention 4", "cuequivariance")),
        ("norm_linear", "liger"),
        ("add_norm", "liger"),
    ],
)
def test_rivals_of_other_libraries_are_right_and_need_not_be_there(op, name, libraries, monkeypatch):
    rival = dataclasses.replace(CASES[op].rivals[name], devices=("cpu",))
    case = case_of(op, rivals={name: rival})
    assert _harness.gate(case, ["tiny", "odd"], torch.float32, CPU, only=[name]) == {}
    assert name in _harness.contenders(case, CPU, inputs(op), first=True)
    for module in ("flash_attn_interface", "flash_attn.cute", "cuequivariance_torch", "liger_kernel.ops.layer_norm"):
        monkeypatch.setitem(sys.modules, module, None)
    assert name not in _harness.contenders(case, CPU, inputs(op), first=True)


def test_a_rival_that_is_wrong_is_refused():
    wrong = Rival(lambda arguments: lambda prediction, target: (prediction - target).abs().mean())
    failing = Rival(lambda arguments: lambda prediction, target: 1 / 0)
    case = case_of("masked_mse", rivals={"l1": wrong, "zero": failing})
    reasons = _harness.gate(case, ["tiny"], torch.float32, CPU)
    assert set(reasons) == {"l1", "zero"}
    assert "does not agree with the reference at tiny" in reasons["l1"]
    assert reasons["zero"] == "tiny: ZeroDivisionError: division by zero"
    assert set(_harness.gate(case, ["tiny"], torch.float32, CPU, ["l1"])) == {"l1"}


def test_contenders_take_turns():
    said = []
    samplers = {name: lambda name=name: said.append(name) or 1.0 for name in "ab"}
    times = _harness.interleave(samplers, 0.0, {})
    assert "".join(said) == "ab" * _harness.LEAST_ROUNDS
    assert len(times["a"]) == len(times["b"]) == _harness.LEAST_ROUNDS


def test_one_that_fails_in_its_turn_is_left_out():
    turns, failed = iter([1.0, 2.0]), {}
    times = _harness.interleave({"a": lambda: next(turns), "b": lambda: 3.0}, 0.0, failed)
    assert list(times) == ["b"]
    assert len(times["b"]) == _harness.LEAST_ROUNDS
    assert failed == {"a": "StopIteration: "}


def test_what_is_wrong_with_more_tracks_alone_is_not_timed():
    """Where tiles are chosen by the number of rows, the comparison at few tracks does not see them all."""

    def wrong(prediction, target):
        loss = ops.masked_mse(prediction, target, impl="torch")
        return loss * 1.01 if len(prediction) > cases.GATE_TRACKS else loss

    assert SHAPES["odd"].N > cases.GATE_TRACKS
    rows = measured(masked_mse_with(wrong), "odd")
    assert len(refusals(rows)) == 2
    assert all("does not agree with torch on what is timed: result 0 is off" in why for why in refusals(rows))
    assert refusals(rows, "torch") == []


def test_a_result_that_is_laid_out_otherwise_is_the_same():
    """Also its gradients, for which upstream ones must not depend on the layout."""

    def transposed(qkv):
        return ops.attention(qkv, impl="torch").transpose(1, 2).contiguous().transpose(1, 2)

    rows = measured(case_of("attention", rivals={"rival": Rival(lambda arguments: transposed)}))
    assert not [row for row in rows if "refused" in row]
    assert {row["pass"] for row in rows if row["impl"] == "rival"} == set(cases.PASSES)


def test_what_is_wrong_in_torch_is_not_blamed_on_others(broken):
    right = masked_mse_with(lambda **kw: ops.masked_mse(**kw, impl="reference"))
    rows = measured(right, only=["rival"])
    assert {row["impl"] for row in rows} == {"rival"}
    assert refusals(rows) == []


def test_without_torch_to_compare_with_nothing_is_timed(monkeypatch):
    def full(prediction, target):
        if len(prediction) > cases.GATE_TRACKS:
            raise MemoryError("too large")
        return torch.nn.functional.mse_loss(prediction, target)

    monkeypatch.setitem(ops.operation("masked_mse").implementations, "torch", full)
    rows = measured(masked_mse_with(lambda **kw: ops.masked_mse(**kw, impl="reference")), "odd")
    assert all("torch, which it is compared with, cannot run: MemoryError: too large" in row["refused"] for row in rows)
    assert {row["impl"] for row in rows} == {"torch", "rival"}


def test_a_rival_that_cannot_be_prepared_is_refused():
    rows = measured(case_of("masked_mse", rivals={"rival": Rival(lambda arguments: 1 / 0)}))
    assert refusals(rows) == ["tiny: ZeroDivisionError: division by zero"]


@pytest.mark.parametrize("name", ["graphics", "meta", "cuda:x"])
def test_a_device_that_is_none_is_one_line(name, capsys):
    assert run.main(["masked_mse", "--device", name]) == 2
    assert f"--device {name}: expected cpu, cuda or cuda:N" in capsys.readouterr().err


def test_ratio_and_roofline_are_of_the_times(monkeypatch):
    milliseconds = {"torch": 4.0, "rival": 2.0}
    case = masked_mse_with(lambda **kw: ops.masked_mse(**kw, impl="torch"))
    case = dataclasses.replace(case, cost=lambda shape, backward: cases.Cost(flop=1e6, bytes=1e3))
    monkeypatch.setattr(
        _harness, "interleave", lambda samplers, seconds, failed: {n: [milliseconds[n]] * 7 for n in samplers}
    )
    rows = {row["impl"]: row for row in measured(case)}
    assert (rows["torch"]["ratio"], rows["rival"]["ratio"]) == (1.0, 2.0)
    assert rows["rival"]["p50"] == 2.0
    # 1e6 operations at 0.1e12 a second are 0.01 ms.
    assert (rows["rival"]["bound"], rows["rival"]["roofline"]) == ("matmul", 0.005)


def test_a_sampler_on_a_cpu_times_a_call():
    calls = []
    sample, why = _timer.Timer(CPU).sampler([lambda: calls.append(0)])
    calls.clear()
    assert all(sample() >= 0 for _ in range(4))
    assert (why, len(calls)) == ("", 4)
    assert _timer.Timer(CPU).copies(10) == 1


def test_a_run_writes_rows_of_the_schema(tmp_path, quick, capsys):
    arguments = ["masked_mse", "tube_mask", "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)]
    assert run.main(arguments) == 0
    record = _results.read(tmp_path / "cpu/ops.json")
    assert {(row["op"], row["impl"]) for row in record["rows"]} >= {("masked_mse", "torch"), ("tube_mask", "torch")}
    assert {row["pass"] for row in record["rows"] if row["op"] == "masked_mse"} == set(cases.PASSES)
    assert "x torch" in capsys.readouterr().out


def test_what_is_wrong_is_not_timed_and_the_exit_code_says_so(tmp_path, quick, broken, capsys):
    arguments = ["masked_mse", "mask_fill", "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)]
    assert run.main(arguments) == 1
    rows = [row for row in _results.read(tmp_path / "cpu/ops.json")["rows"] if row["op"] == "masked_mse"]
    assert [row["impl"] for row in rows] == ["torch"]
    assert set(rows[0]) == {"op", "impl", "refused"}
    assert "does not agree with the reference at tiny: " in rows[0]["refused"]
    assert "NOT TIMED: does not agree" in capsys.readouterr().out


PLUGIN = """
from s2vfast import ops

for name, factor in (("plain_good", 1.0), ("plain_bad", 1.01)):
    def loss(prediction, target, factor=factor):
        return (prediction - target).square().mean() * factor

    ops.register_impl("masked_mse", name, loss)
"""


def test_an_implementation_of_a_plugin_is_measured_or_refused(tmp_path, quick, capsys, monkeypatch):
    op = ops.operation("masked_mse")
    monkeypatch.setattr(op, "implementations", dict(op.implementations))
    monkeypatch.setattr(op, "reasons", dict(op.reasons))
    (tmp_path / "mine.py").write_text(PLUGIN)
    words = ["masked_mse", "--shape", "tiny", "--seconds", "0", "--impl", "plain_good", "plain_bad", "torch"]
    assert run.main([*words, "--plugin", str(tmp_path / "mine.py")]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    refused = [line[1] for line in lines if "NOT" in line]
    assert refused == ["plain_bad"]
    assert "plain_good" in {line[1] for line in lines} - set(refused)
    assert run.main(["masked_mse", "--plugin", str(tmp_path / "no.py")]) == 2
    assert f"--plugin {tmp_path / 'no.py'}: no such file" in capsys.readouterr().err


def test_what_is_there_is_not_lost(tmp_path, quick, capsys):
    common = ["--seconds", "0", "--out", str(tmp_path)]
    assert run.main(["masked_mse", "--shape", "tiny", *common]) == 0
    path = tmp_path / "cpu/ops.json"
    there = path.read_bytes()
    for arguments, lost in (
        (["mask_fill", "--shape", "tiny"], "rows of masked_mse"),
        (["masked_mse", "--shape", "tiny"], "what --shape leaves out"),
        (["masked_mse", "--impl", "torch"], "what --impl leaves out"),
    ):
        assert run.main([*arguments, *common]) == 2
        assert f"would lose {lost}; give another --out" in capsys.readouterr().err
    assert path.read_bytes() == there
    assert [file.name for file in path.parent.iterdir()] == ["ops.json"]


def test_a_run_that_is_stopped_loses_nothing(tmp_path, quick, monkeypatch):
    real = run.measure

    def stopped(case, *arguments):
        if case.op == "masked_mse":
            raise KeyboardInterrupt
        return real(case, *arguments)

    monkeypatch.setattr(run, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.main(["mask_fill", "masked_mse", "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)])
    assert [file.name for file in (tmp_path / "cpu").iterdir()] == ["ops.json.partial"]
    assert {row["op"] for row in _results.read(tmp_path / "cpu/ops.json.partial")["rows"]} == {"mask_fill"}


def test_rows_are_held_to_the_most_the_device_did(tmp_path, monkeypatch, quick):
    rates = iter([CEILINGS, {**CEILINGS, "copy_gb_s": 2 * CEILINGS["copy_gb_s"]}])
    monkeypatch.setattr(run._ceilings, "ceilings", lambda device: next(rates))
    assert run.main(["tube_mask", "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)]) == 0
    made = _results.read(tmp_path / "cpu/ops.json")
    assert made["ceilings"]["copy_gb_s"] == 2 * CEILINGS["copy_gb_s"]
    for row in made["rows"]:
        assert row["roofline"] == pytest.approx(1000 * row["gb"] / 40.0 / row["p50"], abs=1e-4)


def test_what_fails_keeps_no_other_from_being_timed():
    calls = 0

    def once(**arguments):
        """Right when it is compared with the reference, and then no more."""
        nonlocal calls
        calls += 1
        if calls > 1:
            raise IndexError("it is used up")
        return ops.masked_mse(**arguments, impl="torch")

    rows = measured(masked_mse_with(once))
    assert {row["impl"] for row in rows if "refused" not in row} >= {"torch"}
    assert refusals(rows) == [f"tiny, {one}: IndexError: it is used up" for one in cases.PASSES]


def test_arguments_of_a_case_of_its_own_are_compared_with_the_reference():
    large = CASES["adamw_ema"].inputs(SHAPES["tiny"], torch.float32, CPU)["param"].numel()

    def wrong(**arguments):
        norm = ops.adamw_ema(**arguments, impl="torch")
        return norm * 2 if arguments["param"].numel() == large else norm

    case = case_of("adamw_ema", rivals={"wrong": Rival(lambda arguments: wrong)})
    assert "output 0 is off" in _harness.gate(case, ["tiny"], torch.float32, CPU, ["wrong"])["wrong"]


def test_every_call_of_the_optimizer_clips():
    arguments = CASES["adamw_ema"].inputs(SHAPES["tiny"], torch.float32, CPU)
    for function in _harness.contenders(CASES["adamw_ema"], CPU, arguments, first=True).values():
        before = arguments["grad"].clone()
        for _ in range(3):
            function(**arguments)
            assert not torch.equal(arguments["grad"], before)
            before = arguments["grad"].clone()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["speed"], "nothing is called 'speed'"),
        (["ops", "--fail-if-slower", "5%"], "needs --compare"),
        (["ops", "--report"], "--report needs --out"),
        (["ops", "--plugin", "a.py", "--compare", "HEAD"], "what both revisions have"),
    ],
)
def test_what_makes_no_sense_is_said(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["masked_mse", "--device", "cuda"]) == 2
    assert "no GPU that PyTorch can use" in capsys.readouterr().err


def test_pytest_benchmark_measures_them_too(tmp_path):
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_ops.py", "--benchmark-enable", "-q"]
    command += ["-k", "tube_mask-nwucla", "-p", "no:cacheprovider", f"--benchmark-json={tmp_path / 'times.json'}"]
    # A worker of pytest-xdist, which this may be, times nothing.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=_results.ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout[-2000:]
    names = [one["name"] for one in json.loads((tmp_path / "times.json").read_text())["benchmarks"]]
    assert "test_op[tube_mask-nwucla-forward-torch]" in names


def test_pytest_benchmark_does_not_time_what_is_wrong(monkeypatch, broken):
    monkeypatch.setattr(bench_ops, "CASES", {"masked_mse": case_of("masked_mse", shapes=("tiny",))})
    bench_ops.refused.cache_clear()
    with pytest.raises(pytest.fail.Exception, match="torch is not timed: does not agree with the reference"):
        bench_ops.test_op("masked_mse", "tiny", "forward", "torch", None)
    bench_ops.refused.cache_clear()
