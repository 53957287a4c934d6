"""Parameters, gradients and moments as a few flat buffers, a step over them, and the other buffers that it changes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.config import OptimConfig
from s2vfast.networks.base import operand_weights
from s2vfast.objectives.base import Objective
from s2vfast.ops.adamw_ema import global_norm
from s2vfast.train.ema import follow

# Parameters start at multiples of 64 bytes, as PyTorch's own allocations do: the results of matrix products may
# depend on the alignment of their operands. (32 bytes where the operands are bfloat16: still whole vector loads.)
_ALIGN = 16


class FlatOptimizer:
    """An update rule and the moving averages that an objective keeps, over one flat float32 buffer.

    The parameters of the objective become views of the buffers. Those of modules that averages follow come first and
    in the averages' order, so that the averages are those of a prefix. Which parameters decay, and which layer they are
    of, is the objective's to say.

    Args:
        objective: the modules.
        operands: dtype of the weights that modules offer as operands (`s2vfast.networks.base.operand_weights`). Where
            it is not float32 these are copies of the float32 parameters, renewed after each step.
        extra_numel: numbers after the gradients in the buffer that ranks add up (see `shared`).
        layer_decay: factor of the learning rate from a layer to the one below it.
        decay_all: whether weight decay acts on every parameter.
    """

    MOMENTS: ClassVar[tuple[str, ...]]
    """Names of what the rule remembers of past gradients, a number for each parameter."""

    OPTIONS: ClassVar[tuple[str, ...]]
    """What the rule takes of optim, beside the rate, weight decay and clipping."""

    def __init__(
        self,
        objective: Objective,
        operands: torch.dtype = torch.float32,
        extra_numel: int = 0,
        layer_decay: float = 1.0,
        decay_all: bool = False,
    ) -> None:
        self._collect_parameters(objective)
        size = 0
        self.offsets: list[tuple[int, int]] = []
        """Start and size of each parameter."""
        for parameter in self.parameters:
            self.offsets.append((size, parameter.numel()))
            size += -(-parameter.numel() // _ALIGN) * _ALIGN
        self.shapes = [p.shape for p in self.parameters]
        count = len(self._averages)
        average_size = 0 if not count else self.offsets[count][0] if count < len(self.offsets) else size

        device = self.parameters[0].device
        # Parameters and averages in one allocation, so that one copy makes the operands of both.
        self._all = torch.zeros(size + average_size, device=device)
        self.param, self.average = self._all[:size], self._all[size:]
        self.shared = torch.zeros(size + extra_numel, device=device)
        """[P + extra_numel]: the gradients, and what else ranks add up along with them."""
        self.grad = self.shared[:size]
        self.moment_buffers = [torch.zeros(size, device=device) for _ in self.MOMENTS]
        self._operands = None if operands == torch.float32 else torch.zeros_like(self._all, dtype=operands)
        operand_ids = {id(parameter) for parameter in operand_weights(objective)}
        for flat, low, parameters in (
            (self.param, self._low(0, size), self.parameters),
            (self.average, self._low(size, size + average_size), list(self._averages.values())),
        ):
            views = self._views(flat)
            lows = views if low is None else self._views(low)
            for parameter, view, narrow in zip(parameters, views, lows, strict=True):
                view.copy_(parameter.data)
                parameter.data = narrow if id(parameter) in operand_ids else view
        self._gradients = self._views(self.grad)
        decays = [
            decay_all or objective.decays(name, parameter)
            for name, parameter in zip(self.names, self.parameters, strict=True)
        ]
        self.spans = self._spans(decays, size)
        self.groups = self._groups(objective, layer_decay, size)
        self.buffers = FlatBuffers(objective)
        self.refresh()

    def _collect_parameters(self, objective: Objective) -> None:
        """Names and parameters: those that averages follow, then the others."""
        parameters = dict(objective.named_parameters())
        trained = {name: p for name, p in parameters.items() if name.partition(".")[0] not in objective.averages}
        self._averages: dict[str, nn.Parameter] = {}
        self.names: list[str] = []
        """Of the trained parameters, from the objective."""
        for average, followed in objective.averages.items():
            for name, _ in getattr(objective, followed).named_parameters():
                self._averages[f"{average}.{name}"] = parameters[f"{average}.{name}"]
                self.names.append(f"{followed}.{name}")
        if len(set(self.names)) < len(self.names):
            raise ValueError("two averages of one module; only one is kept")
        self.names += [name for name in trained if name not in set(self.names)]
        self.parameters: list[nn.Parameter] = [trained[name] for name in self.names]
        """What the network computes with, and what gradients are taken of."""

    def _low(self, start: int, stop: int) -> Tensor | None:
        return None if self._operands is None else self._operands[start:stop]

    def _views(self, buffer: Tensor) -> list[Tensor]:
        return [
            buffer[start : start + size].view(shape)
            for (start, size), shape in zip(self.offsets, self.shapes, strict=True)
            if start + size <= buffer.numel()
        ]

    def _spans(self, decays: list[bool], end: int) -> list[ops.Span]:
        """Neighbours that decay alike as one stretch; the padding belongs to the parameter before it."""
        spans: list[ops.Span] = []
        stops = [start for start, _ in self.offsets[1:]] + [end]
        for (start, _), stop, decay in zip(self.offsets, stops, decays, strict=True):
            if spans and spans[-1].decay == decay:
                start = spans.pop().start
            spans.append(ops.Span(start, stop, decay))
        return spans

    def _groups(self, objective: Objective, layer_decay: float, end: int) -> list[tuple[slice, list[ops.Span], float]]:
        """(stretch of the buffers, its spans, factor of the learning rate), ascending; empty where all learn alike."""
        if layer_decay == 1.0:
            return []
        top = objective.encoder.depth + 1
        layers = [objective.layer_of(name) for name in self.names]
        first = [i for i in range(len(layers)) if i == 0 or layers[i] != layers[i - 1]]
        groups = []
        for i, after in zip(first, [*first[1:], None], strict=True):
            start, stop = self.offsets[i][0], end if after is None else self.offsets[after][0]
            inside = [
                ops.Span(max(span.start, start) - start, min(span.stop, stop) - start, span.decay)
                for span in self.spans
                if span.start < stop and span.stop > start
            ]
            groups.append((slice(start, stop), inside, layer_decay ** (top - layers[i])))
        return groups

    def collect(self, gradients: list[Tensor], add: bool) -> None:
        """Put the gradients of `parameters` into the flat buffer, or add them to what is there."""
        for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
            # PyTorch copies lists at once where all of them are of one dtype.
            indices = [i for i, gradient in enumerate(gradients) if gradient.dtype == dtype]
            flat, new = [self._gradients[i] for i in indices], [gradients[i] for i in indices]
            if add:
                torch._foreach_add_(flat, [gradient.to(torch.float32) for gradient in new])
            else:
                torch._foreach_copy_(flat, new)

    def refresh(self) -> None:
        """Renew the operands from the float32 parameters, after these have changed."""
        if self._operands is not None:
            self._operands.copy_(self._all)

    def step(
        self, number: int | Tensor, *, lr: float | Tensor, tau: float | Tensor, clip: float, **options: float
    ) -> Tensor:
        """One update, the first being number 1.

        Args:
            number: of the step.
            lr: learning rate.
            tau: decay of the averages.
            clip: largest global norm of the gradient; 0 for none.
            options: of the rule, see `options_of`.

        Returns:
            The gradient's global norm before clipping. One that is not finite changes nothing.
        """
        if self.groups:
            norm = self._step_by_layer(number, lr, clip, options)
        else:
            norm = self._update(slice(None), self.spans, self.average, number, lr=lr, tau=tau, clip=clip, **options)
        self.buffers.finish(norm, tau)
        self.refresh()
        return norm

    def _step_by_layer(
        self, number: int | Tensor, lr: float | Tensor, clip: float, options: dict[str, float]
    ) -> Tensor:
        if self._averages:
            raise ValueError("averages and optim.layer_decay: not together")
        norm = torch.linalg.vector_norm(self.grad)
        factor = (clip / (norm + 1e-6)).clamp(max=1.0) if clip else torch.ones_like(norm)
        # Not a number where the norm is none, which every layer's own norm then is too.
        self.grad.mul_(factor + 0.0 * norm)
        for where, spans, scale in self.groups:
            self._update(where, spans, self.param[:0], number, lr=lr * scale, tau=1.0, clip=0.0, **options)
        return norm

    def options_of(self, config: OptimConfig) -> dict[str, float]:
        """What `step` takes of a config."""
        return {name: getattr(config, name) for name in ("weight_decay", "clip", *self.OPTIONS)}

    def _update(
        self,
        where: slice,
        spans: list[ops.Span],
        average: Tensor,
        number: int | Tensor,
        *,
        lr: float | Tensor,
        tau: float | Tensor,
        clip: float,
        **options: float,
    ) -> Tensor:
        """`step` on a stretch of the buffers, whose first part ``average`` follows."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """The float32 parameters and buffers by name: views. Trained ones begin with ``student.``."""
        trained = zip(self.names, self._views(self.param), strict=True)
        averages = zip(self._averages, self._views(self.average), strict=True)
        return {f"student.{name}": view for name, view in trained} | dict(averages) | self.buffers.named

    def moments(self) -> dict[str, Tensor]:
        """Moments by parameter name, without the padding: views."""
        out = {}
        for kind, moment in zip(self.MOMENTS, self.moment_buffers, strict=True):
            for name, view in zip(self.names, self._views(moment), strict=True):
                out[f"{kind}.{name}"] = view
        return out

    def state_buffers(self) -> list[Tensor]:
        """All that a step changes, flat."""
        return [self._all, *self.moment_buffers, *self.buffers.flat]


class FlatAdamW(FlatOptimizer):
    """AdamW, as `s2vfast.ops.adamw_ema`."""

    MOMENTS = ("exp_avg", "exp_avg_sq")
    OPTIONS = ("beta1", "beta2", "eps")

    def _update(self, where, spans, average, number, **options) -> Tensor:
        moments = [moment[where] for moment in self.moment_buffers]
        return ops.adamw_ema(self.param[where], self.grad[where], *moments, average, spans, step=number, **options)


class FlatSGD(FlatOptimizer):
    """SGD with momentum: that of `torch.optim.SGD`, its weight decay added to the gradient.

    A handful of passes over the buffers: the networks that are trained by it have few parameters for their work.
    """

    MOMENTS = ("momentum_buffer",)
    OPTIONS = ("momentum", "nesterov")

    def _update(self, where, spans, average, number, *, lr, tau, clip, momentum, nesterov, weight_decay) -> Tensor:
        param, grad, velocity = self.param[where], self.grad[where], self.moment_buffers[0][where]
        norm = global_norm(grad)
        # No question to the host: where the norm is not finite, everything is multiplied by one or added zero times.
        finite = torch.isfinite(norm)
        if clip:
            grad.mul_((clip / (norm + 1e-6)).clamp_(max=1.0))
        if weight_decay:
            for span in spans:
                if span.decay:
                    grad[span.start : span.stop].add_(param[span.start : span.stop], alpha=weight_decay)
        grad.masked_fill_(~finite, 0.0)
        velocity.mul_(torch.where(finite, momentum, 1.0)).add_(grad)
        rate = torch.where(finite, lr, 0.0).to(param.dtype)
        param.sub_((grad + momentum * velocity if nesterov else velocity) * rate)
        average.lerp_(param[: average.numel()], torch.where(finite, 1.0 - tau, 0.0).to(param.dtype))
        return norm


OPTIMIZERS: dict[str, type[FlatOptimizer]] = {"adamw": FlatAdamW, "sgd": FlatSGD}
"""By optim.name."""


class FlatBuffers:
    """The persistent buffers of an objective, one flat tensor a dtype: running statistics, a queue, counters.

    Args:
        objective: its buffers become views of the flat tensors.
    """

    def __init__(self, objective: Objective) -> None:
        owners: dict[str, tuple[nn.Module, str]] = {}
        for prefix, module in objective.named_modules():
            for name in module._buffers:
                if module._buffers[name] is not None and name not in module._non_persistent_buffers_set:
                    owners[f"{prefix}.{name}" if prefix else name] = (module, name)
        self.flat: list[Tensor] = []
        """One a dtype."""
        self.named: dict[str, Tensor] = {}
        """Views by the names that a checkpoint has for them."""
        by_dtype: dict[torch.dtype, list[str]] = {}
        for path, (module, name) in owners.items():
            by_dtype.setdefault(module._buffers[name].dtype, []).append(path)
        for dtype, paths in by_dtype.items():
            tensors = [owners[path][0]._buffers[owners[path][1]] for path in paths]
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(dtype)
            self.flat.append(flat)
            for path, tensor, view in zip(paths, tensors, flat.split([t.numel() for t in tensors]), strict=True):
                module, name = owners[path]
                # .data: with a version counter of its own, or a layer's update would spoil what another keeps for its
                # gradient.
                module._buffers[name] = view.view(tensor.shape).data
                trained = path.partition(".")[0] not in objective.averages
                self.named[f"student.{path}" if trained else path] = module._buffers[name]
        self._before = [torch.empty_like(flat) for flat in self.flat]
        self._pairs: list[tuple[Tensor, Tensor]] = []
        if objective.average_buffers:
            for average, followed in objective.averages.items():
                for name in self.named:
                    if name.startswith(f"{average}."):
                        source = self.named[f"student.{followed}.{name.removeprefix(f'{average}.')}"]
                        self._pairs.append((self.named[name], source))

    def begin(self) -> None:
        """Remember what there is before a step."""
        if self.flat:
            torch._foreach_copy_(self._before, self.flat)

    def finish(self, norm: Tensor, tau: float | Tensor) -> None:
        """After a step: averages follow; where the gradient's norm was not finite, all is as it was before."""
        if not self.flat:
            return
        follow(self._pairs, tau)
        finite = torch.isfinite(norm)
        for flat, before in zip(self.flat, self._before, strict=True):
            flat.copy_(torch.where(finite, flat, before))
