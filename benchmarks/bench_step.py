"""A whole training step: s2vfast's against others, same start, interleaved in one process.

    python -m benchmarks.bench_step --config ntu60 --batch 2 --impl torch --vs reference [--empty-bodies share] [--json]
                                    [--repeat 8] [--growth 8] [--device cuda] [--out benchmarks/results]

A contestant is ``reference`` (the published step, eager; on a GPU under autocast to bfloat16, as published), or an
implementation of s2vfast's engine: ``torch``, ``triton``, ``auto``, and with ``:eager``, ``:graph`` or ``:compile`` its
train.mode. A step is masks, forward, backward, clipping, AdamW and EMA on clips that are there already. Before
anything is timed, the first losses must agree: to 1e-5 in float32, to 1e-2 where operands are bfloat16. The rate of
operations, counted by s2vfast.train.ledger, is set against a large matrix product's in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import s2vfast
from s2vfast import ops, presets
from s2vfast.config import Config
from s2vfast.doctor import facts
from s2vfast.objectives import Bodies, build_objective
from s2vfast.reference import adamw_ema as reference_optimizer
from s2vfast.reference import philox
from s2vfast.reference import skeleton2vec as published
from s2vfast.train.distributed import Ranks
from s2vfast.train.engine import operand_dtype
from s2vfast.train.feed import Part, parts_for
from s2vfast.train.ledger import SAVINGS, Plan, summary
from s2vfast.train.optim import FlatAdamW
from s2vfast.train.step import Captured, Step, room

JOINTS = 25
EMPTY_SHARE = 0.41  # of NTU 60's tracks, all of them second bodies
CHECKED = 3  # steps whose losses are compared
TAU = 0.999

Advance = Callable[[], float]  # one step; the loss, read


def load(name: str) -> Config:
    """A preset or a file; on a bare machine, which reads no YAML, the defaults, which are those of ntu60."""
    try:
        return presets.load(name)
    except ImportError:
        if name != "ntu60":
            raise SystemExit(f"--config {name}: needs PyYAML to be read; ntu60 does without") from None
        return Config()


def clips_of(config: Config, batch: int, device: torch.device, empty: bool) -> tuple[Tensor, int]:
    """Clips [N, T, V, C] of random walks, and how many tracks hold a body."""
    N = batch * config.data.bodies
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(N, config.data.frames, JOINTS, config.channels, generator=generator).cumsum(1) * 0.05
    missing = min(round(EMPTY_SHARE * N), N // 2) if empty else 0
    for sample in range(missing):
        clips[config.data.bodies * sample + 1] = 0.0
    return clips.to(device), N - missing


def reference(config: Config, clips: Tensor, ids: Tensor) -> Advance:
    """The published step."""
    model = build_objective(config, JOINTS).to(clips.device)
    optimizer = FlatAdamW(model.encoder, [model.decoder], model.teacher)
    named = dict(model.named_parameters())
    student = {name: p.requires_grad_() for name, p in named.items() if not name.startswith("teacher.")}
    teacher = {name.removeprefix("teacher."): p for name, p in named.items() if name.startswith("teacher.")}
    settings = published.Settings(
        heads=config.model.heads,
        depth=config.model.depth,
        decoder_depth=config.model.decoder_depth,
        segment_frames=config.model.segment_frames,
        tube_len=config.mask.tube_len,
        keep=config.keep(JOINTS),
        motion_weight=config.mask.motion_weight,
        top_k=config.objective.top_k,
        target_norm=config.objective.target_norm,
    )
    options = optimizer_options(config)
    count = 0

    def advance() -> float:
        nonlocal count
        count += 1
        low = clips.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if low else contextlib.nullcontext():
            out = published.step(student, teacher, clips, settings, seed=1, epoch=0, ids=ids)
        optimizer.collect(list(torch.autograd.grad(out.loss, list(student.values()))), add=False)
        buffers = (optimizer.param, optimizer.grad, optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.teacher)
        reference_optimizer.adamw_ema(*buffers, optimizer.spans, step=count, **options)
        return float(out.loss.detach())

    return advance


def engine(config: Config, choice: str, clips: Tensor, ids: Tensor) -> Advance:
    """s2vfast's own step."""
    impl, _, mode = choice.partition(":")
    device = clips.device
    mode = mode or ("graph" if device.type == "cuda" else "eager")
    model = build_objective(config, JOINTS).to(device)
    operands = operand_dtype(config.train.precision, device)
    parts = parts_for(config, JOINTS, len(ids), device)
    optimizer = FlatAdamW(
        model.encoder, [model.decoder], model.teacher, operands=operands, room=room(parts, config.model.dim)
    )
    step = Step(model, optimizer, config.optim, Ranks(), parts, compiled=mode == "compile")
    run = Captured(step) if device.type == "cuda" and mode != "eager" else step
    pieces = []
    for some, of in zip(clips.chunk(parts), ids.cpu().chunk(parts), strict=True):
        pieces.append((some, of, None if config.objective.empty_bodies == "compute" else Bodies.of(some)))
    options = optimizer_options(config)
    count = 0

    def advance() -> float:
        nonlocal count
        count += 1
        step.control.copy_(torch.tensor([count, options["lr"], options["tau"], 0.0], dtype=torch.float64))
        with ops.use_impl(impl):
            run([Part(some, model.draw(some, seed=1, epoch=0, sample_ids=of), bodies) for some, of, bodies in pieces])
        return float(step.report[0])

    return advance


def optimizer_options(config: Config) -> dict[str, float]:
    """Arguments of adamw_ema other than the step."""
    given = config.optim
    names = ("beta1", "beta2", "eps", "weight_decay", "clip")
    return {name: getattr(given, name) for name in names} | {"lr": given.lr / 100, "tau": TAU}


def contestant(config: Config, name: str, clips: Tensor) -> Advance:
    """What is timed, by name."""
    batch = clips.shape[0] // config.data.bodies
    ids = torch.arange(batch, device=clips.device)
    if name == "reference":
        return reference(config, clips, philox.track_ids(ids, config.data.bodies))
    return engine(config, name, clips, ids)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds of a call that ends with its result on the host."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) * 1000


def product(device: torch.device) -> tuple[Callable[[], Any], float]:
    """A large matrix product and its operations: float32 on a CPU, bfloat16 on a GPU."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * n**3


def compare(config: Config, names: list[str], batch: int, device: torch.device, repeat: int, empty: bool) -> dict:
    """Medians, ratios to the last of ``names``, agreement, and the first one's share of the product's rate."""
    clips, filled = clips_of(config, batch, device, empty)
    advances = {name: contestant(config, name, clips) for name in names}
    losses = {name: [advance() for _ in range(CHECKED)] for name, advance in advances.items()}
    base = losses[names[-1]]
    difference = {name: max(abs(a / b - 1) for a, b in zip(losses[name], base, strict=True)) for name in names}
    allowed = 1e-5 if operand_dtype(config.train.precision, device) == torch.float32 else 1e-2
    for name, found in difference.items():
        if not found <= allowed:
            raise SystemExit(f"{name}: losses {losses[name]} differ from {names[-1]}'s {base}; nothing is timed")
    multiply, operations = product(device)
    times: dict[str, list[float]] = {name: [] for name in (*names, "product")}
    for _ in range(repeat):
        for name, advance in advances.items():
            times[name].append(timed(advance, device))
        times["product"].append(min(timed(multiply, device) for _ in range(3)))
    savings = frozenset(SAVINGS) - ({"share"} if config.objective.empty_bodies != "share" else set())
    sums = summary(Plan(config, JOINTS, clips.shape[0], clips.shape[0] - filled, savings).lines())["sum"]
    needed = sums["gemm"] + sums["attention"]
    rates = [needed / ours * p / operations for ours, p in zip(times[names[0]], times["product"], strict=True)]
    return {
        "ms": {name: round(statistics.median(found), 3) for name, found in times.items()},
        "ratio": {
            name: round(statistics.median(b / a for a, b in zip(times[name], times[names[-1]], strict=True)), 3)
            for name in names
        },
        "difference": {name: float(f"{found:.2g}") for name, found in difference.items()},
        "gflop": round(needed / 1e9, 1),
        "rate_of_product": round(statistics.median(rates), 3),
        "tracks": clips.shape[0],
        "empty": clips.shape[0] - filled,
    }


def growth(config: Config, name: str, most: int, device: torch.device, repeat: int) -> dict:
    """Time of a step of ``most`` clips over that of one clip, interleaved."""
    advances = {}
    for batch in (1, most):
        clips, _ = clips_of(config, batch, device, empty=False)
        advances[batch] = contestant(config, name, clips)
        advances[batch]()
    times: dict[int, list[float]] = {batch: [] for batch in advances}
    for _ in range(repeat):
        for batch, advance in advances.items():
            times[batch].append(timed(advance, device))
    ratio = statistics.median(b / a for a, b in zip(times[1], times[most], strict=True))
    return {"clips": most, "ratio": round(ratio, 2), "ms": [round(statistics.median(t), 2) for t in times.values()]}


def memory(name: str, given: argparse.Namespace) -> float:
    """Peak MiB that a process of its own takes for two steps, beyond what it takes for none."""
    base = [sys.executable, "-m", "benchmarks.bench_step", "--config", given.config, "--batch", str(given.growth)]
    base += ["--empty-bodies", given.empty_bodies, "--device", given.device, "--impl", name]
    peaks = []
    for steps in (0, 2):
        done = subprocess.run([*base, "--peak", str(steps)], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    return round(peaks[1] - peaks[0], 1)


def peak(config: Config, given: argparse.Namespace, device: torch.device) -> float:
    """Peak MiB of this process after some steps."""
    clips, _ = clips_of(config, given.batch, device, empty=False)
    advance = contestant(config, given.impl, clips)
    for _ in range(given.peak):
        advance()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 2**10


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ntu60", help="a preset or a YAML file")
    parser.add_argument("--batch", type=int, default=2, help="clips a step")
    parser.add_argument("--impl", default="torch", help="what is measured")
    parser.add_argument(
        "--vs", nargs="+", default=["reference"], help="what it is measured against; ratios are to the last"
    )
    parser.add_argument("--empty-bodies", default="compute", choices=("compute", "share", "drop"))
    parser.add_argument("--repeat", type=int, default=8, help="interleaved rounds")
    parser.add_argument("--growth", type=int, help="also the time and peak memory of so many clips")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    parser.add_argument("--out", type=Path, help="folder to write DEVICE/step.json to")
    given = parser.parse_args()
    device = torch.device(given.device)
    config = load(given.config)
    config = dataclasses.replace(
        config, objective=dataclasses.replace(config.objective, empty_bodies=given.empty_bodies)
    )
    if given.peak is not None:
        print(peak(config, given, device))
        return
    names = [given.impl, *given.vs]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = facts()["machine"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu: {machine['cpu']}"
    result = {
        "command": f"python -m benchmarks.bench_step {' '.join(sys.argv[1:])}",
        "commit": commit or "unknown",
        "versions": {"s2vfast": s2vfast.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": f"{name}, {torch.get_num_threads()} threads",
        "unit": "ms, median",
        "results": compare(config, names, given.batch, device, given.repeat, given.empty_bodies != "compute"),
    }
    if given.growth:
        result["growth"] = growth(config, given.impl, given.growth, device, max(given.repeat // 2, 3))
        result["peak_mib"] = {contender: memory(contender, given) for contender in (given.impl, given.vs[-1])}
    if given.out:
        folder = given.out / (device.type if device.type == "cpu" else name.split()[1].lower())
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "" if given.empty_bodies == "compute" else f"_{given.empty_bodies}"
        (folder / f"step{suffix}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    if given.json:
        print(json.dumps(result))
        return
    found = result["results"]
    for contender, took in found["ms"].items():
        ratio = f"{names[-1]} takes {found['ratio'][contender]:.2f}x" if contender in found["ratio"] else ""
        print(f"{contender:20}{took:12.3f} ms   {ratio}")
    print(f"{given.impl} runs at {found['rate_of_product']:.0%} of the product's rate ({found['gflop']} GFLOP a step)")
    for extra in ("growth", "peak_mib"):
        if extra in result:
            print(extra, json.dumps(result[extra]))


if __name__ == "__main__":
    main()
