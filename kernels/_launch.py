"""How every kernel is launched: its configuration, the device it runs on, and what it was launched with.

Tile shapes, warps and stages are data: tuned/<op>.json lists, for each kernel, configurations and when to use them.
`python -m benchmarks.tune` writes these files on a GPU; nothing is tuned at import or at the first call.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Triton decides when a kernel is defined whether it will be interpreted; so do we.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# What the interpreter, which has no architecture, takes its configurations from.
_ANY_ARCH = 90


@dataclass(frozen=True)
class Launch:
    """One call of a kernel, as `capture` records it."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class ConfigLookup:
    """One look-up in a table, as `record_lookups` records it."""

    op: str
    kernel: str
    facts: dict[str, Any]  # arch, dtype, sizes
    use: dict[str, Any]  # the answer


class _State:
    """What `intercept`, `record_lookups` and `override` have set."""

    interceptor: Callable[[Launch], None] | None = None
    lookups: list[ConfigLookup] | None = None
    arch: int | None = None
    overrides: tuple[tuple[str, str, dict[str, Any]], ...] = ()


_state = _State()


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """kernel[grid](*args, **options) on the device of the first tensor; nothing for an empty grid.

    Args:
        kernel: a function decorated by triton.jit.
        grid: one to three numbers of program instances.
        args: the kernel's arguments in order; contiguous tensors, tuples of them, numbers, None.
        options: constexpr arguments, num_warps, num_stages, maxnreg (registers a thread at most).
    """
    if _state.interceptor is not None:
        _state.interceptor(Launch(kernel, grid, args, options))
        return
    if 0 in grid:
        return
    flat = (item for arg in args for item in (arg if isinstance(arg, tuple) else (arg,)))
    device = next(item.device for item in flat if isinstance(item, Tensor))
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[grid](*args, **options)


@contextlib.contextmanager
def intercept(function: Callable[[Launch], None], arch: int) -> Iterator[None]:
    """Hand launches for an architecture (80, 90, 100) to a function instead of making them."""
    before = _state.interceptor, _state.arch
    _state.interceptor, _state.arch = function, arch
    try:
        yield
    finally:
        _state.interceptor, _state.arch = before


@contextlib.contextmanager
def capture(arch: int) -> Iterator[list[Launch]]:
    """Record launches for an architecture instead of making them; results are left uninitialised."""
    launches: list[Launch] = []
    with intercept(launches.append, arch):
        yield launches


def specialized(launch: Launch, arch: int) -> tuple[Any, Any, Any]:
    """What a launch compiles: the source (triton's ASTSource) as it would specialise it, options, bound arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel = launch.kernel
    backend = make_backend(GPUTarget("cuda", arch, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    keywords = {**launch.options, "debug": False, "instrumentation_mode": ""}
    bound, specialization, options = binder(*launch.args, **keywords)
    options, signature, constexprs, attrs = kernel._pack_args(backend, keywords, bound, specialization, options)
    return ASTSource(kernel, signature, constexprs, attrs), options, bound


@contextlib.contextmanager
def record_lookups() -> Iterator[list[ConfigLookup]]:
    """Record the look-ups in the tables: what there is to tune."""
    before = _state.lookups
    _state.lookups = []
    try:
        yield _state.lookups
    finally:
        _state.lookups = before


def capturing() -> bool:
    """Whether launches go elsewhere than to a device."""
    return _state.interceptor is not None


@contextlib.contextmanager
def override(op: str, kernel: str, **options: Any) -> Iterator[None]:
    """Use these options for a kernel within a ``with`` block: for tests of small tiles, and for the tuner."""
    before = _state.overrides
    _state.overrides = (*before, (op, kernel, options))
    try:
        yield
    finally:
        _state.overrides = before


def configuration(op: str, kernel: str, device: torch.device, **shape: int | str) -> dict[str, Any]:
    """Constexprs, num_warps and num_stages of a kernel for a shape class.

    Args:
        op: names the file, tuned/<op>.json.
        kernel: names the list in it.
        device: gives the architecture.
        shape: what the choice depends on, as the file's ``when`` names it: numbers, dtype names.

    Returns:
        The ``use`` of the first entry whose ``when`` fits: a number or text must be equal, [low, high] includes it.

    Raises:
        LookupError: no entry fits.
    """
    facts = {"arch": _arch(device), **shape}
    for entry in _table(op)[kernel]:
        if all(_fits(condition, facts[name]) for name, condition in entry["when"].items()):
            use = dict(entry["use"])
            for *named, options in _state.overrides:
                if named == [op, kernel]:
                    use.update(options)
            if _state.lookups is not None:
                _state.lookups.append(ConfigLookup(op, kernel, facts, use))
            return use
    raise LookupError(f"tuned/{op}.json: {kernel}: no entry for {facts}")


def _fits(condition: Any, value: Any) -> bool:
    if isinstance(condition, Sequence) and not isinstance(condition, str):
        return condition[0] <= value <= condition[1]
    return condition == value


def _arch(device: torch.device) -> int:
    if _state.arch is not None:
        return _state.arch
    if device.type != "cuda":
        return _ANY_ARCH
    return _capability(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def table_path(op: str) -> Path:
    """The file of configurations of an operation's kernels."""
    return Path(__file__).parent / "tuned" / f"{op}.json"


@functools.cache
def _table(op: str) -> dict[str, list[dict[str, Any]]]:
    return json.loads(table_path(op).read_text("utf-8"))


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def next_power_of_2(n: int, least: int = 16) -> int:
    """The smallest power of two that is not below n or ``least``."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def cdiv(a: int, b: int) -> int:
    """Ceiling of a / b."""
    return -(-a // b)
