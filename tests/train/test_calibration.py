"""A run takes what was measured, holds it, and goes on with it; measuring itself is tested in tests/calibrate."""

import json
from types import SimpleNamespace

import pytest
import torch

from s2vfast.calibrate import cache, measure
from s2vfast.data.store import Store
from s2vfast.train import calibration
from s2vfast.train.loop import train
from s2vfast.train.trainer import Trainer


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that measures by itself; ``calls`` of every measurement, ``ms`` of implementations, 1 where not set."""
    monkeypatch.setenv("S2VFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("S2VFAST_CALIBRATE")
    monkeypatch.delenv("S2VFAST_IMPL", raising=False)
    made = SimpleNamespace(calls=[], ms={"triton": 9.0, "native": 0.5}, cache=tmp_path / "cache")

    def run(calls, device, *, capture, **limits):
        made.calls.append([call.op for call in calls])
        return [
            {"op": call.op, "key": call.key, "impl": impl, "ms": made.ms.get(impl, 1.0)}
            for call in calls
            for impl in measure.candidates(call.op)
        ], ""

    monkeypatch.setattr(measure, "run", run)
    monkeypatch.setattr(calibration, "measures_by_itself", lambda device: True)
    return made


def learned(run):
    return (run / "metrics.jsonl").read_text()


def choices(run):
    return {(op, impl) for op, _, impl in json.loads((run / "calibration.json").read_text())["choices"]}


def test_a_run_measures_once_and_says_so(machine, tmp_path, tiny_store, tiny_config, capsys):
    train(tiny_config(steps=2), tiny_store, tmp_path / "one")
    out = capsys.readouterr().out
    (path,) = machine.cache.rglob("*.json")
    (line,) = [line for line in out.splitlines() if line.startswith("implementations by calibration")]
    assert "tube_mask native" in line
    assert "mlp torch" in line
    assert f"kept in {path}; --train.impl torch turns this off" in line
    assert "operation, ms" in out
    assert ("tube_mask", "native") in choices(tmp_path / "one")
    train(tiny_config(steps=2), tiny_store, tmp_path / "two")
    out = capsys.readouterr().out
    assert len(machine.calls) == 1
    assert line in out
    assert "operation, ms" not in out
    # Other sizes are measured beside those that are kept.
    train(tiny_config(steps=1, batch=5), tiny_store, tmp_path / "three")
    assert len(machine.calls) == 2
    assert len(list(machine.cache.rglob("*.json"))) == 1


def test_what_is_recorded_leaves_no_trace(machine, tmp_path, tiny_store, tiny_config, monkeypatch):
    machine.ms = {"triton": 9.0}  # everything as without calibration
    train(tiny_config(steps=3), tiny_store, tmp_path / "calibrated")
    monkeypatch.setenv("S2VFAST_CALIBRATE", "0")
    train(tiny_config(steps=3), tiny_store, tmp_path / "plain")
    assert len(machine.calls) == 1
    assert learned(tmp_path / "calibrated") == learned(tmp_path / "plain")
    assert not (tmp_path / "plain/calibration.json").exists()


def test_steps_and_their_data_take_the_choice(machine, tiny_store, tiny_config, tmp_path, monkeypatch):
    from s2vfast import ops

    machine.ms = {"triton": 9.0, "mine": 0.1}
    ran = []
    for op in ("tube_mask", "masked_mse"):
        torch_impl = ops.operation(op).implementations["torch"]
        monkeypatch.setitem(
            ops.operation(op).implementations,
            "mine",
            lambda *a, op=op, torch_impl=torch_impl, **k: ran.append(op) or torch_impl(*a, **k),
        )
        monkeypatch.setitem(ops.operation(op).reasons, "mine", lambda *a, **k: [])
    train(tiny_config(steps=2), tiny_store, tmp_path / "run")
    assert set(ran) == {"tube_mask", "masked_mse"}


@pytest.mark.parametrize("off", ["impl", "S2VFAST_IMPL", "S2VFAST_CALIBRATE"])
def test_it_can_be_turned_off(off, machine, tmp_path, tiny_store, tiny_config, monkeypatch):
    if off != "impl":
        monkeypatch.setenv(off, {"S2VFAST_IMPL": "torch", "S2VFAST_CALIBRATE": "0"}[off])
    train(tiny_config(steps=1, **({"impl": "torch"} if off == "impl" else {})), tiny_store, tmp_path / "run")
    assert not machine.calls
    assert not (tmp_path / "run/calibration.json").exists()


def test_operations_with_a_name_are_left_out(machine, tmp_path, tiny_store, tiny_config):
    train(tiny_config(steps=1, impl="tube_mask=torch"), tiny_store, tmp_path / "run")
    assert "tube_mask" not in machine.calls[0]
    assert "mlp" in machine.calls[0]


def test_a_cpu_measures_nothing_by_itself_but_takes_what_is_kept(
    machine, tmp_path, tiny_store, tiny_config, monkeypatch
):
    monkeypatch.undo()
    monkeypatch.setenv("S2VFAST_CACHE", str(machine.cache))
    monkeypatch.delenv("S2VFAST_CALIBRATE")
    train(tiny_config(steps=1), tiny_store, tmp_path / "one")
    assert not (tmp_path / "one/calibration.json").exists()
    recorder = calibration.record(Trainer(tiny_config(), Store.open(tiny_store)))
    rows = [
        {"op": op, "key": key, "impl": impl, "ms": 0.1 if impl == "torch" else 1.0}
        for op, key in recorder.calls
        for impl in measure.candidates(op)
    ]
    cache.write(cache.environment(torch.device("cpu")), rows)
    train(tiny_config(steps=1), tiny_store, tmp_path / "two")
    assert {impl for _, impl in choices(tmp_path / "two")} == {"torch"}


def test_a_run_goes_on_with_its_own_choice(machine, tmp_path, tiny_store, tiny_config, capsys):
    class Stops(Trainer):
        def run_step(self):
            if self.step == 7:
                raise KeyboardInterrupt
            return super().run_step()

    train(tiny_config(), tiny_store, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), tiny_store, tmp_path / "run", make_trainer=Stops)
    for path in machine.cache.rglob("*.json"):
        path.unlink()
    machine.ms = {"native": 9.0}
    train(None, None, tmp_path / "run", resume=True)
    assert len(machine.calls) == 1
    assert learned(tmp_path / "run") == learned(tmp_path / "whole")
    # A damaged file, or one of another device, is no reason to stop.
    path = tmp_path / "other/calibration.json"
    for content in ("{", json.dumps({"device": "H100", "choices": []})):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        lines = []
        assert calibration._of_run(path, torch.device("cpu"), lines.append) is None
        assert len(lines) == 1
        assert lines[0].startswith(str(path))


def test_a_damaged_cache_is_named_in_a_line_and_replaced(machine, tmp_path, tiny_store, tiny_config, capsys):
    train(tiny_config(steps=1), tiny_store, tmp_path / "one")
    (path,) = machine.cache.rglob("*.json")
    path.write_text("{")
    capsys.readouterr()
    train(tiny_config(steps=1), tiny_store, tmp_path / "two")
    assert sum("ignored: damaged" in line for line in capsys.readouterr().out.splitlines()) == 1
    assert len(machine.calls) == 2
    assert json.loads(path.read_text())["rows"]


def test_other_ranks_take_what_rank_0_has_chosen(machine, tmp_path, tiny_store, tiny_config, monkeypatch):
    (tmp_path / "run").mkdir()
    exchanged = []

    def run_with(main):
        trainer = Trainer(tiny_config(), Store.open(tiny_store))
        ranks = SimpleNamespace(is_main=main, world_size=1, rank=0)
        ranks.run_on_main_and_broadcast = lambda make: exchanged.append(make()) or exchanged[-1]
        if not main:
            replies = iter(list(exchanged))
            ranks.run_on_main_and_broadcast = lambda make: next(replies)
        trainer.ranks, lines = ranks, []
        trainer.calibrate(tmp_path / "run", lines.append)
        return trainer.feed.chooser.table, lines

    table, lines = run_with(main=True)
    (tmp_path / "run/calibration.json").unlink()
    assert run_with(main=False) == (table, [])
    assert table
    assert lines
    assert len(machine.calls) == 1
    assert not (tmp_path / "run/calibration.json").exists()


def test_the_command_measures_and_says_where_it_is_kept(tmp_path, monkeypatch, cli, place):
    monkeypatch.setenv("S2VFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("S2VFAST_CALIBRATE")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code, out, err = cli(f"tune --config {place}/tiny.yaml --device cpu")
    assert (code, err) == (0, [])
    (path,) = (tmp_path / "cache").rglob("*.json")
    assert "kept in " + str(path) in out[-1]
    assert any(line.startswith("tube_mask") and "*" in line for line in out)
    code, out, _ = cli(f"tune --config {place}/tiny.yaml --device cpu")
    assert (code, len(out)) == (0, 1)
    code, _, err = cli(f"tune --config {place}/tiny.yaml --device cpu --train.impl torch")
    assert code == 2
    assert "leave nothing to choose" in err[0]
