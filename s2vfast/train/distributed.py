"""Several processes that train one run: what they agree on, and one sum a step.

A process that ``torchrun`` started finds its rank in the environment; any other is the only one. Every rank takes its
share of the same global batch, so that a run is the same at any number of ranks. Rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.train import torchrun

T = TypeVar("T")

PATIENCE = datetime.timedelta(minutes=10)
"""How long a rank waits for another before it gives up."""


class Ranks:
    """The processes of a run.

    Args:
        rank: this one's number.
        world: how many there are.
        local: this one's number on its machine.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0) -> None:
        self.rank, self.world, self.local = rank, world, local

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def sum(self, buffer: Tensor) -> None:
        """Add up a buffer over all ranks, in place."""
        if self.world > 1:
            with _peers():
                dist.all_reduce(buffer)

    def spread(self, buffer: Tensor) -> None:
        """Give every rank what rank 0 has, in place."""
        if self.world > 1:
            with _peers():
                dist.broadcast(buffer, 0)

    def tell(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, which alone calls it; what it raises there ends all ranks."""
        if self.world == 1:
            return make()
        return self._agree(make if self.first else None)[0]

    def each(self, make: Callable[[], T]) -> T:
        """What ``make`` returns here; what it raises on any rank ends all of them."""
        if self.world == 1:
            return make()
        mine: list[T] = []
        self._agree(lambda: mine.append(make()))
        return mine[0]

    def same(self, what: str, value: Any) -> None:
        """Raise `TrainingError` on all ranks unless all have the same value."""
        if self.world > 1:
            values = [found for found, _ in self._gather((value, None))]
            for rank, found in enumerate(values):
                if found != values[0]:
                    error = errors.TrainingError(
                        f"rank {rank} has another {what} than rank 0: {found!r}, not {values[0]!r}; all ranks need the "
                        f"same s2vfast, store and config"
                    )
                    error.elsewhere = not self.first
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
                error.elsewhere = not self.first
                raise error
        return [found for found, _ in gathered]

    def _gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world
        with _peers():
            dist.all_gather_object(gathered, value)
        return gathered


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


@contextlib.contextmanager
def start() -> Iterator[Ranks]:
    """Meet the other ranks, if there are any, for the length of a ``with`` block.

    Raises:
        TrainingError: an environment that makes no sense, or ranks that do not come.
    """
    if not torchrun.launched():
        yield Ranks()
        return
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError:
        raise errors.TrainingError(
            "RANK, WORLD_SIZE and LOCAL_RANK: whole numbers are expected, as torchrun sets them"
        ) from None
    if world == 1:
        yield Ranks(rank, world, local)
        return
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        # What is on the CPU, as the words that ranks exchange are, goes through gloo.
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local % torch.cuda.device_count())
    mine = not dist.is_initialized()
    if mine:
        with _peers():
            store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
            # torchrun may keep its store when it starts ranks again, and the addresses of those that died with it.
            store = dist.PrefixStore(f"s2vfast/{torchrun.attempt()}", store)
            make_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Ranks(rank, world, local)
    except BaseException:
        # No barrier: the others may be waiting in another collective. NCCL would wait for its own.
        if mine and backend == "gloo":
            with contextlib.suppress(Exception):  # what went wrong before is what counts
                dist.destroy_process_group()
        raise
    if mine:
        with _peers():
            dist.barrier()
        dist.destroy_process_group()
