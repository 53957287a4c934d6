"""The real step under the real loop: killed at any moment and resumed, a run ends with the same bytes."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from s2vfast.train import checkpoint
from s2vfast.train.loop import train

STEPS = 24

# A process that has imported everything and forks a child for each run: a start costs milliseconds, not seconds.
NURSERY = """
import json, os, sys
import safetensors.torch
import torch
import s2vfast.data.store
from s2vfast.config import Config
from s2vfast.train.trainer import Trainer
from s2vfast.train.loop import train

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        sys.stdout = open(os.devnull, "w")
        if order["die_at"]:
            name, left = order["die_at"]
            real = getattr(os, name)

            def dying(*args, **kwargs):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), 9)
                return real(*args, **kwargs)

            setattr(os, name, dying)
        code = 1
        try:
            train(Config.from_dict(order["config"]), order["store"], order["run"], resume=True)
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Nursery:
    """Runs of one store and config in children that can be killed."""

    def __init__(self, store, config):
        self.order = {"store": str(store), "config": config.to_dict(), "die_at": None}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, run, kill_at=None, die_at=None):
        """Begin the run or go on with it; returns True if it came to its end, False if it was killed.

        Args:
            run: The run's folder.
            kill_at: (lines, seconds): SIGKILL so long after metrics.jsonl has that many lines.
            die_at: (name of a function of os, n): SIGKILL instead of its n-th call.
        """
        self.process.stdin.write(json.dumps(self.order | {"run": str(run), "die_at": die_at}) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_at is not None:
            lines, seconds = kill_at
            # At most so many lines are ever there: the run ends, and the wait with it.
            while lines > 0 and not os.path.exists(run / "metrics.jsonl"):
                time.sleep(0.001)
            while lines > 0 and (run / "metrics.jsonl").read_bytes().count(b"\n") < lines:
                time.sleep(0.001)
            time.sleep(seconds)
            # A child that has ended stays a zombie until the nursery has waited for it, or its number is free: nobody
            # else gets it in so short a time.
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = int(self.process.stdout.readline())
        assert status in (0, signal.SIGKILL), f"the child ended with status {status}"
        return status == 0


@pytest.fixture(scope="module")
def nursery(tiny_store, tiny_config):
    config = tiny_config(steps=STEPS, log_every=1)
    config.checkpoint.every, config.data.workers = 2, 1
    made = Nursery(tiny_store, config)
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=60)


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """Bytes of the uninterrupted run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert nursery.run(run)
    return contents(run)


def contents(run):
    """Bytes of every file that must not depend on when the run was killed; no other files may be there."""
    found = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    del found["throughput.jsonl"], found["run.json"]  # they hold times
    return found


def test_the_uninterrupted_run_is_what_we_think(whole):
    steps = [f"checkpoints/step-000000{step}/{name}" for step in (22, 24) for name in FILES]
    assert sorted(whole) == sorted([*steps, ".lock", "config.yaml", "metrics.jsonl"])
    assert len(whole["metrics.jsonl"].splitlines()) == STEPS


FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors")


def check_random_kills(nursery, whole, tmp_path, seeds):
    killed = 0
    for seed in seeds:
        rng, run = random.Random(seed), tmp_path / str(seed)
        for _ in range(1 + seed % 3):  # Some are killed more than once.
            killed += not nursery.run(run, kill_at=(rng.randrange(STEPS), rng.uniform(0, 0.05)))
        assert nursery.run(run)
        assert contents(run) == whole, f"seed {seed}"
    assert killed >= len(seeds) // 2, "kills come too late to test anything"


def test_killed_at_random_moments(nursery, whole, tmp_path):
    check_random_kills(nursery, whole, tmp_path, range(4))


@pytest.mark.slow
def test_killed_at_twenty_random_moments(nursery, whole, tmp_path):
    check_random_kills(nursery, whole, tmp_path, range(100, 120))


# Beginning a run flushes 4 times; a save flushes metrics, 3 files and 2 folders, and renames the new one in and, from
# the third on, the oldest out. The 22nd rename comes after the last save, when the run would be finished.
MOMENTS = [("fsync", n) for n in (*range(1, 11), 14, 16)] + [("rename", n) for n in (1, 3, 4, 21, 22)]
MOMENTS += [("replace", 1), ("replace", 2), ("mkdir", 1), ("mkdir", 2), ("mkdir", 3)]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}")
def test_killed_while_saving(nursery, whole, tmp_path, moment):
    assert not nursery.run(tmp_path / "run", die_at=moment)
    assert nursery.run(tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_killed_while_resuming_from_a_kill(nursery, whole, tmp_path):
    assert not nursery.run(tmp_path / "run", die_at=("rename", 5))
    assert not nursery.run(tmp_path / "run", die_at=("fsync", 1))
    assert nursery.run(tmp_path / "run")
    assert contents(tmp_path / "run") == whole


def test_a_newest_checkpoint_that_is_damaged(nursery, whole, tmp_path):
    run = tmp_path / "run"
    assert not nursery.run(run, die_at=("rename", 6))
    newest = checkpoint.folder(run) / f"step-{checkpoint.steps(run)[-1]:08d}"
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[len(content) // 2] ^= 4
    (newest / "optimizer.safetensors").write_bytes(content)
    assert nursery.run(run)
    kept = contents(run)
    assert {name for name in kept if name not in whole} == {
        f"checkpoints/damaged-{newest.name}/{name}" for name in FILES
    }
    assert all(kept[name] == content for name, content in whole.items())


def metrics(run):
    return (run / "metrics.jsonl").read_bytes()


def test_the_same_seed_twice_and_any_number_of_workers(tmp_path, tiny_store, tiny_config):
    config = tiny_config(log_every=1)
    train(config, tiny_store, tmp_path / "one")
    train(config, tiny_store, tmp_path / "two")
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    config.data.workers = 2
    train(config, tiny_store, tmp_path / "workers")
    assert metrics(tmp_path / "one") == metrics(tmp_path / "workers")
    train(tiny_config(log_every=1, seed=2), tiny_store, tmp_path / "other")
    assert metrics(tmp_path / "one") != metrics(tmp_path / "other")


def test_numbers_that_are_not_finite_stop_before_the_update(tmp_path, tiny_store, tiny_config, monkeypatch):
    from s2vfast.errors import TrainingError
    from s2vfast.train.trainer import Trainer

    made = []

    def trainer(config, store):
        made.append(Trainer(config, store))
        real = made[0].feed.batch

        def poisoned(step):
            batch = real(step)
            if step == 7:
                batch.micro_batches[0].clips[1] = float("nan")
            return batch

        monkeypatch.setattr(made[0].feed, "batch", poisoned)
        return made[0]

    config = tiny_config(log_every=1)
    train(tiny_config(log_every=1, steps=12), tiny_store, tmp_path / "whole")
    with pytest.raises(TrainingError, match="step 8: .* Sample ids: ") as caught:
        train(config, tiny_store, tmp_path / "run", make_trainer=trainer)
    ids = made[0].order.sample_ids(7).tolist()
    assert all(f"{number} (" in str(caught.value) for number in ids)
    assert made[0].step == 7
    assert all(bool(tensor.isfinite().all()) for tensor in made[0].state()["model"].values())
    train(config, tiny_store, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
