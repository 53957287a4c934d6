"""One optimizer step on the device: loss, gradients, their sum over ranks, update; nothing in it asks the host.

What a step reports, and what it is told (its number, learning rate, decay), are tensors at fixed addresses, so that the
whole of it can be captured as one CUDA graph. Once a loss or a gradient is not finite, that step and all after it
change nothing: the host, which reads some steps later, finds the weights as they were before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from s2vfast.config import OptimConfig
from s2vfast.errors import ConfigError
from s2vfast.objectives.base import Loss, MicroBatch, Objective
from s2vfast.train.distributed import Ranks
from s2vfast.train.optim import FlatOptimizer

STEP_INPUTS = ("step", "lr", "tau", "stop")
"""What the host writes for a step: its number from 1, learning rate, the averages' decay, whether this rank is to
stop."""
STEP_OUTPUTS = ("loss", "grad_norm", "stop")
"""What the host reads after a step; the objective's terms and moments follow, then the losses of all micro-batches of
all ranks."""


def report_names(objective: Objective) -> tuple[str, ...]:
    """Names of what a step of an objective reports, in their order."""
    return (*STEP_OUTPUTS, *objective.terms, *objective.moments)


def extra_numel(objective: Objective, total_micro_batches: int) -> int:
    """Numbers that the micro-batches of all ranks report to each other in a step."""
    if total_micro_batches == 1:
        return 0
    return total_micro_batches * (2 + len(objective.terms) + 2 * sum(objective.moments.values())) + 1


class Step:
    """The function that a step is.

    Args:
        objective: loss and networks.
        optimizer: its parameters, with `extra_numel` numbers after the gradients.
        options: the config's section.
        ranks: the processes that share a step.
        micro_batches: how many a rank does.
        compiled: whether torch.compile makes the forward pass, and with it the backward pass.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: FlatOptimizer,
        options: OptimConfig,
        ranks: Ranks,
        micro_batches: int,
        compiled: bool = False,
    ) -> None:
        self.objective, self.optimizer, self.ranks = objective, optimizer, ranks
        self.options = optimizer.options_of(options)
        self.micro_batches, self.total_micro_batches = micro_batches, ranks.world_size * micro_batches
        device = optimizer.param.device
        self.inputs = torch.zeros(len(STEP_INPUTS), dtype=torch.float64, device=device)
        """[4], see `STEP_INPUTS`."""
        self.names = report_names(objective)
        self.report = torch.zeros(len(self.names) + self.total_micro_batches, device=device)
        """[names + micro-batches of all ranks], see `STEP_OUTPUTS`."""
        self._one = torch.ones((), device=device)
        # A mean over the clips that are kept, whose number only the device knows, is weighted after the sum.
        self._weighted = self.total_micro_batches > 1 and objective.weighted_by_count
        self._loss: Callable[..., Loss] = objective.step_loss
        if compiled:
            from torch import _dynamo  # takes a second to import

            # One graph for each number of bodies that there is capacity for.
            _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, 32)
            self._loss = torch.compile(objective.step_loss, dynamic=False, fullgraph=True)

    def reset_nonfinite(self) -> None:
        """Let updates through again, after a number that was not finite has been reported."""
        self.report.zero_()

    def __call__(self, batches: list[MicroBatch]) -> None:
        """Do a step; `report` holds what came of it."""
        rows = self._rows()
        self.optimizer.buffers.begin()
        shared = self.objective.shared(batches)
        for number, batch in enumerate(batches):
            with record_function("s2vfast: forward"):
                output = self._loss(batch, shared)
            with record_function("s2vfast: backward"):
                loss = output.loss
                if self._weighted:
                    loss = loss * output.count
                elif self.total_micro_batches > 1:
                    loss = loss * batch.weight
                # Without the one that its gradient is: to check a given one's shape PyTorch imports SymPy.
                gradients = torch.autograd.grad(loss, self.optimizer.parameters, materialize_grads=True)
                self.optimizer.collect(list(gradients), add=number > 0)
            if rows is not None:
                count = output.count if self._weighted else batch.weight
                numbers = torch.stack([output.loss.detach(), self._one * count, *self._terms(output)])
                moments = [part for name in self.objective.moments for part in output.moments[name]]
                rows[self.ranks.rank * self.micro_batches + number].copy_(torch.cat([numbers, *moments]))
        with record_function("s2vfast: update"):
            if rows is None:
                loss, stop, losses = output.loss.detach(), self.inputs[3].float(), [output.loss.detach()]
                reported = [*self._terms(output), *(output.moments[name][0].mean() for name in self.objective.moments)]
            else:
                loss, stop, reported = self._aggregate(rows)
                losses = rows[:, 0].unbind()
            # Zero times what is not finite is NaN, which spoils the norm, as the last step's norm does if it was not
            # finite; and a norm that is not finite lets nothing through.
            self.optimizer.grad[:1].add_((loss + self.report[1]) * 0.0)
            norm = self.optimizer.step(self.inputs[0], lr=self.inputs[1], tau=self.inputs[2], **self.options)
            torch.stack([loss, norm, stop, *reported, *losses], out=self.report)

    def _terms(self, output: Loss) -> list[Tensor]:
        names = self.objective.terms
        if set(output.terms) != set(names):
            raise ConfigError(
                f"{type(self.objective).__name__}.terms: {', '.join(names) or 'none'} declared, and the loss has "
                f"{', '.join(output.terms) or 'none'}"
            )
        return [output.terms[name] for name in names]

    def _rows(self) -> Tensor | None:
        """Loss, weight, terms and moments of every micro-batch of every rank, cleared; None where there is one."""
        if self.total_micro_batches == 1:
            return None
        extra = self.optimizer.shared[self.optimizer.grad.numel() :].zero_()
        extra[-1:].copy_(self.inputs[3:])
        return extra[:-1].view(self.total_micro_batches, -1)

    def _aggregate(self, rows: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Add up gradients and rows over ranks; loss, ranks that want to stop, terms and moments of the whole."""
        self.ranks.all_reduce(self.optimizer.shared)
        if self._weighted:
            self.optimizer.grad.div_(rows[:, 1].sum())
        weight = (rows[:, 1] / rows[:, 1].sum())[:, None]  # [micro-batches, 1]
        first = 2 + len(self.objective.terms)
        loss, _, *reported = (rows[:, :first] * weight).sum(0).unbind()
        for width in self.objective.moments.values():
            # [micro-batches, D] each
            variance, mean = rows[:, first : first + 2 * width].unflatten(1, (2, width)).unbind(1)
            between = mean - (mean * weight).sum(0)
            reported.append(((variance + between.square()) * weight).sum(0).mean())
            first += 2 * width
        return loss, self.optimizer.shared[-1], reported


class CUDAGraphStep:
    """A step as CUDA graphs: one for each shape of its input, captured when it comes again.

    The first time it runs as it is, which compiles its kernels and sets up its libraries. Graphs share their memory,
    as only one of them runs at a time.

    Args:
        step: the step.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self._seen: set[tuple[Any, ...]] = set()
        self._graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[MicroBatch]]] = {}
        self._pool: Any = None

    def __call__(self, batches: list[MicroBatch]) -> None:
        """Do a step; the step's `report` holds what came of it."""
        key = tuple(
            (batch.bodies.capacity if batch.bodies else None, *(tuple(tensor.shape) for tensor in batch.tensors()))
            for batch in batches
        )
        if key not in self._seen:
            self._seen.add(key)
            self.step(batches)
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(batches)
        graph, captured = self._graphs[key]
        for static, batch in zip(captured, batches, strict=True):
            torch._foreach_copy_(static.tensors(), batch.tensors())
        graph.replay()

    def release(self) -> None:
        """Let go of all graphs."""
        self._graphs.clear()
        self._pool = None

    def _capture(self, batches: list[MicroBatch]) -> tuple[torch.cuda.CUDAGraph, list[MicroBatch]]:
        captured = [batch.map(torch.clone) for batch in batches]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Threads that send batches ahead may go on.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self.step(captured)
        self._pool = self._pool or graph.pool()
        return graph, captured
