"""The training loop: steps, lines of numbers, checkpoints, and a way to stop and go on at any moment.

Going on is bitwise: a checkpoint holds all tensors, every random draw is a function of (seed, epoch, sample id), and
``metrics.jsonl``, which holds nothing that depends on time, is cut back to its length at the checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s2vfast
import s2vfast.errors as errors
from s2vfast.config import Config
from s2vfast.train import checkpoint, distributed, progress, rundir, torchrun
from s2vfast.train.stopping import Stop

COLLAPSED_VARIANCE = 0.01
"""A teacher whose targets vary less than this over tokens has collapsed. Targets are layer-normed, so that 1 is the
most there can be; data2vec's reference stops at a standard deviation of 0.1, which is the same."""

FREE = ("data.workers", "train.log_every", "checkpoint.every", "checkpoint.keep")
"""Fields that may change when a run goes on: they change no weight."""
LAST_BITS = ("data.resident", "train.device", "train.impl", "train.mode", "train.accumulate", "train.threads")
"""Fields that may change too, but then sums are rounded in another order."""


@dataclass(frozen=True)
class Summary:
    """How a call of `pretrain` ended."""

    run_dir: Path
    """The run's folder."""
    step: int
    """Finished steps."""
    total_steps: int
    """Steps of the whole run."""
    loss: float | None
    """Loss of the last step of this call; None where it made none."""
    seconds: float
    """Time this call spent on steps."""
    clips_per_second: float
    """Mean over this call."""
    signal: int | None = None
    """The signal that stopped it."""

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return self.step >= self.total_steps


def pretrain(
    config: Config | None,
    store_path: str | Path | None,
    run_dir: str | Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    profile: int | None = None,
    make_engine: Callable[[Config, Any], Any] | None = None,
) -> Summary:
    """Train a run to its end, or until a signal.

    SIGINT, SIGTERM and SIGHUP let the step finish, save a checkpoint and return; a second one stops at once. Under
    torchrun all ranks stop after the same step, and a process that torchrun started again goes on as with ``resume``.

    Args:
        config: The run's config. With ``resume`` it may differ from the run's own in `FREE` and `LAST_BITS` only;
            None takes the run's own.
        store_path: The store; None, with ``resume``, takes the one the run began with.
        run_dir: The run's folder: empty or missing without ``resume``.
        resume: Go on from the newest intact checkpoint. Where no run has begun in the folder, begin one.
        tensorboard: Write scalars for TensorBoard too.
        profile: Steps to measure and trace before the run's own; what is found goes to ``profile`` in the run's folder.
        make_engine: Builds the engine from (config, store); `s2vfast.train.engine.Pretrainer` where None.

    Raises:
        ConfigError: A field is impossible, or cannot change in this run.
        DataError: The store cannot be used.
        CheckpointError: The folder is not free, holds another run, or no checkpoint is intact.
        TrainingError: Non-finite numbers, no space left, no such device.
    """
    run = Path(run_dir)
    with distributed.start() as ranks:
        plan = ranks.tell(lambda: _plan(run, config, store_path, resume or torchrun.attempt() > 0))
        store = ranks.each(lambda: _open(plan))
        ranks.tell(lambda: _check(run, plan, store))
        ranks.same("version", s2vfast.__version__)
        ranks.same("store", store.fingerprint)
        with Stop(patient=torchrun.launched()) as stop, contextlib.ExitStack() as stack:
            _set_threads(plan.config)
            engine = ranks.each(lambda: (make_engine or _engine(ranks))(plan.config, store))
            stack.callback(engine.close)
            ranks.tell(lambda: _claim(run, plan, store, stack))
            loop = _Loop(run, plan, engine, ranks, tensorboard, stop, stack)
            if profile:
                loop.profile(profile)
            return loop.run()


@dataclass(frozen=True)
class _Plan:
    """What rank 0 found out before the run."""

    config: Config
    store_path: str | Path
    going_on: bool
    notes: list[str]


def _plan(run: Path, config: Config | None, store_path: str | Path | None, resume: bool) -> _Plan:
    going_on = resume and rundir.begun(run)
    if going_on:
        config, notes = _agreed(rundir.read_config(run), config)
        if rundir.IMPORTED in rundir.read(run):
            raise errors.CheckpointError(
                f"{run}: holds imported weights, without an optimizer's state to go on with; evaluate or fine-tune "
                f"them, or begin a run in another folder"
            )
        store_path = store_path or rundir.store_path(run)
    else:
        notes = [f"{run}: no run has begun here; beginning one"] if resume else []
        rundir.check_free(run)
        if config is None:
            raise errors.ConfigError("--config: needed to begin a run")
        if store_path is None:
            raise errors.DataError("--data: a store is needed to begin a run")
        config.validate()
    return _Plan(config, store_path, going_on, notes)


def _open(plan: _Plan) -> Any:
    from s2vfast.data.store import Store

    return Store.open(plan.store_path)


def _check(run: Path, plan: _Plan, store: Any) -> None:
    """Raise where run, config and store do not go together."""
    if plan.going_on:
        rundir.check_store(run, store, plan.store_path, exact=True)
    plan.config.validate(store.layout.num_joints)


def _claim(run: Path, plan: _Plan, store: Any, stack: contextlib.ExitStack) -> None:
    """Make the run's folder where it is to begin, and keep others out of it."""
    if not plan.going_on:
        rundir.create(run, plan.config, store)
    stack.enter_context(rundir.lock(run))


class _Loop:
    """One process's share of a run."""

    def __init__(
        self,
        run: Path,
        plan: _Plan,
        engine: Any,
        ranks: distributed.Ranks,
        tensorboard: bool,
        stop: Stop,
        stack: contextlib.ExitStack,
    ) -> None:
        self.path, self.config, self.engine, self.ranks, self.stop = run, plan.config, engine, ranks, stop
        self.total = engine.total_steps
        self.meter = progress.Meter(self.total)
        self.progress = progress.make(self.meter, plan.config.train.log_every) if ranks.first else progress.Silent()
        for note in [*plan.notes, *engine.notes]:
            self.progress.message(note)
        size = ranks.tell(self._restore)
        if ranks.world > 1:
            engine.spread()
        self.saved = engine.step
        self.records = _Records(self, size, tensorboard, stack) if ranks.first else None
        self.warned = self.stopped = False
        self.began, self.clips, self.last, self.bare = time.monotonic(), 0, None, None

    def profile(self, steps: int) -> None:
        """Measure and trace some steps, which are then forgotten."""
        from s2vfast.train import profile

        folder = self.path / "profile"
        self.progress.message(f"profiling {profile.WARM + 3 * steps} steps into {folder}")
        found = profile.take(self.engine, folder, steps, writes=self.ranks.first)
        self.bare = found["clips_per_second_bare"]
        self.progress.message(profile.text(found))

    def run(self) -> Summary:
        """Steps until the end or a signal."""
        engine, stop, first = self.engine, self.stop, self.engine.step
        if first >= self.total:
            self.progress.message(f"{self.path}: finished, {self.total} steps; nothing is left to do")
            return Summary(self.path, first, self.total, None, 0.0, 0.0)
        self.began = time.monotonic()
        self.meter = self.progress.meter = progress.Meter(self.total)
        with self.progress:
            while engine.step < self.total and not self.stopped:
                if stop.signum:
                    if self.ranks.world == 1:
                        break
                    # Together with the others, once all have heard of it.
                    engine.stopping = True
                if (result := engine.run_step()) is not None:
                    self._take(result)
                if engine.step % self.config.checkpoint.every == 0:
                    self._save()
            self._finish_steps()
            seconds = time.monotonic() - self.began
            self._save()
        if self.bare and seconds > 0:
            share = self.clips / seconds / self.bare
            self.progress.message(f"the whole loop reached {share:.0%} of the bare step's throughput")
        signum = None
        if engine.step < self.total:
            signum = stop.signum or signal.SIGTERM
            self.progress.message(
                f"stopped by {signal.Signals(signum).name} after step {engine.step} of {self.total}, and saved; "
                f"go on with: s2vfast pretrain --resume --out {self.path}"
            )
        return Summary(
            self.path,
            engine.step,
            self.total,
            self.last.loss if self.last else None,
            seconds,
            self.clips / seconds if seconds > 0 else 0.0,
            signum,
        )

    def _take(self, result: Any) -> None:
        """What is to be done after a step, once its numbers are there."""
        self.last, step = result, result.step
        self.stopped = self.stopped or result.stop
        self.clips += result.clips
        self.meter.add(result.clips)
        if self.records and (step == 1 or step == self.total or step % self.config.train.log_every == 0):
            self.records.write(result)
        self.progress.update(step, result)
        if self.engine.has_teacher and result.target_var < COLLAPSED_VARIANCE and not self.warned:
            self.warned = True
            self.progress.message(
                f"warning: step {step}: the teacher has collapsed: its targets vary by {result.target_var:.2g} over "
                f"tokens (1 at most, below {COLLAPSED_VARIANCE} is a collapse), so that there is nothing left to "
                f"predict. A slower EMA (objective.ema_start, objective.ema_end), a lower optim.lr or "
                f"objective.target_norm instance may help"
            )

    def _finish_steps(self) -> None:
        for result in self.engine.drain():
            self._take(result)

    def _save(self) -> None:
        """A checkpoint of all steps that have been started, unless there is one."""
        self._finish_steps()
        if self.saved == self.engine.step:
            return
        if self.records:
            # The lines first: a checkpoint that is there must find all lines that were written before it.
            meta = {"engine": self.engine.meta(), "metrics_bytes": self.records.metrics.sync()}
            checkpoint.save(self.path, self.engine.step, self.engine.state(), meta, self.config.checkpoint.keep)
        self.saved = self.engine.step

    def _restore(self) -> int:
        """Load the newest intact checkpoint; returns the length that metrics.jsonl had then."""
        checkpoint.clean(self.path)
        if not checkpoint.steps(self.path):
            return 0
        found = checkpoint.load_latest(self.path, log=lambda line: self.progress.message(f"warning: {line}"))
        for moved in checkpoint.set_aside(self.path, after=found.step):
            self.progress.message(f"{moved}: what is left of a damaged checkpoint; it may be removed")
        # A kill may have come between a save and the removal of what it made superfluous.
        checkpoint.prune(self.path, found.step, self.config.checkpoint.keep)
        self.engine.load(found.tensors, found.meta["engine"])
        if self.engine.step < self.total:
            self.progress.message(f"{self.path}: going on from step {found.step} of {self.total}")
        return found.meta["metrics_bytes"]


class _Records:
    """The lines of numbers that rank 0 keeps.

    Args:
        loop: whose steps they are.
        size: bytes of metrics.jsonl that stay.
        tensorboard: whether to write for TensorBoard too.
        stack: closes the files.
    """

    def __init__(self, loop: _Loop, size: int, tensorboard: bool, stack: contextlib.ExitStack) -> None:
        self.loop = loop
        self.metrics = rundir.JsonLines(loop.path / rundir.METRICS, size)
        stack.callback(self.metrics.close)
        if self.metrics.missing:
            loop.progress.message(
                f"warning: {loop.path / rundir.METRICS}: {self.metrics.missing} bytes shorter than at the checkpoint; "
                f"lines of earlier steps are lost"
            )
        self.throughput = rundir.JsonLines(loop.path / rundir.THROUGHPUT)
        stack.callback(self.throughput.close)
        self.tensorboard = progress.TensorBoard(loop.path, loop.engine.step) if tensorboard else None
        if self.tensorboard:
            stack.callback(self.tensorboard.close)
        # Which process wrote a line of throughput.jsonl.
        self.process = round(time.time(), 3)

    def write(self, result: Any) -> None:
        """A line of what was learned, and one of how long it took."""
        loop = self.loop
        names = ("step", "epoch", "loss", "lr", "ema_decay", "grad_norm", "target_var", "pred_var")
        values = {name: getattr(result, name) for name in names}
        self.metrics.write(**values)
        rates = {
            "step": result.step,
            "clips_per_second": round(loop.meter.clips_per_second, 2),
            "step_ms": round(1000 * loop.meter.step_seconds, 3),
            "process": self.process,
            "seconds": round(time.monotonic() - loop.began, 3),
            "clips": loop.clips,
        }
        if loop.ranks.world > 1:
            rates["ranks"] = loop.ranks.world
        self.throughput.write(**rates)
        if self.tensorboard:
            self.tensorboard.write(values | {"clips_per_second": rates["clips_per_second"]})


def _agreed(own: Config, asked: Config | None) -> tuple[Config, list[str]]:
    """The config to go on with, and what to say about it."""
    if asked is None:
        return own, []
    notes = []
    before, after = own.to_dict(), asked.to_dict()
    for section, fields in before.items():
        for name, value in fields.items():
            path, new = f"{section}.{name}", after[section][name]
            if new == value or path in FREE:
                continue
            if path not in LAST_BITS:
                raise errors.ConfigError(
                    f"{path}: {new!r} asked, but the run began with {value!r}, and --resume goes on with what a run "
                    f"began with (only {', '.join(FREE + LAST_BITS)} may change); leave it out or begin another run"
                )
            note = f"warning: {path}: {value} so far, {new} from here on; results may differ in the last bits"
            if path == "train.device" and asked.train.precision == "auto":
                note += ", and more between a CPU and a GPU: train.precision auto is bfloat16 there"
            notes.append(note)
    return asked, notes


def _set_threads(config: Config) -> None:
    if config.train.threads is not None:
        import torch

        torch.set_num_threads(config.train.threads)


def _engine(ranks: distributed.Ranks) -> Callable[[Config, Any], Any]:
    from s2vfast.train.engine import Pretrainer

    return lambda config, store: Pretrainer(config, store, ranks=ranks)
