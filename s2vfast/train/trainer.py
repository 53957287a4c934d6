"""A run's objective, optimizer and data, and its steps one after the other."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from s2vfast import errors, ops
from s2vfast.config import Config
from s2vfast.data.store import Store
from s2vfast.objectives import Objective, build_objective
from s2vfast.train.batch_norm import synchronise_batch_norm
from s2vfast.train.distributed import Ranks
from s2vfast.train.feed import Batch, Feed
from s2vfast.train.optim import OPTIMIZERS
from s2vfast.train.schedule import learning_rate
from s2vfast.train.step import STEP_INPUTS, CUDAGraphStep, Step, extra_numel

LAG = 2
"""Steps that a GPU is ahead of what the host has read of it."""


class NonFiniteError(errors.TrainingError):
    """Loss or gradient is not finite; weights, teacher and moments are as they were before the step."""


@dataclass(frozen=True)
class StepResult:
    """What one step did, on the host."""

    step: int  # steps taken, this one included
    epoch: float  # passes over the data so far
    loss: float
    lr: float
    ema_decay: float | None  # tau of the averages; None: there are none
    grad_norm: float
    terms: dict[str, float]  # of the objective's loss
    moments: dict[str, float]  # mean variances of the objective's channels
    clips: int
    sample_ids: np.ndarray  # int64 [B], of all ranks
    stop: bool = False  # whether a rank wanted to stop when it began

    @property
    def reported(self) -> dict[str, float]:
        """Terms and moments."""
        return self.terms | self.moments


@dataclass(frozen=True)
class _Pending:
    """A step that has been started and not yet read."""

    step: int
    lr: float
    tau: float
    sample_ids: np.ndarray
    report: Tensor
    done: torch.cuda.Event | None


class Trainer:
    """Objective, optimizer and data of a run; `run_step` moves it one step on.

    Args:
        config: the run.
        store: its sequences.
        device: overrides config.train.device.
        ranks: the processes that share the run; each of them makes one of these.
        ids: int64 [n], the sequences that are learned from; None: the training part of data.split.
        initial: tensors by the names of the network's parameters and buffers, to start from instead of random weights.

    Raises:
        ConfigError: values that do not fit the store, the machine or the number of ranks.
        DataError: a split that the store does not have.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
        ids: np.ndarray | None = None,
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        config.validate(store.layout)
        self.config, self.store, self.ranks = config, store, ranks or Ranks()
        self.device = device or pick_device(config.train.device, self.ranks)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)  # of events, captures and synchronisation
        try:
            self.mode = mode = _mode(config, on_gpu, ops.parse_choice(config.train.impl))
        except errors.ImplementationError as error:
            raise errors.ConfigError(f"train.impl: {error}") from None

        if config.train.matmul_precision != "auto":
            torch.set_float32_matmul_precision(config.train.matmul_precision)
        self.objective = build_objective(config, store.layout, store.classes)
        self.objective.check_declared()
        self.objective.train()
        if initial is not None:
            _start_from(self.objective, initial)
        self.objective.to(self.device)
        self.objective.ranks = self.ranks
        synchronise_batch_norm(self.objective, self.ranks)
        self.feed = Feed(config, store, self.objective, self.device, self.ranks, ids)
        self.order = self.feed.order
        self.steps_per_epoch = self.order.steps_per_epoch
        self.total_steps, self.warmup_steps, self.milestones = _length(config, self.steps_per_epoch)

        micro_batches = self.feed.micro_batches
        self.optimizer = OPTIMIZERS[config.optim.name](
            self.objective,
            operands=operand_dtype(config.train.precision, self.device),
            extra_numel=extra_numel(self.objective, self.ranks.world_size * micro_batches),
            layer_decay=config.optim.layer_decay,
            decay_all=config.optim.decay == "all",
        )
        self.step_fn = Step(
            self.objective, self.optimizer, config.optim, self.ranks, micro_batches, compiled=mode == "compile"
        )
        self._graphs = CUDAGraphStep(self.step_fn) if on_gpu and mode != "eager" else None
        self._advance = self._graphs or self.step_fn
        self.lag = LAG if on_gpu else 0
        pinned = {"pin_memory": True} if on_gpu else {}
        # One more than there are steps on their way, so that none is written to while it is read.
        self._inputs = torch.zeros(self.lag + 2, len(STEP_INPUTS), dtype=torch.float64, **pinned)
        self._reports = torch.zeros(self.lag + 2, self.step_fn.report.numel(), **pinned)
        self._pending: deque[_Pending] = deque()
        self.step = 0
        self.stopping = False
        """Set where this rank wants to stop; a result's ``stop`` says so on all ranks alike."""

    @property
    def notes(self) -> list[str]:
        """What there is to say about how the run is done."""
        return [*self.feed.recordings.notes, *length_notes(self.config, self.steps_per_epoch)]

    @property
    def captures(self) -> bool:
        """Whether steps are captured as CUDA graphs."""
        return self._graphs is not None

    def run_step(self) -> StepResult | None:
        """Start the next step.

        Returns:
            The oldest step that has been started and not yet reported, where there are more than `lag` of them: on a
            CPU the step itself. `drain` gives the others.

        Raises:
            NonFiniteError: loss or gradient of the step that was to be reported is not finite; nothing has been updated
                since before it, and the next step is that one again.
            TrainingError: another rank is gone.
        """
        step, config = self.step, self.config
        with record_function("s2vfast: data"):
            batch = self.feed.next(step, self.total_steps)
        optim = config.optim
        lr = learning_rate(
            step,
            self.total_steps,
            self.warmup_steps,
            optim.lr,
            optim.lr_min,
            optim.schedule,
            self.milestones,
            optim.gamma,
        )
        tau = self.objective.ema_decay(step, self.total_steps)
        self._start(batch, step, lr, tau)
        self.step = step + 1
        return self._read() if len(self._pending) > self.lag else None

    def drain(self) -> Iterator[StepResult]:
        """Wait for all steps that have been started; what `run_step` has not reported of them, in order."""
        while self._pending:
            yield self._read()

    def close(self) -> None:
        """Let go of what was captured: ranks cannot part as long as a graph holds their sum."""
        if self._graphs:
            torch.cuda.synchronize()
            self._graphs.release()

    def calibrate(self, run_dir: Path, say: Callable[[str], None]) -> None:
        """Let the steps to come take the operations' fastest right implementations, see `s2vfast.train.calibration`."""
        from s2vfast.train import calibration  # most runs on a CPU need none of it

        if calibration.applies(self):
            calibration.calibrate(self, run_dir, say)

    def step_without_data(self, batch: Batch, eager: bool = False) -> None:
        """Do a step on a batch that is there and do not ask what came of it; it is not counted.

        ``eager``: operation by operation, and a graph knows nothing of it.
        """
        self._start(batch, self.step, self.config.optim.lr_min, 1.0, eager)
        self._pending.pop()

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Put everything back as it was when a ``with`` block of steps ends."""
        before = [buffer.clone() for buffer in self.optimizer.state_buffers()]
        first, total = self.step, self.total_steps
        try:
            yield
        finally:
            self.total_steps = total
            self.rewind(first)
            with torch.no_grad():
                for buffer, saved in zip(self.optimizer.state_buffers(), before, strict=True):
                    buffer.copy_(saved)
            self.optimizer.refresh()

    def rewind(self, step: int) -> None:
        """Let ``step`` be the next one, and forget what is under way."""
        self.step = step
        self._pending.clear()
        self.feed.forget()

    def _start(self, batch: Batch, step: int, lr: float, tau: float, eager: bool = False) -> None:
        slot = step % (self.lag + 2)
        self._inputs[slot].copy_(torch.tensor([step + 1, lr, tau, float(self.stopping)], dtype=torch.float64))
        self.step_fn.inputs.copy_(self._inputs[slot], non_blocking=True)
        # Nothing of ours draws from PyTorch's own generators; dropout of somebody's network may, and goes on after a
        # resume as it would have.
        torch.manual_seed((self.config.train.seed << 32 ^ step << 12 ^ self.ranks.rank) % 2**63)
        impl = self.config.train.impl
        named = contextlib.nullcontext() if impl == "auto" else ops.use_impl(impl, everywhere=False)
        with named, ops.use_chooser(self.feed.chooser):
            (self.step_fn if eager else self._advance)(batch.micro_batches)
        self._reports[slot].copy_(self.step_fn.report, non_blocking=True)
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        self._pending.append(_Pending(step, lr, tau, batch.sample_ids, self._reports[slot], done))

    def _read(self) -> StepResult:
        pending = self._pending.popleft()
        if pending.done is not None:
            pending.done.synchronize()
        values = pending.report.tolist()
        names = self.step_fn.names
        numbers = dict(zip(names, values, strict=False))
        for name, what in (("loss", "the loss"), ("grad_norm", "the gradient's norm")):
            if not math.isfinite(numbers[name]):
                error = self._non_finite(what, numbers[name], pending, values[len(names) :])
                self.rewind(pending.step)
                self.step_fn.reset_nonfinite()
                raise error
        return StepResult(
            step=pending.step + 1,
            epoch=(pending.step + 1) / self.steps_per_epoch,
            loss=numbers["loss"],
            lr=pending.lr,
            ema_decay=pending.tau if self.objective.averages else None,
            grad_norm=numbers["grad_norm"],
            terms={name: numbers[name] for name in self.objective.terms},
            moments={name: numbers[name] for name in self.objective.moments},
            clips=len(pending.sample_ids),
            sample_ids=pending.sample_ids,
            stop=numbers["stop"] > 0,
        )

    def _non_finite(self, what: str, value: float, pending: _Pending, losses: list[float]) -> NonFiniteError:
        ids_of_batches = self.feed.ids_of_micro_batches(torch.from_numpy(pending.sample_ids))
        bad = [batch_ids for batch_ids, loss in zip(ids_of_batches, losses, strict=True) if not math.isfinite(loss)]
        ids = torch.cat(bad or ids_of_batches).tolist()
        names = ", ".join(f"{i} ({self.store.names[i]})" for i in ids[:8])
        more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        error = NonFiniteError(
            f"step {pending.step + 1}: {what} is {value}; weights are as they were before. Sample ids: {names}{more}. "
            f"Look at them with `s2vfast data show`, or lower optim.lr"
        )
        error.reported_by_other_rank = not self.ranks.is_main
        return error

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor that the next step depends on: views, not copies."""
        return {"model": self.optimizer.weights(), "optimizer": self.optimizer.moments()}

    def meta(self) -> dict[str, int]:
        """The numbers that a checkpoint has beyond tensors."""
        return {"step": self.step, "total_steps": self.total_steps, "steps_per_epoch": self.steps_per_epoch}

    def load(self, state: dict[str, dict[str, Tensor]], meta: dict) -> None:
        """Continue from what `state` and `meta` gave.

        Raises:
            CheckpointError: tensors that are missing, superfluous or of another shape.
        """
        own = self.state()
        for group, tensors in own.items():
            saved = state.get(group, {})
            if odd := sorted(set(tensors) ^ set(saved)):
                where = "missing" if odd[0] in tensors else "not of this model"
                raise errors.CheckpointError(f"{group}: {odd[0]}: {where} ({len(odd)} names differ)")
            for name, tensor in tensors.items():
                if saved[name].shape != tensor.shape:
                    raise errors.CheckpointError(
                        f"{group}: {name}: shape {list(tensor.shape)} expected, got {list(saved[name].shape)}"
                    )
        with torch.no_grad():
            for group, tensors in own.items():
                for name, tensor in tensors.items():
                    tensor.copy_(state[group][name])
        self.optimizer.refresh()
        self.rewind(int(meta["step"]))

    def broadcast(self) -> None:
        """Give every rank the state of rank 0."""
        for buffer in self.optimizer.state_buffers():
            self.ranks.broadcast(buffer)
        self.optimizer.refresh()
        self.step = self.ranks.run_on_main_and_broadcast(lambda: self.step)


def _length(config: Config, steps_per_epoch: int) -> tuple[int, int, list[float]]:
    """Steps of a run, of its warm-up, and its milestones; min_steps stretches all three in proportion."""
    train, optim = config.train, config.optim
    total = train.steps or max(1, round(train.epochs * steps_per_epoch))
    if train.steps is None and total < train.min_steps:
        total = train.min_steps
        steps_per_epoch = total / train.epochs
    warmup = min(round(optim.warmup_epochs * steps_per_epoch), total)
    return total, warmup, [epoch * steps_per_epoch for epoch in optim.milestones]


def length_notes(config: Config, steps_per_epoch: int) -> list[str]:
    """What is odd about a run's length: a warm-up that never ends, epochs that were not asked for.

    Fields are named without their sections, which those of a recipe of fine-tuning do not have.
    """
    train, optim, notes = config.train, config.optim, []
    total, warmup, _ = _length(config, steps_per_epoch)
    if train.steps is None and train.epochs * steps_per_epoch < train.min_steps:
        epochs = total / steps_per_epoch
        notes.append(f"min_steps {train.min_steps} makes {epochs:.4g} epochs where epochs is {train.epochs:g}")
    if optim.warmup_epochs and warmup >= total:
        notes.append(
            f"warning: warmup_epochs {optim.warmup_epochs:g} last as long as the run or longer ({total} steps), "
            f"which ends before it goes on from the rate lr {optim.lr:g}"
        )
    return notes


def _start_from(objective: Objective, initial: Mapping[str, Tensor]) -> None:
    """Give the network, and what averages it, the tensors of another run."""
    averages = [average for average, followed in objective.averages.items() if followed == "encoder"]
    try:
        for name in ("encoder", *averages):
            getattr(objective, name).load_state_dict(initial)
    except RuntimeError as error:
        raise errors.CheckpointError(
            f"the weights to start from are not of this network: {' '.join(str(error).split())}"
        ) from error


def _mode(config: Config, on_gpu: bool, impls: dict[str, str]) -> str:
    """The config's train.mode, which ``auto`` leaves to us."""
    mode = config.train.mode
    if mode == "graph" and not on_gpu:
        raise errors.ConfigError("train.mode: graph needs a GPU; give eager or auto")
    asks = "reference" in impls.values()  # its optimizer asks for the norm
    if on_gpu and mode in ("graph", "compile") and asks:
        raise errors.ConfigError(
            f"train.mode: {mode} cannot capture train.impl = {config.train.impl}: the reference asks the device for "
            f"numbers; give eager or auto"
        )
    return "eager" if mode == "auto" and (asks or not on_gpu) else mode


def pick_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device that is there; ConfigError otherwise."""
    if ranks is not None and ranks.world_size > 1 and name != "cpu" and torch.cuda.is_available():
        if name not in ("auto", "cuda"):
            raise errors.ConfigError(
                f"train.device: {name} cannot serve {ranks.world_size} ranks; give auto, cuda or cpu"
            )
        if ranks.local_rank >= torch.cuda.device_count():
            raise errors.ConfigError(
                f"train.device: {name}: rank {ranks.rank} wants GPU {ranks.local_rank} and this machine has "
                f"{torch.cuda.device_count()}; start one process a GPU (torchrun --nproc-per-node), or give cpu"
            )
        return torch.device("cuda", ranks.local_rank)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise errors.ConfigError(f"train.device: {name!r} is not auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise errors.ConfigError(f"train.device: {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def operand_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the operands of matrix products: of the config's train.precision."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
