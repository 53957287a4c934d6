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
    impl: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """residual + gamma * branch, and its layer norm.

    Args:
        residual: [N, L, D], the residual stream.
        branch: [N, L, D], output of the last branch; None at the start of the stream.
        gamma: [D], LayerScale of that branch; None adds it as it is.
        weight: [D] of the norm; None: no norm is wanted.
        bias: [D] of the norm.
        eps: added to the variance.
        impl: implementation; None: see `use_impl`.

    Returns:
        The new residual stream and its norm (None where none is wanted), both [N, L, D].
    """
    D = residual.shape[-1]
    if branch is not None:
        require(branch.shape == residual.shape, "add_norm", "branch", str(list(residual.shape)), branch)
    for name, vector in (("gamma", gamma), ("weight", weight), ("bias", bias)):
        require(vector is None or vector.shape == (D,), "add_norm", name, f"[{D}]", vector)
    return _op(impl, residual.device, residual, branch, gamma, weight, bias, eps)


def _torch(
    residual: Tensor,
    branch: Tensor | None,
    gamma: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor | None]:
    if branch is not None:
        residual = residual + branch if gamma is None else torch.addcmul(residual, gamma, branch)
    if weight is None:
        return residual, None
    return residual, F.layer_norm(residual, weight.shape, weight, bias, eps)


_op = register("add_norm", reference=_reference, torch=_torch)
