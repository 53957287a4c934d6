"""What is measured of an operation: its costs, its baselines, and that nothing wrong is timed."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import _calls, _ops, _results, _timer, run
from s2vfast import ops
from s2vfast.inputs import OPS, SHAPES, inputs

CPU = torch.device("cpu")
CEILINGS = {"copy_gb_s": 20.0, "matmul_float32": 0.1, "matmul_bfloat16": 0.1, "exp_g_s": 1.0}


@pytest.fixture
def quick(monkeypatch):
    """No ceilings are measured, nothing is compiled, and shapes are as small as they are named."""
    monkeypatch.setattr(run._ceilings, "ceilings", lambda device: CEILINGS)
    real = _ops.load
    monkeypatch.setattr(run, "load", lambda stem: dataclasses.replace(real(stem), plain=False))


@pytest.fixture
def broken(monkeypatch):
    """masked_mse's torch implementation is off by a tenth of a per cent."""
    found = ops.operation("masked_mse").implementations
    right = found["torch"]
    monkeypatch.setitem(found, "torch", lambda prediction, target: right(prediction, target) * 1.001)


@pytest.mark.parametrize("stem", OPS)
def test_every_operation_has_a_benchmark(stem):
    bench = _ops.load(stem)
    assert bench.stem == stem
    assert set(bench.shapes) <= set(SHAPES)
    costs = [bench.cost(bench.shape(name, CPU), backward) for name in bench.shapes for backward in (False, True)]
    assert all(cost.flop >= 0 and cost.exps >= 0 and (cost.bytes is None or cost.bytes > 0) for cost in costs)


@pytest.mark.parametrize("stem", ["norm_linear", "attention", "add_norm", "mlp", "embed_gather"])
@pytest.mark.parametrize("backward", [False, True])
def test_operations_are_as_many_as_pytorch_counts(stem, backward):
    bench = _ops.load(stem)
    shape = SHAPES["odd"]
    given = bench.inputs(shape, torch.float32, CPU)
    impl = "torch" if stem == "embed_gather" else "reference"  # whose reference embeds what is not asked for too
    call = _calls.call_of(lambda **kw: getattr(ops, stem)(**kw, impl=impl), given, backward)
    with FlopCounterMode(display=False) as counter:
        call()
    said = bench.cost(shape, backward).flop
    if backward and stem == "attention":
        # The reference keeps its scores; what is counted makes one of five products anew.
        said -= 2 * shape.N * shape.L * shape.L * shape.D
    assert counter.get_total_flops() == said


def test_what_must_cross_memory_is_counted_once():
    given = {"a": torch.zeros(10), "b": [torch.zeros(5)], "n": 3}
    double = lambda a, b, n: a * 2  # noqa: E731
    assert _ops._traffic(given, double, backward=False) == 4 * (15 + 10)
    assert _ops._traffic(given, double, backward=True) == 4 * (2 * 15 + 2 * 10 + 15)


@pytest.mark.parametrize(
    ("stem", "names"), [("attention", {"sdpa math", "sdpa flash"}), ("adamw_ema", {"torch.optim fused"})]
)
def test_baselines_are_right(stem, names):
    bench = dataclasses.replace(_ops.load(stem), plain=False)
    assert names <= set(bench.contenders(CPU, inputs(stem), first=True))
    assert _ops.check(bench, ["tiny", "odd"], torch.float32, CPU) == {}


def test_a_baseline_that_is_wrong_is_refused():
    wrong = _ops.Baseline(lambda given: lambda prediction, target: (prediction - target).abs().mean())
    failing = _ops.Baseline(lambda given: lambda prediction, target: 1 / 0)
    bench = dataclasses.replace(_ops.load("masked_mse"), plain=False, baselines={"l1": wrong, "zero": failing})
    found = _ops.check(bench, ["tiny"], torch.float32, CPU)
    assert set(found) == {"l1", "zero"}
    assert "does not agree with the reference at tiny" in found["l1"]
    assert found["zero"] == "tiny: ZeroDivisionError: division by zero"


def test_contenders_take_turns():
    said = []
    samplers = {name: lambda name=name: said.append(name) or 1.0 for name in "ab"}
    times = _ops.interleaved(samplers, 0.0, {})
    assert "".join(said) == "ab" * _ops.LEAST_ROUNDS
    assert len(times["a"]) == len(times["b"]) == _ops.LEAST_ROUNDS


def test_one_that_fails_in_its_turn_is_left_out():
    turns, failed = iter([1.0, 2.0]), {}
    times = _ops.interleaved({"a": lambda: next(turns), "b": lambda: 3.0}, 0.0, failed)
    assert list(times) == ["b"]
    assert len(times["b"]) == _ops.LEAST_ROUNDS
    assert failed == {"a": "StopIteration: "}


def test_what_is_wrong_with_more_tracks_alone_is_not_timed():
    """Where tiles are chosen by the number of rows, the comparison at few tracks does not see them all."""

    def wrong(prediction, target):
        loss = ops.masked_mse(prediction, target, impl="torch")
        return loss * 1.01 if len(prediction) > _ops.CHECKED_TRACKS else loss

    bench = dataclasses.replace(
        _ops.load("masked_mse"), plain=False, baselines={"wrong": _ops.Baseline(lambda given: wrong)}
    )
    rows = _ops.measure(bench, ["odd"], torch.float32, CPU, 0.0, CEILINGS)
    assert SHAPES["odd"].N > _ops.CHECKED_TRACKS
    refused = [row["refused"] for row in rows if row["impl"] == "wrong"]
    assert refused
    assert all("does not agree with torch on what is timed: result 0 is off" in why for why in refused)
    assert not [row for row in rows if row["impl"] == "torch" and "refused" in row]


def test_a_result_that_is_laid_out_otherwise_is_the_same():
    """Also its gradients, for which upstream ones must not depend on the layout."""
    plain = dataclasses.replace(_ops.load("attention"), plain=False, baselines={})

    def transposed(qkv):
        return ops.attention(qkv, impl="torch").transpose(1, 2).contiguous().transpose(1, 2)

    bench = dataclasses.replace(plain, baselines={"transposed": _ops.Baseline(lambda given: transposed)})
    rows = _ops.measure(bench, ["tiny"], torch.float32, CPU, 0.0, CEILINGS)
    assert not [row for row in rows if "refused" in row]
    assert {row["pass"] for row in rows if row["impl"] == "transposed"} == set(_ops.PASSES)


def test_a_baseline_that_cannot_be_prepared_is_refused():
    bench = dataclasses.replace(
        _ops.load("masked_mse"), plain=False, baselines={"none": _ops.Baseline(lambda given: 1 / 0)}
    )
    rows = _ops.measure(bench, ["tiny"], torch.float32, CPU, 0.0, CEILINGS)
    assert [row["refused"] for row in rows if row["impl"] == "none"] == ["tiny: ZeroDivisionError: division by zero"]


@pytest.mark.parametrize("name", ["graphics", "meta", "cuda:x"])
def test_a_device_that_is_none_is_one_line(name, capsys):
    assert run.main(["masked_mse", "--device", name]) == 2
    assert f"--device {name}: expected cpu, cuda or cuda:N" in capsys.readouterr().err


def test_ratio_and_roofline_are_of_the_times(monkeypatch):
    milliseconds = {"torch": 4.0, "twice": 2.0}
    bench = dataclasses.replace(
        _ops.load("masked_mse"),
        plain=False,
        cost=lambda shape, backward: _ops.Cost(flop=1e6, bytes=1e3),
        baselines={"twice": _ops.Baseline(lambda given: lambda **kw: ops.masked_mse(**kw, impl="torch"))},
    )
    monkeypatch.setattr(
        _ops, "interleaved", lambda samplers, seconds, failed: {n: [milliseconds[n]] * 7 for n in samplers}
    )
    rows = {row["impl"]: row for row in _ops.measure(bench, ["tiny"], torch.float32, CPU, 0.0, CEILINGS)}
    assert (rows["torch"]["ratio"], rows["twice"]["ratio"]) == (1.0, 2.0)
    assert rows["twice"]["p50"] == 2.0
    # 1e6 operations at 0.1e12 a second are 0.01 ms.
    assert (rows["twice"]["bound"], rows["twice"]["roofline"]) == ("matmul", 0.005)


def test_a_sampler_on_a_cpu_calls_in_turn():
    said = []
    sample, why = _timer.Timer(CPU).sampler([lambda: said.append(0), lambda: said.append(1)])
    said.clear()
    assert all(sample() >= 0 for _ in range(4))
    assert why == ""
    assert sorted(said) == [0, 0, 1, 1]
    assert _timer.Timer(CPU).copies(10) == 1


def test_a_run_writes_rows_of_the_schema(tmp_path, quick, capsys):
    arguments = ["masked_mse", "tube_mask", "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)]
    assert run.main(arguments) == 0
    found = _results.read(tmp_path / "cpu/ops.json")
    assert {(row["stem"], row["impl"]) for row in found["rows"]} >= {("masked_mse", "torch"), ("tube_mask", "torch")}
    assert {row["pass"] for row in found["rows"] if row["stem"] == "masked_mse"} == set(_ops.PASSES)
    assert "x torch" in capsys.readouterr().out


def test_what_is_wrong_is_not_timed_and_the_exit_code_says_so(tmp_path, quick, broken, capsys):
    arguments = ["masked_mse", "mask_fill", "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)]
    assert run.main(arguments) == 1
    rows = [row for row in _results.read(tmp_path / "cpu/ops.json")["rows"] if row["stem"] == "masked_mse"]
    assert [row["impl"] for row in rows] == ["torch"]
    assert set(rows[0]) == {"stem", "impl", "refused"}
    assert "does not agree with the reference at tiny: " in rows[0]["refused"]
    assert "NOT TIMED: does not agree" in capsys.readouterr().out


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

    def stopped(bench, *arguments):
        if bench.stem == "masked_mse":
            raise KeyboardInterrupt
        return real(bench, *arguments)

    monkeypatch.setattr(run, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run.main(["mask_fill", "masked_mse", "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)])
    assert [file.name for file in (tmp_path / "cpu").iterdir()] == ["ops.json.partial"]
    assert {row["stem"] for row in _results.read(tmp_path / "cpu/ops.json.partial")["rows"]} == {"mask_fill"}


def test_rows_are_held_to_the_most_the_device_did(tmp_path, monkeypatch, quick):
    found = iter([CEILINGS, {**CEILINGS, "copy_gb_s": 2 * CEILINGS["copy_gb_s"]}])
    monkeypatch.setattr(run._ceilings, "ceilings", lambda device: next(found))
    assert run.main(["tube_mask", "--shape", "tiny", "--seconds", "0", "--out", str(tmp_path)]) == 0
    made = _results.read(tmp_path / "cpu/ops.json")
    assert made["ceilings"]["copy_gb_s"] == 2 * CEILINGS["copy_gb_s"]
    for row in made["rows"]:
        assert row["roofline"] == pytest.approx(1000 * row["gb"] / 40.0 / row["p50"], abs=1e-4)


def test_what_fails_keeps_no_other_from_being_timed():
    calls = 0

    def twice(**given):
        """Right when it is compared with the reference, and then no more."""
        nonlocal calls
        calls += 1
        if calls > 1:
            raise IndexError("it is used up")
        return ops.masked_mse(**given, impl="torch")

    used_up = _ops.Baseline(lambda given: twice)
    bench = dataclasses.replace(_ops.load("masked_mse"), plain=False, baselines={"twice": used_up})
    rows = _ops.measure(bench, ["tiny"], torch.float32, CPU, 0.0, CEILINGS)
    assert {row["impl"] for row in rows if "refused" not in row} >= {"torch"}
    assert [row["refused"] for row in rows if row["impl"] == "twice"] == [
        f"tiny, {one}: IndexError: it is used up" for one in _ops.PASSES
    ]


def test_what_is_timed_is_compared_with_the_reference_too():
    """An error that only the arguments of the benchmark show."""
    bench = dataclasses.replace(_ops.load("adamw_ema"), plain=False, shapes=("tiny",))
    large = bench.inputs(SHAPES["tiny"], torch.float32, CPU)["param"].numel()

    def wrong(**given):
        norm = ops.adamw_ema(**given, impl="torch")
        return norm * 2 if given["param"].numel() == large else norm

    bench = dataclasses.replace(bench, baselines={"wrong": _ops.Baseline(lambda given: wrong)})
    assert "output 0 is off" in _ops.check(bench, ["tiny"], torch.float32, CPU)["wrong"]


def test_every_call_of_the_optimizer_clips():
    bench = _ops.load("adamw_ema")
    given = bench.inputs(SHAPES["tiny"], torch.float32, CPU)
    for function in bench.contenders(CPU, given, first=True).values():
        before = given["grad"].clone()
        for _ in range(3):
            function(**given)
            assert not torch.equal(given["grad"], before)
            before = given["grad"].clone()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["speed"], "nothing is called 'speed'"),
        (["ops", "--fail-if-slower", "5%"], "needs --compare"),
        (["ops", "--report"], "--report needs --out"),
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
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_tube_mask.py", "--benchmark-enable", "--shape", "tiny"]
    command += ["-q", "-p", "no:cacheprovider", f"--benchmark-json={tmp_path / 'found.json'}"]
    done = subprocess.run(command, cwd=_results.ROOT, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stdout[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    assert "tiny-forward-torch" in found[0]["name"] + found[-1]["name"]
