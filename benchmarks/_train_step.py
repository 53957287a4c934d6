"""Whole training steps by name: the one file of benchmarks/ that knows how s2vfast trains.

`benchmarks.bench_step` and `benchmarks.bench_cold_start` time them. Some are measured in processes of their own, which
`ask` starts: such a process gets a request in a line of JSON and answers in one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from benchmarks._ceilings import bound
from benchmarks._results import ROOT
from s2vfast import errors, ops, presets
from s2vfast.config import Config
from s2vfast.data.layout import LAYOUTS
from s2vfast.objectives import Bodies, MicroBatch, build_objective
from s2vfast.objectives.masks import visible_joints
from s2vfast.reference import adamw_ema as reference_optimizer
from s2vfast.reference import philox
from s2vfast.reference import skeleton2vec as published
from s2vfast.train.cost_model import PARTS, SAVINGS, Plan, summary
from s2vfast.train.distributed import Ranks
from s2vfast.train.feed import micro_batches_for
from s2vfast.train.optim import FlatAdamW
from s2vfast.train.step import CUDAGraphStep, Step, extra_numel
from s2vfast.train.trainer import operand_dtype

LAYOUT = LAYOUTS["kinect_v2"]
JOINTS = LAYOUT.num_joints
EMPTY_TRACKS = 0.41  # the fraction of NTU 60's tracks that have no body, all of them second bodies
TAU = 0.999
MODES = ("eager", "graph", "compile")
MASKS, UPDATE = "s2vfast: masks", "s2vfast: update"
"""Names of ranges that a profile of a step has."""
PHASES = ("imports", "build", "first step", "second step")
"""Of a process that starts: see `benchmarks.bench_cold_start`."""

Advance = Callable[[], float]  # one step; its loss, read


def load(name: str) -> Config:
    """A preset or a file; on a bare machine, which reads no YAML, the defaults, which are those of ntu60."""
    try:
        return presets.load(name)
    except ImportError:
        if name != "ntu60":
            raise errors.ConfigError(f"--config {name}: needs PyYAML to be read; ntu60 does without") from None
        return Config()


@dataclass(frozen=True)
class Setting:
    """The conditions of a measurement: config, clips a step, device."""

    config: Config
    clips: int
    device: torch.device

    @property
    def tokens(self) -> int:
        """L: tokens of a track."""
        return self.config.network_class.segments(self.config) * JOINTS

    @property
    def empty(self) -> int:
        """Tracks without a body: as many as in NTU 60, or none where they are computed like any other."""
        data = self.config.data
        if data.bodies == 1 or self.empty_bodies == "compute":
            return 0
        return min(round(EMPTY_TRACKS * self.clips * data.bodies), self.clips)

    @property
    def empty_bodies(self) -> str:
        """The config's ``objective.empty_bodies``."""
        return self.config.objective.empty_bodies

    @property
    def operands(self) -> torch.dtype:
        """The dtype of the operands of matrix products."""
        return operand_dtype(self.config.train.precision, self.device)

    def precision(self, name: str) -> str:
        """The name of this dtype for a contestant: on a CPU the published step has float32 alone."""
        plain = name == "reference" and self.device.type == "cpu"
        return "float32" if plain else str(self.operands).removeprefix("torch.")

    def inputs(self) -> Tensor:
        """Clips [N, T, V, C], random walks."""
        data, generator = self.config.data, torch.Generator().manual_seed(0)
        shape = (self.clips * data.bodies, data.frames, JOINTS, self.config.channels)
        clips = torch.randn(shape, generator=generator).cumsum(1) * 0.05
        for sample in range(self.empty):
            clips[data.bodies * sample + 1] = 0.0
        return clips.to(self.device)

    def costs(self, savings: bool = True) -> dict[str, dict[str, float]]:
        """The step's costs by part and in sum; without ``savings`` those of the published step. Clips exist already."""
        tracks, empty = self.clips * self.config.data.bodies, self.empty
        if self.empty_bodies == "drop":
            tracks, empty = tracks - empty, 0
        plan = Plan(self.config, JOINTS, tracks, empty, frozenset(SAVINGS if savings else ()))
        return summary(line for line in plan.lines() if line.what != "clip_sample")

    def gflop(self, name: str) -> float:
        """1e9 operations of matrix products that a contestant computes: the published step makes no saving."""
        costs = self.costs(savings=name != "reference")["sum"]
        return (costs["gemm"] + costs["attention"]) / 1e9

    def floor(self, ceilings: Mapping[str, float]) -> float | None:
        """The least ms of the step with all exact savings: of each part the longest of matmul, exp and memory.

        Bytes are those of the fused kernels with bfloat16 operands, and few for a CPU. None where no ceiling is known.
        """
        if f"matmul_{self.precision('')}" not in ceilings:
            return None
        costs = self.costs()
        needs = [((c["gemm"] + c["attention"]) / 1e9, c["exps"] / 1e9, c["bytes"] / 1e9) for c in map(costs.get, PARTS)]
        return 1000 * sum(bound(*need, ceilings, self.operands)[1] for need in needs)

    def changed(self, section: str, **values: Any) -> Setting:
        """The same with other values in a section of the config."""
        part = dataclasses.replace(getattr(self.config, section), **values)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **{section: part}))

    def with_one_mask(self) -> Setting:
        """The same with one mask a clip, which is all that the published step has."""
        return self if self.config.mask.masks_per_clip == 1 else self.changed("mask", masks_per_clip=1)

    def with_frames(self, factors: Sequence[float]) -> list[Setting]:
        """The same with so many times as many frames, and so tokens, in whole tubes."""
        unit = self.config.model.segment_frames * self.config.mask.tube_len
        frames = {max(round(self.config.data.frames * factor / unit), 1) * unit for factor in factors}
        return [self.changed("data", frames=count) for count in sorted(frames)]


def label(name: str, device: torch.device) -> str:
    """A contestant's name, with the mode that is its own on a GPU.

    Raises:
        ConfigError: there is none of that name.
    """
    impl, _, mode = name.partition(":")
    if mode and (impl == "reference" or mode not in MODES):
        raise errors.ConfigError(f"{name}: expected reference, or an implementation with one of :{', :'.join(MODES)}")
    if mode == "graph" and device.type != "cuda":
        raise errors.ConfigError(f"{name}: a graph needs a GPU; give {impl}:eager or {impl}")
    ops.parse_choice(impl)
    return f"{name}:graph" if device.type == "cuda" and impl != "reference" and not mode else name


def contestant(setting: Setting, name: str, capture: bool = True) -> Advance:
    """A step by name; without ``capture`` its kernels are launched one by one, for a profiler to see them."""
    return _reference(setting) if name == "reference" else _engine(setting, name, capture)


def _optimizer_options(config: Config) -> dict[str, float]:
    """Arguments of adamw_ema other than the step."""
    names = ("beta1", "beta2", "eps", "weight_decay", "clip")
    return {name: getattr(config.optim, name) for name in names} | {"lr": config.optim.lr / 100, "tau": TAU}


def _reference(setting: Setting) -> Advance:
    """The published step."""
    config, clips = setting.config, setting.inputs()
    ids = philox.track_ids(torch.arange(setting.clips, device=setting.device), config.data.bodies)
    model = build_objective(config, LAYOUT).to(setting.device)
    optimizer = FlatAdamW(model)
    named = dict(model.named_parameters())
    student = {name: p.requires_grad_() for name, p in named.items() if not name.startswith("teacher.")}
    teacher = {name.removeprefix("teacher."): p for name, p in named.items() if name.startswith("teacher.")}
    settings = published.Settings(
        heads=config.model.heads,
        depth=config.model.depth,
        decoder_depth=config.objective.decoder_depth,
        segment_frames=config.model.segment_frames,
        tube_len=config.mask.tube_len,
        keep=visible_joints(config.mask, JOINTS),
        motion_weight=config.mask.motion_weight,
        top_k=config.objective.top_k,
        target_norm=config.objective.target_norm,
    )
    options = _optimizer_options(config)
    low = setting.device.type == "cuda" and setting.operands == torch.bfloat16
    count = 0

    def advance() -> float:
        nonlocal count
        count += 1
        with torch.autocast("cuda", torch.bfloat16) if low else contextlib.nullcontext():
            out = published.step(student, teacher, clips, settings, seed=1, epoch=0, ids=ids)
        gradients = list(torch.autograd.grad(out.loss, list(student.values())))
        with record_function(UPDATE):
            optimizer.collect(gradients, add=False)
            buffers = (optimizer.param, optimizer.grad, *optimizer.moment_buffers, optimizer.average)
            reference_optimizer.adamw_ema(*buffers, optimizer.spans, step=count, **options)
        return float(out.loss.detach())

    return advance


def _engine(setting: Setting, choice: str, capture: bool) -> Advance:
    """s2vfast's own step."""
    config, device = setting.config, setting.device
    impl, _, mode = choice.partition(":")
    mode = mode or ("graph" if device.type == "cuda" else "eager")
    clips, ids = setting.inputs(), torch.arange(setting.clips)
    model = build_objective(config, LAYOUT).to(device)
    count_of_batches = micro_batches_for(config, model, len(ids), device)
    optimizer = FlatAdamW(model, operands=setting.operands, extra_numel=extra_numel(model, count_of_batches))
    step = Step(model, optimizer, config.optim, Ranks(), count_of_batches, compiled=mode == "compile")
    run = CUDAGraphStep(step) if capture and device.type == "cuda" and mode != "eager" else step
    micro_batches = []
    for part_clips, part_ids in zip(clips.chunk(count_of_batches), ids.chunk(count_of_batches), strict=True):
        bodies = None if setting.empty_bodies == "compute" else Bodies.from_clips(part_clips)
        micro_batches.append((part_clips, part_ids, bodies))
    options = _optimizer_options(config)
    count = 0

    def advance() -> float:
        nonlocal count
        count += 1
        step.inputs.copy_(torch.tensor([count, options["lr"], options["tau"], 0.0], dtype=torch.float64))
        with ops.use_impl(impl):
            with record_function(MASKS):
                masks = [
                    model.draw(part_clips, seed=1, epoch=0, sample_ids=part_ids)
                    for part_clips, part_ids, _ in micro_batches
                ]
            run(
                [
                    MicroBatch((part_clips,), mask, bodies, weight=1.0 / count_of_batches)
                    for (part_clips, _, bodies), mask in zip(micro_batches, masks, strict=True)
                ]
            )
        return float(step.report[0])

    return advance


# Steps in processes of their own.


def peak(setting: Setting, name: str) -> float:
    """Peak MiB that steps of a contestant take in a process of their own, beyond what it took to build it.

    Raises:
        TrainingError: the process failed.
    """
    return ask(setting, name, "peak")


def ask(setting: Setting, name: str, what: str, environment: Mapping[str, str] | None = None) -> Any:
    """The answer of a new process: ``peak`` or ``phases`` of a contestant.

    Raises:
        TrainingError: the process failed.
    """
    request = {"config": setting.config.to_dict(), "clips": setting.clips, "device": str(setting.device), "impl": name}
    command = [
        sys.executable,
        "-m",
        "benchmarks._train_step",
        json.dumps(request | {"what": what, "start": time.time()}),
    ]
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise errors.TrainingError(f"a process that measures {name} failed: {_last_line(done.stderr)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _last_line(text: str) -> str:
    """The last line of an error's output that gives a reason."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if "Error: " in line]
    return (reasons or lines or ["it printed nothing"])[-1]


def _peak(setting: Setting, request: dict[str, Any]) -> float:
    advance = contestant(setting, request["impl"])
    before = _peak_mib(setting.device)
    for _ in range(2):
        advance()
    return round(_peak_mib(setting.device) - before, 1)


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage, which a process inherits from its parent.
    status = Path("/proc/self/status").read_text("utf-8")
    return float(status.partition("VmHWM:")[2].split()[0]) / 2**10


def _phases(setting: Setting, request: dict[str, Any]) -> dict[str, float]:
    """Seconds by phase of this process's life."""
    times = [request["start"], time.time()]
    advance = contestant(setting, request["impl"])
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    times.append(time.time())
    for _ in range(2):
        advance()
        times.append(time.time())
    return {name: b - a for name, (a, b) in zip(PHASES, itertools.pairwise(times), strict=True)}


def main() -> None:
    """Answer the request that is the one argument."""
    request = json.loads(sys.argv[1])
    setting = Setting(Config.from_dict(request["config"]), request["clips"], torch.device(request["device"]))
    answer = {"peak": _peak, "phases": _phases}[request["what"]](setting, request)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
