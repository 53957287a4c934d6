"""The training loop: steps, lines of numbers, checkpoints, and a way to stop and go on at any moment.

Going on is bitwise: a checkpoint holds all tensors, every random draw is a function of (seed, epoch, sample id), and
``metrics.jsonl``, which holds nothing that depends on time, is cut back to its length at the checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import s2vfast
import s2vfast.errors as errors
from s2vfast.config import Config
from s2vfast.train import checkpoint, distributed, progress, rundir, torchrun
from s2vfast.train.resume import agreed_config
from s2vfast.train.stopping import Stop

if TYPE_CHECKING:
    from torch import Tensor

    from s2vfast.data.layout import Layout


Initial = tuple[Mapping[str, "Tensor"], dict[str, Any], list[str]]
"""A network's whole state, what run.json is to say of it, what to tell the user."""


@dataclass(frozen=True)
class Summary:
    """How a call of `train` ended."""

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


def train(
    config: Config | None,
    store_path: str | Path | None,
    run_dir: str | Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    profile: int | None = None,
    init: Callable[[Config, Layout, list[str]], Initial] | None = None,
    make_trainer: Callable[[Config, Any], Any] | None = None,
) -> Summary:
    """Train a run to its end, or until a signal.

    SIGINT, SIGTERM and SIGHUP let the step finish, save a checkpoint and return; a second one stops at once. Under
    torchrun all ranks stop after the same step, and a process that torchrun started again goes on as with ``resume``.

    Args:
        config: The run's config. With ``resume`` it may differ from the run's own in `s2vfast.train.resume`'s
            fields only; None takes the run's own.
        store_path: The store; None, with ``resume``, takes the one the run began with.
        run_dir: The run's folder: empty or missing without ``resume``.
        resume: Go on from the newest intact checkpoint. Where no run has begun in the folder, begin one.
        tensorboard: Write scalars for TensorBoard too.
        profile: Steps to measure and trace before the run's own; the results go to ``profile`` in the run's folder.
        init: Reads the weights that a new run's network starts from, from (config, layout, classes): its state, what
            run.json is to say of it, what to say; None: random ones. They are saved before the first step, so that
            nothing is read again when the run goes on.
        make_trainer: Builds the trainer from (config, store); `s2vfast.train.trainer.Trainer` where None.

    Raises:
        ConfigError: A field is impossible, or cannot change in this run.
        DataError: The store cannot be used.
        CheckpointError: The folder is not free, holds another run, or no checkpoint is intact.
        TrainingError: Non-finite numbers, no space left, no such device.
    """
    run = Path(run_dir)
    with distributed.start() as ranks:
        plan = ranks.run_on_main_and_broadcast(
            lambda: _plan(run, config, store_path, resume or torchrun.restart_count() > 0)
        )
        store = ranks.run_on_all(lambda: _open(plan))
        ranks.run_on_main_and_broadcast(lambda: _check(run, plan, store))
        ranks.assert_equal_across_ranks("version", s2vfast.__version__)
        ranks.assert_equal_across_ranks("store", store.fingerprint)
        learned: dict[str, Any] = {}
        if init is not None and not plan.continues:
            initial, about, notes = ranks.run_on_all(lambda: init(plan.config, store.layout, list(store.classes)))
            plan.notes.extend(notes)
            learned = {"initial": initial, "description": {rundir.INIT: about}}
        return run_steps(
            run,
            plan.config,
            store,
            ranks,
            begin=not plan.continues,
            notes=plan.notes,
            **learned,
            tensorboard=tensorboard,
            profile=profile,
            make_trainer=make_trainer,
            command=f"s2vfast pretrain --resume --out {run}",
        )


def run_steps(
    run: Path,
    config: Config,
    store: Any,
    ranks: distributed.Ranks,
    *,
    begin: bool,
    command: str,
    description: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    stream: IO[str] | None = None,
    tensorboard: bool = False,
    profile: int | None = None,
    make_trainer: Callable[[Config, Any], Any] | None = None,
    **learned: Any,
) -> Summary:
    """The steps of a run whose config and store go together, for `train` and for fine-tuning.

    Args:
        run: its folder.
        config: its config.
        store: its open store.
        ranks: the processes that share it.
        begin: make the folder; else go on from the newest intact checkpoint.
        command: what goes on with an interrupted run, for messages.
        description: further entries of run.json.
        notes: what to say before the first step.
        stream: where progress goes; None: standard output.
        tensorboard: as of `train`; so are profile and make_trainer.
        profile: see `train`.
        make_trainer: see `train`.
        learned: ``ids`` and ``initial`` of `s2vfast.train.trainer.Trainer`.
    """
    with Stop(patient=torchrun.under_torchrun()) as stop, contextlib.ExitStack() as stack:
        _set_threads(config)
        trainer = ranks.run_on_all(lambda: (make_trainer or _trainer(ranks, **learned))(config, store))
        stack.callback(trainer.close)

        def claim() -> None:
            """Make the run's folder where it is to begin, and keep others out of it."""
            stack.enter_context(rundir.create(run, config, store, description) if begin else rundir.lock(run))

        ranks.run_on_main_and_broadcast(claim)
        loop = _Loop(run, config, trainer, ranks, stop, stack, notes, stream, tensorboard, command, store.fingerprint)
        try:
            if begin and rundir.INIT in (description or {}):
                loop.save_beginning()
            if trainer.step < trainer.total_steps:  # before anything is captured
                trainer.calibrate(run, loop.progress.message)
            if profile:
                loop.profile(profile)
            return loop.run()
        except errors.S2vfastError:
            if (
                begin and ranks.is_main and loop.last is None
            ):  # nothing was learned: the same command can be given again
                stack.callback(rundir.withdraw, run)
            raise


@dataclass(frozen=True)
class _Plan:
    """What rank 0 knows before the run."""

    config: Config
    store_path: str | Path
    continues: bool
    notes: list[str]


def _plan(run: Path, config: Config | None, store_path: str | Path | None, resume: bool) -> _Plan:
    continues = resume and rundir.begun(run)
    if continues:
        config, notes = agreed_config(rundir.read_config(run), config)
        if rundir.IMPORTED in rundir.read(run):
            raise errors.CheckpointError(
                f"{run}: holds imported weights, without an optimizer's state to go on with; evaluate or fine-tune "
                f"them, or begin a run in another folder"
            )
        if (init := rundir.read(run).get(rundir.INIT)) and not checkpoint.steps(run):
            raise errors.CheckpointError(
                f"{run}: was stopped before it had saved the weights of {init['source']} that it began with; begin it "
                f"again in another folder"
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
    return _Plan(config, store_path, continues, notes)


def _open(plan: _Plan) -> Any:
    from s2vfast.data.store import Store

    return Store.open(plan.store_path)


def _check(run: Path, plan: _Plan, store: Any) -> None:
    """Raise where run, config and store do not go together."""
    if plan.continues:
        rundir.check_store(run, store, plan.store_path, exact=True)
    plan.config.validate(store.layout)


class _Loop:
    """One process's share of a run."""

    def __init__(
        self,
        run: Path,
        config: Config,
        trainer: Any,
        ranks: distributed.Ranks,
        stop: Stop,
        stack: contextlib.ExitStack,
        notes: Sequence[str],
        stream: IO[str] | None,
        tensorboard: bool,
        command: str,
        fingerprint: str | None,
    ) -> None:
        self.path, self.config, self.trainer, self.ranks, self.stop = run, config, trainer, ranks, stop
        self.command = command
        self.total = trainer.total_steps
        self.meter = progress.Meter(self.total)
        if ranks.is_main:
            self.progress = progress.make(self.meter, config.train.log_every, stream)
        else:
            self.progress = progress.Silent()
        for note in [*notes, *trainer.notes]:
            self.progress.message(note)
        self.fingerprint = fingerprint
        size = ranks.run_on_main_and_broadcast(self._restore)
        if ranks.world_size > 1:
            trainer.broadcast()
        self.saved = trainer.step
        self.records = None
        if ranks.is_main and trainer.step < self.total:
            self.records = _Records(self, size, tensorboard, stack)
        self.warned = self.stopped = False
        self.began, self.clips, self.last, self.bare = time.monotonic(), 0, None, None

    def save_beginning(self) -> None:
        """A checkpoint of what the first step starts from."""
        self.saved = None
        self._save()

    def profile(self, steps: int) -> None:
        """Measure and trace some steps, which are then forgotten."""
        from s2vfast.train import profile

        folder = self.path / "profile"
        self.progress.message(f"profiling {profile.WARM + 3 * steps} steps into {folder}")
        measured = profile.run_profile(self.trainer, folder, steps, writes=self.ranks.is_main)
        self.bare = measured["clips_per_second_bare"]
        self.progress.message(profile.text(measured))

    def run(self) -> Summary:
        """Steps until the end or a signal."""
        trainer, stop, first = self.trainer, self.stop, self.trainer.step
        if first >= self.total:
            self.progress.message(f"{self.path}: finished, {self.total} steps; nothing is left to do")
            return Summary(self.path, first, self.total, None, 0.0, 0.0)
        self.began = time.monotonic()
        self.meter = self.progress.meter = progress.Meter(self.total)
        with self.progress:
            while trainer.step < self.total and not self.stopped:
                if stop.signum:
                    if self.ranks.world_size == 1:
                        break
                    # Together with the others, once all have heard of it.
                    trainer.stopping = True
                if (result := trainer.run_step()) is not None:
                    self._take(result)
                if trainer.step % self.config.checkpoint.every == 0:
                    self._save()
            self._finish_steps()
            seconds = time.monotonic() - self.began
            self._save()
        if self.bare and seconds > 0:
            fraction = self.clips / seconds / self.bare
            self.progress.message(f"the whole loop reached {fraction:.0%} of the bare step's throughput")
        signum = None
        if trainer.step < self.total:
            signum = stop.signum or signal.SIGTERM
            self.progress.message(
                f"stopped by {signal.Signals(signum).name} after step {trainer.step} of {self.total}, and saved; "
                f"go on with: {self.command}"
            )
        return Summary(
            self.path,
            trainer.step,
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
        if not self.warned and (warning := self.trainer.objective.warning(result.reported)):
            self.warned = True
            self.progress.message(f"warning: step {step}: {warning}")

    def _finish_steps(self) -> None:
        for result in self.trainer.drain():
            self._take(result)

    def _save(self) -> None:
        """A checkpoint of all steps that have been started, unless there is one."""
        self._finish_steps()
        if self.saved == self.trainer.step:
            return
        if self.records:
            # The lines first: a checkpoint that is there must find all lines that were written before it.
            meta = {"engine": self.trainer.meta(), "metrics_bytes": self.records.metrics.sync()}
            meta[rundir.BEGINNING] = rundir.describe_beginning(self.config, self.fingerprint)
            state, keep = self.trainer.state(), self.config.checkpoint.keep
            if self.trainer.step == self.total and self.config.checkpoint.final == "weights":
                state, keep = {"model": state["model"]}, 1
            checkpoint.save(self.path, self.trainer.step, state, meta, keep)
        self.saved = self.trainer.step

    def _restore(self) -> int:
        """Load the newest intact checkpoint; returns the length that metrics.jsonl had then."""
        checkpoint.clean(self.path)
        if not checkpoint.steps(self.path):
            return 0
        latest = checkpoint.load_latest(self.path, log=lambda line: self.progress.message(f"warning: {line}"))
        rundir.check_beginning(self.path, self.config, latest.meta)
        for moved in checkpoint.set_aside(self.path, after=latest.step):
            self.progress.message(f"{moved}: what is left of a damaged checkpoint; it may be removed")
        # A kill may have come between a save and the removal of what it made superfluous.
        checkpoint.prune(self.path, latest.step, self.config.checkpoint.keep)
        if latest.step >= self.total and "optimizer" not in latest.tensors:  # checkpoint.final: weights
            self.trainer.step = latest.step
        else:
            self.trainer.load(latest.tensors, latest.meta["engine"])
        if self.trainer.step < self.total:
            self.progress.message(f"{self.path}: going on from step {latest.step} of {self.total}")
        return latest.meta["metrics_bytes"]


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
        self.tensorboard = progress.TensorBoard(loop.path, loop.trainer.step) if tensorboard else None
        if self.tensorboard:
            stack.callback(self.tensorboard.close)
        # Which process wrote a line of throughput.jsonl.
        self.process = round(time.time(), 3)

    def write(self, result: Any) -> None:
        """A line of what was learned, and one of how long it took."""
        loop = self.loop
        names = ("step", "epoch", "loss", "lr", "ema_decay", "grad_norm")
        values = {name: getattr(result, name) for name in names} | result.reported
        if result.ema_decay is None:
            del values["ema_decay"]
        self.metrics.write(**values)
        rates = {
            "step": result.step,
            "clips_per_second": round(loop.meter.clips_per_second, 2),
            "step_ms": round(1000 * loop.meter.step_seconds, 3),
            "process": self.process,
            "seconds": round(time.monotonic() - loop.began, 3),
            "clips": loop.clips,
        }
        if loop.ranks.world_size > 1:
            rates["ranks"] = loop.ranks.world_size
        self.throughput.write(**rates)
        if self.tensorboard:
            self.tensorboard.write(values | {"clips_per_second": rates["clips_per_second"]})


def _set_threads(config: Config) -> None:
    if config.train.threads is not None:
        import torch

        torch.set_num_threads(config.train.threads)


def _trainer(ranks: distributed.Ranks, **learned: Any) -> Callable[[Config, Any], Any]:
    from s2vfast.train.trainer import Trainer

    return lambda config, store: Trainer(config, store, ranks=ranks, **learned)
