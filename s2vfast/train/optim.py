"""Parameters, gradients and moments as a few flat buffers, and one step over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2vfast import ops

# Parameters start at multiples of 64 bytes, as PyTorch's own allocations do: the results of matrix products may
# depend on the alignment of their operands. (32 bytes where the operands are bfloat16: still whole vector loads.)
_ALIGN = 16


class FlatAdamW:
    """AdamW and, where there is a teacher, its EMA, over one flat float32 buffer.

    The parameters of ``student`` and ``teacher`` become views of the buffers. Those of the student's first module come
    first and in the teacher's order, so that the teacher is the average of a prefix. Matrices of linear maps decay;
    biases, norms, embeddings, LayerScale and the mask token do not.

    Args:
        encoder: the part of the student that the teacher follows.
        rest: the student's other parts.
        teacher: same structure as ``encoder``; None: there is none.
        operands: dtype of the matrices of `torch.nn.Linear` modules as the network sees them. Where it is not float32
            these are copies of the float32 parameters, renewed after each step.
        room: numbers beside the gradients in the buffer that ranks add up (see `shared`).
    """

    def __init__(
        self,
        encoder: nn.Module,
        rest: list[nn.Module],
        teacher: nn.Module | None,
        operands: torch.dtype = torch.float32,
        room: int = 0,
    ) -> None:
        self.names: list[str] = []
        self.places: list[tuple[int, int]] = []
        self.parameters: list[nn.Parameter] = []
        """What the network computes with, and what gradients are taken of."""
        decays: list[bool] = []
        matrices: set[int] = set()
        for label, module in [("encoder.", encoder), *((f"{_label(part)}.", part) for part in rest)]:
            matrices |= _matrices(module)
            for name, parameter in module.named_parameters():
                self.names.append(label + name)
                self.parameters.append(parameter)
                decays.append(parameter.ndim == 2 and name.endswith("weight"))
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(
                f"{twice[0]}: two parameters of this name, one of which no checkpoint would hold; modules beside the "
                f"encoder are named by their classes: put two of one class into one module"
            )
        size = 0
        for parameter in self.parameters:
            self.places.append((size, parameter.numel()))
            size += -(-parameter.numel() // _ALIGN) * _ALIGN
        self.shapes = [p.shape for p in self.parameters]
        count = len(list(encoder.parameters()))
        followed = {} if teacher is None else dict(teacher.named_parameters())
        self._teacher_names = list(followed)
        teacher_size = 0
        if teacher is not None:
            teacher_size = self.places[count][0] if count < len(self.places) else size
            matrices |= _matrices(teacher)

        device = self.parameters[0].device
        # Student and teacher in one allocation, so that one copy makes the operands of both.
        self._all = torch.zeros(size + teacher_size, device=device)
        self.param, self.teacher = self._all[:size], self._all[size:]
        self.shared = torch.zeros(size + room, device=device)
        """[P + room]: the gradients, and what else ranks add up along with them."""
        self.grad = self.shared[:size]
        self.exp_avg = torch.zeros(size, device=device)
        self.exp_avg_sq = torch.zeros(size, device=device)
        self._operands = None if operands == torch.float32 else torch.zeros_like(self._all, dtype=operands)
        for flat, low, parameters in (
            (self.param, self._low(0, size), self.parameters),
            (self.teacher, self._low(size, size + teacher_size), list(followed.values())),
        ):
            views = self._views(flat)
            lows = views if low is None else self._views(low)
            for parameter, view, other in zip(parameters, views, lows, strict=True):
                view.copy_(parameter.data)
                parameter.data = other if id(parameter) in matrices else view
        self._gradients = self._views(self.grad)
        self.spans = self._spans(decays, size)
        self.refresh()

    def _low(self, start: int, stop: int) -> Tensor | None:
        return None if self._operands is None else self._operands[start:stop]

    def _views(self, buffer: Tensor) -> list[Tensor]:
        return [
            buffer[start : start + size].view(shape)
            for (start, size), shape in zip(self.places, self.shapes, strict=True)
            if start + size <= buffer.numel()
        ]

    def _spans(self, decays: list[bool], end: int) -> list[ops.Span]:
        """Neighbours that decay alike as one stretch; the padding belongs to the parameter before it."""
        spans: list[ops.Span] = []
        stops = [start for start, _ in self.places[1:]] + [end]
        for (start, _), stop, decay in zip(self.places, stops, decays, strict=True):
            if spans and spans[-1].decay == decay:
                start = spans.pop().start
            spans.append(ops.Span(start, stop, decay))
        return spans

    def collect(self, gradients: list[Tensor], add: bool) -> None:
        """Put the gradients of `parameters` into the flat buffer, or add them to what is there."""
        for dtype in sorted({gradient.dtype for gradient in gradients}, key=str):
            # PyTorch copies lists at once where all of them are of one dtype.
            chosen = [i for i, gradient in enumerate(gradients) if gradient.dtype == dtype]
            mine, theirs = [self._gradients[i] for i in chosen], [gradients[i] for i in chosen]
            if add:
                torch._foreach_add_(mine, [gradient.to(torch.float32) for gradient in theirs])
            else:
                torch._foreach_copy_(mine, theirs)

    def refresh(self) -> None:
        """Renew the operands from the float32 parameters, after these have changed."""
        if self._operands is not None:
            self._operands.copy_(self._all)

    def step(self, number: int | Tensor, **options: float | Tensor) -> Tensor:
        """One update, the first being number 1; see `s2vfast.ops.adamw_ema` for the options and the returned norm."""
        norm = ops.adamw_ema(
            self.param,
            self.grad,
            self.exp_avg,
            self.exp_avg_sq,
            self.teacher,
            self.spans,
            step=number,
            **options,
        )
        self.refresh()
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The float32 parameters of student and teacher by name: views."""
        student = zip(self.names, self._views(self.param), strict=True)
        teacher = zip(self._teacher_names, self._views(self.teacher), strict=True)
        return {f"student.{k}": v for k, v in student} | {f"teacher.{k}": v for k, v in teacher}

    def moments(self) -> dict[str, Tensor]:
        """Moments by parameter name, without the padding: views."""
        out = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            for name, view in zip(self.names, self._views(getattr(self, kind)), strict=True):
                out[f"{kind}.{name}"] = view
        return out

    def buffers(self) -> list[Tensor]:
        """All that a step changes, flat."""
        return [self._all, self.exp_avg, self.exp_avg_sq]


def _matrices(module: nn.Module) -> set[int]:
    """The weights of linear maps; the token embedding, whose few columns gain nothing by it, is none of them."""
    return {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}


def _label(module: nn.Module) -> str:
    return type(module).__name__.lower()
