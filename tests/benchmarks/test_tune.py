"""The tuner, with costs made up instead of measured: there may be no GPU."""

import json

import pytest
import torch

from benchmarks import tune
from s2vfast.inputs import SHAPES
from s2vfast.kernels import _launch

CPU = torch.device("cpu")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A copy of the table of masked_mse that may be written."""
    path = tmp_path / "masked_mse.json"
    path.write_text(_launch.table_path("masked_mse").read_text("utf-8"), "utf-8")
    monkeypatch.setattr(_launch, "table_path", lambda op: path)
    _launch._table.cache_clear()
    yield path
    monkeypatch.undo()
    _launch._table.cache_clear()


def test_it_goes_downhill_and_stops_at_the_lowest():
    lookup = _launch.ConfigLookup("masked_mse", "forward", {"dtype": "float32"}, {"BLOCK": 2048, "num_warps": 8})

    def cost():
        now = _launch.configuration("masked_mse", "forward", CPU, dtype="float32")
        return 1.0 + abs(now["BLOCK"] - 512) / 512 + abs(now["num_warps"] - 2)

    best, after, before = tune.tune_kernel(lookup, cost)
    assert best == {"BLOCK": 512, "num_warps": 2}
    assert after == 1.0 < before


def test_noise_changes_nothing():
    lookup = _launch.ConfigLookup("masked_mse", "forward", {"dtype": "float32"}, {"BLOCK": 2048, "num_warps": 8})
    costs = iter([1.0] + [0.995] * 100)
    assert tune.tune_kernel(lookup, lambda: next(costs))[0] == lookup.use


def test_what_it_writes_is_what_the_next_launch_uses(table):
    facts = {"arch": 90, "dtype": "float32"}
    tune.write("masked_mse", {"kernel": "forward", "when": tune.condition(facts), "use": {"BLOCK": 64, "num_warps": 1}})
    _launch._table.cache_clear()
    assert _launch.configuration("masked_mse", "forward", CPU, dtype="float32") == {"BLOCK": 64, "num_warps": 1}
    assert _launch.configuration("masked_mse", "forward", CPU, dtype="bfloat16")["BLOCK"] == 4096
    # The same class again replaces the entry.
    tune.write("masked_mse", {"kernel": "forward", "when": tune.condition(facts), "use": {"BLOCK": 32, "num_warps": 1}})
    assert len(json.loads(table.read_text())["forward"]) == 3


def test_a_class_reaches_down_to_the_next_power_of_two():
    assert tune.condition({"arch": 90, "dtype": "float32", "D": 256, "L": 60}) == {
        "arch": 90,
        "dtype": "float32",
        "D": [129, 256],
        "L": [33, 64],
    }


def test_every_kernel_of_an_operation_is_tuned_and_verified(monkeypatch):
    monkeypatch.setattr(tune, "Timer", lambda device: lambda call: 1.0)
    found = list(tune.tune("masked_mse", SHAPES["tiny"], torch.float32, CPU, 1))
    assert [entry["kernel"] for entry in found] == ["forward", "mean", "backward"]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["tune"])
    assert tune.main() == 2
    assert "no GPU" in capsys.readouterr().err
