"""Commands of s2vfast, in this process and in others of their own."""

import json
import os
import signal
import subprocess
import sys
import time

from safetensors.torch import load_file

from s2vfast import cli

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def call(capsys, *words):
    """What a command that succeeds prints."""
    code = cli.main([str(word) for word in words])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def pretrain(options):
    """A run in this process."""
    assert cli.main(["pretrain", *options.split()]) == 0


def pretrain_on_ranks(options, ranks):
    """The same in as many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "s2vfast", "pretrain", *options.split()]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def pretrain_with_a_kill(options, out):
    """The same run in ``out``, killed after the checkpoint of step 2, then resumed."""
    command = [sys.executable, "-W", "ignore", "-m", "s2vfast", "pretrain", *options.split()]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    while not (out / "checkpoints" / "step-00000002").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pretrain(f"--resume --out {out}")


def weights(out):
    """Tensors of a run's last checkpoint by name."""
    return load_file(max((out / "checkpoints").glob("step-*")) / "model.safetensors")


def metrics(out):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def check_same_run(one, two):
    """The same bytes of metrics and the same weights."""
    assert (two / "metrics.jsonl").read_bytes() == (one / "metrics.jsonl").read_bytes()
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert all(second[name].equal(first[name]) for name in first)
