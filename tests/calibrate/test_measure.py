"""Candidates in processes of their own: a bad one costs itself alone."""

import pytest
import torch

from s2vfast import inputs, ops
from s2vfast.calibrate import measure
from s2vfast.calibrate.record import Recorder

CPU = torch.device("cpu")
SMALL, LARGE = inputs.Shape(N=2), inputs.Shape(N=64)


def recorded(*requests):
    """Calls of operations at shapes, with gradients where they have some."""
    recorder = Recorder("cpu")
    with ops.use_chooser(recorder):
        for op, shape in requests:
            arguments = inputs.inputs(op, shape)
            if op not in inputs.WITHOUT_GRADIENT:
                for value in arguments.values():
                    if isinstance(value, torch.Tensor) and value.is_floating_point():
                        value.requires_grad_()
            getattr(ops, op)(**arguments)
    return list(recorder.calls.values())


@pytest.fixture(scope="module")
def rows(odd):
    """What is measured of masked_mse, small and large, with all that is registered, and of tube_mask."""
    calls = recorded(("masked_mse", SMALL), ("masked_mse", LARGE), ("tube_mask", inputs.Shape(N=64, S=8, V=20)))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)  # nobody times the interpreter
        rows, trouble = measure.run(calls, CPU, capture=False, limit=15.0)
    assert trouble == ""
    return rows


def of(rows, op, impl):
    return [row.get("why", "") for row in rows if (row["op"], row["impl"]) == (op, impl)]


@pytest.mark.parametrize(
    ("impl", "why"),
    [
        ("wrong", "wrong: output 0 is off by"),
        ("wrong_gradient", "wrong: gradient of prediction is off by"),
        ("crash", "its process ended with exit code 3"),
        ("segfault", "its process was ended by SIGSEGV"),
        ("hang", "it gave no answer within 15 s"),
        ("fails", "RuntimeError: out of luck"),
    ],
)
def test_a_bad_one_is_out_and_says_why(rows, impl, why):
    small, large = of(rows, "masked_mse", impl)
    assert small.startswith(why)
    assert large.startswith(why)


def test_a_good_one_is_timed_beside_them(rows):
    assert of(rows, "masked_mse", "torch") == of(rows, "masked_mse", "right") == ["", ""]
    assert all(row["ms"] > 0 for row in rows if row["impl"] == "right")


def test_one_that_crashes_at_a_size_stays_in_at_others(rows):
    assert of(rows, "masked_mse", "crash_later") == ["", "its process ended with exit code 4"]


def test_a_slow_one_is_right_and_not_taken(rows):
    assert of(rows, "masked_mse", "slow") == ["", ""]
    assert all(row["ms"] > 100 for row in rows if row["impl"] == "slow")
    assert not {"slow", "wrong", "crash", "hang"} & set(measure.best(rows, "cpu").values())


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_the_precision_of_products_counts_for_times_alone(odd, precision):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        rows, trouble = measure.run(recorded(("mask_fill", SMALL)), CPU, capture=False)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (trouble, of(rows, "mask_fill", "in_haste")) == ("", [""])
    assert [row["ms"] > 100 for row in rows if row["impl"] == "in_haste"] == [precision == "highest"]


def test_a_precision_that_pytorch_does_not_tell_is_its_own(odd, monkeypatch):
    def refused():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refused)
    rows, trouble = measure.run(recorded(("mask_fill", SMALL)), CPU, capture=False)
    assert (trouble, of(rows, "mask_fill", "torch")) == ("", [""])


def test_native_against_torch(rows):
    times = {row["impl"]: row.get("ms") for row in rows if row["op"] == "tube_mask"}
    assert times["native"] < times["torch"]
    assert [impl for (op, _), impl in measure.best(rows, "cpu").items() if op == "tube_mask"] == ["native"]


def test_what_is_taken_must_save_something():
    key = (False, ("float32", 2))

    def rows(**ms):
        return [{"op": "masked_mse", "key": key, "impl": impl, "ms": value} for impl, value in ms.items()]

    assert measure.best(rows(torch=1.0, mine=0.98), "cpu") == {("masked_mse", key): "torch"}
    assert measure.best(rows(torch=1.0, mine=0.9), "cpu") == {("masked_mse", key): "mine"}
    # The usual one is wrong: whatever is right is taken.
    assert measure.best([*rows(mine=3.0), rows(torch=1.0)[0] | {"ms": 9.0, "impl": "other"}], "cpu") == {
        ("masked_mse", key): "mine"
    }
    # `auto` takes native of tube_mask on a CPU without calibration.
    mask = [row | {"op": "tube_mask"} for row in rows(native=1.0, torch=0.98)]
    assert set(measure.best(mask, "cpu").values()) == {"native"}
    assert set(measure.best(mask, "cuda").values()) == {"torch"}


def test_one_that_no_plugin_registers_is_unknown_elsewhere(monkeypatch):
    monkeypatch.setitem(ops.operation("masked_mse").implementations, "here_alone", lambda *_: None)
    monkeypatch.setitem(ops.operation("masked_mse").reasons, "here_alone", lambda *_, **__: [])
    rows, _ = measure.run(recorded(("masked_mse", SMALL)), CPU, capture=False, limit=15.0)
    assert "does not know it" in of(rows, "masked_mse", "here_alone")[0]
    assert of(rows, "masked_mse", "torch") == [""]


def test_operations_without_time_left_are_left_out(tmp_path):
    job = {"calls": recorded(("masked_mse", SMALL)), "device": "cpu", "plugins": [], "budget": 0.0}
    torch.save(job, tmp_path / "job.pt")
    assert measure.main(str(tmp_path / "job.pt"), str(tmp_path / "rows.json")) == 0
    assert not (tmp_path / "rows.json").exists()


def test_a_process_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(measure.sys, "executable", "/bin/false")
    rows, trouble = measure.run(recorded(("masked_mse", SMALL)), CPU, capture=False)
    assert rows == []
    assert "exit code 1" in trouble
