"""The feed-forward branch: linear, exact GELU, linear."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """fc2(gelu(fc1(x))) with GELU(h) = h * (1 + erf(h / sqrt 2)) / 2.

    Args:
        x: [N, L, D].
        weight1: [E, D].
        bias1: [E].
        weight2: [D, E].
        bias2: [D].

    Returns:
        [N, L, D].
    """
    hidden = x @ weight1.t() + bias1  # [N, L, E]
    hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
    return hidden @ weight2.t() + bias2
