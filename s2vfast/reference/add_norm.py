"""The seam between two branches of a pre-norm block: LayerScale, residual addition, layer norm."""

from __future__ import annotations

import torch
from torch import Tensor


def add_norm(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-6,
    *,
    projection: Tensor | None = None,
    projection_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """residual + gamma * branch, and its layer norm.

    Args:
        residual: [N, L, D], the residual stream.
        branch: [N, L, D], output of the last branch; None at the start of the stream. With ``projection``
            [N, L, E], of which branch @ projection^T + projection_bias takes the place.
        gamma: [D], LayerScale of that branch; None adds it as it is.
        weight: [D] of the norm; None: no norm is wanted.
        bias: [D] of the norm.
        eps: added to the variance.
        projection: [D, E], the linear map that ends the branch; None: it has been applied.
        projection_bias: [D], or None.

    Returns:
        The new residual stream and its norm (None where none is wanted), both [N, L, D].
    """
    if projection is not None:
        branch = branch @ projection.t()
        branch = branch if projection_bias is None else branch + projection_bias
    if branch is not None:
        residual = residual + (branch if gamma is None else gamma * branch)
    if weight is None:
        return residual, None
    mean = residual.mean(dim=-1, keepdim=True)
    variance = (residual - mean).square().mean(dim=-1, keepdim=True)
    return residual, (residual - mean) / torch.sqrt(variance + eps) * weight + bias
