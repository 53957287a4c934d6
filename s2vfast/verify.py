"""Does an implementation compute what the reference computes? One rule, for tests and for anybody's own shapes.

    python -m s2vfast.verify [OP ...] [--impl NAME] [--shape tiny] [--sizes N=3,L=77,D=64] [--dtype bfloat16]
                             [--plugin FILE.py]
    python -m s2vfast.verify [OP ...] --emulate 80   # compiled kernels on a CPU: triton, and native's CUDA code

``FILE.py`` is run before; what it gives to `s2vfast.ops.register_impl` is compared like the package's own.

Floating-point results: the largest error against the reference in float64 may be twice that of the plain implementation
in the same dtype (three times for gradients, which are those of a random upstream gradient), plus a small floor.
Results that are integers must be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from s2vfast import errors, ops
from s2vfast.config.registry import load_plugin
from s2vfast.inputs import OPS, SHAPES, WITHOUT_GRADIENT, Shape, inputs

INDEXED = ("clip_sample", "tube_mask", "token_mask", "point_sample", "voxelize")
"""Operations that choose and count: integers are equal, and what was copied or averaged is so but for rounding."""
_IN_PLACE = ("param", "grad", "exp_avg", "exp_avg_sq", "teacher")  # of adamw_ema


@dataclass(frozen=True)
class Agreement:
    """One result of one operation beside the reference's."""

    name: str
    error: float  # largest absolute difference; of integers, how many differ
    allowed: float

    @property
    def good(self) -> bool:
        """Whether the error is within what is allowed; not so for NaN."""
        return self.error <= self.allowed


def compare(
    op: Callable[..., Any],
    exact: Callable[..., Any],
    plain: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    gradients: bool,
    seed: int = 99,
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> list[Agreement]:
    """The results of ``op`` beside those of ``exact`` on the same numbers in float64.

    Args:
        op: what is judged; called with ``arguments``.
        exact: the specification; called with ``arguments`` in float64.
        plain: whose error is the measure; called with ``arguments``.
        arguments: of all three, by name; every floating tensor (also in lists) is an input.
        gradients: also compare the gradients of the floating inputs.
        seed: of the upstream gradients. A plain sum as the loss would hide mistakes that cancel.
        around: entered while ``op`` runs forward and backward.
    """
    truth, names, count = _run(exact, arguments, torch.float64, gradients, seed)
    measure = _run(plain, arguments, None, gradients, seed)[0]
    with around():
        results = _run(op, arguments, None, gradients, seed)[0]
    if len(results) != len(truth):
        raise AssertionError(f"{len(results)} results where the reference has {len(truth)}")
    rows = []
    for i, (name, t, m, f) in enumerate(zip(names, truth, measure, results, strict=True)):
        if f.shape != t.shape:
            raise AssertionError(f"{name}: shape {list(f.shape)} where the reference has {list(t.shape)}")
        if not t.is_floating_point():
            rows.append(Agreement(name, float((f != t).sum()), 0.0))
            continue
        if not t.numel():
            rows.append(Agreement(name, 0.0, 0.0))
            continue
        # Plain code may be exact by luck: a few roundings of the largest number are always allowed.
        floor = (2e-6 if f.dtype in (torch.float32, torch.float64) else 2.0**-9) * float(t.abs().max()) + 1e-12
        factor = 2.0 if i < count else 3.0
        error, allowed = (float((x.double() - t).abs().max()) for x in (f, m))
        if t.isnan().all() and f.isnan().all():  # the mean over nothing
            error = allowed = floor = 0.0
        rows.append(Agreement(name, error, factor * allowed + floor))
    return rows


def _run(
    function: Callable[..., Any], arguments: dict[str, Any], dtype: torch.dtype | None, gradients: bool, seed: int
) -> tuple[list[Tensor], list[str], int]:
    """Outputs, then gradients; their names; how many are outputs. ``dtype`` replaces every floating dtype."""
    leaves: dict[str, Tensor] = {}

    def typed(name: str, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.detach().to(dtype or value.dtype, copy=True)
            leaves[name] = value.requires_grad_(gradients)
            return value
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [typed(f"{name}[{i}]", item) for i, item in enumerate(value)]
        return value

    outputs = function(**{name: typed(name, value) for name, value in arguments.items()})
    outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out is not None]
    names = [f"output {i}" for i in range(len(outputs))]
    results = [out.detach() for out in outputs]
    if gradients:
        generator = torch.Generator(outputs[0].device).manual_seed(seed)
        total = 0.0
        for out in outputs:
            upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64, device=out.device)
            # Through the coarsest dtype, so that all see the same numbers.
            total = total + (out * upstream.bfloat16().to(out.dtype)).sum()
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        names += [f"gradient of {name}" for name in leaves]
        results += [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves.values(), strict=True)]
    return results, names, len(outputs)


def verify(
    op: str,
    impl: str,
    shape: Shape = SHAPES["tiny"],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[Agreement]:
    """An implementation beside the reference on random inputs of a shape.

    Args:
        op: name of the operation.
        impl: its implementation.
        shape: sizes of the inputs.
        dtype: of matrix operands.
        device: where it runs.
        seed: seed of the inputs.

    Raises:
        ImplementationError: it cannot run there.
    """
    arguments = inputs(op, shape, dtype=dtype, device=device, seed=seed)
    return verify_call(op, functools.partial(getattr(ops, op), impl=impl), arguments, dtype=dtype, device=device)


def verify_call(
    op: str,
    call: Callable[..., Any],
    arguments: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    gradients: bool = True,
) -> list[Agreement]:
    """Anything that claims to do what an operation does, beside the reference.

    Args:
        op: name of the operation.
        call: takes its arguments and returns what it returns; ``adamw_ema`` changes its buffers in place.
        arguments: of both, see `s2vfast.inputs`.
        dtype: of matrix operands among them.
        device: where they are.
        gradients: also compare gradients, of an operation that has some.
    """
    if op in INDEXED:
        return _compare_draws(op, call, arguments)
    public = getattr(ops, op)
    if op == "adamw_ema":
        public, call = _returning_buffers(public), _returning_buffers(call)
    # The reference is written for one dtype and the CPU; PyTorch's own kernels are the measure where dtypes are mixed.
    plain = "reference" if dtype == torch.float32 and torch.device(device).type == "cpu" else "torch"
    return compare(
        call,
        lambda **kw: public(**kw, impl="reference"),
        lambda **kw: public(**kw, impl=plain),
        arguments,
        gradients=gradients and op not in WITHOUT_GRADIENT,
    )


def _returning_buffers(op: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    def run(**kw: Any) -> tuple[Tensor, ...]:
        norm = op(**kw)
        return (norm, *(kw[name] for name in _IN_PLACE))

    return run


def _compare_draws(op: str, call: Callable[..., Any], arguments: dict[str, Any]) -> list[Agreement]:
    """Masks are equal bit by bit; clips, whose frames must be the same, to the rounding of float32."""
    public = getattr(ops, op)
    home = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    expected = public(**home, impl="reference")
    results = call(**arguments)
    expected = expected if isinstance(expected, tuple) else (expected,)
    results = results if isinstance(results, tuple) else (results,)
    rows = []
    for i, (e, f) in enumerate(zip(expected, results, strict=True)):
        f = f.cpu()
        if f.shape != e.shape:
            raise AssertionError(f"output {i}: shape {list(f.shape)} where the reference has {list(e.shape)}")
        if e.is_floating_point():
            largest = float(e.abs().max()) if e.numel() else 0.0
            error = float((f - e).abs().max()) if e.numel() else 0.0
            rows.append(Agreement(f"output {i}", error, 1e-5 * max(largest, 1.0)))
        else:
            rows.append(Agreement(f"output {i}", float((f != e).sum()), 0.0))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print a line for every result; 1 if one is not good, 2 if something asked for cannot run."""
    parser = argparse.ArgumentParser(prog="python -m s2vfast.verify", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"operations (default: all): {', '.join(OPS)}")
    parser.add_argument("--impl", help="implementation (default: all that can run)")
    parser.add_argument("--shape", default="tiny", choices=SHAPES)
    parser.add_argument("--sizes", default="", metavar="NAME=NUMBER,…", help="sizes that replace some of the shape's")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="run before: registers implementations"
    )
    text = "run the kernels compiled for sm_80 or sm_90 in the emulator (docs/emulator.md)"
    parser.add_argument("--emulate", type=int, choices=(80, 90), help=text)
    options = parser.parse_args(arguments)
    code = 0
    try:
        shape = SHAPES[options.shape].with_sizes(options.sizes)
        if unknown := [op for op in options.ops if op not in OPS]:
            raise errors.ConfigError(f"no operation {unknown[0]!r}; there are {', '.join(OPS)}")
        for path in options.plugin:
            load_plugin(path)
        for op in options.ops or OPS:
            can = [name for name, reasons in ops.availability(_kind(options.device))[op].items() if not reasons]
            if options.emulate:
                can = [name for name in ("triton", "native") if name in ops.operation(op).implementations]
            for impl in [options.impl] if options.impl else [name for name in can if name != "reference"]:
                rows = _verify_with_options(op, impl, shape, options)
                code = max([code, *(int(not row.good) for row in rows)])
                for row in rows:
                    verdict = "good" if row.good else "WRONG"
                    numbers = f"error {row.error:9.2e}  allowed {row.allowed:9.2e}"
                    print(f"{op:<14} {impl:<9} {row.name:<28} {numbers}  {verdict}")
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


def _verify_with_options(op: str, impl: str, shape: Shape, options: argparse.Namespace) -> list[Agreement]:
    """`verify`; of an implementation that was not asked for by name and cannot take the dtype, the reason alone."""
    try:
        with _emulated(options.emulate, impl):
            return verify(
                op, impl, shape, dtype=getattr(torch, options.dtype), device=options.device, seed=options.seed
            )
    except errors.ImplementationError as error:
        if options.impl:
            raise
        print(error)
        return []


def _emulated(arch: int | None, impl: str) -> contextlib.AbstractContextManager[Any]:
    if arch is None or impl not in ("triton", "native"):
        return contextlib.nullcontext()
    from s2vfast.kernels.emulator import emulate

    return emulate(arch, impl)


def _kind(device: str) -> str:
    return torch.device(device).type


if __name__ == "__main__":
    sys.exit(main())
