"""Graph attention: joints of a frame attend to one another, and a shared topology weighs what they attend to.

InfoGCN (Chi et al., CVPR 2022), section 4.2. There are no values: what is mixed are the channels themselves, and every
head has a linear map of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def graph_attention(
    x: Tensor,
    qk_weight: Tensor,
    qk_bias: Tensor,
    topology: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-5,
) -> Tensor:
    """out[f, i] = bias + sum over heads h of W_h (sum over joints j of topology[h, i, j] * map[f, h, i, j] * x[f, j]).

    map[f, h, i] is the softmax over j of q[f, i, h] k[f, j, h] / sqrt(d), of queries and keys that are linear maps of
    the channels of x without their mean and divided by their deviation.

    Args:
        x: [F, V, C], joints of frames.
        qk_weight: [2, H, d, C], of queries and of keys.
        qk_bias: [2, H, d].
        topology: [H, V, V], not normalised.
        weight: [H, E, C].
        bias: [E], or None.
        eps: added to the variance of a joint's channels.

    Returns:
        [F, V, E].
    """
    normed = torch.nn.functional.layer_norm(x, x.shape[2:], eps=eps)
    qk = torch.einsum("fvc,phdc->fvphd", normed, qk_weight) + qk_bias
    maps = attention_maps(qk) * topology  # [F, H, V, V]
    mixed = torch.einsum("fhij,fjc->fhic", maps, x)
    out = torch.einsum("fhic,hec->fie", mixed, weight)
    return out if bias is None else out + bias


def attention_maps(qk: Tensor) -> Tensor:
    """softmax over j of q_i k_j / sqrt(d): [F, H, V, V] of qk [F, V, 2, H, d]."""
    q, k = qk.unbind(2)
    scores = torch.einsum("fihd,fjhd->fhij", q, k) * qk.shape[-1] ** -0.5
    return torch.softmax(scores, -1)
