"""Moving averages of networks: the one rule, and a class for training loops of one's own."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from s2vfast.errors import ConfigError


@torch.no_grad()
def follow(pairs: Iterable[tuple[Tensor, Tensor]], tau: float | Tensor) -> None:
    """average = tau * average + (1 - tau) * followed, in place; tensors of whole numbers (counters) are copied.

    Args:
        pairs: (average, followed) of one shape.
        tau: decay, a number or a scalar on the device.
    """
    for average, followed in pairs:
        if average.is_floating_point():
            average.mul_(tau).add_(followed * (1.0 - tau))
        else:
            average.copy_(followed)


class EMA:
    """A module that follows another as a moving average of its parameters and buffers.

    `s2vfast.Trainer` needs none: its optimizer averages in the same pass as it updates. This is for loops with an
    optimizer of one's own:

        ema = EMA(objective.encoder, objective.teacher)
        optimizer.step()
        ema.update(objective.ema_decay(step, total_steps))

    Args:
        module: what is followed, such as a student.
        average: what follows, a module of the same parameters and buffers; None: a copy of ``module`` in evaluation
            mode. Its parameters get no gradient from here on.

    Raises:
        ConfigError: parameters or buffers of other names or shapes.
    """

    def __init__(self, module: nn.Module, average: nn.Module | None = None) -> None:
        self.average: nn.Module = copy.deepcopy(module).eval() if average is None else average
        """What follows."""
        self.average.requires_grad_(False)
        self._followed, own = module.state_dict(keep_vars=True), self.average.state_dict(keep_vars=True)
        for name in [*self._followed, *own]:
            shapes = [list(side[name].shape) if name in side else None for side in (self._followed, own)]
            if shapes[0] != shapes[1]:
                raise ConfigError(
                    f"EMA: {name} is {_shape(shapes[0])} in the module and {_shape(shapes[1])} in its average"
                )
        self._averaged = own

    def update(self, tau: float | Tensor) -> None:
        """After a step of the optimizer: tau of the average stays, 1 - tau comes from the module.

        Args:
            tau: decay in [0, 1].
        """
        follow(((average, self._followed[name]) for name, average in self._averaged.items()), tau)


def _shape(shape: list[int] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"
