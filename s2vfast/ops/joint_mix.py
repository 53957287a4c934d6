"""Maps of joints, each clip's own and those of all, applied to channels. Contract: `s2vfast.reference.joint_mix`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, one_each, operator, present
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.joint_mix import joint_mix as _reference


def joint_mix(
    x: Tensor,
    dynamic: Tensor,
    static: Tensor,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    impl: str | None = None,
) -> Tensor:
    """Joints mixed by a sum of maps, the spatial part of FreqMixFormer (Wu et al., ACM MM 2024).

    out[b, t, w, c] = gate[b, c] * sum over i and v of (x[b, t, v, i * C + c] + bias[i * C + c]) * map[b, i, c][v, w],
    where map[b, i, c] is dynamic[b, i, c div (C / U)] + static[i, c mod R].

    Args:
        x: [B, T, V, I * C]: B tracks, T frames, V joints, C channels for each of I subsets of maps.
        dynamic: [B, I, U, V, V], of dtype float32 or x's; U divides C.
        static: [I, R, V, V].
        bias: [I * C], of the linear map that x comes from, or None: zeros.
        gate: [B, C], or None: ones.
        impl: implementation; None: see `use_impl`.

    Returns:
        [B, T, V, C] in the dtype of ``x``.
    """
    require(x.ndim == 4, "joint_mix", "x", "[B, T, V, I * C]", x)
    B, _, V, _ = x.shape
    good = dynamic.ndim == 5 and dynamic.shape[0] == B and dynamic.shape[3:] == (V, V) and 0 not in dynamic.shape[1:3]
    require(good, "joint_mix", "dynamic", f"[{B}, I, U, {V}, {V}]", dynamic)
    subsets, units = dynamic.shape[1:3]
    require(x.shape[3] % (subsets * units) == 0, "joint_mix", "x", f"a multiple of {subsets * units} channels", x)
    good = static.ndim == 4 and static.shape[0] == subsets and static.shape[2:] == (V, V) and static.shape[1] > 0
    require(good, "joint_mix", "static", f"[{subsets}, R, {V}, {V}]", static)
    require(bias is None or bias.shape == x.shape[3:], "joint_mix", "bias", f"[{x.shape[3]}]", bias)
    good = gate is None or gate.shape == (B, x.shape[3] // subsets)
    require(good, "joint_mix", "gate", f"[{B}, {x.shape[3] // subsets}]", gate)
    return _op(impl, x.device, x, dynamic, static, bias, gate)


def _around(
    mix: Callable[..., Tensor],
    x: Tensor,
    dynamic: Tensor,
    static: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
) -> Tensor:
    """Bias and gate in passes of their own, before and after joints are mixed."""
    out = mix(x if bias is None else x + bias.to(x.dtype), dynamic, static)
    return out if gate is None else out * gate[:, None, None].to(x.dtype)


def _torch(x: Tensor, dynamic: Tensor, static: Tensor) -> Tensor:
    """Two grouped matrix products; where the groups of static maps are of unequal size, a map for every channel."""
    B, T, V, _ = x.shape
    subsets, units = dynamic.shape[1:3]
    groups, C = static.shape[1], x.shape[3] // subsets
    if C % groups:
        static = static[:, [c % groups for c in range(C)]]
        groups = C
    x = x.unflatten(3, (subsets, C))
    width = C // units
    sources = x.unflatten(4, (units, width)).permute(0, 4, 3, 2, 1, 5)  # [B, U, I, V, T, width]
    maps = dynamic.to(x.dtype).permute(0, 2, 4, 1, 3).reshape(B, units, V, subsets * V)
    out = (maps @ sources.reshape(B, units, subsets * V, T * width)).unflatten(3, (T, width))  # [B, U, V, T, width]
    out = out.permute(0, 3, 2, 1, 4).reshape(B, T, V, C)
    width = C // groups
    sources = x.unflatten(4, (width, groups)).permute(5, 3, 2, 0, 1, 4)  # [R, I, V, B, T, width]
    maps = static.to(x.dtype).permute(1, 3, 0, 2).reshape(groups, V, subsets * V)
    fixed = (maps @ sources.reshape(groups, subsets * V, B * T * width)).unflatten(2, (B, T, width))
    return out + fixed.permute(2, 3, 1, 4, 0).reshape(B, T, V, C)  # of [R, V, B, T, width]


def _sizes(x: Tensor, dynamic: Tensor, static: Tensor) -> dict[str, int]:
    B, T, V, width = x.shape
    _, subsets, units = dynamic.shape[:3]
    counts = {"subsets": subsets, "units": units, "groups": static.shape[1]}
    return {"tracks": B, "frames": T, "joints": V, "channels": width // subsets, **counts}


@operator("joint_mix_native(Tensor x, Tensor dynamic, Tensor static, Tensor? bias, Tensor? gate) -> Tensor")
def _native_op(x, dynamic, static, bias, gate):
    x, dynamic, static, bias, gate = contiguous((x, dynamic, static, bias, gate))
    sizes = _sizes(x, dynamic, static)
    out = x.new_empty((*x.shape[:3], sizes["channels"]))
    addresses = _native.addresses(x=x, dynamic=dynamic, constant=static, bias=bias, gate=gate, out=out)
    _extension.load().joint_mix(**sizes, **addresses, **_native.place(x))
    return out


@operator("joint_mix_triton(Tensor x, Tensor dynamic, Tensor static) -> Tensor")
def _triton_op(*tensors):
    return _triton.kernels("joint_mix").forward(*contiguous(tensors))


@fake(_native_op)
@fake(_triton_op)
def _(x, dynamic, *_):
    return x.new_empty((*x.shape[:3], x.shape[3] // dynamic.shape[1]))


@operator(
    "joint_mix_native_backward(Tensor grad, Tensor x, Tensor dynamic, Tensor static, Tensor? bias, Tensor? gate, "
    "bool need_x, bool need_parameters) -> Tensor[]"
)
def _native_backward(grad, x, dynamic, static, bias, gate, need_x, need_parameters):
    grad, x, dynamic, static, bias, gate = contiguous((grad, x, dynamic, static, bias, gate))
    outputs = {"d_x": torch.empty_like(x)} if need_x else {}
    parts = {}
    if need_parameters:
        outputs["d_dynamic"] = torch.empty_like(dynamic)
        parts = {"d_constant": x.new_empty((len(x), *static.shape))}
        if bias is not None:
            parts["d_bias"] = x.new_empty((len(x), *bias.shape))
        if gate is not None:
            outputs["d_gate"] = torch.empty_like(gate)
    _extension.load().joint_mix_backward(
        **_sizes(x, dynamic, static),
        **_native.addresses(x=x, dynamic=dynamic, constant=static, bias=bias, gate=gate, grad=grad, **outputs, **parts),
        **_native.place(x),
    )
    outputs |= {name: part.sum(0) for name, part in parts.items()}
    return [outputs[name] for name in ("d_x", "d_dynamic", "d_constant", "d_bias", "d_gate") if name in outputs]


@fake(_native_backward)
def _(grad, x, dynamic, static, bias, gate, need_x, need_parameters):
    by_x = [x] if need_x else []
    by_parameters = present((dynamic, static, bias, gate)) if need_parameters else []
    return [tensor.new_empty(tensor.shape) for tensor in (*by_x, *by_parameters)]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _native_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    need_x, *need_parameters = ctx.needs_input_grad
    x, *parameters = ctx.saved_tensors
    need = any(need_parameters)
    gradients = _native_backward(upstream, x, *parameters, need_x, need)
    return tuple(one_each(gradients, [x if need_x else None, *(parameters if need else [None] * len(parameters))]))


@operator(
    "joint_mix_triton_backward(Tensor grad, Tensor x, Tensor dynamic, Tensor static, bool need_x, bool need_maps)"
    " -> Tensor[]"
)
def _triton_backward(grad, x, dynamic, static, *needs):
    return present(_triton.kernels("joint_mix").backward(*contiguous((grad, x, dynamic, static)), *needs))


@fake(_triton_backward)
def _(grad, x, dynamic, static, need_x, need_maps):
    by_x = [x.new_empty(x.shape)] if need_x else []
    return by_x + [maps.new_empty(maps.shape) for maps in (dynamic, static) if need_maps]


def _triton_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_dynamic, need_static = ctx.needs_input_grad
    gradients = _triton_backward(upstream, *ctx.saved_tensors, need_x, need_dynamic or need_static)
    by_x = gradients[0] if need_x else None
    return by_x, gradients[-2] if need_dynamic else None, gradients[-1] if need_static else None


differentiate(_native_op, _native_gradients, _save)
differentiate(_triton_op, _triton_gradients, _save)


_op = register(
    "joint_mix",
    reference=_reference,
    torch=partial(_around, _torch),
    triton=partial(_around, _triton_op),
    native=_native_op,
    reasons={"triton": _triton.reasons(), "native": _native.reasons(floats=(torch.float32,), cuda=False)},
)
