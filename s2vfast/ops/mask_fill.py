"""The decoder's input. Contract: `s2vfast.reference.mask_fill`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.mask_fill import mask_fill as _reference


def mask_fill(
    latents: Tensor, mask_token: Tensor, positions: Tensor, visible: Tensor, *, impl: str | None = None
) -> Tensor:
    """Latents at their places, the mask token elsewhere, plus positions.

    Args:
        latents: [N, K, D].
        mask_token: [D].
        positions: [L, D].
        visible: int32 [N, K], token ids of the latents.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, L, D].
    """
    require(latents.ndim == 3, "mask_fill", "latents", "[N, K, D]", latents)
    N, K, D = latents.shape
    require(mask_token.shape == (D,), "mask_fill", "mask_token", f"[{D}]", mask_token)
    require(positions.ndim == 2 and positions.shape[1] == D, "mask_fill", "positions", f"[L, {D}]", positions)
    require(visible.shape == (N, K), "mask_fill", "visible", f"[{N}, {K}]", visible)
    return _op(impl, latents.device, latents, mask_token, positions, visible)


def _torch(latents: Tensor, mask_token: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    # The [L, D] background is added up once, not per track; visible tokens overwrite it.
    background = (mask_token + positions).expand(latents.shape[0], -1, -1)
    index = visible.long()
    placed = latents + F.embedding(index, positions)  # [N, K, D]
    return background.scatter(1, index[..., None].expand_as(placed), placed)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, mask_token, positions, visible = inputs
    ctx.save_for_backward(visible)
    ctx.dtypes = mask_token.dtype, positions.dtype


@torch.library.custom_op("s2vfast::mask_fill_triton", mutates_args=())
def _triton_op(latents: Tensor, mask_token: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    tensors = (latents.contiguous(), mask_token.contiguous(), positions.contiguous())
    return _triton.kernels("mask_fill").forward(*tensors, visible.to(torch.int32).contiguous())


@_triton_op.register_fake
def _(latents: Tensor, mask_token: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    return latents.new_empty((latents.shape[0], positions.shape[0], latents.shape[2]))


@torch.library.custom_op("s2vfast::mask_fill_triton_backward", mutates_args=())
def _triton_backward(
    grad: Tensor, visible: Tensor, mask_token: torch.dtype, positions: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    visible = visible.to(torch.int32).contiguous()
    return _triton.kernels("mask_fill").backward(grad.contiguous(), visible, mask_token, positions)


@_triton_backward.register_fake
def _(grad: Tensor, visible: Tensor, mask_token: torch.dtype, positions: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    N, L, D = grad.shape
    sums = [grad.new_empty(sizes, dtype=dtype) for sizes, dtype in (((D,), mask_token), ((L, D), positions))]
    return grad.new_empty((N, visible.shape[1], D)), sums[0], sums[1]


def _triton_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    found = _triton_backward(upstream, ctx.saved_tensors[0], *ctx.dtypes)
    return *(gradient if need else None for gradient, need in zip(found, ctx.needs_input_grad, strict=False)), None


_triton_op.register_autograd(_triton_gradients, setup_context=_save)


@torch.library.custom_op("s2vfast::mask_fill_native", mutates_args=())
def _native_op(latents: Tensor, mask_token: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    N, K, D = latents.shape
    L = positions.shape[0]
    latents, visible = latents.contiguous(), visible.to(torch.int32).contiguous()
    mask_token, positions = mask_token.float().contiguous(), positions.float().contiguous()
    out = latents.new_empty((N, L, D))
    _extension.load().mask_fill(
        itemsize=latents.element_size(),
        tracks=N,
        kept=K,
        tokens=L,
        width=D,
        **_native.addresses(latents=latents, mask_token=mask_token, positions=positions, visible=visible, out=out),
        **_native.place(latents),
    )
    return out


@_native_op.register_fake
def _(latents: Tensor, mask_token: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    return latents.new_empty((latents.shape[0], positions.shape[0], latents.shape[2]))


@torch.library.custom_op("s2vfast::mask_fill_native_backward", mutates_args=())
def _native_backward(grad: Tensor, visible: Tensor, need_latents: bool, need_sums: bool) -> list[Tensor]:
    N, L, D = grad.shape
    K = visible.shape[1]
    grad, visible = grad.contiguous(), visible.to(torch.int32).contiguous()
    made: dict[str, Tensor] = {}
    scratch: dict[str, Tensor] = {}
    if need_latents:
        made["d_latents"] = grad.new_empty((N, K, D))
    if need_sums:
        made["d_mask_token"] = grad.new_empty((D,), dtype=torch.float32)
        made["d_positions"] = grad.new_empty((L, D), dtype=torch.float32)
        scratch["masked_sums"] = grad.new_empty((L, D), dtype=torch.float32)
        scratch["has_latent"] = grad.new_empty((L, N), dtype=torch.uint8)
    _extension.load().mask_fill_backward(
        itemsize=grad.element_size(),
        tracks=N,
        kept=K,
        tokens=L,
        width=D,
        **_native.addresses(grad=grad, visible=visible, **made, **scratch),
        **_native.place(grad),
    )
    return list(made.values())


@_native_backward.register_fake
def _(grad: Tensor, visible: Tensor, need_latents: bool, need_sums: bool) -> list[Tensor]:
    N, L, D = grad.shape
    d_latents = [grad.new_empty((N, visible.shape[1], D))] if need_latents else []
    return d_latents + [grad.new_empty(sizes, dtype=torch.float32) for sizes in ((D,), (L, D)) if need_sums]


def _native_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    need_latents, need_mask_token, need_positions, _ = ctx.needs_input_grad
    need_sums = need_mask_token or need_positions
    found = _native_backward(upstream, ctx.saved_tensors[0], need_latents, need_sums)
    d_latents = found[0] if need_latents else None
    d_mask_token = found[-2].to(ctx.dtypes[0]) if need_mask_token else None
    d_positions = found[-1].to(ctx.dtypes[1]) if need_positions else None
    return d_latents, d_mask_token, d_positions, None


_native_op.register_autograd(_native_gradients, setup_context=_save)


_op = register(
    "mask_fill",
    reference=_reference,
    torch=_torch,
    triton=_triton_op,
    native=_native_op,
    reasons={"triton": _triton.reasons(), "native": _native.reasons()},
)
