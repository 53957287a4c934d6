"""Executes compiled kernels without a GPU: PTX of Triton and of nvcc, with the checks of a sanitizer.

    from s2vfast.kernels import emulator
    counts = emulator.run(kernel, grid, *tensors, arch=80, BLOCK=64)

docs/emulator.md says what it covers and what it cannot see.
"""

from s2vfast.kernels.emulator.faults import KINDS, EmulatorError, Fault, Site, Unsupported
from s2vfast.kernels.emulator.launch import Emulation, run, run_ptx
from s2vfast.kernels.emulator.machine import Checks, Machine
from s2vfast.kernels.emulator.program import Program, programs
from s2vfast.kernels.emulator.switch import emulate

__all__ = [
    "KINDS", "Checks", "Emulation", "EmulatorError", "Fault", "Machine", "Program", "Site", "Unsupported",
    "emulate", "programs", "run", "run_ptx",
]  # fmt: skip
