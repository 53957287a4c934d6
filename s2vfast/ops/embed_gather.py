"""Token embedding of the chosen tokens. Contract: `s2vfast.reference.embed_gather`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, operator
from s2vfast.ops._dispatch import register, require
from s2vfast.reference.embed_gather import embed_gather as _reference


def embed_gather(
    clips: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, visible: Tensor | None, *, impl: str | None = None
) -> Tensor:
    """Tokens of the joints and segments named by ``visible``: linear map plus position.

    Args:
        clips: [N, T, V, C].
        weight: [D, s * C], input numbers in (frame, channel) order.
        bias: [D].
        positions: [L, D] with L = T / s * V, token ids segment * V + joint.
        visible: int32 [N, K] token ids, or None for all L.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, K, D] (or [N, L, D]), in the order of ``visible``.
    """
    require(clips.ndim == 4, "embed_gather", "clips", "[N, T, V, C]", clips)
    N, T, V, C = clips.shape
    D, width = weight.shape
    fits = width % C == 0 and T % (width // C) == 0
    require(fits, "embed_gather", "weight", f"[D, s * {C}] with s dividing {T}", weight)
    L = T // (width // C) * V
    require(positions.shape == (L, D), "embed_gather", "positions", f"[{L}, {D}]", positions)
    if visible is not None:
        require(visible.ndim == 2 and visible.shape[0] == N, "embed_gather", "visible", f"[{N}, K]", visible)
    return _op(impl, clips.device, clips, weight, bias, positions, visible)


def _torch(clips: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
    N, T, V, C = clips.shape
    s = weight.shape[1] // C
    pieces = clips.reshape(N, T // s, s, V, C).permute(0, 1, 3, 2, 4).reshape(N, T // s * V, s * C)  # [N, L, s*C]
    if visible is None:
        return F.linear(pieces.to(weight.dtype), weight, bias.to(weight.dtype)) + positions.to(weight.dtype)
    index = visible.long()
    pieces = pieces.gather(1, index[..., None].expand(-1, -1, s * C))  # [N, K, s*C]
    return F.linear(pieces.to(weight.dtype), weight, bias.to(weight.dtype)) + F.embedding(
        index, positions.to(weight.dtype)
    )


_ARGUMENTS = "(Tensor clips, Tensor weight, Tensor bias, Tensor positions, Tensor? visible) -> Tensor"


def _empty(clips: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
    """The tokens, not yet written."""
    K = positions.shape[0] if visible is None else visible.shape[1]
    return weight.new_empty(clips.shape[0], K, weight.shape[0])


def _int32(visible: Tensor | None) -> Tensor | None:
    return None if visible is None else visible.to(torch.int32)


@operator(f"embed_gather_triton{_ARGUMENTS}")
def _triton_op(clips, weight, bias, positions, visible):
    return _triton.kernels("embed_gather").forward(*contiguous((clips, weight, bias, positions, _int32(visible))))


@operator(
    "embed_gather_triton_backward(Tensor grad, Tensor clips, Tensor weight, Tensor? visible, int tokens, "
    "ScalarType bias, ScalarType positions, bool need_clips) -> Tensor[]"
)
def _triton_backward(grad, clips, weight, visible, *options):
    """Gradients of weight, bias, positions and, where needed, clips."""
    tensors = contiguous((grad, clips, weight, _int32(visible)))
    d_clips, *parameter_grads = _triton.kernels("embed_gather").backward(*tensors, *options)
    return parameter_grads if d_clips is None else [*parameter_grads, d_clips]


@fake(_triton_backward)
def _(grad, clips, weight, visible, tokens, bias, positions, need_clips):
    D = weight.shape[0]
    sums = ((weight.shape, weight.dtype), ((D,), bias), ((tokens, D), positions))
    parameter_grads = [weight.new_empty(shape, dtype=dtype) for shape, dtype in sums]
    return [*parameter_grads, *([clips.new_empty(clips.shape)] if need_clips else [])]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    clips, weight, bias, positions, visible = inputs
    ctx.save_for_backward(clips, weight, visible)
    ctx.tokens = positions.shape[0]
    ctx.dtypes = bias.dtype, positions.dtype


def _triton_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    clips, weight, visible = ctx.saved_tensors
    need_clips, *need, _ = ctx.needs_input_grad
    gradients = _triton_backward(upstream, clips, weight, visible, ctx.tokens, *ctx.dtypes, need_clips)
    parameter_grads = [gradient if needed else None for gradient, needed in zip(gradients[:3], need, strict=True)]
    return gradients[3] if need_clips else None, *parameter_grads, None


differentiate(_triton_op, _triton_gradients, _save)


@operator(f"embed_gather_native{_ARGUMENTS}")
def _native_op(clips, weight, bias, positions, visible):
    out = _empty(clips, weight, bias, positions, visible)
    sizes, held = _native_inputs(clips, weight, visible, out)
    bias, positions = contiguous((bias.float(), positions.float()))
    pointers = _native.addresses(**held, bias=bias, positions=positions, out=out)
    _extension.load().embed_gather(**sizes, **pointers, **_native.place(out))
    return out


fake(_native_op)(_empty)
fake(_triton_op)(_empty)


def _native_inputs(
    clips: Tensor, weight: Tensor, visible: Tensor | None, rows: Tensor
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Sizes, and what both passes read as they read it; ``rows`` are the tokens [N, K, D] or their gradient."""
    N, T, V, C = clips.shape
    sizes = {
        "itemsize": rows.element_size(),
        "tracks": N,
        "frames": T,
        "joints": V,
        "channels": C,
        "segment_frames": weight.shape[1] // C,
        "width": weight.shape[0],
        "kept": rows.shape[1],
    }
    held = {"clips": clips.float().contiguous(), "weight_t": weight.float().t().contiguous()}
    if visible is not None:
        held["visible"] = visible.to(torch.int32).contiguous()
    return sizes, held


@operator(
    "embed_gather_native_backward(Tensor grad, Tensor clips, Tensor weight, Tensor? visible, bool need_map, "
    "bool need_positions, bool need_clips) -> Tensor[]"
)
def _native_backward(grad, clips, weight, visible, need_map, need_positions, need_clips):
    """d_weight transposed with d_bias below it [s * C + 1, D], d_positions, d_clips, float32; those that are needed."""
    grad = grad.contiguous()
    sizes, held = _native_inputs(clips, weight, visible, grad)
    D, numbers = weight.shape
    L = clips.shape[1] * clips.shape[3] // numbers * clips.shape[2]
    outputs: dict[str, Tensor] = {}
    scratch: dict[str, Tensor] = {}
    if need_map:
        tiles = _extension.load().embed_gather_map_tiles(grad.shape[0] * grad.shape[1])
        sizes["map_tiles"] = tiles
        outputs["d_map"] = grad.new_empty((numbers + 1, D), dtype=torch.float32)
        scratch["partial"] = grad.new_empty((tiles, numbers + 1, D), dtype=torch.float32)
    if need_positions:
        outputs["d_positions"] = grad.new_empty((L, D), dtype=torch.float32)
    if need_clips:
        outputs["d_clips"] = grad.new_empty(clips.shape, dtype=torch.float32)
    if visible is not None and (need_positions or need_clips):
        scratch["places"] = grad.new_empty((L, clips.shape[0]), dtype=torch.int32)
    pointers = _native.addresses(grad=grad, **held, **outputs, **scratch)
    _extension.load().embed_gather_backward(**sizes, **pointers, **_native.place(grad))
    return list(outputs.values())


@fake(_native_backward)
def _(grad, clips, weight, visible, need_map, need_positions, need_clips):
    D, numbers = weight.shape
    L = clips.shape[1] * clips.shape[3] // numbers * clips.shape[2]
    shapes = ((numbers + 1, D), need_map), ((L, D), need_positions), (tuple(clips.shape), need_clips)
    return [grad.new_empty(shape, dtype=torch.float32) for shape, needed in shapes if needed]


def _native_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    clips, weight, visible = ctx.saved_tensors
    need_clips, need_weight, need_bias, need_positions, _ = ctx.needs_input_grad
    need_map = need_weight or need_bias
    d_weight = d_bias = None
    gradients = iter(_native_backward(upstream, clips, weight, visible, need_map, need_positions, need_clips))
    if need_map:
        d_map = next(gradients)
        d_weight = d_map[:-1].t().to(weight.dtype) if need_weight else None
        d_bias = d_map[-1].to(ctx.dtypes[0]) if need_bias else None
    d_positions = next(gradients).to(ctx.dtypes[1]) if need_positions else None
    d_clips = next(gradients).to(clips.dtype) if need_clips else None
    return d_clips, d_weight, d_bias, d_positions, None


differentiate(_native_op, _native_gradients, _save)


_op = register(
    "embed_gather",
    reference=_reference,
    torch=_torch,
    triton=_triton_op,
    native=_native_op,
    reasons={"triton": _triton.reasons(), "native": _native.reasons()},
)
