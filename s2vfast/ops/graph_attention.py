"""Graph attention of InfoGCN. Contract: `s2vfast.reference.graph_attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, operator
from s2vfast.ops._dispatch import register, require
from s2vfast.ops._linear import linear, splits
from s2vfast.reference.graph_attention import graph_attention as _reference


def graph_attention(
    x: Tensor,
    qk_weight: Tensor,
    qk_bias: Tensor,
    topology: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-5,
    *,
    impl: str | None = None,
) -> Tensor:
    """Joints of a frame mixed by attention times a topology, a linear map a head, summed over heads.

    Queries and keys are linear maps of x after a layer norm, whose own weight and bias are those of the maps.

    Args:
        x: [F, V, C], joints of frames.
        qk_weight: [2, H, d, C], of queries and of keys.
        qk_bias: [2, H, d].
        topology: [H, V, V].
        weight: [H, E, C].
        bias: [E], or None.
        eps: of the layer norm, added to the variance.
        impl: implementation; None: see `use_impl`.

    Returns:
        [F, V, E].
    """
    name = "graph_attention"
    require(x.ndim == 3, name, "x", "[F, V, C]", x)
    _, V, C = x.shape
    good = qk_weight.ndim == 4 and qk_weight.shape[0] == 2 and qk_weight.shape[3] == C
    require(good, name, "qk_weight", f"[2, H, d, {C}]", qk_weight)
    H, d = qk_weight.shape[1:3]
    require(qk_bias.shape == (2, H, d), name, "qk_bias", f"[2, {H}, {d}]", qk_bias)
    require(topology.shape == (H, V, V), name, "topology", f"[{H}, {V}, {V}]", topology)
    require(weight.ndim == 3 and weight.shape[::2] == (H, C), name, "weight", f"[{H}, E, {C}]", weight)
    require(bias is None or bias.shape == weight.shape[1:2], name, "bias", f"[{weight.shape[1]}]", bias)
    return _op(impl, x.device, x, qk_weight, qk_bias, topology, weight, bias, eps)


def _queries_and_keys(x: Tensor, qk_weight: Tensor, qk_bias: Tensor, eps: float) -> Tensor:
    """[F, V, 2, H, d]."""
    normed = torch.nn.functional.layer_norm(x, x.shape[2:], eps=eps)
    return linear(normed, qk_weight.flatten(0, 2), qk_bias.flatten()).unflatten(2, qk_bias.shape)


def _torch(
    x: Tensor, qk_weight: Tensor, qk_bias: Tensor, topology: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    V = x.shape[1]
    qk = _queries_and_keys(x, qk_weight, qk_bias, eps)
    q, k = qk.permute(2, 0, 3, 1, 4)  # each [F, H, V, d]
    maps = torch.softmax(q @ k.transpose(-1, -2) * qk.shape[-1] ** -0.5, -1) * topology
    mixed = maps.flatten(1, 2) @ x  # [F, H * V, C]
    mixed = mixed.unflatten(1, (maps.shape[1], V)).transpose(1, 2).flatten(2)  # [F, V, H * C]
    return torch.nn.functional.linear(mixed, weight.transpose(0, 1).flatten(1), bias)


def _sizes(x: Tensor, qk_bias: Tensor, weight: Tensor) -> dict[str, int]:
    F, V, C = x.shape
    sizes = {"heads": qk_bias.shape[1], "width": qk_bias.shape[2], "results": weight.shape[1]}
    return {"frames": F, "joints": V, "channels": C, **sizes}


@operator(
    "graph_attention_native(Tensor x, Tensor qk_weight, Tensor qk_bias, Tensor topology, Tensor weight, Tensor? bias, "
    "float eps) -> Tensor"
)
def _native_op(x, qk_weight, qk_bias, topology, weight, bias, eps):
    x, qk_weight, qk_bias, topology, weight = contiguous((x, qk_weight, qk_bias, topology, weight))
    out = x.new_empty((*x.shape[:2], weight.shape[1]))
    _extension.load().graph_attention(
        **_sizes(x, qk_bias, weight),
        **_native.addresses(x=x, qk_weight=qk_weight, qk_bias=qk_bias, topology=topology, weight=weight, out=out),
        eps=eps,
        split=splits(),
        **_native.place(x),
    )
    return out if bias is None else out.add_(bias)


@fake(_native_op)
def _(x, qk_weight, qk_bias, topology, weight, bias, eps):
    return x.new_empty((*x.shape[:2], weight.shape[1]))


@operator(
    "graph_attention_native_backward(Tensor grad, Tensor x, Tensor qk_weight, Tensor qk_bias, Tensor topology, "
    "Tensor weight, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _native_backward(grad, x, qk_weight, qk_bias, topology, weight, eps):
    grad, x, qk_weight, qk_bias, topology, weight = contiguous((grad, x, qk_weight, qk_bias, topology, weight))
    H, E, C = weight.shape
    parts = _extension.load().graph_attention_parts(len(x))
    shapes = {"qk_weight": qk_weight.shape, "qk_bias": qk_bias.shape, "topology": topology.shape, "weight": (H, C, E)}
    sums = {f"d_{name}": x.new_empty((parts, *shape)) for name, shape in shapes.items()}
    d_x = torch.empty_like(x)
    _extension.load().graph_attention_backward(
        **_sizes(x, qk_bias, weight),
        **_native.addresses(x=x, qk_weight=qk_weight, qk_bias=qk_bias, topology=topology, weight=weight, grad=grad),
        **_native.addresses(d_x=d_x, **sums),
        eps=eps,
        split=splits(),
        **_native.place(x),
    )
    *gradients, d_weight = (part.sum(0) for part in sums.values())
    return d_x, *gradients, d_weight.transpose(1, 2).contiguous()


@fake(_native_backward)
def _(grad, x, qk_weight, qk_bias, topology, weight, eps):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, qk_weight, qk_bias, topology, weight))


def _save_native(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, bias, ctx.eps = inputs
    ctx.save_for_backward(*tensors)
    ctx.has_bias = bias is not None


def _native_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _native_backward(upstream, *ctx.saved_tensors, ctx.eps)
    return *gradients, upstream.sum((0, 1)) if ctx.has_bias else None, None


differentiate(_native_op, _native_gradients, _save_native)


@operator("graph_attention_triton(Tensor x, Tensor qk, Tensor topology, Tensor weight, Tensor? bias) -> Tensor")
def _triton_op(*tensors):
    return _triton.kernels("graph_attention").forward(*contiguous(tensors))


@fake(_triton_op)
def _(x, qk, topology, weight, bias):
    return x.new_empty((*x.shape[:2], weight.shape[1]))


@operator(
    "graph_attention_triton_backward(Tensor grad, Tensor x, Tensor qk, Tensor topology, Tensor weight)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def _triton_backward(*tensors):
    return _triton.kernels("graph_attention").backward(*contiguous(tensors))


@fake(_triton_backward)
def _(grad, *tensors):
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def _save_triton(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.has_bias = inputs[4] is not None


def _triton_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return *_triton_backward(upstream, *ctx.saved_tensors), upstream.sum((0, 1)) if ctx.has_bias else None


differentiate(_triton_op, _triton_gradients, _save_triton)


def _run_triton(
    x: Tensor, qk_weight: Tensor, qk_bias: Tensor, topology: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    """The kernel begins with queries and keys: on a GPU they are a norm and one product of the library."""
    return _triton_op(x, _queries_and_keys(x, qk_weight, qk_bias, eps), topology, weight, bias)


_op = register(
    "graph_attention",
    reference=_reference,
    torch=_torch,
    triton=_run_triton,
    native=_native_op,
    reasons={"triton": _triton.reasons(), "native": _native.reasons(floats=(torch.float32,), cuda=False)},
)
