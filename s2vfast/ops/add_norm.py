"""LayerScale, residual addition and layer norm. Contract: `s2vfast.reference.add_norm`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops import _triton
from s2vfast.ops._custom import contiguous, differentiate, fake, like, one_each, operator, present
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
        E = 0 if branch is None else branch.shape[-1]
        require(projection.shape == (D, E), "add_norm", "projection", f"[{D}, {E}]", projection)
    elif branch is not None:
        require(branch.shape == residual.shape, "add_norm", "branch", str(list(residual.shape)), branch)
    for name, vector in (("gamma", gamma), ("weight", weight), ("bias", bias), ("projection_bias", projection_bias)):
        require(vector is None or vector.shape == (D,), "add_norm", name, f"[{D}]", vector)
    options = {"projection": projection, "projection_bias": projection_bias}
    return _op(impl, residual.device, residual, branch, gamma, weight, bias, eps, **options)


def _torch(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    projection: Tensor | None,
    projection_bias: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    if projection is not None and branch is not None:  # `add_norm` has refused a projection of nothing
        branch = linear(branch, projection, projection_bias)
    dtype = residual.dtype if branch is None else branch.dtype
    if branch is not None:
        residual = residual + branch if gamma is None else torch.addcmul(residual, gamma, branch)
    if weight is None:
        return residual, None
    return residual, F.layer_norm(residual, weight.shape, weight, bias, eps).to(dtype)


_BRANCH = "Tensor? branch, Tensor? gamma, Tensor? weight, Tensor? bias"
_PROJECTION = "Tensor? projection, Tensor? projection_bias"


@operator(f"add_norm_triton(Tensor residual, {_BRANCH}, float eps, {_PROJECTION}) -> Tensor[]")
def _forward(residual, branch, gamma, weight, bias, eps, *projection):
    """The new stream (if there is a branch), the norm, mean and rstd (if there is a norm)."""
    rows = [t if t is None else t.contiguous().view(-1, t.shape[-1]) for t in (residual, branch)]
    out, normed, *statistics = _triton.kernels("add_norm").forward(
        *rows, *contiguous((gamma, weight, bias)), eps, *contiguous(projection)
    )
    return present([*(t if t is None else t.view(residual.shape) for t in (out, normed)), *statistics])


@fake(_forward)
def _(residual, branch, gamma, weight, *_):
    outputs = [] if branch is None else like((residual,))
    if weight is not None:
        dtype = residual.dtype if branch is None else branch.dtype
        rows = residual.shape[:-1].numel()
        outputs.append(residual.new_empty(residual.shape, dtype=dtype))
        outputs += [residual.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    return outputs


@operator(
    "add_norm_triton_backward(Tensor? grad_out, Tensor? grad_normed, Tensor out, Tensor? mean, Tensor? rstd, "
    f"{_BRANCH}, {_PROJECTION}) -> Tensor[]"
)
def _backward(grad_out, grad_normed, out, mean, rstd, branch, *parameters):
    """Gradients of residual and of those of the others that there are, in the order of the operation's arguments.

    Without a norm that of residual is grad_out, which an operator may not return: it is left out.
    """
    rows = [t if t is None else t.contiguous().view(-1, t.shape[-1]) for t in (grad_out, grad_normed, out, branch)]
    grad_residual, grad_branch, *parameter_grads = _triton.kernels("add_norm").backward(
        *rows[:3], mean, rstd, rows[3], *contiguous(parameters)
    )
    streams = [(grad_residual, out), (grad_branch, branch)]
    return [gradient.view(stream.shape) for gradient, stream in streams if gradient is not None] + present(
        parameter_grads
    )


@fake(_backward)
def _(grad_out, grad_normed, out, mean, rstd, branch, gamma, weight, *bias_and_projection):
    return like((None if weight is None else out, branch, gamma, weight, *bias_and_projection))


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    residual, branch, gamma, weight, bias, _, *projection = inputs
    ctx.set_materialize_grads(False)
    ctx.with_branch, ctx.with_norm = branch is not None, weight is not None
    out = output[0] if ctx.with_branch else residual
    mean, rstd = output[-2:] if ctx.with_norm else (None, None)
    # LayerScale without a projection needs the branch as it was; the projection's gradient needs it as well.
    ctx.save_for_backward(out, mean, rstd, branch, gamma, weight, bias, *projection)


def _gradients(ctx: Any, grads: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    grad_out = grads[0] if ctx.with_branch else None
    grad_normed = grads[int(ctx.with_branch)] if ctx.with_norm else None
    out, mean, rstd, *branch_and_parameters = ctx.saved_tensors
    gradients = _backward(grad_out, grad_normed, out, mean, rstd, *branch_and_parameters)
    residual, branch, gamma, weight, bias, *projection = one_each(
        gradients, (out if ctx.with_norm else None, *branch_and_parameters)
    )
    return residual if ctx.with_norm else grad_out, branch, gamma, weight, bias, None, *projection


differentiate(_forward, _gradients, _save)


def _run_triton(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    *bias_and_projection: Any,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    if branch is None and weight is None:
        return residual, None
    outputs = _forward(residual, branch, gamma, weight, *bias_and_projection, **options)
    # Without a branch the stream is what it was: an operator may not return what it was given.
    return residual if branch is None else outputs[0], None if weight is None else outputs[int(branch is not None)]


_op = register(
    "add_norm",
    reference=_reference,
    torch=_torch,
    triton=_run_triton,
    reasons={"triton": _triton.reasons()},
)
