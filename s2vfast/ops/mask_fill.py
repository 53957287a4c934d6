"""The decoder's input. Contract: `s2vfast.reference.mask_fill`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, operator
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


_ARGUMENTS = "(Tensor latents, Tensor mask_token, Tensor positions, Tensor visible) -> Tensor"


@operator(f"mask_fill_triton{_ARGUMENTS}")
def _triton_op(latents, mask_token, positions, visible):
    tensors = contiguous((latents, mask_token, positions, visible.to(torch.int32)))
    return _triton.kernels("mask_fill").forward(*tensors)


@operator(
    "mask_fill_triton_backward(Tensor grad, Tensor visible, ScalarType mask_token, ScalarType positions) "
    "-> (Tensor, Tensor, Tensor)"
)
def _triton_backward(grad, visible, *dtypes):
    return _triton.kernels("mask_fill").backward(*contiguous((grad, visible.to(torch.int32))), *dtypes)


@fake(_triton_backward)
def _(grad, visible, mask_token, positions):
    N, L, D = grad.shape
    d_mask_token, d_positions = grad.new_empty((D,), dtype=mask_token), grad.new_empty((L, D), dtype=positions)
    return grad.new_empty((N, visible.shape[1], D)), d_mask_token, d_positions


def _triton_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _triton_backward(upstream, ctx.saved_tensors[0], *ctx.dtypes)
    return *(gradient if need else None for gradient, need in zip(gradients, ctx.needs_input_grad, strict=False)), None


differentiate(_triton_op, _triton_gradients, _save)


@operator(f"mask_fill_native{_ARGUMENTS}")
def _native_op(latents, mask_token, positions, visible):
    N, K, D = latents.shape
    L = positions.shape[0]
    tensors = latents, mask_token.float(), positions.float(), visible.to(torch.int32)
    latents, mask_token, positions, visible = contiguous(tensors)
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


@fake(_native_op)
@fake(_triton_op)
def _(latents, mask_token, positions, visible):
    return latents.new_empty((latents.shape[0], positions.shape[0], latents.shape[2]))


@operator("mask_fill_native_backward(Tensor grad, Tensor visible, bool need_latents, bool need_sums) -> Tensor[]")
def _native_backward(grad, visible, need_latents, need_sums):
    N, L, D = grad.shape
    K = visible.shape[1]
    grad, visible = contiguous((grad, visible.to(torch.int32)))
    outputs: dict[str, Tensor] = {}
    scratch: dict[str, Tensor] = {}
    if need_latents:
        outputs["d_latents"] = grad.new_empty((N, K, D))
    if need_sums:
        outputs["d_mask_token"] = grad.new_empty((D,), dtype=torch.float32)
        outputs["d_positions"] = grad.new_empty((L, D), dtype=torch.float32)
        scratch["masked_sums"] = grad.new_empty((L, D), dtype=torch.float32)
        scratch["has_latent"] = grad.new_empty((L, N), dtype=torch.uint8)
    _extension.load().mask_fill_backward(
        itemsize=grad.element_size(),
        tracks=N,
        kept=K,
        tokens=L,
        width=D,
        **_native.addresses(grad=grad, visible=visible, **outputs, **scratch),
        **_native.place(grad),
    )
    return list(outputs.values())


@fake(_native_backward)
def _(grad, visible, need_latents, need_sums):
    N, L, D = grad.shape
    d_latents = [grad.new_empty((N, visible.shape[1], D))] if need_latents else []
    return d_latents + [grad.new_empty(sizes, dtype=torch.float32) for sizes in ((D,), (L, D)) if need_sums]


def _native_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    need_latents, need_mask_token, need_positions, _ = ctx.needs_input_grad
    need_sums = need_mask_token or need_positions
    gradients = _native_backward(upstream, ctx.saved_tensors[0], need_latents, need_sums)
    d_latents = gradients[0] if need_latents else None
    d_mask_token = gradients[-2].to(ctx.dtypes[0]) if need_mask_token else None
    d_positions = gradients[-1].to(ctx.dtypes[1]) if need_positions else None
    return d_latents, d_mask_token, d_positions, None


differentiate(_native_op, _native_gradients, _save)


_op = register(
    "mask_fill",
    reference=_reference,
    torch=_torch,
    triton=_triton_op,
    native=_native_op,
    reasons={"triton": _triton.reasons(), "native": _native.reasons()},
)
