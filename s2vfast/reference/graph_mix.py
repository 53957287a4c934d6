"""Joints mixed along a graph's edges, the spatial part of ST-GCN before its linear maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def graph_mix(x: Tensor, graph: Tensor) -> Tensor:
    """out[..., w, k] = sum over v of graph[k, v, w] (x[..., v], 1).

    The 1 beside the channels lets a linear map have a bias, which a joint gets by the sum of its edges.

    Args:
        x: [T, N, V, C].
        graph: [K, V, V]. An entry of zero is no edge, and has a gradient of zero.

    Returns:
        [T, N, V, K, C + 1].
    """
    edges = graph * (graph != 0)
    return torch.einsum("tnvc,kvw->tnwkc", F.pad(x, (0, 1), value=1.0), edges)
