"""What the compiled implementations of all operations share: whether they can run, and where a call is to run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.ops._dispatch import constant

FLOATS = (torch.float32, torch.bfloat16)


def reasons(
    *more: Callable[..., list[str]], floats: tuple[torch.dtype, ...] = FLOATS, cuda: bool = True
) -> Callable[..., list[str]]:
    """What speaks against the compiled implementation on a device and for some arguments.

    Args:
        more: further checks, called with the arguments of the operation.
        floats: dtypes of its floating-point tensors.
        cuda: whether it is written for GPUs too.
    """

    def check(device: str, *args: object, **kwargs: object) -> list[str]:
        reasons = list(_machine(device))
        if not cuda and (device == "cuda" or _extension.emulated() is not None):
            reasons.append("it is compiled for CPUs alone")
        names = " and ".join(str(dtype)[6:] for dtype in floats)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        wrong_dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dtype not in floats]
        reasons += [f"it takes {names}, not {str(dtype)[6:]}" for dtype in wrong_dtypes]
        if args or kwargs:
            for function in more:
                reasons += function(*args, **kwargs)
        return list(dict.fromkeys(reasons))

    return check


@constant
def _machine(device: str) -> tuple[str, ...]:
    if missing := _extension.why_not():
        return (missing,)
    if device == "cpu":
        return ()
    if device != "cuda":
        return (f"the compiled extension is for CPUs and NVIDIA GPUs, not for {device}",)
    if not _extension.facts()["cuda"]:
        return ("the compiled extension was built without CUDA",)
    return () if torch.cuda.is_available() else ("there is no GPU that PyTorch can use",)


def place(tensor: Tensor) -> dict[str, int]:
    """Where a call on this tensor runs: a GPU and its current stream, or threads of the CPU (device -1)."""
    if emulated := _extension.emulated():
        return emulated.place(tensor)
    if tensor.device.type != "cuda":
        return {"device": -1, "stream": 0, "threads": torch.get_num_threads()}
    stream = torch.cuda.current_stream(tensor.device)
    return {"device": stream.device_index, "stream": stream.cuda_stream, "threads": 0}


def addresses(**tensors: Tensor | None) -> dict[str, int]:
    """Where each tensor lies; those that are None are left out."""
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if emulated := _extension.emulated():
        return emulated.addresses(present)
    return {name: tensor.data_ptr() for name, tensor in present.items()}
