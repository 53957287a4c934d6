"""Multi-head self-attention from packed queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention with scale d ** -0.5, every score written out.

    Args:
        qkv: [N, L, 3, H, d].

    Returns:
        The output [N, L, H, d] and the log-sum-exp of the scaled scores [N, H, L] (float32 for half precision).
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, H, L, d]
    scores = (q @ k.transpose(-1, -2)) * qkv.shape[-1] ** -0.5  # [N, H, L, L]
    out = torch.softmax(scores, dim=-1) @ v
    lse = torch.logsumexp(scores if scores.dtype == torch.float64 else scores.float(), dim=-1)
    return out.transpose(1, 2), lse
