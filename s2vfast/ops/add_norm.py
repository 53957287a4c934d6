"""LayerScale, residual addition and layer norm. Contract: `s2vfast.reference.add_norm`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._dispatch import register, require
from s2vfast.ops._linear import linear
from s2vfast.reference.add_norm import add_norm as _reference


def add_norm(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 1e-6,
    *,
    projection: Tensor | None = None,
    projection_bias: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """residual + gamma * branch, and its layer norm.

    Args:
        residual: [N, L, D], the residual stream.
        branch: [N, L, D], output of the last branch; None at the start of the stream. With ``projection``
            [N, L, E], of which branch @ projection^T + projection_bias takes the place.
        gamma: [D], LayerScale of that branch; None adds it as it is.
        weight: [D] of the norm; None: no norm is wanted.
        bias: [D] of the norm.
        eps: added to the variance.
        projection: [D, E], the linear map that ends the branch; None: it has been applied.
        projection_bias: [D], or None.
        impl: implementation; None: see `use_impl`.

    Returns:
        The new residual stream, and its norm in the branch's dtype (None where none is wanted), both [N, L, D].
    """
    D = residual.shape[-1]
    if projection is not None:
        good = branch is not None and branch.shape[:-1] == residual.shape[:-1]
        require(good, "add_norm", "branch", f"{[*residual.shape[:-1], 'E']} beside a projection", branch)
        E = branch.shape[-1]
        require(projection.shape == (D, E), "add_norm", "projection", f"[{D}, {E}]", projection)
    elif branch is not None:
        require(branch.shape == residual.shape, "add_norm", "branch", str(list(residual.shape)), branch)
    for name, vector in (("gamma", gamma), ("weight", weight), ("bias", bias), ("projection_bias", projection_bias)):
        require(vector is None or vector.shape == (D,), "add_norm", name, f"[{D}]", vector)
    return _op(impl, residual.device, residual, branch, gamma, weight, bias, eps, projection, projection_bias)


def _run_reference(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    return _reference(
        residual, branch, gamma, weight, bias, eps, projection=projection, projection_bias=projection_bias
    )


def _torch(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    if projection is not None:
        branch = linear(branch, projection, projection_bias)
    dtype = residual.dtype if branch is None else branch.dtype
    if branch is not None:
        residual = residual + branch if gamma is None else torch.addcmul(residual, gamma, branch)
    if weight is None:
        return residual, None
    return residual, F.layer_norm(residual, weight.shape, weight, bias, eps).to(dtype)


@torch.library.custom_op("s2vfast::add_norm_triton", mutates_args=())
def _forward(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> list[Tensor]:
    """The new stream (if there is a branch), the norm, mean and rstd (if there is a norm)."""
    rows = [t if t is None else t.contiguous().view(-1, t.shape[-1]) for t in (residual, branch)]
    others = [t if t is None else t.contiguous() for t in (gamma, weight, bias)]
    maps = [t if t is None else t.contiguous() for t in (projection, projection_bias)]
    out, normed, *statistics = _triton.kernels("add_norm").forward(*rows, *others, eps, *maps)
    streams = [t if t is None else t.view(residual.shape) for t in (out, normed)]
    return [t for t in (*streams, *statistics) if t is not None]


@_forward.register_fake
def _(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> list[Tensor]:
    found = [] if branch is None else [residual.new_empty(residual.shape)]
    if weight is not None:
        dtype = residual.dtype if branch is None else branch.dtype
        rows = residual.shape[:-1].numel()
        found.append(residual.new_empty(residual.shape, dtype=dtype))
        found += [residual.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    return found


@torch.library.custom_op("s2vfast::add_norm_triton_backward", mutates_args=())
def _backward(
    grad_out: Tensor | None,
    grad_normed: Tensor | None,
    out: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> list[Tensor]:
    """Gradients of residual and of those of the others that there are, in the order of the operation's arguments.

    Without a norm that of residual is grad_out, which an operator may not return: it is left out.
    """
    grads = [t if t is None else t.contiguous().view(-1, t.shape[-1]) for t in (grad_out, grad_normed, out)]
    added = None if branch is None else branch.contiguous().view(-1, branch.shape[-1])
    others = [t if t is None else t.contiguous() for t in (gamma, weight, bias, projection, projection_bias)]
    by_residual, by_branch, *rest = _triton.kernels("add_norm").backward(*grads, mean, rstd, added, *others)
    streams = [(by_residual, out), (by_branch, branch)]
    found = [gradient.view(stream.shape) for gradient, stream in streams if gradient is not None]
    return found + [t for t in rest if t is not None]


@_backward.register_fake
def _(
    grad_out: Tensor | None,
    grad_normed: Tensor | None,
    out: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> list[Tensor]:
    tensors = (None if weight is None else out, branch, gamma, weight, bias, projection, projection_bias)
    return [t.new_empty(t.shape) for t in tensors if t is not None]


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    residual, branch, gamma, weight, bias, _, projection, projection_bias = inputs
    ctx.set_materialize_grads(False)
    ctx.with_branch, ctx.with_norm = branch is not None, weight is not None
    out = output[0] if ctx.with_branch else residual
    mean, rstd = output[-2:] if ctx.with_norm else (None, None)
    # LayerScale without a projection needs the branch as it was; the projection's gradient needs it as well.
    ctx.save_for_backward(out, mean, rstd, branch, gamma, weight, bias, projection, projection_bias)


def _gradients(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    grad_out = grads[0] if ctx.with_branch else None
    grad_normed = grads[int(ctx.with_branch)] if ctx.with_norm else None
    tensors = ctx.saved_tensors
    found = iter(_backward(grad_out, grad_normed, *tensors))
    by_residual = next(found) if ctx.with_norm else grad_out
    branch, *others = (None if t is None else next(found) for t in tensors[3:])
    gamma, weight, bias, projection, projection_bias = others
    return by_residual, branch, gamma, weight, bias, None, projection, projection_bias


_forward.register_autograd(_gradients, setup_context=_save)


def _run_triton(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    if branch is None and weight is None:
        return residual, None
    found = _forward(residual, branch, gamma, weight, bias, eps, projection, projection_bias)
    # Without a branch the stream is what it was: an operator may not return what it was given.
    return residual if branch is None else found[0], None if weight is None else found[int(branch is not None)]


_op = register(
    "add_norm",
    reference=_run_reference,
    torch=_torch,
    triton=_run_triton,
    reasons={"triton": _triton.reasons()},
)
