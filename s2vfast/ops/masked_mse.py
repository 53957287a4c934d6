"""The loss at the masked tokens. Contract: `s2vfast.reference.masked_mse`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.masked_mse import masked_mse as _reference


def masked_mse(prediction: Tensor, target: Tensor, *, impl: str | None = None) -> Tensor:
    """Mean over all numbers of the squared difference.

    Args:
        prediction: [N, M, D], at the masked tokens.
        target: [N, M, D].
        impl: implementation; None: see `use_impl`.

    Returns:
        A scalar.
    """
    require(target.shape == prediction.shape, "masked_mse", "target", str(list(prediction.shape)), target)
    return _op(impl, prediction.device, prediction, target)


def _torch(prediction: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(prediction, target)


_op = register("masked_mse", reference=_reference, torch=_torch)
