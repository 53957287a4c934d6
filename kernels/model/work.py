"""What the work of an operation needs, and how often the loops of its kernels go round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from s2vfast.kernels._launch import cdiv


class Sizes(Protocol):
    """The sizes of `s2vfast.inputs.Shape` that matter here: tracks, width, heads, hidden width, frames, channels, L."""

    N: int
    D: int
    H: int
    E: int
    s: int
    C: int

    @property
    def L(self) -> int:
        """Tokens of a track."""
        ...


@dataclass(frozen=True)
class Work:
    """What a pass of an operation cannot do without.

    Args:
        flop: of matrix products; a multiplication and an addition are two.
        exps: exponentials.
    """

    flop: float = 0.0
    exps: float = 0.0


def _norm_linear(shape: Sizes, backward: bool) -> Work:
    return Work(flop=6.0 * shape.N * shape.L * shape.D**2 * (1 + backward))


def _attention(shape: Sizes, backward: bool) -> Work:
    """Backward, scores are recomputed: five products and one exponential a score."""
    scores = float(shape.N * shape.L**2)
    return Work(flop=(10.0 if backward else 4.0) * scores * shape.D, exps=scores * shape.H)


def _add_norm(shape: Sizes, backward: bool) -> Work:
    return Work(flop=2.0 * shape.N * shape.L * shape.D**2 * (1 + backward))


def _mlp(shape: Sizes, backward: bool) -> Work:
    """Backward, what GELU is of is there: four products, and one exponential a number of it."""
    hidden = float(shape.N * shape.L * shape.E)
    return Work(flop=(8.0 if backward else 4.0) * hidden * shape.D, exps=hidden)


_NEEDED: dict[str, Callable[[Any, bool], Work]] = {
    "norm_linear": _norm_linear,
    "attention": _attention,
    "add_norm": _add_norm,
    "mlp": _mlp,
}


def needed_work(op: str, shape: Sizes, backward: bool) -> Work | None:
    """What the forward or the backward pass of an operation needs; None for those bound by bytes alone."""
    return _NEEDED[op](shape, backward) if op in _NEEDED else None


def trips(op: str, kernel: str, facts: dict[str, Any]) -> int:
    """How often each loop with matrix products goes round in a block.

    Args:
        op: the operation.
        kernel: forward, weight_grad …
        facts: the launch's arguments and options by name.

    Raises:
        KeyError: a kernel with such loops that is not known here.
    """
    return _TRIPS[op, kernel](facts)


def seldom_loops(op: str, kernel: str) -> int:
    """How many loops with matrix products, the last ones of a program, only extreme numbers lead through."""
    return _SELDOM.get((op, kernel), 0)


# Attention computes a tile again whose exponentials add up to no number.
_SELDOM = {("attention", "forward"): 1}

# The last tile of attention stands behind its loop.
_TRIPS: dict[tuple[str, str], Callable[[dict[str, Any]], int]] = {
    ("attention", "forward"): lambda f: cdiv(f["L"], f["BLOCK_N"]) - 1,
    ("attention", "grad_queries"): lambda f: cdiv(f["L"], f["BLOCK_N"]) - 1,
    ("attention", "grad_keys"): lambda f: cdiv(f["L"], f["BLOCK_M"]),
    ("norm_linear", "forward"): lambda f: cdiv(f["E"], f["BLOCK_E"]),
    ("norm_linear", "grad_normed"): lambda f: cdiv(f["E"], f["BLOCK_E"]),
    ("norm_linear", "weight_grad"): lambda f: cdiv(f["rows_a_split"], f["BLOCK_M"]),
    ("add_norm", "project"): lambda f: cdiv(f["E"], f["BLOCK_E"]),
    ("add_norm", "grad_project"): lambda f: cdiv(f["E"], f["BLOCK_E"]),
    ("add_norm", "weight_grad"): lambda f: cdiv(f["rows_a_split"], f["BLOCK_M"]),
    ("mlp", "forward"): lambda f: cdiv(f["E"], f["BLOCK_E"]),
    ("mlp", "grad_hidden"): lambda f: cdiv(f["E"], f["BLOCK_E"]),
    ("mlp", "grad_normed"): lambda f: cdiv(f["E"], f["BLOCK_E"]),
    ("mlp", "grad_weight"): lambda f: cdiv(f["rows_a_split"], f["BLOCK_M"]),
}
