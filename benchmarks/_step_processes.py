"""Steps in processes of their own: how much memory they take, and how long they take on several ranks.

`peak` and `ranks` start them; a process is told what to do in a line of JSON, and answers in one.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import _results
from benchmarks._step import Setting, contestant
from benchmarks._timer import timed
from s2vfast import errors
from s2vfast.config import Config
from s2vfast.train import distributed

_MODULE = "benchmarks._step_processes"
STEPS = 2  # before the memory is looked at


def peak(setting: Setting, name: str) -> float:
    """Peak MiB that steps of a contestant take in a process of their own, beyond what it took to build it.

    Raises:
        TrainingError: the process failed.
    """
    return _ask([sys.executable, "-m", _MODULE], setting, name, what="peak")


def ranks(setting: Setting, name: str, world: int, checked: int, repeat: int) -> tuple[list[float], list[float]]:
    """A step shared by so many ranks under torchrun: gloo on a CPU, whose threads they share, NCCL on GPUs.

    Args:
        setting: ``clips`` are those of all ranks.
        name: an implementation.
        world: how many ranks.
        checked: steps that are not timed.
        repeat: steps that are.

    Returns:
        The losses of the first steps, and ms of the others, of the rank that took longest.

    Raises:
        TrainingError: a rank failed.
    """
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m", _MODULE]
    found = _ask(run, setting, name, what="ranks", world=world, checked=checked, repeat=repeat)
    return found["losses"], found["ms"]


def last_line(text: str) -> str:
    """The last line of an error's output that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # What torchrun says of a rank that failed comes after what the rank said.
    said = [line for line in lines if "Error: " in line and "ChildFailedError" not in line]
    return (said or lines or ["it said nothing"])[-1]


def _ask(command: list[str], setting: Setting, name: str, **more: Any) -> Any:
    asked = {"config": setting.config.to_dict(), "clips": setting.clips, "device": str(setting.device), "impl": name}
    env = dict(os.environ)
    if more.get("world", 0) > 1:
        env["OMP_NUM_THREADS"] = str(max(torch.get_num_threads() // more["world"], 1))
    done = subprocess.run(
        [*command, json.dumps(asked | more)], cwd=_results.ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise errors.TrainingError(f"a process that measures {name} failed: {last_line(done.stderr)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _peak(setting: Setting, asked: dict[str, Any]) -> float:
    advance = contestant(setting, asked["impl"])
    before = _peak_mib(setting.device)
    for _ in range(STEPS):
        advance()
    return round(_peak_mib(setting.device) - before, 1)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text("utf-8")
    return float(status.partition("VmHWM:")[2].split()[0]) / 2**10


def _ranks(setting: Setting, asked: dict[str, Any]) -> dict[str, list[float]] | None:
    with distributed.start() as mine:
        if setting.device.type == "cuda":
            torch.cuda.set_device(mine.local)
        advance = contestant(setting, asked["impl"], mine)
        losses = [advance() for _ in range(asked["checked"])]
        times = torch.zeros(mine.world, asked["repeat"], dtype=torch.float64)
        for number in range(asked["repeat"]):
            mine.same("step", number)  # all begin at once
            times[mine.rank, number] = timed(advance, setting.device)
        del advance  # ranks cannot part as long as a graph holds their sum
        gc.collect()
        times = times.to(setting.device)
        mine.sum(times)
        return {"losses": losses, "ms": times.amax(0).tolist()} if mine.first else None


def main() -> None:
    """Do what the one argument says, and print what came of it."""
    asked = json.loads(sys.argv[1])
    setting = Setting(Config.from_dict(asked["config"]), asked["clips"], torch.device(asked["device"]))
    found = {"peak": _peak, "ranks": _ranks}[asked["what"]](setting, asked)
    if found is not None:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
