"""How InfoGCN and FreqMixFormer begin: a mode, a linear map of a joint, an embedding of joints, a batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2vfast.networks.norm import normalise


class Stem(nn.Module):
    """Clips [N * M, T, V, C] to [N * M, T, V, D].

    The batch norm has statistics of its own for every body, joint and channel. While it takes them of the batch, the
    embedding of joints and the bias therefore change nothing; they are there for weights of published checkpoints.

    Args:
        mode: float [V, V], a row a joint of the result, such as `s2vfast.networks.graph.mode`.
        bodies: M, tracks a sample, which lie next to each other.
        channels: C.
        width: D.
    """

    mode: Tensor

    def __init__(self, mode: Tensor, bodies: int, channels: int, width: int) -> None:
        super().__init__()
        self.bodies = bodies
        self.register_buffer("mode", mode, persistent=False)
        self.linear = nn.Linear(channels, width)
        self.joint = nn.Parameter(torch.randn(len(mode), width))
        self.norm = nn.BatchNorm1d(bodies * len(mode) * width)

    def forward(self, clips: Tensor) -> Tensor:
        """[N * M, T, V, D]."""
        x = nn.functional.linear(torch.einsum("vw,ntwc->ntvc", self.mode, clips), self.linear.weight)
        offset = self.linear.bias + self.joint  # [V, D]
        # In training the norm takes the offset out again. It is large beside what differs from frame to frame, and
        # would cost most digits of float32: its value is left out, and added to the running mean.
        x = x + (offset - offset.detach() if self.training else offset)
        V, D = offset.shape
        x = x.unflatten(0, (-1, self.bodies)).transpose(1, 2)  # [N, T, M, V, D]
        normed = normalise(self.norm, x.reshape(-1, self.bodies * V * D))
        if self.training:
            # Past autograd's count of changes: the norm's gradient holds the buffer, and does not read it.
            shift = offset.detach().flatten().repeat(self.bodies)
            self.norm.running_mean.data.add_(shift, alpha=self.norm.momentum)
        return normed.view(x.shape).transpose(1, 2).flatten(0, 1)
