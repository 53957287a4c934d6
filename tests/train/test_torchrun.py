"""Runs of several processes, as torchrun starts them."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from s2vfast import presets

from ..calls import ENVIRONMENT, pids_with, rank_command, run_ranks

pytestmark = pytest.mark.slow
STEPS = 20


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_store, tiny_config):
    """The beginning of a command that trains the tiny network, and where its runs may go."""
    place = tmp_path_factory.mktemp("torchrun")
    config = tiny_config(steps=STEPS, batch=4, log_every=1)
    config.checkpoint.every = 4
    config.optim.lr = 5e-3
    (place / "config.yaml").write_text(presets.dump(config))
    return place, ["pretrain", "--config", str(place / "config.yaml"), "--data", str(tiny_store)]


def lines(run_dir):
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def weights(run_dir):
    return load_file(Path(run_dir) / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


def assert_close(one, other):
    """Losses to 1e-6; weights after some steps to what AdamW makes of rounding."""
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a["step"] == b["step"]
        for name in ("loss", "grad_norm", "target_var", "pred_var"):
            assert b[name] == pytest.approx(a[name], rel=1e-6), (a["step"], name)
    a, b = weights(one), weights(other)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


def assert_same_bits(one, other):
    assert lines(one) == lines(other)
    a, b = weights(one), weights(other)
    assert all(a[name].equal(b[name]) for name in b)


@pytest.fixture(scope="module")
def undisturbed(files):
    """A run of two ranks that comes to its end."""
    place, arguments = files
    done = run_ranks(2, [*arguments, "--out", str(place / "undisturbed")])
    assert done.returncode == 0, done.stderr
    return place / "undisturbed"


@pytest.fixture(scope="module")
def alone(files):
    place, arguments = files
    done = run_ranks(1, [*arguments, "--out", str(place / "alone")])
    assert done.returncode == 0, done.stderr
    return place / "alone"


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_change_nothing(files, alone, ranks):
    place, arguments = files
    out = place / f"ranks{ranks}"
    done = run_ranks(ranks, [*arguments, "--out", str(out)])
    assert done.returncode == 0, done.stderr
    assert_close(alone, out)
    assert done.stdout.count("done: ") == 1


def test_a_run_goes_on_with_another_number_of_ranks(files, alone, tmp_path):
    _, arguments = files
    out = tmp_path / "run"
    first = subprocess.Popen(rank_command(2, [*arguments, "--out", str(out)]), env=ENVIRONMENT, stderr=subprocess.PIPE)
    wait_for(out, 6, first)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    reached = len(lines(out))
    assert 6 <= reached < STEPS
    checkpoints = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert checkpoints[-1] == f"step-{reached:08d}", "all ranks stopped after the same step, and it was saved"
    for ranks in (4, 1):
        done = run_ranks(ranks, [*arguments, "--resume", "--out", str(out), "--train.log_every", "1"])
        assert done.returncode == 0, done.stderr
    assert_close(alone, out)


def wait_for(run_dir, step, process):
    metrics = Path(run_dir) / "metrics.jsonl"
    limit = time.monotonic() + 120
    while not metrics.is_file() or len(metrics.read_bytes().splitlines()) < step:
        assert process.poll() is None, "the run ended before it was to be disturbed"
        assert time.monotonic() < limit
        time.sleep(0.001)


def pid_of(rank, parent):
    """The process of a rank among the children of torchrun's."""
    for pid in pids_with(f"RANK={rank}"):
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
                return pid
    raise AssertionError(f"rank {rank} is not there")


@pytest.mark.parametrize("seed", range(int(os.environ.get("S2VFAST_KILLS", "2"))))
def test_a_killed_rank_costs_nothing(files, undisturbed, tmp_path, seed):
    """Ends equal to a run of as many ranks that nobody disturbed, to the last bit."""
    _, arguments = files
    draw = random.Random(seed)
    step, rank, out = draw.randrange(1, STEPS - 2), draw.randrange(2), tmp_path / "run"
    process = subprocess.Popen(
        rank_command(2, [*arguments, "--out", str(out)], restarts=2),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "stderr").open("w"),
    )
    wait_for(out, step, process)
    os.kill(pid_of(rank, process.pid), signal.SIGKILL)
    assert process.wait(timeout=180) == 0, (tmp_path / "stderr").read_text()
    assert_same_bits(out, undisturbed)


def test_evaluation_of_two_ranks_is_that_of_one(files, alone, tmp_path):
    words = ["evaluate", str(alone), "--protocol", "linear,knn,finetune", "--json", "--finetune.epochs", "2"]
    words += ["--finetune.batch", "4", "--finetune.hidden", "8"]
    found = []
    for ranks in (1, 2):
        done = run_ranks(ranks, [*words, "--out", str(tmp_path / f"{ranks}")])
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1])["table"])
        assert done.stdout.count('"table"') == 1
    for one, two in zip(*found, strict=True):
        assert one["measure"] == two["measure"]
        # One of the four test sequences may lie on the border of two classes.
        assert one["value"] == pytest.approx(two["value"], abs=25.1)
    losses = [[line["loss"] for line in lines(tmp_path / f"{ranks}/finetune")] for ranks in (1, 2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


SPOILT = """
import os, sys
from pathlib import Path
from s2vfast import cli
from s2vfast.train.feed import Feed
real = Feed.batch
def batch(self, step):
    made = real(self, step)
    if str(step) == os.environ.get("SPOILT_STEP") and self.ranks.rank == 1:
        made.micro_batches[0].clips.fill_(float("nan"))
    return made
Feed.batch = batch
code = cli.main()
threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
assert not [name for name in threads if "gloo" in name], f"threads of ranks outlive them: {threads}"
sys.exit(code)
"""


def test_a_number_that_is_not_finite_stops_all_ranks(files, undisturbed, tmp_path, monkeypatch):
    """One rank's clips are spoilt; both stop before the update, one of them says why, and the run goes on.

    Either way no thread of the group is left: one that needs the interpreter while it ends aborts the process.
    """
    _, arguments = files
    (tmp_path / "spoilt.py").write_text(SPOILT)
    out = tmp_path / "run"

    def train(*more):
        return run_ranks(2, [*arguments, "--out", str(out), *more], script=[str(tmp_path / "spoilt.py")])

    monkeypatch.setenv("SPOILT_STEP", "7")
    done = train()
    assert done.returncode != 0
    assert done.stderr.count("s2vfast: error: step 8: the loss is nan; weights are as they were before") == 1
    assert "outlive" not in done.stderr
    assert len(lines(out)) == 7
    monkeypatch.delenv("SPOILT_STEP")
    again = train("--resume", "--train.log_every", "1")
    assert again.returncode == 0, again.stderr
    assert lines(out) == lines(undisturbed)
