"""The decoder's input. Contract: `s2vfast.reference.mask_fill`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

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


_op = register("mask_fill", reference=_reference, torch=_torch)
