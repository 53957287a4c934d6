"""All that needs a GPU, in one command and under ten minutes: `make gpu`. Results go to --out.

Each step has a time limit; one that fails or is missing something does not keep the others from running. Where there is
no GPU, the steps that need one are skipped, and said to be.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
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
    measure = [PYTHON, "-m", "benchmarks.bench_ops", "--out", str(out)]
    whole = [PYTHON, "-m", "benchmarks.bench_step", "--device", "cuda", "--batch", "64", "--out", str(out)]
    others = ["--vs", "torch", "torch:compile", "reference", "--repeat", "20"]
    return [
        Step("doctor", [PYTHON, "-m", "s2vfast.doctor"], 20, gpu=False),
        Step("tests", [PYTHON, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={out}/tests.xml"], 240),
        Step("step", [*whole, "--impl", "triton", *others], 140),
        Step("ops_ntu", [*measure, "--shape", "ntu"], 70),
        Step("ops_ntu_student", [*measure, "--shape", "ntu_student"], 30),
        Step("memcheck", [*sanitizer, "memcheck", *verify], 50, needs="compute-sanitizer", env=bare),
        Step("racecheck", [*sanitizer, "racecheck", *verify], 50, needs="compute-sanitizer", env=bare),
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
    """Run a step; what it printed goes to a file of its name."""
    program = step.needs and (shutil.which(step.needs) or shutil.which(step.needs, path="/usr/local/cuda/bin"))
    if step.gpu and not has_gpu:
        return {"step": step.name, "skipped": "there is no GPU that PyTorch can use"}
    if step.needs and not program:
        return {"step": step.name, "skipped": f"{step.needs} was not found"}
    command = [str(program), *step.command[1:]] if program else step.command
    begun = time.monotonic()
    with open(out / f"{step.name}.txt", "w", encoding="utf-8") as log:
        try:
            env = {**os.environ, **dict(step.env)}
            code = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=step.seconds, env=env
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    return {"step": step.name, "code": code, "seconds": round(time.monotonic() - begun, 1)}


def main() -> int:
    """Run all steps, print what became of each; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "benchmarks/results/local"))
    parser.add_argument("--only", nargs="+", help="names of steps")
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    install()
    import torch

    results = []
    for step in steps(out):
        if asked.only and step.name not in asked.only:
            continue
        result = run(step, out, torch.cuda.is_available())
        results.append(result)
        said = result.get("skipped") or f"exit code {result['code']} after {result['seconds']} s"
        print(f"{step.name:<16} {said}", flush=True)
        if result.get("code"):
            print((out / f"{step.name}.txt").read_text("utf-8", "replace")[-3000:], flush=True)
    (out / "summary.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    return int(any(result.get("code") for result in results))


if __name__ == "__main__":
    sys.exit(main())
