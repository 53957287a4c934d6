"""Two versions compared: the statistics, the decision, and a working tree that stays as it is."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import torch

from benchmarks import _results, _versions, compare, run
from s2vfast import errors

CPU = torch.device("cpu")
ROOT = _results.ROOT
MSE = "s2vfast/ops/masked_mse.py"
TORCH_MSE = "def _torch(prediction: Tensor, target: Tensor) -> Tensor:\n"
QUICK = ["--shape", "tiny", "--impl", "torch", "--seconds", "0.05"]


def git(folder, *words):
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{path} holds {text.count(old)} of {old!r}"
    path.write_text(text.replace(old, new), "utf-8")


@pytest.fixture(scope="session")
def pattern(tmp_path_factory):
    """A git repository of this tree's files, built extension included, with one commit."""
    folder = tmp_path_factory.mktemp("pattern") / "repository"
    for name in ("s2vfast", "kernels", "benchmarks", "configs", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("setup.py", "pyproject.toml", ".gitignore"):
        shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "one")
    return folder


@pytest.fixture
def repository(pattern, tmp_path):
    """A copy of it that may be changed."""
    return shutil.copytree(pattern, tmp_path / "repository", symlinks=True)


@pytest.fixture
def inside(repository, monkeypatch):
    """The repository as if it were the one these modules belong to; two rounds instead of six."""
    monkeypatch.setattr(_versions, "ROOT", repository)
    monkeypatch.setattr(compare, "ROUNDS", 2)
    return repository


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def options(**more):
    values = {"what": [], "shape": ["tiny"], "dtype": None, "impl": ["torch"], "seconds": 0.05}
    return argparse.Namespace(**{**values, "fail_if_slower": None, "gate": "small", **more})


# The statistics


def samples(generator, true, rounds=6, blocks=4, calls=6):
    """Times with luck of a process, of a block and of a call, and calls that something else held up."""

    def noise(*sizes, scale):
        return generator.normal(scale=scale, size=sizes)

    logs = np.zeros((rounds, blocks, 2, calls)) + noise(rounds, blocks, 1, 1, scale=0.3)  # the machine is slow now
    logs[:, :, 1] += np.log(true) + noise(rounds, 1, 1, scale=0.015) + noise(rounds, blocks, 1, scale=0.01)
    logs += noise(*logs.shape, scale=0.02)
    logs += (generator.random(logs.shape) < 0.05) * generator.exponential(0.5, logs.shape)
    return [[tuple(block) for block in one] for one in np.exp(logs).tolist()]


@pytest.mark.parametrize("true", [0.5, 1.0, 1.07])
def test_a_known_ratio_is_found(true):
    result = compare.ratio(samples(np.random.default_rng(1), true, rounds=6))
    assert result.estimate == pytest.approx(true, rel=0.02)
    assert result.low < true < result.high
    assert result.high / result.low < 1.06
    assert result.verdict == {0.5: "faster", 1.0: "same", 1.07: "slower"}[true]


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(2)
    ratios = [compare.ratio(samples(generator, 1.0)) for _ in range(400)]
    inside = sum(one.low <= 1 <= one.high for one in ratios)
    assert 0.92 * len(ratios) <= inside <= 0.98 * len(ratios)
    assert np.median([one.high / one.low for one in ratios]) < 1.06


def test_rounds_may_hold_different_numbers_of_blocks():
    result = compare.ratio([[([1.0], [2.0])] * count for count in (2, 4, 2, 6, 2, 2)])
    assert (result.estimate, result.low, result.high) == pytest.approx((2.0, 2.0, 2.0))


# What is asked for, and the decision


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("5", 0.05), ("0", 0.0), ("2.5%", 0.025)])
def test_per_cent(text, share):
    assert compare.per_cent(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "five", "-1%", "nan", "inf%"])
def test_no_percentage(text, capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--fail-if-slower", type=compare.per_cent)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--fail-if-slower={text}"])
    assert f"expected a percentage that is not negative, such as 5%, got {text!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "limit", "code"), [(1.04, 0.05, 0), (1.06, 0.05, 1), (1.06, None, 0), (1.001, 0.0, 1), (0.9, 0.0, 0)]
)
def test_the_lower_end_decides(low, limit, code, tmp_path, monkeypatch, capsys):
    comparison = compare.Comparison(None, None, options(fail_if_slower=limit), tmp_path)
    comparison.rounds = {compare.Cell("mlp", "torch", "ntu", "forward", 2): [[([1.0], [4.0])]]}
    monkeypatch.setattr(compare, "ratio", lambda rounds: compare.Ratio(1.2, low, 1.5))
    assert comparison.report() == code
    said = capsys.readouterr().out
    assert ("slower by more than" in said) == bool(code)
    assert "torch: new/old 1.200, geometric mean of 1 case\n" in said
    assert "1.000     4.000   1.200 [" in said


def test_means_are_geometric_and_by_implementation(tmp_path, monkeypatch, capsys):
    comparison = compare.Comparison(None, None, options(), tmp_path)
    times = {"torch": (0.5, 2.0), "native": (3.0,)}
    comparison.rounds = {
        compare.Cell("mlp", impl, str(number), "forward", 2): [[([1.0], [time])] * 2] * 6
        for impl in times
        for number, time in enumerate(times[impl])
    }
    assert comparison.report() == 0
    said = capsys.readouterr().out
    assert "torch: new/old 1.000, geometric mean of 2 cases" in said
    assert "native: new/old 3.000, geometric mean of 1 case\n" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"what": ["step", "data"]}, "compares operations alone, not step, data"),
        ({"impl": ["sdpa flash"]}, "--impl sdpa flash: only implementations are compared: reference, torch"),
    ],
)
def test_what_cannot_be_compared_is_said_at_once(more, says):
    with pytest.raises(errors.ConfigError, match=says):
        compare.main("HEAD", ["masked_mse"], options(**more), CPU)


# How it is measured


class Fake:
    """A version that answers at once."""

    def __init__(self, is_this_tree, turns, ms):
        self.is_this_tree, self.turns, self.ms = is_this_tree, turns, ms

    def need(self, do, count=1, **request):
        if do == "sample":
            self.turns.append("B" if self.is_this_tree else "A")
        return {"ms": self.ms if do == "prepare" else [self.ms] * count}


def test_versions_take_turns_in_both_orders(tmp_path):
    turns = []
    old, new = Fake(False, turns, 1.0), Fake(True, turns, 3.0)
    comparison = compare.Comparison(old, new, options(seconds=0.5), tmp_path)
    blocks = comparison.blocks(compare.Cell("mlp", "torch", "ntu", "forward", 2))
    assert "".join(turns).startswith("ABBAABBA")
    assert len(turns) % 4 == 0
    assert {(block[0][0], block[1][0]) for block in blocks} == {(1.0, 3.0)}
    # 500 ms over 6 rounds, of at least two blocks of two turns, twice over: room for three calls of 3 ms.
    assert {len(block[0]) for block in blocks} == {3}


def test_a_version_without_the_package_is_one_error(tmp_path):
    old = _versions.Version("old", tmp_path, CPU, "float32", is_this_tree=False)
    old.ask = lambda do: {"failed": "ModuleNotFoundError: there is no s2vfast"}
    with pytest.raises(errors.ConfigError, match="^--compare: old: ModuleNotFoundError: there is no s2vfast$"):
        compare.Comparison(old, old, options(), tmp_path).ask_availability()


# All of it


def state(folder):
    """What must not change: tracked and untracked files with their times, the index, what is checked out."""
    files = git(folder, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    times = {name: (folder / name).stat().st_mtime_ns for name in files if (folder / name).exists()}
    index = (folder / ".git/index").read_bytes()
    return times, index, git(folder, "status", "--porcelain"), git(folder, "rev-parse", "HEAD")


def test_a_slower_tree_is_found_and_stays_as_it_is(inside, temporary, monkeypatch, capsys):
    """The tree is dirty: a call that sleeps, and that prints where answers might be expected."""
    monkeypatch.setattr(compare, "ROUNDS", 3)  # two leave the interval wide
    edit(inside / MSE, TORCH_MSE, f"{TORCH_MSE}    import time; time.sleep(0.03); print('noise', flush=True)\n")
    (inside / "new.txt").write_text("new")
    git(inside, "rm", "--quiet", "configs/ntu60.yaml")
    git(inside, "status")  # which may write the index
    before = state(inside)
    assert run.main(["masked_mse", "mask_fill", *QUICK, "--compare", "HEAD", "--fail-if-slower", "50%"]) == 1
    assert state(inside) == before
    assert list(temporary.iterdir()) == []
    lines = capsys.readouterr().out.splitlines()
    slow = [line.split(": ")[1].split()[0] for line in lines if line.startswith("slower by more than 50 %")]
    assert slow == ["masked_mse"] * 2, lines
    rows = [line for line in lines if line.startswith(("masked_mse", "mask_fill"))]
    assert len(rows) == 4
    assert all(row.endswith("slower") for row in rows if row.startswith("masked_mse"))


def test_what_an_old_revision_lacks_is_said_and_the_rest_is_compared(inside, capsys):
    edit(inside / "s2vfast/ops/__init__.py", "from s2vfast.ops.masked_mse import masked_mse\n", "")
    edit(inside / "s2vfast/ops/__init__.py", '    "masked_mse",\n', "")
    git(inside, "commit", "--quiet", "-a", "-m", "an old one")
    git(inside, "checkout", "--quiet", "HEAD~1", "--", ".")
    assert compare.main("HEAD", ["mask_fill", "masked_mse"], options(), CPU) == 0
    said = capsys.readouterr().out
    commit = git(inside, "rev-parse", "HEAD")[:10]
    assert f"masked_mse     torch      cannot be compared: HEAD ({commit}) has no operation masked_mse\n" in said
    assert said.count("mask_fill      torch      tiny ") == 2


def test_what_is_wrong_is_not_timed(inside, capsys):
    edit(inside / MSE, TORCH_MSE, f"{TORCH_MSE}    prediction = prediction * 1.1\n")
    assert compare.main("HEAD", ["masked_mse"], options(), CPU) == 1
    said = capsys.readouterr().out
    assert "NOT TIMED: this tree does not agree with its reference: gradient of prediction is off by" in said
    assert "old ms" not in said


def test_where_nothing_can_be_compared_no_build_passes(inside, monkeypatch):
    there = {"masked_mse": {"torch": ["it is switched off"]}}
    monkeypatch.setattr(_versions.Version, "start", lambda version: None)
    monkeypatch.setattr(_versions.Version, "ask", lambda version, do: {"has": there})
    with pytest.raises(errors.ConfigError, match="--compare HEAD: nothing could be compared"):
        compare.main("HEAD", ["masked_mse"], options(), CPU)


def test_a_bad_revision_is_one_line(inside, capsys):
    assert run.main(["masked_mse", "--compare", "nowhere"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == ["error: --compare nowhere: there is no such commit, branch or tag here"]


def test_nothing_is_left_after_an_interrupt(repository, temporary):
    command = [sys.executable, "-m", "benchmarks.run", "masked_mse", *QUICK, "--seconds", "60", "--compare", "HEAD"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # A session of its own, so that the interrupt reaches what a terminal's would reach, and nothing else.
    process = subprocess.Popen(
        command, cwd=repository, env={**os.environ, "TMPDIR": str(temporary)}, start_new_session=True, **pipes
    )
    assert any(line.startswith("round 1") for line in process.stderr)
    assert len(list(temporary.iterdir())) == 1
    time.sleep(0.5)  # into the measurement
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list(temporary.iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # not one of the processes is left
