"""Multi-head self-attention from packed queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(qkv: Tensor, group: int = 0) -> tuple[Tensor, Tensor]:
    """Softmax attention with scale d ** -0.5, every score written out.

    Args:
        qkv: [N, L, 3, H, d].
        group: so many neighbours do not look at each other; 0: all tokens do.

    Returns:
        The output [N, L, H, d] and the log-sum-exp of the scaled scores [N, H, L] (float32 for half precision).
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, H, L, d]
    scores = (q @ k.transpose(-1, -2)) * qkv.shape[-1] ** -0.5  # [N, H, L, L]
    if group:
        scores = scores.masked_fill(hidden_by_group(qkv.shape[1], group, qkv.device), -torch.inf)
    out = torch.softmax(scores, dim=-1) @ v
    lse = torch.logsumexp(scores if scores.dtype == torch.float64 else scores.float(), dim=-1)
    return out.transpose(1, 2), lse


def hidden_by_group(tokens: int, group: int, device: torch.device) -> Tensor:
    """bool [tokens, tokens]: which tokens (columns) others of their group (rows) do not look at; all see themselves."""
    of = torch.arange(tokens, device=device) // group
    return (of[:, None] == of) & ~torch.eye(tokens, dtype=torch.bool, device=device)
