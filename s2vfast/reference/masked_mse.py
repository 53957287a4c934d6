"""The loss: mean squared error at the masked tokens."""

from __future__ import annotations

from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over all numbers of the squared difference.

    Args:
        prediction: [N, U, D], at the masked tokens.
        target: [N, U, D].

    Returns:
        A scalar.
    """
    return (prediction - target).square().mean()
