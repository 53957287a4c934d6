"""The input of each step: clips and masks, made where the recordings lie."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.config import Config
from s2vfast.data.clips import clip_spec
from s2vfast.data.store import Store
from s2vfast.objectives import Bodies
from s2vfast.train.distributed import Ranks
from s2vfast.train.order import Order

CACHE = 16 * 2**20
"""Bytes of the largest activation of a part, on a CPU."""


@dataclass(frozen=True)
class Part:
    """What goes through the network at once."""

    clips: Tensor  # float32 [n * M, T, V, C]
    masks: Any  # of the objective: whatever its `draw` gave
    bodies: Bodies | None  # which tracks hold one; None: it does not matter

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, always in the same order."""
        return (self.clips, *self.masks.tensors(), *(self.bodies.tensors() if self.bodies else ()))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Part:
        """The same of other tensors."""
        made = {id(tensor): function(tensor) for tensor in self.tensors()}
        fields = {"clips": made[id(self.clips)]}
        for name in ("masks", "bodies"):
            if (group := getattr(self, name)) is not None:
                others = {key: made[id(value)] for key, value in vars(group).items() if id(value) in made}
                fields[name] = replace(group, **others)
        return replace(self, **fields)


@dataclass(frozen=True)
class Batch:
    """The input of one step."""

    parts: list[Part]  # this rank's share
    sample_ids: np.ndarray  # int64 [B], of all ranks
    epoch: int


class Feed:
    """Batches by step: a function of the config, the store and the step.

    Args:
        config: the run.
        store: its sequences.
        model: the objective, whose ``draw`` makes the masks.
        device: where the step runs.
        ranks: the processes that share a batch.

    Raises:
        ConfigError: a batch that does not fit the store or the ranks.
        DataError: a split that the store does not have.
        TrainingError: recordings that do not fit on the device they were to lie on.
    """

    def __init__(self, config: Config, store: Store, model: Any, device: torch.device, ranks: Ranks) -> None:
        self.config, self.model, self.device, self.ranks = config, model, device, ranks
        ids = torch.from_numpy(store.select(config.data.split, "train"))
        batch = config.train.batch
        if batch > len(ids):
            raise errors.ConfigError(
                f"train.batch: {batch} is more than the {len(ids)} training sequences of split {config.data.split}"
            )
        divisor = ranks.world * (config.train.accumulate or 1)
        if batch % divisor:
            parts = f" times train.accumulate = {config.train.accumulate}" if config.train.accumulate else ""
            raise errors.ConfigError(
                f"train.batch: {batch} is no multiple of {divisor}, which is {ranks.world} ranks{parts}"
            )
        self.parts = config.train.accumulate or parts_for(config, store.layout.num_joints, batch // ranks.world, device)
        self.order = Order(ids, batch, config.train.seed)
        self.spec = clip_spec(config.data, store.layout)
        row, count = store.track_table(config.data.bodies)
        self._present = torch.from_numpy(count > 0)  # bool [Q, M], on the host: no one need wait for the device
        on_host, self.note = _stays_on_host(config.data.resident, store.frames.nbytes, device)
        self._source = torch.device("cpu") if on_host else device
        try:
            self.frames = _readable(store.frames).to(self._source)
        except torch.OutOfMemoryError:
            raise errors.TrainingError(
                f"data.resident: device: the recordings ({store.frames.nbytes / 1e9:.1f} GB) do not fit on {device}; "
                f"give host or auto"
            ) from None
        self.frame_index = torch.from_numpy(store.frame_index).to(self._source)
        self.row, self.count = torch.from_numpy(row).to(self._source), torch.from_numpy(count).to(self._source)
        self._sends = self._source != device
        self._threads = max(config.data.workers, 2) if self._sends else config.data.workers
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Batch]] = {}
        # Shapes that repeat can be captured or compiled once; exact ones save a little more.
        self._repeats = device.type == "cuda" or config.train.mode == "compile"

    def batch(self, step: int) -> Batch:
        """This rank's share of a step's clips and masks."""
        ids, epoch = self.order.sample_ids(step), self.order.epoch(step)
        mine = ids.view(self.ranks.world, -1)[self.ranks.rank]
        # What is chosen for the device may not run on the host.
        choice, room = "auto" if self._sends else self.config.train.impl, self._room(ids)
        with (
            contextlib.nullcontext() if choice == "auto" and not self._sends else ops.use_impl(choice, everywhere=False)
        ):
            parts = [self._part(part, epoch, room) for part in mine.chunk(self.parts)]
        return Batch(parts, ids.numpy(), epoch)

    def _room(self, ids: Tensor) -> int | None:
        """Tracks with a body that every part of every rank has room for, or None where each has what it needs.

        The same everywhere, so that all ranks have captured the same shapes, and these repeat.
        """
        if not self._repeats or self.model.empty_bodies == "compute":
            return None
        shares = self._present[ids].view(self.ranks.world * self.parts, -1)
        each = shares.shape[1]
        round_to = max(1, each // 16)
        return min(-(-int(shares.sum(1).max()) // round_to) * round_to, each)

    def _part(self, ids: Tensor, epoch: int, room: int | None) -> Part:
        seed = self.config.train.seed
        there = ids
        if self._source.type == "cuda":
            there = ids.pin_memory().to(self._source, non_blocking=True)
        clips = ops.clip_sample(
            self.frames, self.frame_index, self.row, self.count, there, self.spec, seed=seed, epoch=epoch
        )
        masks = self.model.draw(clips, seed=seed, epoch=epoch, sample_ids=ids)
        bodies = None
        if self.model.empty_bodies != "compute":
            bodies = Bodies.known(self._present[ids].flatten(), room)
            if self._source.type == "cuda":
                bodies = replace(bodies, order=self._send(bodies.order), places=self._send(bodies.places))
        part = Part(clips, masks, bodies)
        return part.mapped(self._send) if self._sends else part

    def _send(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def next(self, step: int, stop: int) -> Batch:
        """The batch of ``step``, made ahead where there are threads, which do not go beyond ``stop``."""
        if not self._threads:
            return self.batch(step)
        if self._pool is None:
            # A thread begins on the first GPU, whichever this process is on.
            first = (torch.cuda.set_device, (self.device,)) if self.device.type == "cuda" else (None, ())
            self._pool = ThreadPoolExecutor(self._threads, "s2vfast-data", *first)
        for ahead in range(step, min(step + self._threads + 1, stop)):
            if ahead not in self._ahead:
                self._ahead[ahead] = self._pool.submit(self.batch, ahead)
        return self._ahead.pop(step).result()

    def forget(self) -> None:
        """Drop what was made ahead: the next step is another one."""
        self._ahead.clear()


def parts_for(config: Config, joints: int, clips: int, device: torch.device) -> int:
    """Parts to do ``clips`` clips in: one on a GPU; on a CPU the fewest whose widest activations fit into a cache."""
    if device.type != "cpu":
        return 1
    model, masks = config.model, config.mask.masks_per_clip
    width = max(round(model.dim * model.mlp_ratio), 3 * model.dim)
    each = config.data.bodies * masks * config.segments * joints * width * 4  # bytes of a clip
    return next((n for n in range(1, clips) if clips % n == 0 and clips // n * each <= CACHE), clips)


def _stays_on_host(wish: str, size: int, device: torch.device) -> tuple[bool, str | None]:
    """Whether recordings of ``size`` bytes stay in the host's memory, and what there is to say about it."""
    if device.type == "cpu" or wish == "device":
        return False, None
    if wish == "host":
        return True, None
    free = torch.cuda.mem_get_info(device)[0]
    if size <= free // 2:
        return False, None
    return True, (
        f"the recordings ({size / 1e9:.1f} GB) take more than half of the {free / 1e9:.1f} GB that are free on "
        f"{device}: they stay in the host's memory, from where clips are sent ahead"
    )


def _readable(array: np.ndarray) -> Tensor:
    """A tensor on the memory of a read-only array: the frames are read where the file maps them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
