"""The demo: what it says at its end, and that it goes on where it was."""

import json
import time

import pytest

from s2vfast import presets
from s2vfast.config import Config
from s2vfast.demo import demo
from s2vfast.evaluate import protocols
from s2vfast.train import checkpoint
from tests.conftest import TINY


def test_the_demo_goes_on_repeats_at_once_and_begins_anew(tmp_path, capsys, monkeypatch):
    config = Config.from_dict(presets.parse(TINY, "tiny"))
    config.model.depth = 2
    options = {"config": config, "synth": {"subjects": 2, "views": 1, "repetitions": 1}}
    out, evaluated, evaluate = tmp_path / "demo", [], protocols.evaluate
    monkeypatch.setattr(protocols, "evaluate", lambda *a, **k: evaluated.append(evaluate(*a, **k)) or evaluated[-1])
    began = time.monotonic()
    assert demo(out, **options) is None
    seconds = time.monotonic() - began
    first = capsys.readouterr().out
    for text in ("accuracy  seconds", "The first line, the floor, needs", str(out / "loss.png"), "What to try next"):
        assert text in first
    results = json.loads((out / "results.json").read_text())
    assert 0 < results["seconds"] < seconds
    assert results["seconds"] * results["clips_per_second"] == pytest.approx(8 * 4, rel=0.05)  # both are rounded
    floor, *networks = results["measured"]
    assert (floor, *networks) == ("floor: random convolutions", "the network, untrained", "the network, pretrained")
    for name, measured in results["measured"].items():
        row = next(line for line in first.splitlines() if line.startswith(f"  {name} "))
        assert row.split()[-2:] == [f"{measured['top1']:.1f}", f"{measured['seconds']:.0f}"]
    floor_result, *network_results = evaluated
    assert (floor_result["protocol"], floor_result["settings"]["copies"]) == ("floor", 0)
    assert results["measured"][floor]["top1"] == floor_result["top1"]
    assert [result["untrained"] for result in network_results] == [True, False]
    for name, result in zip(networks, network_results, strict=True):
        assert (result["pool"], result["layers"], "top1" in result) == ("statistics", 2, False)
        assert results["measured"][name]["top1"] == result["ridge"]["top1"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")

    # Again: the same last screen, nothing done.
    (out / "kept.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert demo(out, **options) is None
    again = capsys.readouterr().out
    assert first.endswith(again)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    # Interrupted before the end, or measured by a version that measured other things: only the rest is done.
    (out / "results.json").write_text('{"untrained": {}, "pretrained": {}}')
    assert demo(out, **options) is None
    assert "finished, 8 steps" in capsys.readouterr().out

    # Another preset: made anew, and nothing of others' removed.
    config.train.steps = 9
    assert demo(out, **options) is None
    assert "it is made anew" in capsys.readouterr().out
    assert checkpoint.load_latest(out / "run").step == 9
    assert (out / "kept.txt").exists()
