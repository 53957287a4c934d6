"""The feed-forward branch: linear, exact GELU, linear."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """fc2(gelu(fc1(x))) with GELU(h) = h * (1 + erf(h / sqrt 2)) / 2.

    Args:
        x: [N, L, D].
        weight1: [E, D].
        bias1: [E].
        weight2: [D, E].
        bias2: [D].
        norm_weight: [D] of a layer norm before fc1: the whole residual branch, x + gamma * mlp(layer_norm(x)), with x
            the residual stream. None: the branch alone, of x as it is.
        norm_bias: [D] of that norm.
        gamma: [D], LayerScale of the branch; None adds it as it is.
        eps: added to the variance.

    Returns:
        [N, L, D].
    """
    rows = x
    if norm_weight is not None:
        mean = x.mean(dim=-1, keepdim=True)
        variance = (x - mean).square().mean(dim=-1, keepdim=True)
        rows = (x - mean) / torch.sqrt(variance + eps) * norm_weight + norm_bias
    hidden = rows @ weight1.t() + bias1  # [N, L, E]
    hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
    branch = hidden @ weight2.t() + bias2
    if norm_weight is None:
        return branch
    return x + (branch if gamma is None else gamma * branch)
