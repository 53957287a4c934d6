"""Multi-head self-attention from packed qkv. Contract: `s2vfast.reference.attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.attention import attention as _reference


def attention(qkv: Tensor, *, return_lse: bool = False, impl: str | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention with scale d ** -0.5.

    Args:
        qkv: [N, L, 3, H, d].
        return_lse: also return the log-sum-exp of the scaled scores.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, L, H, d]; with ``return_lse`` also [N, H, L] in float32 (float64 for float64 inputs).
    """
    require(qkv.ndim == 5 and qkv.shape[2] == 3, "attention", "qkv", "[N, L, 3, H, d]", qkv)
    out, lse = _op(impl, qkv.device, qkv, return_lse)
    return (out, lse) if return_lse else out


def _run_reference(qkv: Tensor, return_lse: bool) -> tuple[Tensor, Tensor]:
    return _reference(qkv)


def _torch(qkv: Tensor, return_lse: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, H, L, d]
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    lse = None
    if return_lse:  # SDPA keeps its own to itself
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        lse = torch.logsumexp(scores if scores.dtype == torch.float64 else scores.float(), dim=-1)
    return out, lse


_op = register("attention", reference=_run_reference, torch=_torch)
