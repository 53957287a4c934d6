"""The teacher's contextual features as a target (arXiv 2401.00921, section 3.2; data2vec 2.0, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def teacher_target(hidden: list[Tensor], masked: Tensor | None, norm: str = "instance", eps: float = 1e-5) -> Tensor:
    """Normalise each hidden state, average them, layer-normalise the mean.

    Args:
        hidden: outputs of the last k blocks, each [N, L, D].
        masked: int32 [N, U] token ids whose targets are wanted; None for all L.
        norm: ``instance`` (over the tokens of a track, per channel) or ``layer`` (over the channels of a token).
        eps: added to variances.

    Returns:
        [N, U, D].
    """
    dim = {"instance": 1, "layer": 2}[norm]
    total = torch.zeros_like(hidden[0])
    for state in hidden:
        total = total + _standardise(state, dim, eps)
    target = _standardise(total / len(hidden), 2, eps)
    if masked is None:
        return target
    return target.gather(1, masked.long()[..., None].expand(-1, -1, target.shape[-1]))


def _standardise(x: Tensor, dim: int, eps: float) -> Tensor:
    mean = x.mean(dim=dim, keepdim=True)
    variance = (x - mean).square().mean(dim=dim, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps)
