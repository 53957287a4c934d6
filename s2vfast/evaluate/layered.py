"""AdamW with a learning rate for every layer, over the flat buffers of `s2vfast.train.optim.FlatAdamW`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from s2vfast import ops
from s2vfast.evaluate.finetune_config import FinetuneConfig
from s2vfast.nn import Encoder
from s2vfast.train.optim import FlatAdamW


def layer_of(name: str, depth: int) -> int:
    """0: the embedding; i + 1: block i; depth + 1: final norm and head."""
    parts = name.split(".")
    if parts[0] == "encoder" and parts[1] == "embedding":
        return 0
    if parts[0] == "encoder" and parts[1] == "blocks":
        return int(parts[2]) + 1
    return depth + 1


class LayeredAdamW:
    """One step for all parameters: clip by the global norm, then AdamW, layer by layer.

    Args:
        encoder: the part whose layers learn the more slowly the lower they are.
        head: learns at the full rate.
        options: rates and decays.
        operands: dtype of the matrices as the network sees them.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, options: FinetuneConfig, operands: torch.dtype) -> None:
        self.options = options
        # The average that pretraining keeps has no use here: it is left where it is.
        self.flat = FlatAdamW(encoder, [head], copy.deepcopy(encoder), operands=operands)
        depth = len(encoder.blocks)
        flat, size = self.flat, self.flat.param.numel()
        self.layers: list[tuple[slice, list[ops.Span], float]] = []
        """(stretch of the buffers, its spans, factor of the learning rate), ascending."""
        starts = [start for start, _ in flat.places]
        numbers = [layer_of(name, depth) for name in flat.names]
        first = [i for i in range(len(numbers)) if i == 0 or numbers[i] != numbers[i - 1]]
        for i, after in zip(first, [*first[1:], None], strict=True):
            start, stop = starts[i], size if after is None else starts[after]
            inside = [
                ops.Span(max(span.start, start) - start, min(span.stop, stop) - start, span.decay)
                for span in flat.spans
                if span.start < stop and span.stop > start
            ]
            self.layers.append((slice(start, stop), inside, options.layer_decay ** (depth + 1 - numbers[i])))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What gradients are taken of."""
        return self.flat.parameters

    def collect(self, gradients: list[Tensor]) -> Tensor:
        """Put gradients of `parameters` into the flat buffer, which is returned: what ranks add up."""
        self.flat.collect(gradients, add=False)
        return self.flat.shared

    def step(self, number: int, lr: float) -> Tensor:
        """Update all parameters, ``number`` 1 being the first; returns the gradient's global norm before clipping.

        A norm that is not finite changes nothing.
        """
        flat, options = self.flat, self.options
        norm = torch.linalg.vector_norm(flat.grad)
        factor = (options.clip / (norm + 1e-6)).clamp(max=1.0) if options.clip else torch.ones_like(norm)
        # Not a number where the norm is none, which every layer's own norm then is too.
        flat.grad.mul_(factor + 0.0 * norm)
        none = flat.param[:0]
        for where, spans, scale in self.layers:
            ops.adamw_ema(
                flat.param[where],
                flat.grad[where],
                flat.exp_avg[where],
                flat.exp_avg_sq[where],
                none,
                spans,
                step=number,
                lr=lr * scale,
                beta1=options.beta1,
                beta2=options.beta2,
                eps=options.eps,
                weight_decay=options.weight_decay,
                clip=0.0,
                tau=1.0,
            )
        flat.refresh()
        return norm

    def weights(self) -> dict[str, Tensor]:
        """float32 parameters by name: views."""
        prefix = "student."
        return {name.removeprefix(prefix): t for name, t in self.flat.weights().items() if name.startswith(prefix)}

    def moments(self) -> dict[str, Tensor]:
        """Moments by parameter name: views."""
        return self.flat.moments()
