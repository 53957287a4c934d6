"""What the Triton implementations of all operations share: whether they can run, and where their kernels are."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from s2vfast.ops._dispatch import constant

FLOATS = (torch.float32, torch.bfloat16)


def kernels(op: str) -> ModuleType:
    """The module of kernels/<op>.py, imported at its first use: it needs Triton."""
    return importlib.import_module(f"s2vfast.kernels.{op}")


def reasons(*more: Callable[..., list[str]], floats: tuple[torch.dtype, ...] = FLOATS) -> Callable[..., list[str]]:
    """What speaks against a Triton kernel on a device and for some arguments.

    Args:
        more: further checks, called with the arguments of the operation.
        floats: dtypes that the kernel takes.
    """

    def check(device: str, *args: object, **kwargs: object) -> list[str]:
        reasons = list(_machine(device))
        names = [str(dtype).removeprefix("torch.") for dtype in floats]
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, Tensor) and item.is_floating_point() and item.dtype not in floats:
                    dtype = str(item.dtype).removeprefix("torch.")
                    reasons.append(f"it takes {' and '.join(names)}, not {dtype}")
                    break
        if args or kwargs:
            for function in more:
                reasons += function(*args, **kwargs)
        return list(dict.fromkeys(reasons))

    return check


@constant
def _machine(device: str) -> tuple[str, ...]:
    if device == "cuda":
        return _gpu()
    if not _installed():
        return ("Triton is not installed",)
    from s2vfast.kernels import _launch

    if _launch.capturing() or (device == "cpu" and _launch.INTERPRETED):
        return ()
    return (f"Triton runs on a GPU, not on the {device} (in its interpreter where TRITON_INTERPRET=1 is set at start)",)


@functools.cache
def _installed() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ImportError:
        return False


@functools.cache
def _gpu() -> tuple[str, ...]:
    if not _installed():
        return ("Triton is not installed",)
    if not torch.cuda.is_available():
        return ("there is no GPU that PyTorch can use",)
    major, minor = torch.cuda.get_device_capability()
    return () if major >= 8 else (f"the kernels need compute capability 8.0, this GPU has {major}.{minor}",)
