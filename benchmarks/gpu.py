"""All that needs a GPU, in one command and under ten minutes: `make gpu`. Results go to --out.

Each step has a time limit; one that fails or is missing something does not keep the others from running. Where there is
no GPU, the steps that need one are skipped, and said to be. Left in --out: ``log.txt`` (what every step printed),
``summary.json`` (what became of it), ``tests.xml``, and the measurements as DEVICE/KIND.json, which
`python -m benchmarks.report` reads once they lie in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable


@dataclass(frozen=True)
class Step:
    """A command, how long it may take and what it needs."""

    name: str
    command: list[str]
    seconds: int
    gpu: bool = True
    needs: str = ""  # a program
    env: tuple[tuple[str, str], ...] = ()


def steps(out: Path) -> list[Step]:
    """What is run, in this order."""
    small = ["--device", "cuda", "--shape", "odd"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    verify = [PYTHON, "-m", "s2vfast.verify", *small]
    # The caching allocator puts many tensors into one allocation, where a stray access is not seen.
    bare = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    measure = [PYTHON, "-m", "benchmarks.run", "--device", "cuda", "--out", str(out)]
    return [
        Step("doctor", [PYTHON, "-m", "s2vfast.doctor"], 20, gpu=False),
        Step("tests", [PYTHON, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={out}/tests.xml"], 200),
        Step("step", [*measure, "step"], 120),
        Step("ops", [*measure, "ops", "--seconds", "0.2"], 110),
        Step("data", [*measure, "data"], 15),
        Step("cold_start", [*measure, "cold_start"], 35),
        Step("memcheck", [*sanitizer, "memcheck", *verify], 35, needs="compute-sanitizer", env=bare),
        Step("racecheck", [*sanitizer, "racecheck", *verify], 35, needs="compute-sanitizer", env=bare),
    ]


def install() -> None:
    """The package in this interpreter, compiled extension included, where it is not installed yet."""
    if importlib.util.find_spec("s2vfast.kernels") is not None:
        return
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", "."]
    if subprocess.run(pip, cwd=ROOT).returncode:
        # Without pip or setuptools: kernels/ where an installation would put it, and no compiled extension.
        link = ROOT / "s2vfast/kernels"
        if not link.exists():
            link.symlink_to("../kernels")


def run(step: Step, out: Path, has_gpu: bool) -> dict[str, object]:
    """Run a step; what it prints is added to log.txt, its end to the result where it fails."""
    program = step.needs and (shutil.which(step.needs) or shutil.which(step.needs, path="/usr/local/cuda/bin"))
    if step.gpu and not has_gpu:
        return {"step": step.name, "skipped": "there is no GPU that PyTorch can use"}
    if step.needs and not program:
        return {"step": step.name, "skipped": f"{step.needs} was not found"}
    command = [str(program), *step.command[1:]] if program else step.command
    begun = time.monotonic()
    path = out / "log.txt"
    with open(path, "a", encoding="utf-8") as log:
        log.write(f"\n===== {step.name}: {' '.join(command)}\n")
        log.flush()
        start = log.tell()
        # A group of its own: what it started ends with it, and does not disturb the next step.
        env = {**os.environ, **dict(step.env)}
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            code = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = 124
    result: dict[str, object] = {"step": step.name, "code": code, "seconds": round(time.monotonic() - begun, 1)}
    if code:
        result["said"] = path.read_bytes()[start:].decode("utf-8", "replace")[-3000:]
    return result


def main() -> int:
    """Run all steps, print what became of each; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "benchmarks/results/local"))
    parser.add_argument("--only", nargs="+", help="names of steps")
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.txt").write_text("", "utf-8")
    install()
    import torch

    from benchmarks import _results

    # What is measured in all these processes is of one commit, which a machine without git cannot know.
    os.environ["S2VFAST_COMMIT"] = _results.origin()[0]
    results = []
    for step in steps(out):
        if asked.only and step.name not in asked.only:
            continue
        result = run(step, out, torch.cuda.is_available())
        results.append(result)
        # After each, as whoever started this may end it.
        (out / "summary.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        _results.promote(out)
        said = f"skipped: {result.get('skipped')}"
        if "code" in result:
            said = f"exit code {result['code']} after {result['seconds']} s"
        print(f"{step.name:<16} {said}", flush=True)
        if result.get("code"):
            print(result["said"], flush=True)
    return int(any(result.get("code") for result in results))


if __name__ == "__main__":
    sys.exit(main())
