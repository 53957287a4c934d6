"""LayerScale, residual addition and layer norm. Contract: `s2vfast.reference.add_norm`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops._dispatch import register, require
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
        branch = F.linear(branch, projection, None if projection_bias is None else projection_bias.to(projection.dtype))
    dtype = residual.dtype if branch is None else branch.dtype
    if branch is not None:
        residual = residual + branch if gamma is None else torch.addcmul(residual, gamma, branch)
    if weight is None:
        return residual, None
    return residual, F.layer_norm(residual, weight.shape, weight, bias, eps).to(dtype)


_op = register("add_norm", reference=_run_reference, torch=_torch)
