"""One switch for Triton kernels and for the compiled extension."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from s2vfast.kernels.emulator import cuda
from s2vfast.kernels.emulator.launch import Emulation, emulate_triton
from s2vfast.kernels.emulator.machine import Checks


@contextlib.contextmanager
def emulate(arch: int, impl: str = "triton", checks: Checks | None = None) -> Iterator[Emulation]:
    """Within the block operations with that implementation run in the emulator on tensors of the CPU.

    Args:
        arch: 80 or 90.
        impl: triton, or native for the CUDA code of the compiled extension.
        checks: what launches are watched for.

    Raises:
        EmulatorError: the extension's CUDA code cannot be emulated here; the message says why.
    """
    emulation = Emulation(arch, checks or Checks())
    with emulate_triton(emulation) if impl == "triton" else cuda.emulate_extension(emulation):
        yield emulation
