"""Several processes that train one run: what they agree on, and one sum a step.

A process that ``torchrun`` started finds its rank in the environment; any other is the only one. Every rank takes its
share of the same global batch, so that a run is the same at any number of ranks. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.train import torchrun

T = TypeVar("T")

PEER_TIMEOUT = "S2VFAST_PEER_TIMEOUT"
"""Environment variable: seconds that a rank waits for another before it gives up, 600 where it is not set."""


class Ranks:
    """The processes of a run.

    Args:
        rank: this one's number.
        world_size: how many there are.
        local_rank: this one's number on its machine.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def all_reduce(self, buffer: Tensor) -> None:
        """Add up a buffer over all ranks, in place."""
        if self.world_size > 1:
            with _peers():
                dist.all_reduce(buffer)

    def broadcast(self, buffer: Tensor) -> None:
        """Give every rank what rank 0 has, in place."""
        if self.world_size > 1:
            with _peers():
                dist.broadcast(buffer, 0)

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, [world_size * n, …], in the order of ranks; all ranks have n of them.

        The gradient of all of them goes back to this rank's own: where every rank's loss is its share of the whole, the
        sum of gradients over ranks is that of one process.
        """
        return rows if self.world_size == 1 else _AllGather.apply(rows, self)

    def run_on_main_and_broadcast(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, which alone calls it; what it raises there ends all ranks."""
        if self.world_size == 1:
            return make()
        return self._agree(make if self.is_main else None)[0]

    def run_on_all(self, make: Callable[[], T]) -> T:
        """What ``make`` returns here; what it raises on any rank ends all of them."""
        if self.world_size == 1:
            return make()
        result: list[T] = []
        self._agree(lambda: result.append(make()))
        return result[0]

    def assert_equal_across_ranks(self, what: str, value: Any) -> None:
        """Raise `TrainingError` on all ranks unless all have the same value."""
        if self.world_size > 1:
            values = [of_rank for of_rank, _ in self._gather((value, None))]
            for rank, of_rank in enumerate(values):
                if of_rank != values[0]:
                    error = errors.TrainingError(
                        f"rank {rank} has another {what} than rank 0: {of_rank!r}, not {values[0]!r}; all ranks need "
                        f"the same s2vfast, store and config"
                    )
                    error.reported_by_other_rank = not self.is_main
                    raise error

    def _agree(self, make: Callable[[], T] | None) -> list[Any]:
        value, failure = None, None
        try:
            value = make() if make else None
        except errors.S2vfastError as error:
            failure = error
        gathered = self._gather((None if failure else value, failure))
        for _, error in gathered:
            if error is not None:
                # Whoever it went wrong for, rank 0 says so.
                error.reported_by_other_rank = not self.is_main
                raise error
        return [of_rank for of_rank, _ in gathered]

    def _gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        with _peers():
            dist.all_gather_object(gathered, value)
        return gathered


class _AllGather(torch.autograd.Function):
    """`Ranks.all_gather`. A sum of zeros and rows: one collective that every backend has, exact in any dtype."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        gathered = rows.new_zeros(ranks.world_size, *rows.shape)
        gathered[ranks.rank] = rows
        ranks.all_reduce(gathered)
        return gathered.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        ctx.ranks.all_reduce(total)
        return total.unflatten(0, (ctx.ranks.world_size, -1))[ctx.ranks.rank], None


@contextlib.contextmanager
def _peers() -> Iterator[None]:
    """A peer that is gone as one clear error."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, dist.DistBackendError) as error:
        first = " ".join(str(error).split())[:200]
        raise errors.TrainingError(
            f"another rank is gone or does not answer; the run goes on from its last checkpoint with --resume ({first})"
        ) from error


def make_group(backend: str, **options: Any) -> None:
    """``torch.distributed.init_process_group``, of a group that can be destroyed."""
    # Its functions' defaults are the group there is when it is first imported, which the compiler does. A group held
    # for ever keeps its threads, and one that wants the interpreter while it ends aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group(backend, **options)


def _patience() -> datetime.timedelta:
    text = os.environ.get(PEER_TIMEOUT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds < math.inf:
        raise errors.TrainingError(f"{PEER_TIMEOUT}: {text!r}; seconds are expected, 1 or more")
    return datetime.timedelta(seconds=seconds)


@contextlib.contextmanager
def start() -> Iterator[Ranks]:
    """Meet the other ranks, if there are any, for the length of a ``with`` block.

    Raises:
        TrainingError: an environment that makes no sense, or ranks that do not come.
    """
    if not torchrun.under_torchrun():
        yield Ranks()
        return
    try:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError:
        raise errors.TrainingError(
            "RANK, WORLD_SIZE and LOCAL_RANK: whole numbers are expected, as torchrun sets them"
        ) from None
    if world_size == 1:
        yield Ranks(rank, world_size, local_rank)
        return
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        # What is on the CPU, as the words that ranks exchange are, goes through gloo.
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    makes_group = not dist.is_initialized()
    if makes_group:
        patience = _patience()
        with _peers():
            store, _, _ = next(dist.rendezvous("env://", timeout=patience))
            # torchrun may keep its store when it starts ranks again, and the addresses of those that died with it.
            store = dist.PrefixStore(f"s2vfast/{torchrun.restart_count()}", store)
            make_group(backend, store=store, rank=rank, world_size=world_size, timeout=patience)
    try:
        yield Ranks(rank, world_size, local_rank)
    except BaseException:
        # No barrier: the others may be waiting in another collective. NCCL would wait for its own.
        if makes_group and backend == "gloo":
            with contextlib.suppress(Exception):  # what went wrong before is what counts
                dist.destroy_process_group()
        raise
    if makes_group:
        with _peers():
            dist.barrier()
        dist.destroy_process_group()
