"""The benchmark of a process's first step."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import _results, _train_step, bench_cold_start
from benchmarks._train_step import Setting
from s2vfast.config import Config

CPU = torch.device("cpu")


def tiny():
    config = Config()
    config.data.frames = 15
    config.model.dim, config.model.heads, config.model.depth, config.objective.decoder_depth = 32, 2, 1, 1
    config.objective.top_k = 1
    return config


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the benchmark: its exit code and the rows that it wrote, read back by the schema."""
    monkeypatch.setattr(_train_step, "load", lambda name: tiny())

    def call(*arguments):
        code = bench_cold_start.main(["--repeat", "1", "--out", str(tmp_path), *arguments])
        return code, _results.read(tmp_path / "cpu/cold_start.json")["rows"]

    return call


def test_phases_add_up_to_what_the_process_took(run):
    start = time.monotonic()
    code, rows = run("--config", "tiny", "--batch", "2")
    seconds = time.monotonic() - start
    assert code == 0
    assert [(row["impl"], row["config"], row["clips"], row["cache"]) for row in rows] == [("torch", "tiny", 2, "none")]
    phases = dict(rows[0]["phases"])
    assert phases.pop("second step") > 0
    assert list(phases) == ["imports", "build", "first step"]
    assert sum(phases.values()) == pytest.approx(rows[0]["p50"], rel=1e-2)
    assert rows[0]["p50"] < seconds
    assert phases["imports"] > max(phases["build"], phases["first step"])


def test_the_time_before_python_counts(monkeypatch, capsys):
    request = {"config": tiny().to_dict(), "clips": 1, "device": "cpu", "impl": "torch", "what": "phases"}
    monkeypatch.setattr("sys.argv", ["_train_step", json.dumps(request | {"start": time.time() - 100})])
    _train_step.main()
    phases = json.loads(capsys.readouterr().out)
    assert 100 <= phases["imports"] < 130
    assert phases["build"] + phases["first step"] < 30


def test_a_first_step_imports_no_compiler():
    """Nor what comes with one: each takes a quarter of a second or more."""
    code = (
        "import sys; from benchmarks import _train_step as t; from s2vfast.config import Config; import torch;"
        f"config = Config.from_dict({tiny().to_dict()});"
        "t.contestant(t.Setting(config, 1, torch.device('cpu')), 'auto')();"
        "print([name for name in ('sympy', 'triton', 'torch._dynamo') if name in sys.modules])"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "S2VFAST_IMPL")
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=_results.ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_process_that_fails_is_refused(run):
    code, rows = run("--config", "tiny", "--impl", "native")
    assert code == 1
    assert "norm_linear has no native implementation" in rows[0]["refused"]


@pytest.fixture
def processes(monkeypatch):
    """The environments of the processes that were asked for; each takes its own number of seconds a phase."""
    environments = []

    def ask(setting, name, what, environment):
        assert what == "phases"
        environments.append(environment)
        return dict.fromkeys(_train_step.PHASES, float(len(environments)))

    monkeypatch.setattr(_train_step, "ask", ask)
    monkeypatch.setattr(bench_cold_start.subprocess, "run", lambda command, **options: None)
    return environments


def test_an_empty_cache_is_filled_and_used_again(processes):
    settings = {"a": Setting(tiny(), 1, CPU)}
    *_, rows = bench_cold_start.measure(settings, "torch:compile", 3)
    folders = [environment["TRITON_CACHE_DIR"] for environment in processes]
    assert len(folders) == 1 + 3
    assert len(set(folders)) == 1
    assert not any(Path(folder).exists() for folder in folders)
    assert folders[0] != processes[0]["TORCHINDUCTOR_CACHE_DIR"]
    # Seconds a phase are the process's number: 1 with an empty cache, then 2, 3 and 4.
    assert [(row["cache"], row["p50"]) for row in rows] == [("empty", 3.0), ("filled", 9.0)]
    assert rows[1]["phases"]["imports"] == 3.0


def test_configs_take_turns_and_keep_their_cache_without_a_compiler(processes):
    settings = {name: Setting(tiny(), 1, CPU) for name in ("a", "b")}
    *more, rows = bench_cold_start.measure(settings, "torch", 2)
    assert [row["p50"] for row in more[1]] == [3.0, 6.0]  # after a round
    # All find the same bytecode, and no compiler's cache.
    assert processes == [processes[0]] * 4
    assert processes[0].keys() == {"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}
    assert not processes[0]["PYTHONDONTWRITEBYTECODE"]
    # Seconds a phase are the process's number: 1 and 3, 2 and 4.
    assert [(row["config"], row["p50"]) for row in rows] == [("a", 6.0), ("b", 9.0)]


def test_which_caches_there_are():
    cuda = torch.device("cuda")
    assert bench_cold_start.caches("triton", cuda) == ("empty", "filled")
    assert bench_cold_start.caches("torch:compile", CPU) == ("empty", "filled")
    assert bench_cold_start.caches("torch", cuda) == bench_cold_start.caches("torch", CPU) == ("none",)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--device", "cuda"], "no GPU that PyTorch can use"), (["--impl", "trion"], "no implementation 'trion'")],
)
def test_what_cannot_be_done_is_one_line(monkeypatch, capsys, arguments, text):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_cold_start.main(arguments) == 2
    assert text in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_kernels_are_compiled_once(monkeypatch, tmp_path):
    monkeypatch.setattr(_train_step, "load", lambda name: tiny())
    arguments = ["--device", "cuda", "--config", "tiny", "--repeat", "1", "--out", str(tmp_path)]
    assert bench_cold_start.main(arguments) == 0
    empty, filled = _results.read(next(tmp_path.glob("*/cold_start.json")))["rows"]
    assert (empty["cache"], filled["cache"]) == ("empty", "filled")
    assert filled["phases"]["first step"] < empty["phases"]["first step"]
