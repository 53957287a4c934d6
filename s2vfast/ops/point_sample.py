"""From ragged recordings of points to clips. Contract: `s2vfast.reference.point_sample`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.errors import ShapeError
from s2vfast.ops import _native, _triton
from s2vfast.ops._custom import fake, operator, signed
from s2vfast.ops._dispatch import register, require
from s2vfast.reference import philox
from s2vfast.reference.point_sample import BINS, START, PointSpec, frame_table
from s2vfast.reference.point_sample import point_sample as _reference

__all__ = ["PointSpec", "frame_table", "point_sample"]


def point_sample(
    points: Tensor,
    begin: Tensor,
    size: Tensor,
    row: Tensor,
    count: Tensor,
    origin: Tensor,
    ids: Tensor,
    spec: PointSpec,
    *,
    seed: int = 0,
    epoch: int = 0,
    training: bool = True,
    window: int = 0,
    windows: int = 1,
    impl: str | None = None,
) -> Tensor:
    """Clips of the sequences ``ids``: frames chosen, points of each drawn (see the reference for the rules).

    Args:
        points: [K, 3], of all frames, metres; any float dtype.
        begin: int64 [F], first point of each frame; see `frame_table`.
        size: int32 [F], points of that frame.
        row: int64 [Q], first frame of each sequence.
        count: int32 [Q], frames of the sequence, at least 1.
        origin: float32 [Q, 3], what is taken from the points of a sequence, metres.
        ids: int64 [B], sequences.
        spec: what a clip is.
        seed: seed of the draws.
        epoch: epoch of the draws.
        training: False: no draws: the middle of every bin, and the window below.
        window: which of ``windows`` whose starts are spread evenly over the sequence.
        windows: how many there are.
        impl: implementation; None: see `use_impl`.

    Returns:
        float32 [B, T, P, 3]. NaN in frames without points.
    """
    require(points.ndim == 2 and points.shape[1] == 3, "point_sample", "points", "[K, 3]", points)
    require(begin.ndim == 1, "point_sample", "begin", "[F]", begin)
    require(size.shape == begin.shape, "point_sample", "size", f"[{begin.shape[0]}]", size)
    require(row.ndim == 1, "point_sample", "row", "[Q]", row)
    require(count.shape == row.shape, "point_sample", "count", f"[{row.shape[0]}]", count)
    require(origin.shape == (*row.shape, 3), "point_sample", "origin", f"[{row.shape[0]}, 3]", origin)
    require(ids.ndim == 1, "point_sample", "ids", "[B]", ids)
    require(0 <= window < windows, "point_sample", "window", f"a number in [0, {windows})", window)
    draws = {"seed": seed, "epoch": epoch, "training": training, "window": window, "windows": windows}
    return _op(impl, points.device, points, begin, size, row, count, origin, ids, spec, **draws)


def _torch(
    points: Tensor,
    begin: Tensor,
    size: Tensor,
    row: Tensor,
    count: Tensor,
    origin: Tensor,
    ids: Tensor,
    spec: PointSpec,
    *,
    seed: int,
    epoch: int,
    training: bool,
    window: int,
    windows: int,
) -> Tensor:
    """All clips of the batch at once."""
    T, P, B = spec.frames, spec.points, len(ids)
    draws = philox.random_bits(seed, epoch, ids, philox.POINT_FRAMES, T + 1) if training else None
    F = count[ids].long()[:, None]  # [B, 1]
    stretched = _pick(T, F, draws[:, BINS:] if draws is not None and spec.sampling == "even" else None)
    if spec.sampling == "even":
        frames = stretched
    else:
        starts = (F - spec.span + 1).clamp(min=1)
        middle = (2 * window + 1) * starts // (2 * windows)
        start = middle if draws is None else draws[:, START, None] * starts >> 32
        frames = start + torch.arange(T, device=ids.device) * spec.stride
        bins = torch.arange(T, device=ids.device) * F // T
        frames = torch.where(spec.span > F, bins, frames)
    if not len(points):
        return torch.full((B, T, P, 3), float("nan"), device=points.device)
    at = row[ids][:, None] + frames  # [B, T]
    n = size[at].long()[..., None]  # [B, T, 1]
    words = philox.random_bits(seed, epoch, ids, philox.POINTS, T * P).view(B, T, P) if training else None
    index = begin[at][..., None] + _pick(P, n, words)
    clips = points[torch.where(n > 0, index, 0)].float() - origin[ids].float()[:, None, None]
    return torch.where(n[..., None] > 0, clips, float("nan"))


def _pick(bins: int, n: Tensor, draws: Tensor | None) -> Tensor:
    """One of the n [..., 1] things in each of ``bins`` equal bins: [..., bins]."""
    edges = torch.arange(bins + 1, device=n.device) * n // bins
    low, width = edges[..., :-1], edges.diff(dim=-1)
    return low + (width // 2 if draws is None else draws * width >> 32)


# A schema knows no dataclass: a PointSpec travels as its fields.
_ARGUMENTS = (
    "(Tensor points, Tensor begin, Tensor size, Tensor row, Tensor count, Tensor origin, Tensor ids, int frames, "
    "int drawn, int stride, str sampling, int seed, int epoch, bool training, int window, int windows) -> Tensor"
)
_TABLES = {
    "begin": torch.int64,
    "size": torch.int32,
    "row": torch.int64,
    "count": torch.int32,
    "origin": torch.float32,
    "ids": torch.int64,
}


def _typed(tables: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tables as kernels read them."""
    return {name: table.to(dtype).contiguous() for (name, dtype), table in zip(_TABLES.items(), tables, strict=True)}


@operator(f"point_sample_triton{_ARGUMENTS}")
def _triton_op(points, *arguments):
    *tables, frames, drawn, stride, sampling, seed, epoch, training, window, windows = arguments
    *tables, ids = _typed(tables).values()
    spec = PointSpec(frames, drawn, stride, sampling)
    run = _triton.kernels("point_sample").forward
    return run(points.contiguous(), tables, ids, spec, seed, epoch, training, window, windows)


@operator(f"point_sample_native{_ARGUMENTS}")
def _native_op(points, *arguments):
    *tables, frames, drawn, stride, sampling, seed, epoch, training, window, windows = arguments
    points, tensors = points.contiguous(), _typed(tables)
    out = points.new_empty((len(tensors["ids"]), frames, drawn, 3), dtype=torch.float32)
    try:
        _extension.load().point_sample(
            **_native.addresses(points=points, **tensors, out=out),
            **_native.place(points),
            kind=_KINDS.index(points.dtype),
            points_count=len(points),
            frames=len(tensors["begin"]),
            sequences=len(tensors["row"]),
            samples=len(out),
            length=frames,
            drawn=drawn,
            stride=stride,
            even=sampling == "even",
            training=training,
            window=window,
            windows=windows,
            seed=seed % 2**64,
            epoch=epoch,
        )
    except ValueError as error:  # ids or tables that would lead out of the points
        raise ShapeError(str(error)) from None
    return out


@fake(_native_op)
@fake(_triton_op)
def _(points, *arguments):
    ids, frames, drawn = arguments[5:8]
    return points.new_empty((ids.shape[0], frames, drawn, 3), dtype=torch.float32)


def _with_flat_spec(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any, seed: int, epoch: int, training: bool, window: int, windows: int) -> Tensor:
        *tensors, spec = args
        fields = spec.frames, spec.points, spec.stride, spec.sampling
        return op(*tensors, *fields, signed(seed), epoch, training, window, windows)

    return run


_KINDS = (torch.float32, torch.float16, torch.bfloat16)  # in the order of PointSampleCall::kind
_op = register(
    "point_sample",
    reference=_reference,
    torch=_torch,
    triton=_with_flat_spec(_triton_op),
    native=_with_flat_spec(_native_op),
    reasons={"triton": _triton.reasons(floats=_KINDS), "native": _native.reasons(floats=_KINDS, cuda=False)},
)
