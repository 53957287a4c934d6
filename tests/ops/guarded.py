"""Run operations with every buffer between two pages that may not be touched: an access out of bounds ends the process.

    python tests/ops/guarded.py OP:IMPL [...]

Inputs, and whatever an implementation allocates by torch.empty and its like, end at a forbidden page, then begin after
one. What is allocated is full of NaN (integers: the smallest number), so a result that is not written shows.
Prints a line of JSON for each operation: {"case": OP:IMPL, "wrong": [...]}.
"""

import contextlib
import ctypes
import json
import mmap
import sys
from unittest import mock

import torch
from torch import Tensor

from s2vfast import ops, verify
from s2vfast.inputs import SHAPES, WITHOUT_GRADIENT, inputs

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
# float32 tiles of every size class are cut by these: nothing is a multiple of a block.
CASES = ("odd", "one", "tiny")


class Guarded:
    """Hands out tensors whose memory touches a forbidden page at its end, or at its beginning."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.kept: list[mmap.mmap] = []

    def empty(self, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = 1
        for size in sizes:
            count *= size
        itemsize = dtype.itemsize
        pages = max(-(-count * itemsize // PAGE), 1)
        area = mmap.mmap(-1, (pages + 2) * PAGE)
        self.kept.append(area)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for forbidden in (start, start + (pages + 1) * PAGE):
            if LIBC.mprotect(ctypes.c_void_p(forbidden), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = PAGE + (pages * PAGE - count * itemsize if self.at_end else 0)
        if not count:
            return REAL_EMPTY(sizes, dtype=dtype)
        tensor = torch.frombuffer(area, dtype=dtype, count=count, offset=offset).reshape(sizes)
        tensor.fill_(float("nan") if dtype.is_floating_point else 0 if dtype == torch.bool else torch.iinfo(dtype).min)
        return tensor

    def copy(self, tensor: Tensor) -> Tensor:
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def replaced(self, value: object) -> object:
        if isinstance(value, Tensor):
            return self.copy(value)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [self.copy(item) for item in value]
        return value


REAL_EMPTY, REAL_EMPTY_LIKE = torch.empty, torch.empty_like
REAL_NEW_EMPTY = Tensor.new_empty


@contextlib.contextmanager
def allocations(guard: Guarded):
    """torch.empty and its like come from ``guard``; fakes and other devices from where they always come."""

    def real(tensor: Tensor) -> bool:
        return type(tensor) is Tensor and tensor.device.type == "cpu"

    def empty(*sizes, dtype=None, device=None, **more):
        device = torch.device(device if device is not None else torch.get_default_device())
        if more or device.type != "cpu":
            return REAL_EMPTY(*sizes, dtype=dtype, device=device, **more)
        sizes = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        return guard.empty(tuple(sizes), dtype or torch.get_default_dtype())

    def empty_like(tensor, *, dtype=None, **more):
        if not real(tensor):
            return REAL_EMPTY_LIKE(tensor, dtype=dtype, **more)
        return guard.empty(tuple(tensor.shape), dtype or tensor.dtype)

    def new_empty(tensor, *sizes, dtype=None, **more):
        if not real(tensor):
            return REAL_NEW_EMPTY(tensor, *sizes, dtype=dtype, **more)
        sizes = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        return guard.empty(tuple(sizes), dtype or tensor.dtype)

    with (
        mock.patch.object(torch, "empty", empty),
        mock.patch.object(torch, "empty_like", empty_like),
        mock.patch.object(Tensor, "new_empty", new_empty),
    ):
        yield


def run(op: str, impl: str, shape: str, at_end: bool) -> list[str]:
    """What is wrong with the results on guarded memory."""
    given = inputs(op, SHAPES[shape])
    public = getattr(ops, op)
    guard = Guarded(at_end)

    def guarded(**kw):
        return public(**{name: _like(guard, value) for name, value in kw.items()}, impl=impl)

    if op in verify.INDEXED:
        expected = public(**given, impl="reference")
        with allocations(guard):
            found = guarded(**given)
        pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (expected, found)), strict=True)
        return [f"{shape}: output {i}" for i, (e, f) in enumerate(pairs) if not torch.allclose(e, f, atol=1e-4)]
    if op == "adamw_ema":
        given = {name: guard.replaced(value) for name, value in given.items()}
        with allocations(guard):
            public(**given, impl=impl)
        return [f"{shape}: {name}" for name in verify._IN_PLACE if not torch.isfinite(given[name]).all()]
    rows = verify.compare(
        guarded,
        lambda **kw: public(**kw, impl="reference"),
        lambda **kw: public(**kw, impl="reference"),
        given,
        gradients=op not in WITHOUT_GRADIENT,
        around=lambda: allocations(guard),
    )
    return [f"{shape}: {row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}" for row in rows if not row.good]


def _like(guard: Guarded, value: object) -> object:
    """A guarded copy through which gradients still flow."""
    if isinstance(value, Tensor) and value.requires_grad:
        return _Copy.apply(value, guard)
    return guard.replaced(value)


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, guard):
        return guard.copy(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


if __name__ == "__main__":
    for case in sys.argv[1:]:
        op, impl = case.split(":")
        print(json.dumps({"case": case}), flush=True)
        wrong = [line for shape in CASES for at_end in (True, False) for line in run(op, impl, shape, at_end)]
        print(json.dumps({"case": case, "wrong": wrong}), flush=True)
