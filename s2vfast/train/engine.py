"""One pretraining step, and everything that decides its numbers."""

from __future__ import annotations

import contextlib
import math
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.config import Config
from s2vfast.data.clips import clip_spec
from s2vfast.data.store import Store
from s2vfast.objectives import build_objective
from s2vfast.train.optim import FlatAdamW
from s2vfast.train.order import Order
from s2vfast.train.schedule import ema_decay, learning_rate


class NonFiniteError(errors.TrainingError):
    """Loss or gradient is not finite; weights, teacher and moments are as they were before the step."""


@dataclass(frozen=True)
class StepResult:
    """What one step did, on the host."""

    step: int  # steps taken, this one included
    epoch: float  # passes over the data so far
    loss: float
    lr: float
    ema_decay: float
    grad_norm: float
    target_var: float
    pred_var: float
    clips: int
    sample_ids: np.ndarray  # int64 [B]


@dataclass(frozen=True)
class Batch:
    """The input of one step."""

    clips: Tensor  # float32 [B * M, T, V, C]
    sample_ids: Tensor  # int64 [B]
    epoch: int


class Pretrainer:
    """Model, optimizer and data of a run; `run_step` moves it one step on.

    Args:
        config: the run.
        store: its sequences.
        device: overrides config.train.device.

    Raises:
        ConfigError: values that do not fit the store or the machine.
        DataError: a split that the store does not have.
    """

    def __init__(self, config: Config, store: Store, device: torch.device | None = None) -> None:
        self.joints = store.layout.num_joints
        config.validate(self.joints)
        self.config, self.store = config, store
        self.device = device or pick_device(config.train.device)
        try:
            ops.parse_choice(config.train.impl)
        except errors.ImplementationError as error:
            raise errors.ConfigError(f"train.impl: {error}") from None

        ids = torch.from_numpy(store.select(config.data.split, "train"))
        if config.train.batch > len(ids):
            raise errors.ConfigError(
                f"train.batch: {config.train.batch} is more than the {len(ids)} training sequences "
                f"of split {config.data.split}"
            )
        self.order = Order(ids, config.train.batch, config.train.seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.total_steps = config.train.steps or max(1, round(config.train.epochs * self.steps_per_epoch))
        self.warmup_steps = min(round(config.optim.warmup_epochs * self.steps_per_epoch), self.total_steps)
        self.ema_steps = config.objective.ema_steps or self.total_steps

        self.spec = clip_spec(config.data, store.layout)
        row, count = store.track_table(config.data.bodies)
        self.frames = _readable(store.frames).to(self.device)
        self.frame_index = torch.from_numpy(store.frame_index).to(self.device)
        self.row, self.count = torch.from_numpy(row).to(self.device), torch.from_numpy(count).to(self.device)

        self.model = build_objective(config, self.joints).to(self.device)
        self.optimizer = FlatAdamW(self.model.encoder, [self.model.decoder], self.model.teacher)
        self.step = 0
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        """The clips of a step: a function of the config, the store and the step."""
        ids, epoch = self.order.sample_ids(step).to(self.device), self.order.epoch(step)
        with self._impl():
            clips = ops.clip_sample(
                self.frames,
                self.frame_index,
                self.row,
                self.count,
                ids,
                self.spec,
                seed=self.config.train.seed,
                epoch=epoch,
            )
        return Batch(clips, ids, epoch)

    def run_step(self) -> StepResult:
        """Take the next step.

        Raises:
            NonFiniteError: loss or gradient is not finite; nothing has been updated.
        """
        config, step = self.config, self.step
        batch = self._next_batch(step)
        lr = learning_rate(step, self.total_steps, self.warmup_steps, config.optim.lr, config.optim.lr_min)
        tau = ema_decay(step, self.ema_steps, config.objective.ema_start, config.objective.ema_end)
        with self._impl():
            self.optimizer.zero_grad()
            losses = self.model(batch.clips, seed=config.train.seed, epoch=batch.epoch, sample_ids=batch.sample_ids)
            loss = float(losses.loss.detach())
            if not math.isfinite(loss):
                raise self._non_finite("the loss", loss, batch)
            losses.loss.backward()
            norm = float(
                self.optimizer.step(
                    step + 1,
                    lr=lr,
                    beta1=config.optim.beta1,
                    beta2=config.optim.beta2,
                    eps=config.optim.eps,
                    weight_decay=config.optim.weight_decay,
                    clip=config.optim.clip,
                    tau=tau,
                )
            )
        if not math.isfinite(norm):
            raise self._non_finite("the gradient's norm", norm, batch)
        self.step = step + 1
        return StepResult(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            loss=loss,
            lr=lr,
            ema_decay=tau,
            grad_norm=norm,
            target_var=float(losses.target_var),
            pred_var=float(losses.pred_var),
            clips=len(batch.sample_ids),
            sample_ids=batch.sample_ids.cpu().numpy(),
        )

    def _non_finite(self, what: str, value: float, batch: Batch) -> NonFiniteError:
        ids = batch.sample_ids.tolist()
        names = ", ".join(f"{i} ({self.store.names[i]})" for i in ids[:8])
        more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        return NonFiniteError(
            f"step {self.step + 1}: {what} is {value}; weights are as they were before. Sample ids: {names}{more}. "
            f"Look at them with `s2vfast data show`, or lower optim.lr"
        )

    def _impl(self) -> contextlib.AbstractContextManager[None]:
        choice = self.config.train.impl
        return contextlib.nullcontext() if choice == "auto" else ops.use_impl(choice)

    def _next_batch(self, step: int) -> Batch:
        workers = self.config.data.workers
        if workers == 0:
            return self.batch(step)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="s2vfast-data")
        for ahead in range(step, min(step + workers + 1, self.total_steps)):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._pool.submit(self.batch, ahead)
        return self._ahead.pop(step).result()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor that the next step depends on: views, not copies."""
        model = {f"student.encoder.{k}": v for k, v in self.model.encoder.state_dict().items()}
        model |= {f"student.decoder.{k}": v for k, v in self.model.decoder.state_dict().items()}
        model |= {f"teacher.{k}": v for k, v in self.model.teacher.state_dict().items()}
        return {"model": model, "optimizer": self.optimizer.state()}

    def meta(self) -> dict[str, int]:
        """The numbers beside the tensors."""
        return {"step": self.step, "total_steps": self.total_steps, "steps_per_epoch": self.steps_per_epoch}

    def load(self, state: dict[str, dict[str, Tensor]], meta: dict) -> None:
        """Continue from what `state` and `meta` gave.

        Raises:
            CheckpointError: tensors that are missing, superfluous or of another shape.
        """
        mine = self.state()
        for group, tensors in mine.items():
            given = state.get(group, {})
            if odd := sorted(set(tensors) ^ set(given)):
                where = "missing" if odd[0] in tensors else "not of this model"
                raise errors.CheckpointError(f"{group}: {odd[0]}: {where} ({len(odd)} names differ)")
            for name, tensor in tensors.items():
                if given[name].shape != tensor.shape:
                    raise errors.CheckpointError(
                        f"{group}: {name}: shape {list(tensor.shape)} expected, got {list(given[name].shape)}"
                    )
        with torch.no_grad():
            for group, tensors in mine.items():
                for name, tensor in tensors.items():
                    tensor.copy_(state[group][name])
        self.step = int(meta["step"])
        self._ahead.clear()


def _readable(array: np.ndarray) -> Tensor:
    """A tensor on the memory of a read-only array: the frames are read where the file maps them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device that is there; ConfigError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise errors.ConfigError(f"train.device: {name!r} is not auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise errors.ConfigError(f"train.device: {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device
