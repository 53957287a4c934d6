"""Inputs of the operations on points: clips of 8 frames of somebody who moves before a depth camera, cells of 8 cm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s2vfast import ops
from s2vfast.inputs import Shape

CELL, FRAMES, POINTS = 0.08, 8, 512
PAIRS = 13600
"""Pairs of neighbours in such a clip, about: 29 offsets, of which most lead into the air."""


def _bodies(shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Clips float32 [N, 8, 512, 3]: points on the side of six moving capsules that faces the camera, metres."""
    generator = torch.Generator().manual_seed(0)
    N, T, P = shape.N, FRAMES, POINTS
    ends = torch.tensor(
        [
            [[0.0, 0.9, 0.0], [0.0, 1.5, 0.0]],
            [[0.0, 1.6, 0.0], [0.0, 1.75, 0.0]],
            *([[side * 0.25, 1.4, 0.0], [side * 0.6, 1.1, 0.2]] for side in (-1, 1)),
            *([[side * 0.1, 0.9, 0.0], [side * 0.15, 0.0, 0.0]] for side in (-1, 1)),
        ]
    )
    radius = torch.tensor([0.17, 0.12, 0.05, 0.05, 0.08, 0.08])
    moved = ends + 0.03 * torch.randn(N, T, 6, 2, 3, generator=generator).cumsum(1)
    part = torch.randint(6, (N, T, P), generator=generator)
    a, b = (moved[..., i, :].gather(2, part[..., None].expand(N, T, P, 3)) for i in range(2))
    along = torch.rand(N, T, P, 1, generator=generator)
    angle = torch.rand(N, T, P, generator=generator) * torch.pi
    around = torch.stack([angle.cos(), torch.zeros_like(angle), -angle.sin()], -1) * radius[part][..., None]
    return (a + along * (b - a) + around).to(device)


def grid(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Three levels, as a network has them."""
    clips = _bodies(shape, dtype, device)
    capacity = len(clips) * FRAMES * POINTS
    return {"clips": clips, "size": CELL, "strides": ((1, 2), (2, 2)), "capacity": capacity}


def cells(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The cells of those clips and D channels."""
    clips = _bodies(shape, dtype, torch.device("cpu"))
    table = ops.voxelize(clips, CELL).levels[0].neighbors
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(table.shape[1], shape.D, generator=generator)
    weight = torch.randn(len(table), shape.D, shape.D, generator=generator) * (10 * shape.D) ** -0.5
    return {"x": x.to(device, dtype), "weight": weight.to(device, dtype), "table": table.to(device)}


def depth_store(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """40 sequences of 40 frames of about 2,000 points, in half precision."""
    generator = torch.Generator().manual_seed(0)
    size = torch.randint(1000, 3001, (1600,), generator=generator)
    points = torch.randn(int(size.sum()), 3, generator=generator).half()
    tensors = {
        "points": points,
        "begin": size.cumsum(0) - size,
        "size": size.int(),
        "row": torch.arange(0, 1600, 40),
        "count": torch.full((40,), 40, dtype=torch.int32),
        "origin": torch.randn(40, 3, generator=generator),
        "ids": torch.randint(40, (shape.N,), generator=generator),
    }
    spec = ops.PointSpec(FRAMES, POINTS)
    return {name: tensor.to(device) for name, tensor in tensors.items()} | {"spec": spec, "seed": 1, "epoch": 1}
