"""Graph attention of InfoGCN. Contract: `s2vfast.reference.graph_attention`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, operator
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
    return torch.nn.functional.linear(mixed, _matrix(weight), bias)


def _mixed(x: Tensor, qk: Tensor, topology: Tensor) -> Tensor:
    """[F, V, H * C], what the linear maps of the heads see."""
    F, V, C = x.shape
    H = len(topology)
    mixed = x.new_empty((F, V, H * C))
    addresses = _native.addresses(x=x, qk=qk, topology=topology, mixed=mixed)
    _extension.load().graph_attention(**_sizes(x, qk), **addresses, **_native.place(x))
    return mixed


def _sizes(x: Tensor, qk: Tensor) -> dict[str, int]:
    F, V, C = x.shape
    return {"frames": F, "joints": V, "channels": C, "heads": qk.shape[3], "width": qk.shape[4]}


def _matrix(weight: Tensor) -> Tensor:
    """[E, H * C] of [H, E, C]."""
    return weight.transpose(0, 1).flatten(1)


_FORWARD = "(Tensor x, Tensor qk, Tensor topology, Tensor weight, Tensor? bias) -> Tensor"


@operator(f"graph_attention_native{_FORWARD}")
def _native_op(x, qk, topology, weight, bias):
    return torch.nn.functional.linear(_mixed(*contiguous((x, qk, topology))), _matrix(weight), bias)


@operator(f"graph_attention_triton{_FORWARD}")
def _triton_op(*tensors):
    return _triton.kernels("graph_attention").forward(*contiguous(tensors))


@fake(_native_op)
@fake(_triton_op)
def _(x, qk, topology, weight, bias):
    return x.new_empty((*x.shape[:2], weight.shape[1]))


_BACKWARD = "(Tensor grad, Tensor x, Tensor qk, Tensor topology, Tensor weight) -> (Tensor, Tensor, Tensor, Tensor)"


@operator(f"graph_attention_native_backward{_BACKWARD}")
def _native_backward(grad, x, qk, topology, weight):
    grad, x, qk, topology = contiguous((grad, x, qk, topology))
    H, E, C = weight.shape
    rows = grad.view(-1, E)
    # Mixed channels are three times as many as x, and cheap to make again: in place of their gradient.
    mixed = rows @ _matrix(weight)
    parts = _extension.load().graph_attention_parts(len(x))
    d_x, d_qk, d_topology = torch.empty_like(x), torch.empty_like(qk), x.new_empty((parts, *topology.shape))
    _extension.load().graph_attention_backward(
        **_sizes(x, qk),
        **_native.addresses(x=x, qk=qk, topology=topology, mixed=mixed, d_x=d_x, d_qk=d_qk, d_topology=d_topology),
        **_native.place(x),
    )
    d_weight = (rows.T @ mixed).view(E, H, C).transpose(0, 1).contiguous()
    return d_x, d_qk, d_topology.sum(0), d_weight


@operator(f"graph_attention_triton_backward{_BACKWARD}")
def _triton_backward(*tensors):
    return _triton.kernels("graph_attention").backward(*contiguous(tensors))


@fake(_native_backward)
@fake(_triton_backward)
def _(grad, *tensors):
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.has_bias = inputs[4] is not None


def _gradients(ctx: Any, upstream: Tensor, backward: Any) -> tuple[Tensor | None, ...]:
    return *backward(upstream, *ctx.saved_tensors), upstream.sum((0, 1)) if ctx.has_bias else None


differentiate(_native_op, partial(_gradients, backward=_native_backward), _save)
differentiate(_triton_op, partial(_gradients, backward=_triton_backward), _save)


_op = register(
    "graph_attention",
    reference=_reference,
    torch=_torch,
    triton=_triton_op,
    native=_native_op,
    reasons={"triton": _triton.reasons(), "native": _native.reasons(floats=(torch.float32,), cuda=False)},
)
