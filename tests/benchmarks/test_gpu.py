"""`make gpu` as far as a machine without a GPU goes: it runs, and says what it skips and why."""

import json
import subprocess
import time

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


def test_two_runs_end_within_fifteen_minutes():
    assert 2 * (gpu.ALL + gpu.GRACE) <= 15 * 60 - 45  # a machine starts meanwhile


def test_no_step_begins_or_lasts_when_all_time_is_over(tmp_path, monkeypatch, capsys):
    sleep = [gpu.PYTHON, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(gpu, "steps", lambda out: [gpu.Step(name, sleep, 60, gpu=False) for name in ("one", "two")])
    monkeypatch.setattr(gpu, "LEAST", 1)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path), "--seconds", "1.5"])
    begun = time.monotonic()
    assert gpu.main() == 1
    assert time.monotonic() - begun < 30
    one, two = json.loads((tmp_path / "summary.json").read_text())
    assert one["code"] == 124
    assert two["skipped"] == "no time is left; run it by --only two"


def test_the_headline_is_there_within_four_minutes(tmp_path):
    made = gpu.steps(tmp_path)
    names = [step.name for step in made]
    assert names[:6] == ["doctor", "compile", "headline", "step", "calibrate", "tests"]
    assert sum(step.seconds for step in made[:4]) <= 240
    step = {step.name: step.command for step in made}
    assert not any("compile" in word for word in step["step"] + step["headline"])
    assert {"mlp", "attention", "ntu", "triton", "torch"} <= set(step["headline"])
    # What takes longest is last.
    assert names[-3:] == ["memcheck", "racecheck", "step_compile"]


def test_its_commands_are_ones_that_there_are(tmp_path, monkeypatch):
    from benchmarks import bench_step, run

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for step in gpu.steps(tmp_path):
        program = {"benchmarks.run": run, "benchmarks.bench_step": bench_step}.get(step.command[2])
        if program:
            assert program.main(step.command[3:]) == 2  # its one error: there is no GPU


def test_a_step_that_fails_is_shown_and_the_others_still_run(tmp_path, monkeypatch, capsys):
    run = [gpu.PYTHON, "-c"]
    made = [
        gpu.Step("bad", [*run, "raise SystemExit('it went wrong')"], 60, gpu=False),
        gpu.Step("slow", [*run, "import time; time.sleep(60)"], 1, gpu=False),
        gpu.Step("tool", ["no-such-tool"], 1, gpu=False, program="no-such-tool"),
        gpu.Step("good", [*run, "print('fine')"], 60, gpu=False),
    ]
    monkeypatch.setattr(gpu, "steps", lambda out: made)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 1
    results = {result["step"]: result for result in json.loads((tmp_path / "summary.json").read_text())}
    assert (results["bad"]["code"], results["slow"]["code"], results["good"]["code"]) == (1, 124, 0)
    assert results["tool"]["skipped"] == "no-such-tool was not found"
    assert "it went wrong" in capsys.readouterr().out
    assert "it went wrong" in results["bad"]["output"]
    assert "output" not in results["good"]


def test_what_a_stopped_step_had_measured_is_kept(tmp_path, monkeypatch):
    write = f"""
import sys, time, pathlib
from benchmarks import _results
row = {{"what": "tube_mask", "refused": "slow"}}
device = {{"name": "H100", "slug": "h100", "type": "cpu", "threads": 1}}
_results.write(_results.result("data", [row], device), pathlib.Path({str(tmp_path)!r}), complete=False)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    made = [gpu.Step("data", [gpu.PYTHON, "-c", write], 20, gpu=False)]
    real = gpu.subprocess.Popen.wait

    def wait(process, timeout=None):
        """The time is over once the step has written."""
        while timeout == 20 and not list(tmp_path.glob("h100/*.partial")):
            time.sleep(0.05)
        return real(process, 0 if timeout == 20 else timeout)

    monkeypatch.setattr(gpu.subprocess.Popen, "wait", wait)
    monkeypatch.setattr(gpu, "steps", lambda out: made)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 1
    assert [path.name for path in (tmp_path / "h100").iterdir()] == ["data.json"]
    # It was interrupted before it was ended, upon which pytest prints its failures.
    assert (tmp_path / "log.txt").read_text().splitlines()[-1] == "interrupted"
    assert json.loads((tmp_path / "summary.json").read_text())[0]["code"] == 124


def test_tests_for_a_gpu_are_collected_without_what_a_gpu_machine_lacks():
    """Its image has no jsonargparse: whatever imports the command line at its top ends the whole collection."""
    script = "import sys, pytest; sys.modules['jsonargparse'] = None; "
    script += "sys.exit(pytest.main(['-m', 'gpu', '--collect-only', '-q', '-p', 'no:cacheprovider']))"
    done = subprocess.run([gpu.PYTHON, "-c", script], cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
