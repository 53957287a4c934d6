"""Random inputs of every operation at a shape of one's choice: for checks, tests, benchmarks and the tuner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.reference.philox import track_ids


@dataclass(frozen=True)
class Shape:
    """Sizes that decide the inputs of all operations; an operation looks at those that concern it."""

    N: int = 2  # tracks, even where there are two bodies
    S: int = 3  # segments
    V: int = 5  # joints
    s: int = 2  # frames a segment
    C: int = 3  # channels
    D: int = 32  # width
    H: int = 2  # heads
    E: int = 64  # width of the hidden layer, and of what norm_linear makes
    k: int = 2  # hidden states of the target
    tube_len: int = 1  # segments a tube
    keep: int = 2  # visible joints a tube
    tokens: int = 0  # L where it is not S * V: for operations on tokens alone

    @property
    def L(self) -> int:
        """Tokens a track."""
        return self.tokens or self.S * self.V

    @property
    def K(self) -> int:
        """Visible tokens a track."""
        return min(self.S * self.keep, self.L)

    def with_sizes(self, text: str) -> Shape:
        """This shape with other sizes: ``N=3,tokens=77``.

        Raises:
            ConfigError: no such size, or not a number.
        """
        names = {field.name for field in dataclasses.fields(self)} | {"L"}
        sizes = {}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in names or not value.isdigit():
                raise errors.ConfigError(
                    f"shape: {item}: expected NAME=NUMBER with a name among {', '.join(sorted(names))}"
                )
            sizes["tokens" if name == "L" else name] = int(value)
        return dataclasses.replace(self, **sizes)


SHAPES = {
    "tiny": Shape(),
    "odd": Shape(N=3, S=4, V=7, s=3, D=48, H=3, E=80, k=3, tube_len=2, keep=3),
    "empty": Shape(N=0),
    "one": Shape(N=1, S=1, V=1, s=1, D=16, H=1, E=16, k=1, keep=1),
    "ntu": Shape(N=128, S=30, V=25, s=4, D=256, H=8, E=1024, k=8, tube_len=5, keep=2),
    "ntu_student": Shape(N=128, S=30, V=25, s=4, D=256, H=8, E=1024, k=8, tube_len=5, keep=2, tokens=60),
    "nwucla": Shape(N=128, S=4, V=20, s=8, C=6, D=64, H=2, E=128, k=4, tube_len=2, keep=4),
    "nwucla_student": Shape(N=128, S=4, V=20, s=8, C=6, D=64, H=2, E=128, k=4, tube_len=2, keep=4, tokens=16),
    "long": Shape(N=16, S=64, V=32, s=4, D=256, H=8, E=1024, k=8, tube_len=8, keep=3),
    "wide": Shape(N=32, S=30, V=25, s=4, D=768, H=12, E=3072, k=8, tube_len=5, keep=2),
}
"""Shapes by name: small ones for checks, and those that are measured."""


class _Maker:
    """Random tensors of one dtype on one device."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device | str, seed: int | None) -> None:
        self.shape, self.dtype, self.device = shape, dtype, torch.device(device)
        self.drawn = seed is not None
        self.generator = torch.Generator().manual_seed(seed or 0)

    def normal(self, *sizes: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype | None = None) -> Tensor:
        if not self.drawn:
            return torch.empty(sizes, dtype=dtype or self.dtype, device=self.device)
        numbers = torch.randn(sizes, generator=self.generator) * scale + shift
        return numbers.to(self.device, dtype or self.dtype)

    def stream(self, *sizes: int) -> Tensor:
        """A residual stream: float32 whatever the operands are."""
        return self.normal(*sizes, dtype=torch.float32)

    def linear(self, out: int, width: int) -> tuple[Tensor, Tensor]:
        return self.normal(out, width, scale=width**-0.5), self.normal(out, scale=0.1)

    def norm(self, width: int) -> tuple[Tensor, Tensor]:
        weight = self.normal(width, scale=0.1, shift=1.0, dtype=torch.float32)
        return weight, self.normal(width, scale=0.1, dtype=torch.float32)

    def chosen(self, count: int) -> Tensor:
        """int32 [N, count]: tokens, each at most once, ascending."""
        shape = self.shape
        order = torch.rand(shape.N, shape.L, generator=self.generator).argsort(1)
        return order[:, :count].sort(1).values.to(self.device, torch.int32)


def inputs(
    op: str,
    shape: Shape = SHAPES["tiny"],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int | None = 0,
) -> dict[str, Any]:
    """Arguments of the public operation ``op``, by name.

    Args:
        op: name of the operation.
        shape: sizes.
        dtype: of matrix operands; residual streams, norms and clips are float32.
        device: where the tensors are.
        seed: seed of the numbers; None: numbers are whatever the memory holds, for launches that are not made.
    """
    return _MAKERS[op](_Maker(shape, dtype, device, seed))


def _clip_sample(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    bodies, sequences = 2, 5
    T = shape.S * shape.s
    # Shorter than a clip, up to twice as long, and longer: every branch of the frame choice.
    lengths = [1, max(T // 2, 1), T + T // 2, 3 * T + 1, T]
    row, count, index, start = [], [], [], 0
    for q in range(sequences):
        for m in range(bodies):
            n = lengths[q] if m == 0 else (0, lengths[q] // 2)[q % 2]
            row.append(start)
            count.append(n)
            index.append(torch.arange(n, dtype=torch.int32) * (1 + m))
            start += n
    frames = make.normal(start, shape.V, 3, dtype=torch.float32)
    frames[::7, 0] = 0.0  # a missing joint
    spec = ops.ClipSpec(frames=T, rotate=(0.3, 0.3, 0.3), scale_jitter=0.1, velocity=float(shape.C == 6))
    if shape.V > 1:
        lower, upper = tuple(range(min(2, shape.V - 1))), shape.V - 1  # a mean of two joints, where there are three
        spec = dataclasses.replace(spec, scale="torso", align="yaw", torso=(lower, upper), sides=(0, upper))
    ids = torch.randint(sequences, ((shape.N + 1) // bodies,), generator=make.generator)
    return {
        "frames": frames,
        "frame_index": torch.cat(index).to(make.device),
        "row": torch.tensor(row).reshape(sequences, bodies).to(make.device),
        "count": torch.tensor(count, dtype=torch.int32).reshape(sequences, bodies).to(make.device),
        "ids": ids.to(make.device),
        "spec": spec,
        "seed": 11,
        "epoch": 2,
    }


def _clips(make: _Maker) -> Tensor:
    shape = make.shape
    return make.normal(shape.N, shape.S * shape.s, shape.V, shape.C, dtype=torch.float32)


def _tube_mask(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    return {
        "clips": _clips(make),
        "segment_frames": shape.s,
        "tube_len": shape.tube_len,
        "keep": min(shape.keep, shape.V),
        "motion_weight": 0.1,
        "seed": 3,
        "epoch": 1,
        "ids": track_ids(torch.arange(shape.N), 1).to(make.device),
    }


def _token_mask(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    return {
        "clips": _clips(make),
        "kind": "motion_token",
        "segment_frames": shape.s,
        "keep": min(shape.K, shape.S * shape.V),
        "seed": 3,
        "epoch": 1,
        "ids": track_ids(torch.arange(shape.N), 1).to(make.device),
    }


def _embed_gather(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    weight, bias = make.linear(shape.D, shape.s * shape.C)
    return {
        "clips": _clips(make),
        "weight": weight,
        "bias": bias,
        "positions": make.normal(shape.S * shape.V, shape.D),
        "visible": make.chosen(shape.K),
    }


def _mask_fill(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    return {
        "latents": make.normal(shape.N, shape.K, shape.D),
        "mask_token": make.normal(shape.D),
        "positions": make.normal(shape.L, shape.D),
        "visible": make.chosen(shape.K),
    }


def _attention(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    return {"qkv": make.normal(shape.N, shape.L, 3, shape.H, shape.D // shape.H)}


def _norm_linear(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    norm_weight, norm_bias = make.norm(shape.D)
    weight, bias = make.linear(3 * shape.D, shape.D)
    x = make.stream(shape.N, shape.L, shape.D)
    return {"x": x, "norm_weight": norm_weight, "norm_bias": norm_bias, "weight": weight, "bias": bias}


def _temporal_conv(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    x = make.normal(shape.S * shape.s, shape.N * shape.V, shape.D)
    weight = make.normal(9, shape.D, shape.D, scale=(9 * shape.D) ** -0.5)
    return {"x": x, "weight": weight, "bias": make.normal(shape.D, scale=0.1)}


def _temporal_branches(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    b = max(shape.D // 4, 1)
    return {
        # The variance of a single row is zero.
        "x": make.normal(shape.N, max(shape.S * shape.s, 2), shape.V, 4 * b),
        "weight": make.normal(2, b, b, 5, scale=(5 * b) ** -0.5),
        "norm_weight": make.normal(3 * b, scale=0.3, dtype=torch.float32),
        "norm_bias": make.normal(3 * b, scale=0.3, dtype=torch.float32),
    }


def _add_norm(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    weight, bias = make.norm(shape.D)
    projection, projection_bias = make.linear(shape.D, shape.D)
    return {
        "residual": make.stream(shape.N, shape.L, shape.D),
        "branch": make.normal(shape.N, shape.L, shape.D),
        "gamma": make.normal(shape.D, scale=0.3, dtype=torch.float32),
        "weight": weight,
        "bias": bias,
        "projection": projection,
        "projection_bias": projection_bias,
    }


def _mlp(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    weight1, bias1 = make.linear(shape.E, shape.D)
    weight2, bias2 = make.linear(shape.D, shape.E)
    norm_weight, norm_bias = make.norm(shape.D)
    return {
        "x": make.stream(shape.N, shape.L, shape.D),
        "weight1": weight1,
        "bias1": bias1,
        "weight2": weight2,
        "bias2": bias2,
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "gamma": make.normal(shape.D, scale=0.3, dtype=torch.float32),
    }


def _joint_mix(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    subsets, units, groups = 3, 2 * shape.H, 8
    maps = {"scale": 0.3, "dtype": torch.float32}
    return {
        "x": make.normal(shape.N, shape.S, shape.V, subsets * shape.D),
        "dynamic": make.normal(shape.N, subsets, units, shape.V, shape.V, **maps),
        "static": make.normal(subsets, groups, shape.V, shape.V, **maps),
    }


def _graph_mix(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    graph = make.normal(3, shape.V, shape.V, scale=0.3)
    # Few edges, as a skeleton has; joints without one among them.
    edge = (torch.arange(graph.numel(), device=graph.device) % 7 < 2).view(graph.shape)
    return {"x": make.normal(shape.S, shape.N, shape.V, shape.D), "graph": graph * edge}


def _batch_norm(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    widths = shape.D, shape.E
    return {
        "x": [make.normal(shape.N, shape.L, width) for width in widths],
        "weight": make.normal(sum(widths), scale=0.3, dtype=torch.float32),
        "bias": make.normal(sum(widths), scale=0.3, dtype=torch.float32),
        "residual": make.normal(shape.N, shape.L, sum(widths)),
        "relu_first": True,
        "relu": True,
    }


def _graph_attention(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    frames, H, width = shape.N * shape.S, shape.H, max(shape.D // 8, 1)
    return {
        "x": make.normal(frames, shape.V, shape.D),
        "qk_weight": make.normal(2, H, width, shape.D, scale=shape.D**-0.5),
        "qk_bias": make.normal(2, H, width, scale=0.3),
        "topology": make.normal(H, shape.V, shape.V, scale=0.3),
        "weight": make.normal(H, shape.D, shape.D, scale=(H * shape.D) ** -0.5),
        "bias": make.normal(shape.D, scale=0.1),
    }


def _teacher_target(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    hidden = [make.stream(shape.N, shape.L, shape.D) for _ in range(shape.k)]
    return {"hidden": hidden, "masked": make.chosen(shape.L - shape.K)}


def _masked_mse(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    sizes = shape.N, max(shape.L - shape.K, 1), shape.D
    return {"prediction": make.normal(*sizes), "target": make.normal(*sizes)}


def _adamw_ema(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    numel = shape.D * (shape.E + 3)
    first, second = numel // 3, 2 * numel // 3
    # A new copy every time: the operation works in place.
    buffers = {name: make.stream(numel) for name in ("param", "grad", "exp_avg", "exp_avg_sq")}
    buffers["exp_avg_sq"].square_()
    return {
        **buffers,
        "teacher": make.stream(second),
        "spans": [ops.Span(0, first, True), ops.Span(first, second, False), ops.Span(second, numel, True)],
        "step": 5,
        "lr": 1e-2,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.05,
        "clip": 1.0,
        "tau": 0.99,
    }


def _point_sample(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    T, P = max(shape.S * shape.s, 1), max(shape.V * shape.D // 4, 1)
    # Shorter than a clip, as long, and longer; frames with fewer points than are drawn, as many, and more.
    count = torch.tensor([1, T, 2 * T + 3], dtype=torch.int32)
    row = count.long().cumsum(0) - count
    sizes = torch.tensor([1, max(P // 2, 1), P, 3 * P + 1]).repeat(int(count.sum()))[: int(count.sum())]
    tensors = {
        "points": make.normal(int(sizes.sum()), 3, dtype=torch.float32),
        "begin": sizes.cumsum(0) - sizes,
        "size": sizes.int(),
        "row": row,
        "count": count,
        "origin": make.normal(len(count), 3, dtype=torch.float32),
        "ids": torch.randint(len(count), (shape.N,), generator=make.generator),
    }
    spec = ops.PointSpec(T, P, sampling=("window", "even")[shape.N % 2])
    return {name: tensor.to(make.device) for name, tensor in tensors.items()} | {"spec": spec, "seed": 11, "epoch": 2}


def _voxelize(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    frames, points = shape.S * shape.s, shape.V
    clips = make.normal(shape.N, frames, points, 3, dtype=torch.float32, scale=0.5)
    clips[:, ::2, ::3] = float("nan")  # absent
    capacity = shape.N * frames * points
    return {"clips": clips, "size": 0.3, "kernel": "hybrid", "strides": ((1, 2), (2, 2)), "capacity": capacity}


def _sparse_conv(make: _Maker) -> dict[str, Any]:
    shape = make.shape
    rows, offsets = shape.N * shape.L, 5
    rows_out = max(rows - 1, 0)
    # Each row of x once or not at all for each offset.
    table = torch.rand(offsets, rows, generator=make.generator).argsort(1)[:, :rows_out].int()
    table[torch.rand(table.shape, generator=make.generator) < 0.5] = -1
    return {
        "x": make.normal(rows, shape.D),
        "weight": make.normal(offsets, shape.D, shape.E, scale=(offsets * shape.D) ** -0.5),
        "table": table.to(make.device),
    }


_MAKERS: dict[str, Callable[[_Maker], dict[str, Any]]] = {
    "clip_sample": _clip_sample,
    "tube_mask": _tube_mask,
    "token_mask": _token_mask,
    "embed_gather": _embed_gather,
    "mask_fill": _mask_fill,
    "attention": _attention,
    "norm_linear": _norm_linear,
    "add_norm": _add_norm,
    "mlp": _mlp,
    "batch_norm": _batch_norm,
    "joint_mix": _joint_mix,
    "graph_mix": _graph_mix,
    "graph_attention": _graph_attention,
    "temporal_conv": _temporal_conv,
    "temporal_branches": _temporal_branches,
    "teacher_target": _teacher_target,
    "masked_mse": _masked_mse,
    "adamw_ema": _adamw_ema,
    "point_sample": _point_sample,
    "voxelize": _voxelize,
    "sparse_conv": _sparse_conv,
}
OPS = tuple(_MAKERS)
"""Names of all operations, in the order of a step."""
WITHOUT_GRADIENT = (
    *("clip_sample", "tube_mask", "token_mask", "teacher_target", "adamw_ema"),
    *("point_sample", "voxelize"),
)
