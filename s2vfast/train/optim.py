"""Parameters, gradients and moments as a few flat buffers, and one step over them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2vfast import ops

# Parameters start at multiples of 64 bytes, as PyTorch's own allocations do: the results of matrix products may
# depend on the alignment of their operands.
_ALIGN = 16


class FlatAdamW:
    """AdamW and the teacher's EMA over one flat float32 buffer.

    The parameters of ``student`` and ``teacher`` become views of the buffers. Those of the student's first module come
    first and in the teacher's order, so that the teacher is the average of a prefix. Matrices of linear maps decay;
    biases, norms, embeddings, LayerScale and the mask token do not.

    Args:
        encoder: the part of the student that the teacher follows.
        rest: the student's other parts.
        teacher: same structure as ``encoder``.
    """

    def __init__(self, encoder: nn.Module, rest: list[nn.Module], teacher: nn.Module) -> None:
        self.names: list[str] = []
        self.places: list[tuple[int, int]] = []
        parameters: list[Tensor] = []
        decays: list[bool] = []
        for label, module in [("encoder.", encoder), *((f"{_label(part)}.", part) for part in rest)]:
            for name, parameter in module.named_parameters():
                self.names.append(label + name)
                parameters.append(parameter)
                decays.append(parameter.ndim == 2 and name.endswith("weight"))
        offset = 0
        for parameter in parameters:
            self.places.append((offset, parameter.numel()))
            offset += -(-parameter.numel() // _ALIGN) * _ALIGN
        self.shapes = [p.shape for p in parameters]
        count = len(list(encoder.parameters()))
        teacher_size = self.places[count][0] if count < len(self.places) else offset

        device = parameters[0].device
        self.param = torch.zeros(offset, device=device)
        self.grad = torch.zeros_like(self.param)
        self.exp_avg = torch.zeros_like(self.param)
        self.exp_avg_sq = torch.zeros_like(self.param)
        self.teacher = torch.zeros(teacher_size, device=device)
        for parameter, part in zip(parameters, self._views(self.param), strict=True):
            part.copy_(parameter.data)
            parameter.data = part
        for parameter, part in zip(parameters, self._views(self.grad), strict=True):
            parameter.grad = part
        for parameter, part in zip(teacher.parameters(), self._views(self.teacher), strict=False):
            part.copy_(parameter.data)
            parameter.data = part
        self.spans = self._spans(decays, offset)

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

    def zero_grad(self) -> None:
        """Gradients back to zero, in place: the views stay."""
        self.grad.zero_()

    def step(self, number: int, **options: float) -> Tensor:
        """One update, the first being number 1; see `s2vfast.ops.adamw_ema` for the options and the returned norm."""
        return ops.adamw_ema(
            self.param,
            self.grad,
            self.exp_avg,
            self.exp_avg_sq,
            self.teacher,
            self.spans,
            step=number,
            **options,
        )

    def state(self) -> dict[str, Tensor]:
        """Moments by parameter name, without the padding."""
        out = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            for name, view in zip(self.names, self._views(getattr(self, kind)), strict=True):
                out[f"{kind}.{name}"] = view
        return out


def _label(module: nn.Module) -> str:
    return type(module).__name__.lower()
