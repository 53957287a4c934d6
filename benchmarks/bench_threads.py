"""What threads that wait cost: clips a second on all cores, alone and beside a busy process a core.

    python -m benchmarks.bench_threads [--config nwucla --batch 32] [--impl auto] [--seconds 8] [--repeat 3] [--json]

``blocking`` is what ``import s2vfast`` sets, ``spinning`` what PyTorch's OpenMP does by itself. Every measurement is a
process of its own; all of them take turns. Beside a busy process a core the fair share is half of what the same
threads do alone.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks import _results
from benchmarks._program import positive, progress
from s2vfast import errors

POLICIES = {"blocking": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
"""Variables of the environment; 300,000 is libgomp's own number where no policy is set."""
# Not by `_train_step.ask`, whose process has PyTorch before s2vfast could say how its threads wait.
MEASURED = """
import sys, time
import s2vfast
from benchmarks._train_step import Setting, contestant, load
import torch
config, clips, impl, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
advance = contestant(Setting(load(config), clips, torch.device("cpu")), impl)
for _ in range(3):
    advance()
began, steps = time.perf_counter(), 0
while time.perf_counter() - began < seconds:
    advance()
    steps += 1
print(clips * steps / (time.perf_counter() - began))
"""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that never wait."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def clips_a_second(options: argparse.Namespace, policy: str) -> float:
    """Of one process.

    Raises:
        TrainingError: it failed.
    """
    words = [options.config, str(options.batch), options.impl, str(options.seconds)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words],
        cwd=_results.ROOT,
        env=env | POLICIES[policy],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise errors.TrainingError(f"{policy}: {(done.stderr.strip().splitlines() or ['it printed nothing'])[-1]}")
    return float(done.stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of clips a second by policy and company, and what they come to."""
    cores = len(os.sched_getaffinity(0))
    rates: dict[tuple[str, str], list[float]] = {}
    for turn, busy_processes, policy in itertools.product(range(options.repeat), (0, cores), POLICIES):
        progress(f"turn {turn + 1} of {options.repeat}, {policy}, {busy_processes} busy processes")
        with busy(busy_processes):
            rates.setdefault((policy, "beside" if busy_processes else "alone"), []).append(
                clips_a_second(options, policy)
            )
    result: dict[str, Any] = {"config": options.config, "batch": options.batch, "impl": options.impl, "cores": cores}
    medians = {key: statistics.median(values) for key, values in rates.items()}
    for policy in POLICIES:
        alone, shared = medians[policy, "alone"], medians[policy, "beside"]
        result[policy] = {
            "alone": round(alone, 1),
            "beside": round(shared, 1),
            "of_fair_share": round(2 * shared / alone, 3),
        }
    result["alone_of_spinning"] = round(medians["blocking", "alone"] / medians["spinning", "alone"], 3)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print; 2 where it cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_threads", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="nwucla", help="a preset or a YAML file")
    parser.add_argument("--batch", type=positive, default=32, help="clips a step")
    parser.add_argument("--impl", default="auto", help="implementations of the operations")
    parser.add_argument("--seconds", type=positive, default=8, help="of each process")
    parser.add_argument("--repeat", type=positive, default=3, help="turns")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        result = measure(options)
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        facts = _results.device_facts(torch.device("cpu"))
        print(json.dumps(result | {"device": facts, "commit": _results.origin()[0]}))
        return 0
    for policy in POLICIES:
        row = result[policy]
        print(
            f"{policy}: {row['alone']} clips/s alone, {row['beside']} beside a busy process a core, "
            f"{row['of_fair_share']:.0%} of the fair share"
        )
    print(f"blocking threads alone do {result['alone_of_spinning']:.1%} of what spinning ones do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
