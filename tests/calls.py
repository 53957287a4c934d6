"""Commands of s2vfast, in this process and in others of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
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
    done = run_ranks(ranks, ["pretrain", *options.split()])
    assert done.returncode == 0, done.stderr


def rank_command(ranks, arguments, script=("-m", "s2vfast"), restarts=0):
    """The command line of as many ranks, of s2vfast itself if not of a script."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    return [sys.executable, "-W", "ignore", *(launcher if ranks > 1 else []), *script, *arguments]


def run_ranks(ranks, arguments, script=("-m", "s2vfast")):
    """A command of ranks that ends. Where it does not, every rank says where it stands, and all are ended."""
    mark = uuid.uuid4().hex
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "S2VFAST_TEST_RUN": mark}
    full = rank_command(ranks, arguments, script)
    # Files, not pipes: a rank that outlives its launcher would hold them open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(full, env=variables, stdout=out, stderr=err)
        try:
            process.wait(300)
        except subprocess.TimeoutExpired:
            for number in (signal.SIGABRT, signal.SIGKILL):
                for pid in pids_with(f"S2VFAST_TEST_RUN={mark}"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(3)
            process.wait(30)
            err.seek(0)
            pytest.fail(f"no end after 300 s: {' '.join(map(str, full))}\n{err.read()[-20_000:]}")
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(full, process.returncode, out.read(), err.read())


def pids_with(variable):
    """Processes whose environment began with it."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and variable in (entry / "environ").read_text(errors="replace").split("\0"):
                yield int(entry.name)


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
