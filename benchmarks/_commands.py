"""Commands of s2vfast side by side, in order of what they need; those that are done are not done again."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _results
from benchmarks._program import progress
from s2vfast import errors, presets
from s2vfast.evaluate import finetune_config

NAMED = {"--config": presets.read, "--recipe": lambda name: finetune_config.load(name).to_dict()}
"""Options whose values are names, and what these stand for."""


@dataclass(frozen=True)
class Task:
    """A command, and those whose results it needs."""

    name: str
    words: list[str]
    after: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """As it is run."""
        return [sys.executable, "-m", "s2vfast", *self.words]

    @property
    def what(self) -> dict[str, str]:
        """The command, and hashes of preset and recipe that it names: equal where a task is the same."""
        facts = {"command": shlex.join(self.words)}
        for option in NAMED.keys() & set(self.words):
            tree = NAMED[option](self.words[self.words.index(option) + 1])
            facts[option] = hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
        return facts


class Runner:
    """Tasks side by side, each on one thread, each with a log of its own.

    Args:
        out: the folder of runs; logs and what was done by which commit lie in ``out/logs``.
        jobs: how many at a time.
    """

    def __init__(self, out: Path, jobs: int) -> None:
        self.logs, self.jobs = out / "logs", jobs
        self.logs.mkdir(parents=True, exist_ok=True)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def done(self, task: Task) -> bool:
        """Whether the same command has ended well, with the same preset and recipe."""
        mark = self.logs / f"{task.name}.done"
        return mark.is_file() and task.what.items() <= json.loads(mark.read_text("utf-8")).items()

    def origins(self, todo: Sequence[Task]) -> dict[str, Any]:
        """Commits that did what is done, in order, and the last day."""
        marks = [json.loads((self.logs / f"{task.name}.done").read_text("utf-8")) for task in todo]
        return {"commits": sorted({mark["commit"] for mark in marks}), "date": max(mark["date"] for mark in marks)}

    def run(self, todo: Sequence[Task]) -> None:
        """Do all that is not done; raises `TrainingError` with the last line of what failed."""
        again = {task.name for task in todo if not self.done(task)}
        for _ in todo:  # what needs a result that will be another
            again |= {task.name for task in todo if again.intersection(task.after)}
        waiting = [task for task in todo if task.name in again]
        progress(f"{len(todo) - len(waiting)} of {len(todo)} commands were done before")
        try:
            while waiting or self.running:
                names = {task.name for task in waiting} | set(self.running)
                for task in list(waiting):
                    if len(self.running) < self.jobs and not names.intersection(task.after):
                        waiting.remove(task)
                        self.start(task)
                time.sleep(0.5)
                self.collect({task.name: task for task in todo}, len(waiting))
        except BaseException:
            for process in self.running.values():
                process.send_signal(signal.SIGINT)  # each saves what it has
            for name, process in self.running.items():
                self.cpu_seconds(name, process.wait)
            raise

    def start(self, task: Task) -> None:
        """Start a task."""
        progress(f"{task.name}: s2vfast {shlex.join(task.words)}")
        log = (self.logs / f"{task.name}.log").open("ab")
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        # A group of its own: Ctrl-C is passed on once, not twice.
        self.running[task.name] = subprocess.Popen(
            task.command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=_results.ROOT, start_new_session=True
        )
        log.close()

    def collect(self, tasks_by_name: dict[str, Task], count: int) -> None:
        """Take note of what has ended."""
        for name, process in list(self.running.items()):
            code, seconds = self.cpu_seconds(name, process.poll)
            if code is None:
                continue
            del self.running[name]
            log = self.logs / f"{name}.log"
            if code:
                last = (log.read_text("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
                raise errors.TrainingError(f"{name}: exit code {code}: {last} ({log})")
            commit, date = _results.origin()
            mark = {**tasks_by_name[name].what, "commit": commit, "date": date}
            (self.logs / f"{name}.done").write_text(json.dumps(mark | {"cpu_seconds": seconds}), "utf-8")
            progress(f"{name}: done in {seconds:.0f} CPU s; {count} wait, {len(self.running)} run")

    def cpu_seconds(self, name: str, reap: Callable[[], int | None]) -> tuple[int | None, float]:
        """What ``reap`` returns of a task's process, and the CPU seconds of all tries that have ended."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = reap()  # of this process alone, so that what is new is its
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        path = self.logs / f"{name}.cpu"
        seconds = float(path.read_text("utf-8")) if path.is_file() else 0.0
        if code is not None:
            seconds = round(seconds + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
            path.write_text(f"{seconds}", "utf-8")
        return code, seconds
