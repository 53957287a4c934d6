"""The feed-forward branch. Contract: `s2vfast.reference.mlp`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.mlp import mlp as _reference


def mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, impl: str | None = None
) -> Tensor:
    """fc2(gelu(fc1(x))), exact (erf) GELU.

    Args:
        x: [N, L, D].
        weight1: [E, D].
        bias1: [E].
        weight2: [D, E].
        bias2: [D].
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, L, D].
    """
    E, D = weight1.shape
    require(x.shape[-1] == D, "mlp", "x", f"[N, L, {D}]", x)
    require(bias1.shape == (E,), "mlp", "bias1", f"[{E}]", bias1)
    require(weight2.shape == (D, E), "mlp", "weight2", f"[{D}, {E}]", weight2)
    require(bias2.shape == (D,), "mlp", "bias2", f"[{D}]", bias2)
    return _op(impl, x.device, x, weight1, bias1, weight2, bias2)


def _torch(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


_op = register("mlp", reference=_reference, torch=_torch)
