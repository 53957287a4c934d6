"""Which sequences make which batch: a function of (seed, epoch, sample id) alone."""

from __future__ import annotations

import torch
from torch import Tensor

from s2vfast.reference import philox


class Order:
    """Batches of equal size: the last one of an epoch is filled up from the epoch's beginning.

    So shapes are static, and an epoch has as many steps as published.

    Args:
        ids: int64 [n], the training sequences.
        batch: sequences a step, at most n.
        seed: seed of the shuffles.
    """

    def __init__(self, ids: Tensor, batch: int, seed: int) -> None:
        self.ids, self.batch, self.seed = ids, batch, seed
        self.steps_per_epoch = -(-len(ids) // batch)
        self._last = (-1, ids)  # one attribute, so that another thread never sees half of a change

    def epoch(self, step: int) -> int:
        """The epoch that step belongs to."""
        return step // self.steps_per_epoch

    def sample_ids(self, step: int) -> Tensor:
        """int64 [batch], the sequences of a step."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        shuffled_epoch, shuffled = self._last
        if epoch != shuffled_epoch:
            shuffled = shuffle(self.ids, self.seed, epoch)
            self._last = (epoch, shuffled)
        positions = torch.arange(step_in_epoch * self.batch, (step_in_epoch + 1) * self.batch) % len(self.ids)
        return shuffled[positions]


def shuffle(ids: Tensor, seed: int, epoch: int) -> Tensor:
    """The ids in the order of their draws; a sample's draw does not depend on the others."""
    draws = philox.random_bits(seed, epoch, ids, philox.ORDER, 2)
    keys = (draws[:, 0] << 31) | (draws[:, 1] >> 1)  # 63 bits, non-negative
    return ids[torch.argsort(keys, stable=True)]
