"""Multi-head self-attention from packed qkv. Contract: `s2vfast.reference.attention`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, like, operator
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.attention import attention as _reference
from s2vfast.reference.attention import hidden_by_group

# From so many queries on, PyTorch's kernel for CPUs takes 256 of them at once instead of 64, and is up to 30 % faster:
# the 750 tokens of NTU are worth 18 queries that nobody asks.
_MANY = 768


def attention(
    qkv: Tensor, *, group: int = 0, return_lse: bool = False, impl: str | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention with scale d ** -0.5.

    Args:
        qkv: [N, L, 3, H, d].
        group: tokens 0 ... group - 1 are one group, the next ``group`` another, and so on. A token does not look at the
            others of its group, as joints of one frame do not in Hi-TRS. 0: it looks at all tokens.
        return_lse: also return the log-sum-exp of the scaled scores.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, L, H, d]; with ``return_lse`` also [N, H, L] in float32 (float64 for float64 inputs).
    """
    require(qkv.ndim == 5 and qkv.shape[2] == 3, "attention", "qkv", "[N, L, 3, H, d]", qkv)
    require(group >= 0, "attention", "group", "0 or more", group)
    # Implementations from outside that know no groups are called as before.
    options = {"group": group} if group else {}
    return _op(impl, qkv.device, qkv, return_lse=return_lse, **options)


def _run_reference(qkv: Tensor, *, return_lse: bool, group: int = 0) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = _reference(qkv, group)
    return (out, lse) if return_lse else out


def _torch(qkv: Tensor, *, return_lse: bool, group: int = 0) -> Tensor | tuple[Tensor, Tensor]:
    # Each [N, H, L, d]. Taken apart in this order, their gradients are put together packed, without another copy.
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    L = q.shape[2]
    hidden = hidden_by_group(L, group, qkv.device) if group else None
    if hidden is not None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden).transpose(1, 2)
    elif not qkv.is_cuda and 0.9 * _MANY <= L < _MANY:
        out = F.scaled_dot_product_attention(F.pad(q, (0, 0, 0, _MANY - L)), k, v)[:, :, :L].transpose(1, 2)
    else:
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    if not return_lse:
        return out
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5  # SDPA keeps its own to itself
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return out, torch.logsumexp(scores if scores.dtype == torch.float64 else scores.float(), dim=-1)


@operator("attention_triton(Tensor qkv) -> (Tensor, Tensor)")
def _forward(qkv):
    return _triton.kernels("attention").forward(qkv.contiguous())


@fake(_forward)
def _like_results(qkv, *_):
    N, L, _, H, d = qkv.shape
    return qkv.new_empty(N, L, H, d), qkv.new_empty(N, H, L, dtype=torch.float32)


@operator("attention_triton_backward(Tensor qkv, Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse) -> Tensor")
def _backward(qkv, out, lse, *grads):
    return _triton.kernels("attention").backward(qkv.contiguous(), out, lse, *contiguous(grads))


@fake(_backward)
def _like_qkv(qkv, *_):
    return like((qkv,))[0]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, *ctx.options = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Tensor:
    qkv, out, lse = ctx.saved_tensors
    return _backward(qkv, out, lse, torch.zeros_like(out) if grad_out is None else grad_out, grad_lse)


differentiate(_forward, _gradients, _save)


def _run_triton(qkv: Tensor, *, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = _forward(qkv)
    return (out, lse) if return_lse else out


def _widths(qkv: Tensor, **_: object) -> list[str]:
    width = qkv.shape[-1]
    return [] if width <= 128 else [f"it takes heads up to 128 wide, not {width}"]


def _no_groups(qkv: Tensor, group: int = 0, **_: object) -> list[str]:
    return ["it takes no groups"] if group else []


@operator("attention_native(Tensor qkv, int group) -> (Tensor, Tensor)")
def _native_forward(qkv, group):
    qkv = _aligned(qkv)
    N, L, _, H, d = qkv.shape
    out, lse = qkv.new_empty(N, L, H, d), qkv.new_empty(N, H, L, dtype=torch.float32)
    tensors = _native.addresses(qkv=qkv, out=out, lse=lse)
    _extension.load().attention(**_sizes(qkv, group), **tensors, **_native.place(qkv))
    return out, lse


fake(_native_forward)(_like_results)


@operator(
    "attention_native_backward(Tensor qkv, Tensor out, Tensor lse, Tensor grad_out, Tensor? grad_lse, int group)"
    " -> Tensor"
)
def _native_backward(qkv, out, lse, grad_out, grad_lse, group):
    qkv, out, grad_out = map(_aligned, (qkv, out, grad_out))
    extension, target, sizes = _extension.load(), _native.place(qkv), _sizes(qkv, group)
    grad_qkv = torch.empty_like(qkv)
    tensors = {"qkv": qkv, "out": out, "lse": lse, "grad_out": grad_out, "grad_qkv": grad_qkv}
    if grad_lse is not None:
        tensors["grad_lse"] = grad_lse.float().contiguous()
    if target["device"] >= 0:
        # First of all: an emulated extension forgets addresses after each of its calls.
        sizes["blocks"], floats = extension.attention_backward_workspace(
            batch_heads=sizes["tracks"] * sizes["heads"],
            tokens=sizes["tokens"],
            width=sizes["width"],
            device=target["device"],
        )
        tensors["workspace"] = qkv.new_empty(sizes["blocks"], floats, dtype=torch.float32)
    extension.attention_backward(**sizes, **_native.addresses(**tensors), **target)
    return grad_qkv


fake(_native_backward)(_like_qkv)


def _aligned(tensor: Tensor) -> Tensor:
    """The same numbers where 16 bytes can be read at a time."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _sizes(qkv: Tensor, group: int) -> dict[str, int]:
    N, L, _, H, d = qkv.shape
    return {"half": qkv.dtype == torch.float16, "tracks": N, "tokens": L, "heads": H, "width": d, "group": group}


def _native_gradients(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor, None]:
    qkv, out, lse = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    return _native_backward(qkv, out, lse, grad_out, grad_lse, *ctx.options), None


differentiate(_native_forward, _native_gradients, _save)


def _run_native(qkv: Tensor, *, return_lse: bool, group: int = 0) -> Tensor | tuple[Tensor, Tensor]:
    out, lse = _native_forward(qkv, group)
    return (out, lse) if return_lse else out


def _eights(qkv: Tensor, **_: object) -> list[str]:
    width = qkv.shape[-1]
    return [] if width % 8 == 0 else [f"it takes heads whose width is a multiple of 8, not {width}"]


_native_on_gpu = _native.reasons(_widths, _eights, _no_groups, floats=(torch.bfloat16, torch.float16))
_native_on_cpu = _native.reasons(floats=(torch.float32,))


def _native_reasons(device: str, *args: Any, **options: Any) -> list[str]:
    on_cpu = device == "cpu" and _extension.emulated() is None
    return (_native_on_cpu if on_cpu else _native_on_gpu)(device, *args, **options)


_op = register(
    "attention",
    reference=_run_reference,
    torch=_torch,
    triton=_run_triton,
    native=_run_native,
    reasons={
        "triton": _triton.reasons(_widths, _no_groups),
        "native": _native_reasons,
    },
)
