"""All that needs a GPU, in one command and seven minutes, so that two runs fit into fifteen: `make gpu`.

The headline comes first: all kernels are compiled, in parallel; then ``mlp`` and ``attention`` at the published shape,
then the training step. Tests follow, then everything else; compute-sanitizer and torch.compile, which take longest, are
last. Each step has a time limit, and all together have one (--seconds): what no time is left for is skipped, and
``--only`` runs it in a second go. One that fails or lacks something does not keep the others from running. Where there
is no GPU, the steps that need one are skipped, with this reason. It needs torch, triton, numpy and pytest alone.

Left in --out: ``log.txt`` (the output of every step), ``summary.json`` (its end), ``tests.xml``, and the measurements
as DEVICE/KIND.json (those of the headline in headline/, calibration's in cache/), which `python -m benchmarks.report`
reads once they lie in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
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
WORKERS = 8
HEADLINE = "headline"  # a folder of its own: what is measured again later is in the others
ALL = 420  # seconds of all steps
LEAST = 8  # seconds: with less left a step is not begun
GRACE = 5  # seconds between an interrupt, upon which pytest prints its failures, and the end


@dataclass(frozen=True)
class Step:
    """A command, its time limit and what it needs."""

    name: str
    command: list[str]
    seconds: int
    gpu: bool = True
    program: str = ""  # to be found on the path
    environment: tuple[tuple[str, str], ...] = ()


def steps(out: Path) -> list[Step]:
    """What is run, in this order."""
    measure = [PYTHON, "-m", "benchmarks.run", "--device", "cuda", "--out"]
    step = [PYTHON, "-m", "benchmarks.bench_step", "--device", "cuda", "--config", "ntu60", "--batch", "64"]
    step += ["--out", str(out), "--impl", "triton", "--vs", "torch"]
    bodies = ["--empty-bodies", "compute", "share"]
    headline = [str(out / HEADLINE), *"mlp attention --shape ntu --impl triton torch --seconds 0.2".split()]
    parallel = ["-n", str(WORKERS)] if importlib.util.find_spec("xdist") else []
    tests = [PYTHON, "-m", "pytest", "-m", "gpu", "-q", *parallel, f"--junitxml={out}/tests.xml"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    verify = [PYTHON, "-m", "s2vfast.verify", "--device", "cuda", "--shape", "odd"]
    # The caching allocator puts many tensors into one allocation, where a stray access is not seen.
    bare = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    cache = (("S2VFAST_CACHE", str(out / "cache")),)
    return [
        Step("doctor", [PYTHON, "-m", "s2vfast.doctor"], 15, gpu=False),
        Step("compile", [PYTHON, "-m", "benchmarks.gpu", "--compile"], 70),
        Step("headline", [*measure, *headline], 30),
        Step("step", [*step, "reference", *bodies, "--repeat", "12"], 90),
        Step("calibrate", [PYTHON, "-m", "benchmarks.gpu", "--calibrate"], 75, environment=cache),
        Step("tests", tests, 110),
        Step("ops", [*measure, str(out), "ops", "--seconds", "0.1"], 90),
        Step("data", [*measure, str(out), "data"], 12),
        Step("cold_start", [*measure, str(out), "cold_start"], 30),
        Step("memcheck", [*sanitizer, "memcheck", *verify], 30, program="compute-sanitizer", environment=bare),
        Step("racecheck", [*sanitizer, "racecheck", *verify], 30, program="compute-sanitizer", environment=bare),
        Step("step_compile", [*step, "torch:compile", "reference", *bodies, "--repeat", "6"], 60),
    ]


def compile_kernels(name: str) -> None:
    """Run what has kernels once, so that they lie in Triton's cache: an operation, or ``step``."""
    import torch

    from benchmarks._calls import timed_call
    from benchmarks._program import dtype_of
    from benchmarks._train_step import Setting, contestant, load
    from benchmarks.cases import CASES, PASSES, gate_shape
    from s2vfast import errors, ops

    device = torch.device("cuda")
    if name == "step":
        contestant(Setting(load("ntu60"), 2, device), "triton:eager")()
        return
    case, function = CASES[name], functools.partial(getattr(ops, name), impl="triton")
    shapes = [case.shape(shape, device) for shape in case.shapes]
    for shape in (*shapes, *map(gate_shape, shapes)):
        with contextlib.suppress(errors.ImplementationError):  # it does not take this shape
            timed_call(function, case.inputs(shape, dtype_of(None, device), device), PASSES[1] in case.passes)()


def calibrate() -> int:
    """What the first run of ntu60 does on a GPU; 1 where something went wrong."""
    from benchmarks._train_step import load
    from s2vfast.train.tune import tune

    config = load("ntu60")
    config.train.batch = 64  # as the step above
    return tune(config, layout="kinect_v2")


def compile_all() -> int:
    """`compile_kernels` of everything, in processes side by side; 1 where one failed."""
    from benchmarks.cases import CASES

    waiting, running, code = ["step", *CASES], {}, 0
    while waiting or running:
        while waiting and len(running) < WORKERS:
            name = waiting.pop(0)
            running[name] = subprocess.Popen([PYTHON, "-m", "benchmarks.gpu", "--compile", name], cwd=ROOT)
        for name, process in list(running.items()):
            if process.poll() is not None:
                print(f"{name}: exit code {process.returncode}", flush=True)
                code = max(code, int(running.pop(name).returncode != 0))
        time.sleep(0.1)
    return code


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


def run(step: Step, out: Path, has_gpu: bool, seconds_left: float = ALL) -> dict[str, object]:
    """Run a step; its output is added to log.txt, the end of it to the result where it fails."""
    program = step.program and (shutil.which(step.program) or shutil.which(step.program, path="/usr/local/cuda/bin"))
    if step.gpu and not has_gpu:
        return {"step": step.name, "skipped": "there is no GPU that PyTorch can use"}
    if step.program and not program:
        return {"step": step.name, "skipped": f"{step.program} was not found"}
    if seconds_left < LEAST:
        return {"step": step.name, "skipped": f"no time is left; run it by --only {step.name}"}
    command = [str(program), *step.command[1:]] if program else step.command
    start, path = time.monotonic(), out / "log.txt"
    with open(path, "a", encoding="utf-8") as log:
        log.write(f"\n===== {step.name}: {' '.join(command)}\n")
        log.flush()
        offset = log.tell()
        # A group of its own: what it started ends with it, and does not disturb the next step.
        environment = {**os.environ, **dict(step.environment)}
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        code = None
        for number, seconds in ((signal.SIGINT, min(step.seconds, seconds_left)), (signal.SIGKILL, GRACE)):
            try:
                ended = process.wait(seconds)
                code = ended if number == signal.SIGINT else 124
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, number)
                code = 124
        process.wait()
    result: dict[str, object] = {"step": step.name, "code": code}
    result["seconds"] = round(time.monotonic() - start, 1)
    if result["code"]:
        result["output"] = path.read_bytes()[offset:].decode("utf-8", "replace")[-3000:]
    return result


def main() -> int:
    """Run all steps, print the end of each; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "benchmarks/results/local"))
    parser.add_argument("--only", nargs="+", help="names of steps")
    parser.add_argument("--seconds", type=float, default=ALL, help="of all steps together")
    parser.add_argument("--calibrate", action="store_true", help="choose implementations for ntu60, and no more")
    parser.add_argument("--compile", nargs="?", const="", metavar="OP", help="fill Triton's cache, and no more")
    options = parser.parse_args()
    if options.compile is not None:
        return compile_kernels(options.compile) or 0 if options.compile else compile_all()
    if options.calibrate:
        return calibrate()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.txt").write_text("", "utf-8")
    shutil.rmtree(out / HEADLINE, ignore_errors=True)
    install()
    import torch

    from benchmarks import _results

    # All these processes measure one commit, which a machine without git cannot know.
    os.environ["S2VFAST_COMMIT"] = _results.origin()[0]
    results, end = [], time.monotonic() + options.seconds
    for step in steps(out):
        if options.only and step.name not in options.only:
            continue
        result = run(step, out, torch.cuda.is_available(), end - time.monotonic())
        results.append(result)
        # After each, as the whole may be stopped at any time.
        (out / "summary.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        for folder in (out, out / HEADLINE):
            _results.promote(folder)
        text = f"skipped: {result.get('skipped')}"
        if "code" in result:
            text = f"exit code {result['code']} after {result['seconds']} s"
        print(f"{step.name:<16} {text}", flush=True)
        if result.get("code"):
            print(result["output"], flush=True)
    return int(any(result.get("code") for result in results))


if __name__ == "__main__":
    sys.exit(main())
