"""`make gpu` as far as a machine without a GPU goes: it runs, and says what it skips and why."""

import json
import subprocess

import torch

from benchmarks import gpu


def test_without_a_gpu_every_step_that_needs_one_is_skipped_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 0
    results = {result["step"]: result for result in json.loads((tmp_path / "summary.json").read_text())}
    assert results["doctor"]["code"] == 0
    assert "s2vfast" in (tmp_path / "log.txt").read_text()
    assert all("no GPU" in results[name]["skipped"] for name in results if name != "doctor")
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt", "summary.json"}
    assert "there is no GPU" in capsys.readouterr().out


def test_all_steps_together_end_within_ten_minutes(tmp_path):
    # What starts and ends them takes time too.
    assert sum(step.seconds for step in gpu.steps(tmp_path)) <= 575


def test_a_step_that_fails_is_shown_and_the_others_still_run(tmp_path, monkeypatch, capsys):
    run = [gpu.PYTHON, "-c"]
    made = [
        gpu.Step("bad", [*run, "raise SystemExit('it went wrong')"], 60, gpu=False),
        gpu.Step("slow", [*run, "import time; time.sleep(60)"], 1, gpu=False),
        gpu.Step("tool", ["no-such-tool"], 1, gpu=False, needs="no-such-tool"),
        gpu.Step("good", [*run, "print('fine')"], 60, gpu=False),
    ]
    monkeypatch.setattr(gpu, "steps", lambda out: made)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 1
    results = {result["step"]: result for result in json.loads((tmp_path / "summary.json").read_text())}
    assert (results["bad"]["code"], results["slow"]["code"], results["good"]["code"]) == (1, 124, 0)
    assert results["tool"]["skipped"] == "no-such-tool was not found"
    assert "it went wrong" in capsys.readouterr().out
    assert "it went wrong" in results["bad"]["said"]
    assert "said" not in results["good"]


def test_what_a_stopped_step_had_measured_is_kept(tmp_path, monkeypatch):
    write = f"import pathlib, time; p = pathlib.Path({str(tmp_path)!r}, 'h100'); p.mkdir(); "
    write += "(p / 'step.json.partial').write_text('{}'); time.sleep(60)"
    made = [gpu.Step("step", [gpu.PYTHON, "-c", write], 3, gpu=False)]
    monkeypatch.setattr(gpu, "steps", lambda out: made)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 1
    assert [path.name for path in (tmp_path / "h100").iterdir()] == ["step.json"]


def test_fewer_than_eight_files_are_left(tmp_path):
    """log.txt, summary.json, tests.xml, and a file for each kind that is measured."""
    kinds = {step.command[-1] for step in gpu.steps(tmp_path) if "benchmarks.run" in step.command} - {"0.2"} | {"ops"}
    assert 3 + len(kinds) < 8


def test_tests_for_a_gpu_are_collected_without_what_a_gpu_machine_lacks():
    """Its image has no jsonargparse: whatever imports the command line at its top ends the whole collection."""
    script = "import sys, pytest; sys.modules['jsonargparse'] = None; "
    script += "sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-q', '-p', 'no:cacheprovider']))"
    done = subprocess.run([gpu.PYTHON, "-c", script], cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
