"""InfoGCN as published, in the plainest form: layers and names of the authors, tensors [N, C, T, V], maps in memory.

Chi et al., "InfoGCN: Representation Learning for Human Skeleton-based Action Recognition", CVPR 2022. It is what the
network of `s2vfast.networks.infogcn` and its loss are held to, and the baseline of their speed. The one random draw of
a step, eps, is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DILATIONS = (1, 2)


class GraphAttention(nn.Module):
    """SAGC: an attention map a frame and head, times the topology, and a convolution a head."""

    def __init__(self, width: int, out: int, joints: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // 8
        self.shared_topology = nn.Parameter(torch.eye(joints).repeat(heads, 1, 1))
        self.conv_d = nn.ModuleList(nn.Conv2d(width, out, 1) for _ in range(heads))
        self.down = nn.Sequential(nn.Conv2d(width, out, 1), nn.BatchNorm2d(out)) if width != out else nn.Identity()
        self.bn = nn.BatchNorm2d(out)
        self.attn = nn.Module()
        self.attn.ln = nn.LayerNorm(width)
        self.attn.to_qk = nn.Linear(width, 2 * heads * self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, V] to [N, C', T', V]."""
        N, C, T, V = x.shape
        normed = self.attn.ln(x.permute(0, 2, 3, 1).reshape(N * T, V, C))
        q, k = self.attn.to_qk(normed).unflatten(2, (2, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        maps = torch.softmax(q @ k.transpose(-1, -2) * self.head_dim**-0.5, -1) * self.shared_topology
        maps = maps.unflatten(0, (N, T))  # [N, T, H, V, V]
        y = 0
        for head, conv in enumerate(self.conv_d):
            mixed = maps[:, :, head] @ x.permute(0, 2, 3, 1)  # [N, T, V, C]
            y = y + conv(mixed.permute(0, 3, 1, 2))
        return torch.relu(self.bn(y) + self.down(x))


class TemporalConv(nn.Conv2d):
    """A convolution over time, as many frames as before where there is no stride.

    With one tap the stride is one of the frames, and not of the convolution: oneDNN computes the weight's gradient of
    that wrong where channels are few and last in memory, and writes beyond its buffer
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, width: int, out: int, kernel: int, stride: int, dilation: int = 1) -> None:
        every, step = (stride, 1) if kernel == 1 else (1, stride)
        super().__init__(width, out, (kernel, 1), (step, 1), (kernel // 2 * dilation, 0), (dilation, 1))
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, V] to [N, C', T', V]."""
        return super().forward(x[:, :, :: self.every])


class Conv(nn.Module):
    """A convolution over time, and a batch norm."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = TemporalConv(width, out, kernel, stride, dilation)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, V] to [N, C', T', V]."""
        return self.bn(self.conv(x))


class Temporal(nn.Module):
    """Two dilated convolutions, a maximum and a plain map, each of a quarter of the channels."""

    def __init__(self, width: int, stride: int, kernel: int) -> None:
        super().__init__()
        b = width // 4

        def reduce() -> list[nn.Module]:
            return [nn.Conv2d(width, b, 1), nn.BatchNorm2d(b), nn.ReLU()]

        self.branches = nn.ModuleList(
            nn.Sequential(*reduce(), Conv(b, b, kernel, stride, dilation)) for dilation in DILATIONS
        )
        pool = nn.MaxPool2d((3, 1), (stride, 1), (1, 0))
        self.branches.append(nn.Sequential(*reduce(), pool, nn.BatchNorm2d(b)))
        self.branches.append(nn.Sequential(TemporalConv(width, b, 1, stride), nn.BatchNorm2d(b)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, V] to [N, C', T', V]."""
        return torch.relu(torch.cat([branch(x) for branch in self.branches], 1))


class Block(nn.Module):
    """SAGC, temporal module, residual."""

    def __init__(self, width: int, out: int, joints: int, heads: int, stride: int, kernel: int) -> None:
        super().__init__()
        self.agcn = GraphAttention(width, out, joints, heads)
        self.tcn = Temporal(out, stride, kernel)
        plain = width == out and stride == 1
        self.residual = nn.Identity() if plain else Conv(width, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, T, V] to [N, C', T', V]."""
        return torch.relu(self.tcn(self.agcn(x)) + self.residual(x))


@dataclass(frozen=True)
class Output:
    """What a pass gives."""

    logits: Tensor  # [N, classes]
    z: Tensor  # [N, 4 * base], what the decoder sees
    mu: Tensor
    logvar: Tensor


class InfoGCN(nn.Module):
    """The published network.

    Args:
        mode: [V, V], I - P^k.
        classes: how many.
        base: channels of the first blocks; 2 and 4 times as many in those after.
        heads: H.
        bodies: M.
        noise_ratio: factor of the log-variance inside exp.
        blocks: of each of the three widths.
        kernel: frames of the dilated convolutions.
    """

    def __init__(
        self,
        mode: Tensor,
        classes: int,
        base: int = 64,
        heads: int = 3,
        bodies: int = 2,
        noise_ratio: float = 0.5,
        blocks: tuple[int, ...] = (3, 3, 3),
        kernel: int = 5,
    ) -> None:
        super().__init__()
        V, self.noise_ratio = len(mode), noise_ratio
        self.register_buffer("mode", mode, persistent=False)
        self.to_joint_embedding = nn.Linear(3, base)
        self.pos_embedding = nn.Parameter(torch.randn(1, V, base))
        self.data_bn = nn.BatchNorm1d(bodies * V * base)
        width, self.layers = base, []
        for stage, count in enumerate(blocks):
            for i in range(count):
                out, stride = base * 2**stage, 2 if stage and i == 0 else 1
                self.layers.append(f"l{len(self.layers) + 1}")
                self.add_module(self.layers[-1], Block(width, out, V, heads, stride, kernel))
                width = out
        self.fc, self.fc_mu, self.fc_logvar = (nn.Linear(width, width) for _ in range(3))
        self.decoder = nn.Linear(width, classes)

    def forward(self, x: Tensor, eps: Tensor | None = None) -> Output:
        """Of x [N, 3, T, V, M]; eps [N, 4 * base] in training, None in evaluation."""
        N, C, T, V, M = x.shape
        x = x.permute(0, 4, 2, 3, 1).reshape(N * M * T, V, C)
        x = self.to_joint_embedding(self.mode @ x) + self.pos_embedding
        x = x.view(N, M, T, -1).permute(0, 1, 3, 2).reshape(N, -1, T)
        x = self.data_bn(x).view(N * M, V, -1, T).permute(0, 2, 3, 1)
        for name in self.layers:
            x = getattr(self, name)(x)
        pooled = x.flatten(2).mean(2).view(N, M, -1).mean(1)
        hidden = torch.relu(self.fc(pooled))
        mu, logvar = self.fc_mu(hidden), self.fc_logvar(hidden)
        z = mu if eps is None else mu + eps * (self.noise_ratio * logvar).exp().clamp(max=100.0)
        return Output(self.decoder(z), z, mu, logvar)


def losses(
    output: Output, labels: Tensor, prior: Tensor, lambda_l2: float, lambda_mmd: float, smoothing: float
) -> dict[str, Tensor]:
    """cls, mmd, l2 and their weighted sum, loss.

    mmd is the mean, over classes that are in the batch and over dimensions, of (class mean of z - row of prior)^2.
    """
    log_p = F.log_softmax(output.logits, -1)
    nll = -log_p.gather(1, labels[:, None])[:, 0]
    cls = ((1 - smoothing) * nll - smoothing * log_p.mean(1)).mean()
    rows = [output.z[labels == label].mean(0) - prior[label] for label in labels.unique()]
    mmd = torch.stack(rows).square().mean()
    l2 = output.z.mean(0).norm()
    return {"cls": cls, "mmd": mmd, "l2": l2, "loss": cls + lambda_mmd * mmd + lambda_l2 * l2}


def initialise(model: InfoGCN, heads: int) -> None:
    """The published start, from PyTorch's own generator."""
    for name in model.layers:
        block = getattr(model, name)
        agcn = block.agcn
        for conv in agcn.conv_d:
            out, width = conv.weight.shape[:2]
            nn.init.normal_(conv.weight, 0, math.sqrt(2.0 / (out * width * heads)))
            nn.init.zeros_(conv.bias)
        nn.init.constant_(agcn.bn.weight, 1e-6)
        nn.init.normal_(agcn.attn.to_qk.weight, 0, 1)
        for conv in [*([agcn.down[0]] if len(agcn.down._modules) else []), *_convs(block.residual)]:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            nn.init.zeros_(conv.bias)
    for linear in (model.fc, model.fc_mu, model.fc_logvar):
        nn.init.xavier_uniform_(linear.weight, gain=math.sqrt(2.0))
    nn.init.normal_(model.decoder.weight, 0, math.sqrt(2.0 / model.decoder.out_features))


def _convs(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]
