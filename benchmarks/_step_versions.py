"""Whole steps of two versions of s2vfast in turns, each by the `bench_step` that comes with it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import _results
from benchmarks._program import begin, progress
from benchmarks._versions import install, snapshot, unpack
from s2vfast import errors

TURNS = 3


def step(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """``ms`` of a step of the version in a folder, and ``ratio``: how much longer the published step takes beside it.

    Raises:
        TrainingError: its program failed, or did not time its step.
    """
    config = str(Path(options.config).absolute()) if Path(options.config).is_file() else options.config
    command = [sys.executable, "-m", "benchmarks.bench_step", "--config", config, "--impl", options.impl]
    command += ["--batch", f"{options.batch}", "--repeat", f"{options.repeat}", "--device", options.device, "--json"]
    if options.matmul_precision != "highest":  # which not every version can be asked for
        command += ["--matmul-precision", options.matmul_precision]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, text=True
    )
    try:
        row = json.loads(done.stdout.strip().splitlines()[-1])["rows"][0]
        return {"ms": row["p50"], "ratio": row["ratio"]}
    except (ValueError, IndexError, KeyError):
        reason = f"exit code {done.returncode}, see above"
        raise errors.TrainingError(f"{folder.name}: benchmarks.bench_step timed no step: {reason}") from None


def compare(rev: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over turns of both versions; ``ratio``: how many times as fast as the revision this tree is.

    ``ratio_by_reference`` is the same by what the published step takes in each version's own process, which does not
    change where the machine is slower for one of them.

    Raises:
        S2vfastError: there is no such revision, or a version cannot be measured.
    """
    device = begin(options.device)
    with tempfile.TemporaryDirectory(prefix="s2vfast-compare-") as home:
        folders = {name: Path(home, name) for name in ("old", "new")}
        commit = unpack(rev, folders["old"])
        snapshot(folders["new"])
        shutil.copytree(_results.ROOT / "benchmarks", folders["new"] / "benchmarks")
        with contextlib.redirect_stdout(sys.stderr):  # what is printed in the end is the result alone
            install(*folders.values(), device.type == "cuda")
        steps: dict[str, list[dict[str, float]]] = {name: [] for name in folders}
        for turn in range(TURNS):
            for name, folder in folders.items():
                progress(f"turn {turn + 1} of {TURNS}: {rev if name == 'old' else 'this tree'}")
                steps[name].append(step(folder, options))
    result: dict[str, Any] = {"compared": f"{rev} ({commit})", "config": options.config, "batch": options.batch}
    for name, each in steps.items():
        result[name] = {key: round(statistics.median(one[key] for one in each), 3) for key in ("ms", "ratio")}
    result["ratio"] = round(result["old"]["ms"] / result["new"]["ms"], 3)
    result["ratio_by_reference"] = round(result["new"]["ratio"] / result["old"]["ratio"], 3)
    return result | {"device": _results.device_facts(device), "commit": _results.origin()[0]}


def text(result: dict[str, Any]) -> str:
    """The result as lines."""
    lines = [
        f"{name}: {result[key]['ms']:g} ms a step, the published step takes {result[key]['ratio']:g} times as long"
        for name, key in ((result["compared"], "old"), ("this tree", "new"))
    ]
    faster = (
        f"{result['ratio']:g} times as fast, by the published step beside it {result['ratio_by_reference']:g} times"
    )
    return "\n".join([*lines, f"this tree is {faster}"])
