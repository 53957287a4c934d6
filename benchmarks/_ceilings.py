"""The rates that a device reaches now (copies, large matrix products, exponentials), and the least time of some work.

They are measured in the same run as the work, not looked up: a machine that is shared or hot reaches less.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch

from benchmarks._results import digits
from benchmarks._timer import median_seconds
from s2vfast import errors
from s2vfast.ops._linear import linear

COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes of an array, of which two are more than any cache
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrix
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}
GRAIN = 2**15  # float32 numbers that PyTorch gives a thread at least: with their exponentials 256 KiB
PROGRAMS = 64  # of the kernel of exponentials, a multiprocessor, of which 16 fill it
ROUNDS = 16  # of its loop


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device reaches now, each the median of several measurements; some seconds on a CPU.

    Returns:
        ``copy_gb_s``: 1e9 bytes a second, read ones and written ones both counted, of arrays well past the caches.
        ``matmul_float32`` and, on a GPU, ``matmul_bfloat16``: 1e12 operations a second of large matrix products of
        these operands, the best of several.
        ``exp_g_s``: 1e9 exponentials a second that no memory keeps waiting: on a CPU torch.exp of an array that stays
        in the caches of the cores, on all threads in use; on a GPU exp2 in registers.
    """
    rates = {"copy_gb_s": _copy(device)}
    for dtype in DTYPES[device.type]:
        rates[f"matmul_{str(dtype).removeprefix('torch.')}"] = _matmul(device, dtype)
    rates["exp_g_s"] = _exp_cuda(device) if device.type == "cuda" else _exp_cpu()
    return {name: digits(value) for name, value in rates.items()}


def bound(
    gflop: float, gexp: float, gb: float, ceilings: Mapping[str, float], dtype: torch.dtype | str
) -> tuple[str, float]:
    """The least time that a piece of work can take at measured ceilings, and what it is that takes it.

    Args:
        gflop: 1e9 operations of matrix products.
        gexp: 1e9 exponentials.
        gb: 1e9 bytes that must be read or written.
        ceilings: see `ceilings`.
        dtype: of the operands of matrix products.

    Returns:
        ``matmul``, ``exp`` or ``memory``, and seconds: the longest of the three, which may all go on at once.

    Raises:
        ConfigError: matrix products of a dtype for which there is no ceiling.
    """
    seconds = {"memory": gb / ceilings["copy_gb_s"], "exp": gexp / ceilings["exp_g_s"], "matmul": 0.0}
    if gflop:
        name = f"matmul_{str(dtype).removeprefix('torch.')}"
        if name not in ceilings:
            raise errors.ConfigError(
                f"dtype: no ceiling {name} was measured on this device; measured: {', '.join(ceilings)}"
            )
        seconds["matmul"] = gflop / (1000 * ceilings[name])
    longest = max(seconds, key=lambda name: seconds[name])
    return longest, seconds[longest]


def _copy(device: torch.device) -> float:
    size = COPIED[device.type]
    source = torch.ones(size // 4, device=device)
    copy = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: copy.copy_(source), device) / 1e9


def _matmul(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a square product and one of many rows with a weight, each by either way there is to ask for it."""
    side, best = SIDE[device.type], 0.0
    for rows, inner, outer in ((side, side, side), (2 * side, side // 4, side)):
        x = torch.randn(rows, inner, device=device, dtype=dtype)
        weight = torch.randn(outer, inner, device=device, dtype=dtype)
        out = x.new_empty(rows, outer)
        for call in (functools.partial(torch.mm, x, weight.t(), out=out), functools.partial(linear, x, weight, None)):
            best = max(best, 2 * rows * inner * outer / median_seconds(call, device) / 1e12)
    return best


def _exp_cpu() -> float:
    values = torch.randn(GRAIN * torch.get_num_threads())
    out = torch.empty_like(values)
    return values.numel() / median_seconds(lambda: torch.exp(values, out=out), values.device, calls=200) / 1e9


def _exp_cuda(device: torch.device) -> float:
    try:
        from benchmarks._exp_chain import BLOCK, chain, exponentials  # here, as a CPU needs no Triton
    except ImportError:
        raise errors.ImplementationError(
            "exponentials on a GPU are measured by a Triton kernel; install Triton"
        ) from None
    count = torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS * BLOCK
    values = torch.rand(count, device=device)
    out = torch.empty_like(values)
    with torch.cuda.device(device):
        return exponentials(values, ROUNDS) / median_seconds(lambda: chain(values, out, ROUNDS), device) / 1e9
