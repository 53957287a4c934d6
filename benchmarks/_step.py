"""Whole steps to be measured: who takes part, from which start, whether they agree, and turn after turn.

Nothing here knows how a result is written; `benchmarks.bench_step` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from benchmarks._ceilings import bound
from benchmarks._program import said
from benchmarks._timer import timed
from s2vfast import errors, ops, presets
from s2vfast.config import Config
from s2vfast.objectives import Bodies, build_objective
from s2vfast.reference import adamw_ema as reference_optimizer
from s2vfast.reference import philox
from s2vfast.reference import skeleton2vec as published
from s2vfast.train.cost_model import PARTS, SAVINGS, Plan, summary
from s2vfast.train.distributed import Ranks
from s2vfast.train.engine import operand_dtype
from s2vfast.train.feed import Part, parts_for
from s2vfast.train.optim import FlatAdamW
from s2vfast.train.step import Captured, Step, room

JOINTS = 25
EMPTY_SHARE = 0.41  # of NTU 60's tracks, all of them second bodies
CHECKED = 3  # steps whose losses are compared: the third is, on a GPU, the first that is replayed
TAU = 0.999
MODES = ("eager", "graph", "compile")
NO_ROOM = "it does not fit into the device's memory"

Advance = Callable[[], float]  # one step; the loss, read


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
    """What a step is measured at."""

    config: Config
    clips: int  # of all ranks
    device: torch.device

    @property
    def tokens(self) -> int:
        """L: tokens of a track."""
        return self.config.segments * JOINTS

    @property
    def empty(self) -> int:
        """Tracks without a body: NTU's share, unless they are computed like any other, when it does not matter."""
        data = self.config.data
        if data.bodies == 1 or self.config.objective.empty_bodies == "compute":
            return 0
        return min(round(EMPTY_SHARE * self.clips * data.bodies), self.clips)

    @property
    def operands(self) -> torch.dtype:
        """The dtype of the operands of matrix products."""
        return operand_dtype(self.config.train.precision, self.device)

    def precision(self, name: str) -> str:
        """The same, of a contestant: the published step knows no other on a CPU than float32."""
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
        """The cost model's sums of the step, by part; without ``savings`` as published. Clips are there already."""
        tracks, empty = self.clips * self.config.data.bodies, self.empty
        if self.config.objective.empty_bodies == "drop":
            tracks, empty = tracks - empty, 0
        plan = Plan(self.config, JOINTS, tracks, empty, frozenset(SAVINGS if savings else ()))
        return summary(line for line in plan.lines() if line.what != "clip_sample")

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


def contestant(setting: Setting, name: str, ranks: Ranks | None = None, capture: bool = True) -> Advance:
    """What is timed, by name; ``capture``: False leaves its kernels to be launched one by one, to be looked at."""
    if name == "reference":
        return reference(setting)
    return engine(setting, name, ranks or Ranks(), capture)


def reference(setting: Setting) -> Advance:
    """The published step."""
    config, clips = setting.config, setting.inputs()
    ids = philox.track_ids(torch.arange(setting.clips, device=setting.device), config.data.bodies)
    model = build_objective(config, JOINTS).to(setting.device)
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
    low = setting.device.type == "cuda" and setting.operands == torch.bfloat16
    count = 0

    def advance() -> float:
        nonlocal count
        count += 1
        with torch.autocast("cuda", torch.bfloat16) if low else contextlib.nullcontext():
            out = published.step(student, teacher, clips, settings, seed=1, epoch=0, ids=ids)
        gradients = list(torch.autograd.grad(out.loss, list(student.values())))
        with record_function("s2vfast: update"):
            optimizer.collect(gradients, add=False)
            buffers = (optimizer.param, optimizer.grad, optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.teacher)
            reference_optimizer.adamw_ema(*buffers, optimizer.spans, step=count, **options)
        return float(out.loss.detach())

    return advance


def engine(setting: Setting, choice: str, ranks: Ranks, capture: bool) -> Advance:
    """s2vfast's own step: this rank's share of it."""
    config, device = setting.config, setting.device
    impl, _, mode = choice.partition(":")
    mode = mode or ("graph" if device.type == "cuda" else "eager")
    clips = setting.inputs().chunk(ranks.world_size)[ranks.rank]
    ids = torch.arange(setting.clips).chunk(ranks.world_size)[ranks.rank]
    model = build_objective(config, JOINTS).to(device)
    parts = parts_for(config, JOINTS, len(ids), device)
    space = room(ranks.world_size * parts, config.model.dim)
    optimizer = FlatAdamW(model.encoder, [model.decoder], model.teacher, operands=setting.operands, room=space)
    step = Step(model, optimizer, config.optim, ranks, parts, compiled=mode == "compile")
    run = Captured(step) if capture and device.type == "cuda" and mode != "eager" else step
    pieces = []
    for some, of in zip(clips.chunk(parts), ids.chunk(parts), strict=True):
        pieces.append((some, of, None if config.objective.empty_bodies == "compute" else Bodies.of(some)))
    options = optimizer_options(config)
    count = 0

    def advance() -> float:
        nonlocal count
        count += 1
        step.control.copy_(torch.tensor([count, options["lr"], options["tau"], 0.0], dtype=torch.float64))
        with ops.use_impl(impl):
            with record_function("s2vfast: masks"):
                masks = [model.draw(some, seed=1, epoch=0, sample_ids=of) for some, of, _ in pieces]
            run([Part(some, mask, bodies) for (some, _, bodies), mask in zip(pieces, masks, strict=True)])
        return float(step.report[0])

    return advance


def optimizer_options(config: Config) -> dict[str, float]:
    """Arguments of adamw_ema other than the step."""
    given = config.optim
    names = ("beta1", "beta2", "eps", "weight_decay", "clip")
    return {name: getattr(given, name) for name in names} | {"lr": given.lr / 100, "tau": TAU}


@dataclass
class Run:
    """A contestant at a setting, and what was found out about it."""

    setting: Setting
    name: str
    advance: Advance | None = None
    losses: list[float] = field(default_factory=list)  # of the first steps
    difference: float | None = None  # of these from the last contestant's, relative
    times: list[float] = field(default_factory=list)  # ms
    refused: str = ""

    def begin(self, checked: int) -> None:
        """Build it and do its first steps."""
        try:
            self.advance = contestant(self.setting, self.name)
            self.losses = [self.advance() for _ in range(checked)]
        except Exception as error:
            self.refuse(error)

    def refuse(self, error: Exception) -> None:
        """Leave it out: one that fails, for whatever reason, keeps no other from being measured."""
        self.advance = None  # its memory is for the others
        if isinstance(error, torch.OutOfMemoryError):
            self.refused = NO_ROOM
        else:
            known = isinstance(error, errors.S2vfastError)
            self.refused = " ".join(str(error).split())[:300] if known else said(error)

    def agree(self, base: Run) -> None:
        """Compare the first losses with those of another one; what differs is refused."""
        pairs = list(zip(self.losses, base.losses, strict=False))
        self.difference = max(abs(a / b - 1) for a, b in pairs)
        low = "bfloat16" in (self.setting.precision(self.name), base.setting.precision(base.name))
        allowed = 1e-2 if low else 1e-5
        if not self.difference <= allowed:
            mine, theirs = ([round(values[n], 6) for values in pairs] for n in (0, 1))
            self.refused = f"its losses {mine} differ from {base.name}'s {theirs} by more than {allowed:g}"


def begin(setting: Setting, names: Sequence[str], versus: str, checked: int, alone: bool = False) -> list[Run]:
    """Build contestants, do their first steps, and refuse those whose losses are not those of ``versus``.

    Args:
        setting: what for.
        names: who.
        versus: one of the names, or another, who then is not asked.
        checked: steps whose losses are compared.
        alone: whether the others may be timed where ``versus`` has no room.
    """
    runs = [Run(setting, name) for name in names]
    for run in runs:
        run.begin(checked)
    base = next((run for run in runs if run.name == versus), None)
    for run in runs:
        if base is None or run.refused:
            continue
        if not base.refused:
            run.agree(base)
        elif not (alone and base.refused == NO_ROOM):
            run.refused = f"{base.name}, which its losses were to be compared with, could not run: {base.refused}"
    for run in runs:
        if run.refused:
            run.advance = None  # its memory is for the others
    return runs


def take_turns(runs: Sequence[Run], repeat: int, between: Callable[[], Any] | None = None) -> None:
    """Time runs that were not refused, one after the other, round after round; ``between`` is called after each."""
    for _ in range(repeat):
        for run in runs:
            if not run.refused:
                try:
                    run.times.append(timed(run.advance, run.setting.device))
                except Exception as error:
                    run.refuse(error)
        if between is not None:
            between()
