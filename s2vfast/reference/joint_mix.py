"""A map of joints for every channel, applied to every frame, in the plainest PyTorch."""

import torch
from torch import Tensor


def joint_mix(
    x: Tensor, dynamic: Tensor, static: Tensor, bias: Tensor | None = None, gate: Tensor | None = None
) -> Tensor:
    """Arguments and result as of `s2vfast.ops.joint_mix`."""
    if bias is not None:
        x = x + bias.to(x.dtype)
    subsets, units = dynamic.shape[1:3]
    groups = static.shape[1]
    x = x.unflatten(-1, (subsets, -1))  # [B, T, V, subsets, C]
    C = x.shape[-1]
    channel = torch.arange(C, device=x.device)
    maps = dynamic[:, :, channel // (C // units)] + static[:, channel % groups]  # [B, subsets, C, V, V]
    out = torch.einsum("btvic,bicvw->btwc", x, maps)
    return out if gate is None else out * gate[:, None, None].to(x.dtype)
