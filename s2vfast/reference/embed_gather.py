"""Token embedding: a linear map of a joint's frames in one segment, plus its position, for the chosen tokens."""

from __future__ import annotations

from torch import Tensor


def embed_gather(clips: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
    """Embed all tokens as the published code does, then keep the visible ones.

    Args:
        clips: [N, T, V, C].
        weight: [D, s * C], input numbers in (frame, channel) order.
        bias: [D].
        positions: [L, D], token ids segment * V + joint.
        visible: int32 [N, K] token ids, or None for all L.

    Returns:
        [N, K, D] (or [N, L, D]), in the order of ``visible``.
    """
    N, T, V, C = clips.shape
    D, width = weight.shape
    s = width // C
    pieces = clips.reshape(N, T // s, s, V, C).permute(0, 1, 3, 2, 4).reshape(N, T // s * V, s * C)  # [N, L, s*C]
    tokens = pieces @ weight.t() + bias + positions  # [N, L, D]
    if visible is None:
        return tokens
    return tokens.gather(1, visible.long()[..., None].expand(-1, -1, D))
