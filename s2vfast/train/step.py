"""One optimizer step on the device: loss, gradients, their sum over ranks, update; nothing in it asks the host.

What a step reports, and what it is told (its number, learning rate, decay), are tensors at fixed places, so that the
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
from s2vfast.train.distributed import Ranks
from s2vfast.train.feed import Part
from s2vfast.train.optim import FlatAdamW

CONTROLS = ("step", "lr", "tau", "stop")
"""What the host tells a step: its number from 1, learning rate, the teacher's decay, whether this rank is to stop."""
REPORTS = ("loss", "grad_norm", "target_var", "pred_var", "stop")
"""What a step tells the host; the losses of all shares (ranks times parts) follow."""


def room(shares: int, width: int) -> int:
    """Numbers that a step's shares report to each other, for targets of ``width`` channels."""
    return shares * (2 + 4 * width) + 1 if shares > 1 else 0


class Step:
    """The body of a step.

    Args:
        model: the objective.
        optimizer: its parameters, with `room` beside the gradients.
        options: the config's section.
        ranks: the processes that share a step.
        parts: how many a rank's share is done in.
        compiled: whether torch.compile makes the forward pass, and with it the backward pass.
    """

    def __init__(
        self, model: Any, optimizer: FlatAdamW, options: OptimConfig, ranks: Ranks, parts: int, compiled: bool = False
    ) -> None:
        self.model, self.optimizer, self.options, self.ranks = model, optimizer, options, ranks
        self.parts, self.shares = parts, ranks.world * parts
        device = optimizer.param.device
        self.control = torch.zeros(len(CONTROLS), dtype=torch.float64, device=device)
        """[4], see `CONTROLS`."""
        self.report = torch.zeros(len(REPORTS) + self.shares, device=device)
        """[5 + shares], see `REPORTS`."""
        self._one = torch.ones((), device=device)
        # A mean over the clips that are kept, whose number only the device knows, is weighted after the sum.
        self._weighted = self.shares > 1 and model.empty_bodies == "drop"
        self._loss: Callable[..., Any] = model
        if compiled:
            from torch import _dynamo  # takes a second to import

            # One graph for each number of bodies that there is room for.
            _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, 32)
            self._loss = torch.compile(model, dynamic=False, fullgraph=True)

    def mend(self) -> None:
        """Let updates through again, after a number that was not finite has been reported."""
        self.report.zero_()

    def __call__(self, parts: list[Part]) -> None:
        """Do a step; `report` holds what came of it."""
        rows, empty = self._rows(), None
        asks = len(parts) > 1 and self.model.empty_bodies == "share"
        if asks and any(part.bodies.filled < part.clips.shape[0] for part in parts):
            empty = self.model.empty_target(parts[0].clips)  # once for all parts
        for number, part in enumerate(parts):
            with record_function("s2vfast: forward"):
                losses = self._loss(part.clips, part.masks, bodies=part.bodies, empty=empty)
            with record_function("s2vfast: backward"):
                objective = losses.loss
                if self._weighted:
                    objective = objective * losses.count
                elif self.shares > 1:
                    objective = objective * (1.0 / self.shares)
                gradients = torch.autograd.grad(objective, self.optimizer.parameters, self._one, materialize_grads=True)
                self.optimizer.collect(list(gradients), add=number > 0)
            if rows is not None:
                loss = losses.loss.detach().reshape(1)
                count = torch.zeros_like(loss) + losses.count
                row = torch.cat([loss, count, *losses.target, *losses.prediction])
                rows[self.ranks.rank * self.parts + number].copy_(row)
        with record_function("s2vfast: update"):
            if rows is None:
                loss, stop = losses.loss.detach(), self.control[3].float()
                target_var, pred_var, shares = losses.target_var, losses.pred_var, (loss,)
            else:
                loss, target_var, pred_var, stop = self._together(rows)
                shares = rows[:, 0].unbind()
            # Zero times what is not finite is NaN, which spoils the norm, as the last step's norm does if it was not
            # finite; and a norm that is not finite lets nothing through.
            self.optimizer.grad[:1].add_((loss + self.report[1]) * 0.0)
            options = self.options
            norm = self.optimizer.step(
                self.control[0],
                lr=self.control[1],
                beta1=options.beta1,
                beta2=options.beta2,
                eps=options.eps,
                weight_decay=options.weight_decay,
                clip=options.clip,
                tau=self.control[2],
            )
            torch.stack([loss, norm, target_var, pred_var, stop, *shares], out=self.report)

    def _rows(self) -> Tensor | None:
        """[shares, 2 + 4 D], cleared: loss, clips, moments of target and prediction of every share; None for one."""
        if self.shares == 1:
            return None
        beside = self.optimizer.shared[self.optimizer.grad.numel() :].zero_()
        beside[-1:].copy_(self.control[3:])
        return beside[:-1].view(self.shares, -1)

    def _together(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add up gradients and rows over ranks; loss, variances of target and prediction, ranks that want to stop."""
        self.ranks.sum(self.optimizer.shared)
        if self._weighted:
            self.optimizer.grad.div_(rows[:, 1].sum())
        weight = (rows[:, 1] / rows[:, 1].sum())[:, None]  # [shares, 1]
        spread, mean = rows[:, 2:].view(self.shares, 2, 2, -1).unbind(2)  # [shares, (target, prediction), D] each
        shift = mean - (mean * weight[..., None]).sum(0)
        target_var, pred_var = ((spread + shift.square()) * weight[..., None]).sum(0).mean(-1).unbind()
        return (rows[:, 0] * weight[:, 0]).sum(), target_var, pred_var, self.optimizer.shared[-1]


class Captured:
    """A step as CUDA graphs: one for each number of bodies there is room for, captured when it comes again.

    The first time it runs as it is, which compiles its kernels and sets up its libraries. Graphs share their memory,
    as only one of them runs at a time.

    Args:
        step: the step.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self._seen: set[tuple[int | None, ...]] = set()
        self._graphs: dict[tuple[int | None, ...], tuple[torch.cuda.CUDAGraph, list[Part]]] = {}
        self._pool: Any = None

    def __call__(self, parts: list[Part]) -> None:
        """Do a step; the step's `report` holds what came of it."""
        key = tuple(part.bodies.filled if part.bodies else None for part in parts)
        if key not in self._seen:
            self._seen.add(key)
            self.step(parts)
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(parts)
        graph, places = self._graphs[key]
        for place, part in zip(places, parts, strict=True):
            torch._foreach_copy_(list(place.tensors()), list(part.tensors()))
        graph.replay()

    def forget(self) -> None:
        """Let go of all graphs."""
        self._graphs.clear()
        self._pool = None

    def _capture(self, parts: list[Part]) -> tuple[torch.cuda.CUDAGraph, list[Part]]:
        places = [part.mapped(torch.clone) for part in parts]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # Threads that send batches ahead may go on.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self.step(places)
        self._pool = self._pool or graph.pool()
        return graph, places
