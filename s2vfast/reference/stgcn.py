"""ST-GCN as SkeAttnCLR's code computes it, in the layout and with the parameter names of that code.

Yan et al., AAAI 2018. Parameters and buffers are tensors by name; the running statistics of batch norms change in
place in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def identity(x: Tensor) -> Tensor:
    """No dropout."""
    return x


def batch_norm(x: Tensor, state: State, name: str, training: bool) -> Tensor:
    """`torch.nn.BatchNorm1d` or 2d by name, channels second."""
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if training:
        state[f"{name}.num_batches_tracked"].add_(1)
    return F.batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training)


def block(x: Tensor, state: State, name: str, edges: Tensor, first: bool, training: bool, drop: Callable) -> Tensor:
    """One block.

    Args:
        x: [N, C, T, V].
        state: by name.
        name: of the block, with the dot after it.
        edges: [K, V, V], graph times importance.
        first: whether it is the first one, which has no residual and no dropout.
        training: whether batch norms use the batch's statistics.
        drop: dropout.

    Returns:
        [N, D, T', V].
    """
    y = F.conv2d(x, state[f"{name}gcn.conv.weight"], state[f"{name}gcn.conv.bias"])
    y = torch.einsum("nkctv,kvw->nctw", y.unflatten(1, (len(edges), -1)), edges).contiguous()
    y = F.relu(batch_norm(y, state, f"{name}tcn.0", training))
    weight = state[f"{name}tcn.2.weight"]
    # Two blocks have a stride; it shows in nothing but the frames that the shortcut's map is applied to.
    stride = 2 if f"{name}residual.0.weight" in state else 1
    y = F.conv2d(y, weight, state[f"{name}tcn.2.bias"], (stride, 1), (weight.shape[2] // 2, 0))
    y = batch_norm(y, state, f"{name}tcn.3", training)
    if first:
        return F.relu(y)
    if stride == 2:
        x = F.conv2d(x[:, :, ::2], state[f"{name}residual.0.weight"], state[f"{name}residual.0.bias"])
        x = batch_norm(x, state, f"{name}residual.1", training)
    return F.relu(drop(y) + x)


def stgcn(
    clips: Tensor, state: State, prefix: str = "", training: bool = True, drop: Callable[[Tensor], Tensor] = identity
) -> Tensor:
    """Features [N, D, T / 4, V] of tracks [N, T, V, C].

    Args:
        clips: a body each.
        state: parameters and buffers by the published names.
        prefix: of the names.
        training: whether batch norms use the batch's statistics.
        drop: dropout.
    """
    N, T, V, C = clips.shape
    x = batch_norm(clips.permute(0, 2, 3, 1).reshape(N, V * C, T), state, f"{prefix}data_bn", training)
    x = x.view(N, V, C, T).permute(0, 2, 3, 1).contiguous()
    number = 0
    while f"{prefix}st_gcn_networks.{number}.gcn.conv.weight" in state:
        edges = state[f"{prefix}A"] * state[f"{prefix}edge_importance.{number}"]
        x = block(x, state, f"{prefix}st_gcn_networks.{number}.", edges, number == 0, training, drop)
        number += 1
    return x
