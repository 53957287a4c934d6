"""The benchmark of whole steps, on a network that takes no time."""

import json

import pytest

from benchmarks import bench_step
from s2vfast import presets
from s2vfast.config import Config


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["bench_step", "--config", "nwucla", "--repeat", "2", "--json", *arguments])
    bench_step.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("how", ["compute", "share"])
def test_reports_ratios_and_agreement(monkeypatch, capsys, how):
    # Its presets' four masks a clip are not what the published step does.
    one = presets.load("nwucla")
    one.mask.masks_per_clip, one.data.bodies = 1, 2
    monkeypatch.setattr(bench_step, "load", lambda name: one)
    found = run(monkeypatch, capsys, "--empty-bodies", how, "--batch", "4")["results"]
    assert set(found["ms"]) == {"torch", "reference", "product"}
    assert found["difference"]["torch"] <= 1e-5
    assert found["ratio"]["reference"] == 1.0
    assert found["empty"] == (3 if how == "share" else 0)


def test_what_differs_is_not_timed(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench_step", "--config", "nwucla", "--repeat", "1"])
    monkeypatch.setattr(bench_step, "TAU", 0.5)
    with pytest.raises(SystemExit, match="differ from reference's"):
        bench_step.main()  # four masks a clip against the published one


def test_the_defaults_are_ntu60():
    """A bare machine reads no YAML."""
    defaults, preset = Config().to_dict(), presets.load("ntu60").to_dict()
    for section in ("data", "model", "mask"):
        assert defaults[section] == preset[section]
    preset["objective"]["ema_steps"] = None
    assert defaults["objective"] == preset["objective"]
