"""The registry of operations that are measured: shapes, costs, inputs and rivals.

A new operation is one entry of `CASES` and nothing else: `benchmarks._harness` measures what stands here, and
`benchmarks.run`, `--compare`, the report, `make gpu` and `benchmarks/bench_ops.py` take their operations from it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import _clouds, _rivals
from benchmarks._rivals import Rival
from s2vfast import ops
from s2vfast.inputs import SHAPES, WITHOUT_GRADIENT, Shape, inputs

PASSES = ("forward", "forward+backward")
STANDARD = ("ntu", "ntu_student", "nwucla", "long", "wide")
"""Names of `SHAPES`, the published one first."""
TOKENS = ("ntu", "nwucla", "long", "wide")
MASKS = ("ntu", "nwucla", "long")
CPU_TRACKS = {"ntu": 4, "ntu_student": 32, "nwucla": 32, "long": 1, "wide": 1}
"""Tracks on a CPU, where a GPU takes those of `SHAPES`: a call then takes about a tenth of a second."""
LIGHT_TRACKS = 32
GATE_TRACKS, GATE_TOKENS = 2, 128  # of the shapes that are compared with the reference, which is slow


@dataclass(frozen=True)
class Cost:
    """The work of an operation, whatever its implementation.

    Args:
        flop: operations of matrix products.
        exps: exponentials.
        bytes: that cross memory; None: every input is read and every output written once.
        operands: numbers of the operands' dtype that cross memory besides ``bytes``.
    """

    flop: float = 0.0
    exps: float = 0.0
    bytes: float | None = None
    operands: float = 0.0


@dataclass(frozen=True)
class Case:
    """An operation to measure.

    Args:
        op: its name in `s2vfast.ops`.
        cost: of (shape, whether with backward).
        shapes: names of `SHAPES`.
        rivals: what it is compared with, besides its own implementations.
        make: makes the arguments in place of `s2vfast.inputs`; these are compared with the reference, too.
        gate_arguments: arguments that replace some of ``make``'s in the comparison with the reference.
        light: a call takes little time, so that a CPU gets more tracks.
        plain: also measure the eager reference and torch.compile of ``torch``. False where the reference loops over
            samples or works in place.
    """

    op: str
    cost: Callable[[Shape, bool], Cost]
    shapes: tuple[str, ...] = STANDARD
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    make: Callable[..., dict[str, Any]] | None = None
    gate_arguments: Mapping[str, Any] = field(default_factory=dict)
    light: bool = False
    plain: bool = True

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Arguments at a shape."""
        return (self.make or functools.partial(inputs, self.op))(shape, dtype=dtype, device=device)

    def shape(self, name: str, device: torch.device) -> Shape:
        """A shape by name, with as many tracks as this device computes quickly."""
        shape = SHAPES[name]
        if device.type == "cuda" or name not in CPU_TRACKS:
            return shape
        return dataclasses.replace(shape, N=min(shape.N, LIGHT_TRACKS) if self.light else CPU_TRACKS[name])

    @property
    def passes(self) -> tuple[str, ...]:
        """Forward, and with backward where the operation has a gradient."""
        return PASSES[:1] if self.op in WITHOUT_GRADIENT else PASSES


def gate_shape(shape: Shape, full: bool = False) -> Shape:
    """The shape that is compared with the reference in place of one that is measured.

    Widths stay, because they decide the tiles; tracks are `GATE_TRACKS`. Unless ``full``, sequences are cut to about
    `GATE_TOKENS` tokens and hidden states to two.
    """
    shape = dataclasses.replace(shape, N=min(shape.N, GATE_TRACKS))
    if full:
        return shape
    segments = shape.tube_len * max(GATE_TOKENS // (shape.V * shape.tube_len), 1)
    tokens = min(shape.tokens, GATE_TOKENS)
    return dataclasses.replace(shape, S=min(shape.S, segments), tokens=tokens, k=min(shape.k, 2))


# Costs.


def _products(width: Callable[[Shape], int]) -> Callable[[Shape, bool], Cost]:
    """Products of all tokens with matrices of D times ``width`` numbers; backward needs two more of each."""
    return lambda shape, backward: Cost(flop=(3 if backward else 1) * 2.0 * shape.N * shape.L * shape.D * width(shape))


def _conv_cost(shape: Shape, backward: bool) -> Cost:
    """Nine taps at every frame, as a plain convolution computes them; backward needs two more of each."""
    rows = float(shape.S * shape.s * shape.N * shape.V)
    return Cost(flop=(3 if backward else 1) * 2 * 9 * rows * shape.D * shape.D)


def _branches_cost(shape: Shape, backward: bool) -> Cost:
    """Five taps of two branches, a quarter of the channels each; forward three passes of memory, backward five more."""
    rows = float(shape.S * shape.s * shape.N * shape.V)
    flop = 2 * 2 * 5 * rows * (shape.D // 4) ** 2
    return Cost(flop=(3 if backward else 1) * flop, bytes=4.0 * (8 if backward else 3) * rows * shape.D)


def _attention_cost(shape: Shape, backward: bool) -> Cost:
    """Two products of scores, each 2 L * L * D operations, and an exponential a score.

    Backward needs five products more, one of which computes the scores again, and their exponentials again.
    """
    scores = float(shape.N) * shape.L * shape.L
    return Cost(flop=(3.5 if backward else 1) * 4 * scores * shape.D, exps=(2 if backward else 1) * scores * shape.H)


def _embed_cost(shape: Shape, backward: bool) -> Cost:
    """A product of the visible tokens' numbers with [D, s * C]; backward one more, as clips need no gradient.

    Of the float32 clips only visible tokens are read; the output has the operands' dtype.
    """
    width = shape.s * shape.C
    rows = float(shape.N) * shape.K * (2 if backward else 1)
    return Cost(flop=2 * rows * width * shape.D, bytes=4 * rows * width, operands=rows * shape.D)


def _bytes(count: Callable[[Shape], float] | None = None) -> Callable[[Shape, bool], Cost]:
    """No product; so many bytes, or those of inputs and outputs."""
    return lambda shape, backward: Cost(bytes=count and float(count(shape)))


def _mix_cost(shape: Shape, backward: bool) -> Cost:
    """A product with a map of joints for each of three subsets of channels; backward two more."""
    return Cost(flop=(3 if backward else 1) * 2.0 * shape.N * shape.S * shape.V**2 * 3 * shape.D)


def _edges_cost(shape: Shape, backward: bool) -> Cost:
    """Forward x is read and three times as many numbers are written; backward both are read again, and d_x written."""
    return Cost(bytes=4.0 * (9 if backward else 4) * shape.N * shape.S * shape.V * shape.D)


def _graph_cost(shape: Shape, backward: bool) -> Cost:
    """Queries and keys, scores, a mixture of joints and a linear map a head; backward two more of each."""
    frames, width = shape.N * shape.S, shape.D // 8
    products = shape.V**2 * (width + shape.D) + shape.V * shape.D * (shape.D + 2 * width)
    exps = frames * shape.H * shape.V**2
    return Cost(flop=(3 if backward else 1) * 2.0 * frames * shape.H * products, exps=exps)


def _norm_cost(shape: Shape, backward: bool) -> Cost:
    """Forward x is read twice, the residual once, the result written once; backward there are seven such passes."""
    return Cost(bytes=4.0 * (11 if backward else 4) * shape.N * shape.L * (shape.D + shape.E))


def _sparse_cost(shape: Shape, backward: bool) -> Cost:
    """A product with a matrix of D x D for each pair; backward two more."""
    return Cost(flop=(3 if backward else 1) * 2.0 * shape.N * _clouds.PAIRS * shape.D**2)


# Points are read in half precision, and clips written in float32.
_points_cost = _bytes(lambda shape: shape.N * _clouds.FRAMES * _clouds.POINTS * 3 * (2 + 4))
_grid_cost = _bytes(lambda shape: shape.N * _clouds.FRAMES * _clouds.POINTS * 3 * 4)
# Frames are read in half precision, and clips, with velocities, written in float32.
_clip_cost = _bytes(lambda shape: shape.N * shape.S * shape.s * shape.V * (3 * 2 + shape.C * 4))
# Clips are read once, token numbers written.
_mask_cost = _bytes(lambda shape: 4 * shape.N * (shape.S * shape.s * shape.V * shape.C + shape.L))
# The norm reads the gradient; the update reads it, parameter and two moments, writes three; then the teacher.
_adamw_cost = _bytes(lambda shape: 4 * (PARAMETERS * (1 + 4 + 3) + 2 * TEACHER))


# clip_sample: 400 sequences of 40 to 250 frames, a third of them with a second body; half precision, as in stores.

SEQUENCES = 400


def store(joints: int) -> dict[str, Tensor]:
    """A store's frames [F, V, 3], float32, and its tables; see `s2vfast.ops.clip_sample`."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 251, (SEQUENCES,), generator=generator)
    second = torch.rand(SEQUENCES, generator=generator) < 1 / 3
    count = torch.stack([lengths, torch.where(second, lengths, 0)], dim=1)  # [Q, 2]
    row = count.flatten().cumsum(0).reshape(SEQUENCES, 2) - count
    index = torch.cat([torch.arange(n, dtype=torch.int32) for n in count.flatten().tolist()])
    frames = torch.randn(int(count.sum()), joints, 3, generator=generator)
    return {"frames": frames, "frame_index": index, "row": row, "count": count.int()}


def _recordings(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """A store and the sequences of a batch; six channels are NW-UCLA's choices."""
    tables = store(shape.V)
    tables["frames"] = tables["frames"].half()
    spec = ops.ClipSpec(shape.S * shape.s, rotate=(0.3, 0.3, 0.3), velocity=4.0 if shape.C == 6 else 0.0)
    if shape.C == 6:
        more = {"scale": "torso", "align": "yaw", "scale_jitter": 0.1, "torso": (0, 1), "sides": (4, 8)}
        spec = dataclasses.replace(spec, sampling="crop", **more)
    ids = torch.randint(SEQUENCES, (shape.N // 2,), generator=torch.Generator().manual_seed(1))
    tensors = {name: tensor.to(device) for name, tensor in {**tables, "ids": ids}.items()}
    return {**tensors, "spec": spec, "seed": 1, "epoch": 1}


# adamw_ema: 8 million parameters of the published model, 6 million of which the teacher has, in 100 tensors.

PARAMETERS, TEACHER, SPANS = 8_000_000, 6_000_000, 100
ALIGN = 128  # numbers
# The factor of a gradient is clip / (norm + 1e-6). With a clip no larger than that 1e-6 a gradient that was clipped in
# place is clipped again by the next call, so that every call does the same work.
ADAMW = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.05, "clip": 1e-6}


def _buffers(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Flat buffers; every second span decays."""
    generator = torch.Generator().manual_seed(0)
    sizes = {**dict.fromkeys(("param", "grad", "exp_avg", "exp_avg_sq"), PARAMETERS), "teacher": TEACHER}
    buffers = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    buffers["exp_avg_sq"].square_()
    # Aligned as an allocator aligns tensors, so that those of a rival can be read by vectors too.
    draws = torch.randint(PARAMETERS // ALIGN, (SPANS - 2,), generator=generator).unique() * ALIGN
    edges = sorted({0, *draws.tolist(), TEACHER, PARAMETERS})
    spans = [ops.Span(a, b, i % 2 == 0) for i, (a, b) in enumerate(itertools.pairwise(edges))]
    control: dict[str, Any] = {"step": 5, "lr": 1e-4, "tau": 0.999}
    if device.type == "cuda":  # as in the engine: a captured graph reads their values at each replay
        control = {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in control.items()}
    return {name: tensor.to(device) for name, tensor in buffers.items()} | {"spans": spans, **control, **ADAMW}


class _SeparateTensors:
    """What a training script does on many tensors: clip_grad_norm_, torch.optim.AdamW(fused=True), foreach EMA."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        names, spans = ("param", "grad", "exp_avg", "exp_avg_sq"), arguments["spans"]
        views = {name: [arguments[name][span.start : span.stop] for span in spans] for name in names}
        groups = [
            {
                "params": [p for p, span in zip(views["param"], spans, strict=True) if span.decay == decays],
                "weight_decay": arguments["weight_decay"] if decays else 0.0,
            }
            for decays in (True, False)
        ]
        lr = arguments["lr"]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=lr.float() if isinstance(lr, Tensor) else lr,
            betas=(arguments["beta1"], arguments["beta2"]),
            eps=arguments["eps"],
            fused=True,
            capturable=arguments["param"].is_cuda,
        )
        for tensor, grad, exp_avg, exp_avg_sq in zip(*views.values(), strict=True):
            tensor.grad = grad
            count = torch.full((), float(arguments["step"]) - 1.0, device=tensor.device)
            self.optimizer.state[tensor] = {"step": count, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        self.params, teacher = views["param"], arguments["teacher"]
        averaged = [span for span in spans if span.stop <= teacher.numel()]
        self.averages = [teacher[span.start : span.stop] for span in averaged]
        self.weight, self.clip = 1.0 - float(arguments["tau"]), arguments["clip"]

    def step(self) -> Tensor:
        """Clip, update, average; the norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.clip, foreach=True)
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, self.params[: len(self.averages)], self.weight)
        return norm


def _fused_adamw(arguments: dict[str, Any]) -> Callable[..., Tensor]:
    # By address; the buffer is held, so that no other takes its address.
    optimizers: dict[int, tuple[Tensor, _SeparateTensors]] = {}

    def call(**arguments: Any) -> Tensor:
        param = arguments["param"]
        if param.data_ptr() not in optimizers:
            optimizers[param.data_ptr()] = (param, _SeparateTensors(arguments))
        return optimizers[param.data_ptr()][1].step()

    return call


CASES: dict[str, Case] = {
    case.op: case
    for case in (
        Case("clip_sample", _clip_cost, MASKS, make=_recordings, light=True, plain=False),
        Case("tube_mask", _mask_cost, MASKS, light=True, plain=False),
        Case("token_mask", _mask_cost, MASKS, light=True, plain=False),
        Case("embed_gather", _embed_cost, TOKENS, light=True),
        Case("mask_fill", _bytes(), TOKENS, light=True),
        Case("attention", _attention_cost, rivals=_rivals.ATTENTION),
        Case("norm_linear", _products(lambda shape: 3 * shape.D), rivals=_rivals.NORM_LINEAR),
        Case("add_norm", _products(lambda shape: shape.D), rivals=_rivals.ADD_NORM),
        Case("mlp", _products(lambda shape: 2 * shape.E)),  # GELU's erf is not counted
        Case("temporal_conv", _conv_cost, ("nwucla",)),
        Case("temporal_branches", _branches_cost, ("nwucla",)),
        Case("batch_norm", _norm_cost, ("nwucla", "ntu")),
        Case("joint_mix", _mix_cost, ("nwucla", "ntu")),
        Case("graph_mix", _edges_cost, ("nwucla", "ntu")),
        Case("graph_attention", _graph_cost, ("nwucla", "ntu")),
        Case("teacher_target", _bytes(), TOKENS),  # instance norm needs all tokens, visible ones too
        Case("masked_mse", _bytes(), TOKENS, light=True),
        Case(
            "adamw_ema",
            _adamw_cost,
            ("ntu",),
            rivals={"torch.optim fused": Rival(_fused_adamw)},
            make=_buffers,
            # With a gradient that is scaled to next to nothing, moments would not show how it is used.
            gate_arguments={"clip": 2000.0},
            plain=False,
        ),
        Case("point_sample", _points_cost, ("nwucla",), make=_clouds.depth_store, light=True, plain=False),
        Case("voxelize", _grid_cost, ("nwucla",), make=_clouds.grid, light=True, plain=False),
        Case("sparse_conv", _sparse_cost, ("nwucla",), make=_clouds.cells, light=True),
    )
}
"""All operations that are measured, by name, in the order of a step."""
