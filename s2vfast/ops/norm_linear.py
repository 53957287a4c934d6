"""Layer norm and the linear map after it. Contract: `s2vfast.reference.norm_linear`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.norm_linear import norm_linear as _reference


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-6,
    *,
    impl: str | None = None,
) -> Tensor:
    """linear(layer_norm(x)): the queries, keys and values of a block, or the decoder's head.

    Args:
        x: [N, L, D], the residual stream, float32 whatever the operands are.
        norm_weight: [D] of the norm.
        norm_bias: [D] of the norm.
        weight: [E, D]; its dtype is that of the matrix operands and of the result.
        bias: [E], or None.
        eps: added to the variance.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, L, E] in the dtype of ``weight``.
    """
    D = x.shape[-1]
    require(x.ndim == 3, "norm_linear", "x", "[N, L, D]", x)
    require(norm_weight.shape == (D,), "norm_linear", "norm_weight", f"[{D}]", norm_weight)
    require(norm_bias.shape == (D,), "norm_linear", "norm_bias", f"[{D}]", norm_bias)
    require(weight.ndim == 2 and weight.shape[1] == D, "norm_linear", "weight", f"[E, {D}]", weight)
    E = weight.shape[0]
    require(bias is None or bias.shape == (E,), "norm_linear", "bias", f"[{E}]", bias)
    return _op(impl, x.device, x, norm_weight, norm_bias, weight, bias, eps)


def _torch(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    normed = F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, eps).to(weight.dtype)
    return F.linear(normed, weight, None if bias is None else bias.to(weight.dtype))


_op = register("norm_linear", reference=_reference, torch=_torch)
