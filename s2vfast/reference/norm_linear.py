"""Layer norm and the linear map after it."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-6
) -> Tensor:
    """linear(layer_norm(x)): the queries, keys and values of a block, or the decoder's head.

    Args:
        x: [N, L, D], the residual stream.
        norm_weight: [D] of the norm.
        norm_bias: [D] of the norm.
        weight: [E, D].
        bias: [E], or None.
        eps: added to the variance.

    Returns:
        [N, L, E].
    """
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    normed = (x - mean) / torch.sqrt(variance + eps) * norm_weight + norm_bias
    out = normed @ weight.t()
    return out if bias is None else out + bias
