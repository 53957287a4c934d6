"""The decoder's input: latents at the visible tokens, the mask token elsewhere, plus positions."""

from __future__ import annotations

from torch import Tensor


def mask_fill(latents: Tensor, mask_token: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    """Put the latents back at their places.

    Args:
        latents: [N, K, D].
        mask_token: [D].
        positions: [L, D].
        visible: int32 [N, K], token ids of the latents.

    Returns:
        [N, L, D].
    """
    N, _, D = latents.shape
    L = positions.shape[0]
    filled = mask_token.expand(N, L, D).scatter(1, visible.long()[..., None].expand(-1, -1, D), latents)
    return filled + positions
