"""Token embedding of the chosen tokens. Contract: `s2vfast.reference.embed_gather`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from s2vfast.ops._dispatch import register, require
from s2vfast.reference.embed_gather import embed_gather as _reference


def embed_gather(
    clips: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, visible: Tensor | None, *, impl: str | None = None
) -> Tensor:
    """Tokens of the joints and segments named by ``visible``: linear map plus position.

    Args:
        clips: [N, T, V, C].
        weight: [D, s * C], input numbers in (frame, channel) order.
        bias: [D].
        positions: [L, D] with L = T / s * V, token ids segment * V + joint.
        visible: int32 [N, K] token ids, or None for all L.
        impl: implementation; None: see `use_impl`.

    Returns:
        [N, K, D] (or [N, L, D]), in the order of ``visible``.
    """
    require(clips.ndim == 4, "embed_gather", "clips", "[N, T, V, C]", clips)
    N, T, V, C = clips.shape
    D, width = weight.shape
    fits = width % C == 0 and T % (width // C) == 0
    require(fits, "embed_gather", "weight", f"[D, s * {C}] with s dividing {T}", weight)
    L = T // (width // C) * V
    require(positions.shape == (L, D), "embed_gather", "positions", f"[{L}, {D}]", positions)
    if visible is not None:
        require(visible.ndim == 2 and visible.shape[0] == N, "embed_gather", "visible", f"[{N}, K]", visible)
    return _op(impl, clips.device, clips, weight, bias, positions, visible)


def _torch(clips: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, visible: Tensor | None) -> Tensor:
    N, T, V, C = clips.shape
    s = weight.shape[1] // C
    pieces = clips.reshape(N, T // s, s, V, C).permute(0, 1, 3, 2, 4).reshape(N, T // s * V, s * C)  # [N, L, s*C]
    if visible is None:
        return F.linear(pieces, weight, bias) + positions
    index = visible.long()
    pieces = pieces.gather(1, index[..., None].expand(-1, -1, s * C))  # [N, K, s*C]
    return F.linear(pieces, weight, bias) + F.embedding(index, positions)


_op = register("embed_gather", reference=_reference, torch=_torch)
