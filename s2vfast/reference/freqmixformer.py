"""FreqMixFormer as published, in the plainest form: layers and names of the authors, [N, C, T, V], a map a channel.

Wu et al., "Frequency Guidance Matters: Skeletal Action Recognition by Frequency-Aware Mixed Transformer", ACM MM 2024.
It is what the network of `s2vfast.networks.freqmixformer` is held to, and the baseline of its speed. Parameters that
the authors' forward pass never uses are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2vfast.reference.infogcn import Conv, TemporalConv

UNITS, GROUPS = 4, 8


def dct(x: Tensor) -> Tensor:
    """DCT-II along the last axis, not normalised."""
    return x @ _cosines(x.shape[-1]).to(x).T


def idct(x: Tensor) -> Tensor:
    """The inverse of `dct`."""
    size = x.shape[-1]
    x = torch.cat([x[..., :1] / 2, x[..., 1:]], -1) / size
    return x @ _cosines(size).to(x) / 2


def _cosines(size: int) -> Tensor:
    index = torch.arange(size, dtype=torch.float64)
    return 2 * torch.cos(math.pi * (2 * index + 1) * index[:, None] / (2 * size))


class Attention(nn.Module):
    """Maps of joints from means over time of half of the channels each."""

    def __init__(self, joints: int) -> None:
        super().__init__()
        self.linear = nn.Linear(joints, joints)


def attention(linear: nn.Linear, query: Tensor, key: Tensor, channels: int) -> Tensor:
    """softmax over w of relu(L query)_v * relu(L key)_w, [N, channels, V, V] of halves [N, q, T, V]."""
    query, key = (F.relu(linear(half.mean((1, 2)))) for half in (query, key))
    return torch.softmax(query[:, :, None] * key[:, None], -1)[:, None].repeat(1, channels, 1, 1)


class Spatial(nn.Module):
    """The map of a channel: attention in space and in frequencies, a constant and a learned graph."""

    def __init__(self, width: int, out: int, graph: Tensor, split: int, low: float, high: float) -> None:
        super().__init__()
        joints = graph.shape[-1]
        self.out = out
        self.register_buffer("weights", torch.where(torch.arange(joints) < split, low, high), persistent=False)
        self.register_buffer("A_SE", graph[:, None].repeat(1, GROUPS, 1, 1), persistent=False)
        self.A_GEME = nn.Parameter(graph[:, None].repeat(1, GROUPS, 1, 1))
        self.linear = nn.Linear(joints, joints)
        self.Spa_Att = Attention(joints)
        self.ChaRef_conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.conv = nn.Conv2d(width, len(graph) * out, 1)
        self.down = nn.Sequential(nn.Conv2d(width, out, 1), nn.BatchNorm2d(out)) if width != out else nn.Identity()
        self.bn = nn.BatchNorm2d(out)

    def maps(self, x: Tensor, frequencies: bool) -> list[Tensor]:
        """[N, C / 4, V, V] of each unit of a subset's channels [N, C, T, V]."""
        halves = [unit.split([unit.shape[1] // 2, unit.shape[1] - unit.shape[1] // 2], 1) for unit in x.chunk(UNITS, 1)]
        width = self.out // UNITS
        units = [attention(self.Spa_Att.linear, query, key, width) / 2 for query, key in halves]
        for u in range(UNITS - 1):
            cross = attention(self.linear, halves[u][1], halves[u + 1][0], width)
            if frequencies:
                cross = cross * self.weights
            units[u], units[u + 1] = units[u] + cross / 4, units[u + 1] + cross / 4
        return [idct(unit) for unit in units] if frequencies else units

    def forward(self, x: Tensor) -> Tensor:
        """[N, out, T, V] of x [N, width, T, V]."""
        m = self.conv(x).unflatten(1, (len(self.A_GEME), self.out))
        static = (self.A_SE + self.A_GEME).repeat(1, self.out // GROUPS, 1, 1)
        maps = []
        for i in range(m.shape[1]):
            space, frequency = self.maps(m[:, i], False), self.maps(dct(m[:, i]), True)
            mixed = torch.cat([a + b for a, b in zip(space, frequency, strict=True)], 1)
            maps.append(mixed / 2 + static[i])
        y = torch.einsum("nkctv,nkcvw->nctw", m, torch.stack(maps, 1))
        gate = torch.sigmoid(self.ChaRef_conv(y.mean((2, 3))[:, None])[:, 0])
        y = y + y * gate[:, :, None, None]
        return F.relu(self.bn(y) + self.down(x))


class Trans(nn.Module):
    """Frames mixed by a gate of every pair of them."""

    def __init__(self, width: int, out: int, stride: int, frames: int) -> None:
        super().__init__()
        self.conv = TemporalConv(width, out, 1, stride)
        self.bn = nn.BatchNorm2d(out)
        self.linear = nn.Linear(frames, frames)

    def forward(self, x: Tensor) -> Tensor:
        """[N, out, T', V] of x [N, width, T, V]."""
        x = self.conv(x)
        half = x.shape[1] // 2
        query, key = x[:, :half].mean((1, 3)), x[:, half:].amax((1, 3))  # [N, T]
        gate = torch.sigmoid(F.relu(self.linear(query))[:, :, None] * F.relu(self.linear(key))[:, None])
        return self.bn(torch.einsum("nctv,ntm->ncmv", x, gate))


class Seq(nn.Module):
    """Frames weighted by a gate of their mean and largest number."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = TemporalConv(width, out, 1, stride)
        self.combine_conv = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, out, T', V] of x [N, width, T, V]."""
        x = self.conv(x)
        pooled = torch.stack([x.mean((1, 3)), x.amax((1, 3))], 1)[..., None]  # [N, 2, T, 1]
        return x * torch.sigmoid(self.combine_conv(pooled))


class Temporal(nn.Module):
    """Five branches of a fifth of the channels."""

    def __init__(self, width: int, stride: int, frames: int) -> None:
        super().__init__()
        b = width // 5

        def reduce() -> list[nn.Module]:
            return [nn.Conv2d(width, b, 1), nn.BatchNorm2d(b), nn.ReLU()]

        self.branches = nn.ModuleList(nn.Sequential(*reduce(), Conv(b, b, 5, stride, dilation)) for dilation in (1, 2))
        pool = nn.MaxPool2d((3, 1), (stride, 1), (1, 0))
        self.branches.append(nn.Sequential(*reduce(), pool, nn.BatchNorm2d(b)))
        self.branches.append(nn.Sequential(Trans(width, b, stride, frames), nn.BatchNorm2d(b)))
        self.branches.append(nn.Sequential(Seq(width, b, stride), nn.BatchNorm2d(b)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, T', V] of x [N, width, T, V]."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class Block(nn.Module):
    """Spatial and temporal part, and a residual."""

    def __init__(
        self, width: int, out: int, stride: int, frames: int, residual: bool, graph: Tensor, *frequencies: float
    ) -> None:
        super().__init__()
        self.spa_mixf = Spatial(width, out, graph, *frequencies)
        self.tem_mixf = Temporal(out, stride, frames)
        self.has_residual = residual
        self.residual = Conv(width, out, 1, stride) if residual and (width != out or stride != 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, out, T', V] of x [N, width, T, V]."""
        y = self.tem_mixf(self.spa_mixf(x))
        return F.relu(y + self.residual(x) if self.has_residual else y)


class FreqMixFormer(nn.Module):
    """Clips [N, 3, T, V, M] to logits [N, classes].

    Args:
        mode: [V, V], I - P^k.
        graph: [3, V, V], what the learned graphs start from.
        frames: T, a multiple of 4.
        bodies: M.
        classes: of actions.
        base: width of the first blocks, a multiple of 40.
        split: first high frequency.
        low: weight of low frequencies in cross maps.
        high: weight of high frequencies.
        channels: of a joint.
    """

    def __init__(
        self,
        mode: Tensor,
        graph: Tensor,
        frames: int,
        bodies: int,
        classes: int,
        base: int = 80,
        split: int = 13,
        low: float = 0.5,
        high: float = 1.5,
        channels: int = 3,
    ) -> None:
        super().__init__()
        joints = len(mode)
        self.register_buffer("A_vector", mode, persistent=False)
        self.to_joint_embedding = nn.Linear(channels, base)
        self.pos_embedding = nn.Parameter(torch.randn(1, joints, base))
        self.data_bn = nn.BatchNorm1d(bodies * joints * base)
        width = base
        for number, (factor, stride) in enumerate(_BLOCKS):
            block = Block(width, factor * base, stride, -(-frames // stride), number > 0, graph, split, low, high)
            self.add_module(f"l{number + 1}", block)
            width, frames = factor * base, -(-frames // stride)
        self.first_tram = _tram(4, base, width)
        self.second_tram = _tram(2, 2 * base, width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of x [N, 3, T, V, M]."""
        N, _, T, V, M = x.shape
        x = self.A_vector @ x.permute(0, 4, 2, 3, 1)  # [N, M, T, V, C]
        x = self.to_joint_embedding(x) + self.pos_embedding
        x = self.data_bn(x.permute(0, 1, 3, 4, 2).reshape(N, -1, T))
        x = x.view(N * M, V, -1, T).permute(0, 2, 3, 1)  # [N * M, C, T, V]
        states = []
        for number in range(len(_BLOCKS)):
            x = getattr(self, f"l{number + 1}")(x)
            states.append(x)
        x = x + self.first_tram(states[3]) + self.second_tram(states[6])
        return self.fc(x.mean((2, 3)).view(N, M, -1).mean(1))


_BLOCKS: Sequence[tuple[int, int]] = ((1, 1), (1, 1), (1, 1), (1, 1), (2, 2), (2, 1), (2, 1), (4, 2), (4, 1), (4, 1))
"""Width as a multiple of the base, and stride, of each block."""


def _tram(frames: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d((frames, 1)), nn.Conv2d(width, out, 1), nn.BatchNorm2d(out), nn.ReLU())
