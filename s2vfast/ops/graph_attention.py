"""Graph attention of InfoGCN. Contract: `s2vfast.reference.graph_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.graph_attention import graph_attention as _reference


def graph_attention(
    x: Tensor, qk: Tensor, topology: Tensor, weight: Tensor, bias: Tensor | None, *, impl: str | None = None
) -> Tensor:
    """Joints of a frame mixed by attention times a topology, a linear map a head, summed over heads.

    Args:
        x: [F, V, C], joints of frames.
        qk: [F, V, 2, H, d], queries and keys.
        topology: [H, V, V].
        weight: [H, E, C].
        bias: [E], or None.
        impl: implementation; None: see `use_impl`.

    Returns:
        [F, V, E].
    """
    name = "graph_attention"
    require(x.ndim == 3, name, "x", "[F, V, C]", x)
    F, V, C = x.shape
    require(qk.ndim == 5 and qk.shape[:3] == (F, V, 2), name, "qk", f"[{F}, {V}, 2, H, d]", qk)
    H = qk.shape[3]
    require(topology.shape == (H, V, V), name, "topology", f"[{H}, {V}, {V}]", topology)
    require(weight.ndim == 3 and weight.shape[::2] == (H, C), name, "weight", f"[{H}, E, {C}]", weight)
    require(bias is None or bias.shape == weight.shape[1:2], name, "bias", f"[{weight.shape[1]}]", bias)
    return _op(impl, x.device, x, qk, topology, weight, bias)


def _torch(x: Tensor, qk: Tensor, topology: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    F, V, C = x.shape
    q, k = qk.permute(2, 0, 3, 1, 4)  # each [F, H, V, d]
    maps = torch.softmax(q @ k.transpose(-1, -2) * qk.shape[-1] ** -0.5, -1) * topology
    mixed = maps.flatten(1, 2) @ x  # [F, H * V, C]
    mixed = mixed.unflatten(1, (-1, V)).transpose(1, 2).flatten(2)  # [F, V, H * C]
    return torch.nn.functional.linear(mixed, weight.transpose(0, 1).flatten(1), bias)


_op = register("graph_attention", reference=_reference, torch=_torch)
