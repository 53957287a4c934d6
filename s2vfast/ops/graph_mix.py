"""Joints mixed along a graph's edges. Contract: `s2vfast.reference.graph_mix`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native
from s2vfast.ops._custom import contiguous, differentiate, fake, operator
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.graph_mix import graph_mix as _reference


def graph_mix(x: Tensor, graph: Tensor, *, impl: str | None = None) -> Tensor:
    """out[..., w, k] = sum over v of graph[k, v, w] (x[..., v], 1), the spatial part of ST-GCN (Yan et al., AAAI 2018).

    A linear map of the result's last two axes is a graph convolution: the 1 beside the channels is what its bias, of
    every joint another one, by its edges, is multiplied by.

    Args:
        x: [T, N, V, C].
        graph: [K, V, V], of x's dtype. An entry of zero is no edge, and has a gradient of zero.
        impl: implementation; None: see `use_impl`.

    Returns:
        [T, N, V, K, C + 1] in the dtype of ``x``.
    """
    require(x.ndim == 4, "graph_mix", "x", "[T, N, V, C]", x)
    V = x.shape[2]
    require(graph.ndim == 3 and graph.shape[1:] == (V, V), "graph_mix", "graph", f"[K, {V}, {V}]", graph)
    return _op(impl, x.device, x, graph)


def _torch(x: Tensor, graph: Tensor) -> Tensor:
    T, N, V, C = x.shape
    edges = (graph * (graph != 0)).permute(2, 0, 1).reshape(V * len(graph), V)
    rows = F.pad(x, (0, 1), value=1.0).reshape(T * N, V, C + 1)
    return torch.bmm(edges.to(x.dtype).expand(T * N, -1, -1), rows).view(T, N, V, len(graph), C + 1)


def _sizes(x: Tensor, graph: Tensor) -> dict[str, int]:
    T, N, V, C = x.shape
    return {"rows": T * N, "joints": V, "channels": C, "subsets": len(graph)}


@operator("graph_mix_native(Tensor x, Tensor graph) -> Tensor")
def _native_op(x, graph):
    x, graph = contiguous((x, graph))
    out = x.new_empty((*x.shape[:3], len(graph), x.shape[3] + 1))
    _extension.load().graph_mix(**_sizes(x, graph), **_native.addresses(x=x, graph=graph, out=out), **_native.place(x))
    return out


@fake(_native_op)
def _(x, graph):
    return x.new_empty((*x.shape[:3], graph.shape[0], x.shape[3] + 1))


@operator("graph_mix_native_backward(Tensor grad, Tensor x, Tensor graph) -> Tensor[]")
def _native_backward(grad, x, graph):
    grad, x, graph = contiguous((grad, x, graph))
    d_x, d_graph = torch.empty_like(x), torch.empty_like(graph)
    addresses = _native.addresses(x=x, graph=graph, grad=grad, d_x=d_x, d_graph=d_graph)
    _extension.load().graph_mix_backward(**_sizes(x, graph), **addresses, **_native.place(x))
    return [d_x, d_graph]


@fake(_native_backward)
def _(grad, x, graph):
    return [x.new_empty(x.shape), graph.new_empty(graph.shape)]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
    return tuple(_native_backward(upstream, *ctx.saved_tensors))


differentiate(_native_op, _gradients, _save)


_op = register(
    "graph_mix",
    reference=_reference,
    torch=_torch,
    native=_native_op,
    reasons={"native": _native.reasons(floats=(torch.float32,), cuda=False)},
)
