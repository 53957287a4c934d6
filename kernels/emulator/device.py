"""Global memory: tensors copied between guards, and which of their bytes have never been written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from s2vfast.kernels.emulator.faults import EmulatorError
from s2vfast.kernels.emulator.memory import BEFORE, OUTSIDE, UNWRITTEN, Space
from s2vfast.kernels.emulator.ptx import Kernel

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.machine import Machine

START = 0x7F00_0000_0000  # address of the first byte of global memory
_GUARD = 512  # bytes between allocations that belong to nobody
_REMEMBERED = 1024  # tensors of torch.empty; of older ones all counts as written
_POISON = 0x7FF9  # NaN in every floating-point format


@dataclass
class Allocation:
    """Bytes of a tensor, or of several that overlap, in global memory."""

    name: str
    offset: int
    size: int
    host: int  # address of the original; 0: there is none


class Unwritten:
    """Memory that torch.empty has made and that nobody may have written yet, by address."""

    def __init__(self) -> None:
        self._states: dict[int, ndarray] = {}

    def add(self, tensor: Tensor) -> Tensor:
        """Fill a new tensor with NaN and remember it."""
        if type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            start, size = storage.data_ptr(), storage.nbytes()
            for other in [at for at, state in self._states.items() if at < start + size and start < at + len(state)]:
                del self._states[other]
            if size:
                _poison(host_bytes(start, size))
                self._states[start] = np.full(size, UNWRITTEN, np.uint8)
            if len(self._states) > _REMEMBERED:
                del self._states[next(iter(self._states))]
        return tensor

    def state(self, start: int, size: int) -> ndarray:
        """uint8 [size], UNWRITTEN or BEFORE, of the bytes at a host address."""
        result = np.full(size, BEFORE, np.uint8)
        for at, state in self._states.items():
            low, high = max(at, start), min(at + len(state), start + size)
            if low < high:
                part = state[low - at : high - at]
                changed = host_bytes(low, high - low) != _pattern(low - at, high - low)
                # A number that the host has written may share a byte with the pattern; not all of its bytes.
                end = len(changed) // 2 * 2
                changed[:end] = np.repeat(changed[:end].reshape(-1, 2).any(axis=1), 2)
                part[changed] = BEFORE
                result[low - start : high - start] = part
        return result

    def written(self, start: int, state: ndarray) -> None:
        """Take over which bytes a launch has written."""
        for at, own in self._states.items():
            low, high = max(at, start), min(at + len(own), start + len(state))
            if low < high:
                own[low - at : high - at] = state[low - start : high - start]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block torch.empty, torch.empty_like and Tensor.new_empty give remembered memory."""

        def wrap(real):
            return lambda *args, **more: self.add(real(*args, **more))

        with (
            mock.patch.object(torch, "empty", wrap(torch.empty)),
            mock.patch.object(torch, "empty_like", wrap(torch.empty_like)),
            mock.patch.object(Tensor, "new_empty", wrap(Tensor.new_empty)),
        ):
            yield


def host_bytes(address: int, size: int) -> ndarray:
    """The bytes at an address of this process."""
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _pattern(start: int, size: int) -> ndarray:
    pattern = np.full((start + size) // 2 + 1, _POISON, np.uint16).view(np.uint8)
    return pattern[start : start + size]


def _poison(data: ndarray) -> None:
    data[:] = _pattern(0, len(data))


class DeviceMemory:
    """Global memory of one or several launches.

    Args:
        unwritten: which memory of the host has never been written.
    """

    def __init__(self, unwritten: Unwritten | None = None) -> None:
        self.unwritten = unwritten or Unwritten()
        self.allocations: list[Allocation] = []
        self.data = np.zeros(0, np.uint8)
        self.state = np.zeros(0, np.uint8)
        self._symbols: dict[str, int] = {}

    def place(self, tensors: dict[str, Tensor]) -> dict[str, int]:
        """Copy tensors in; the address of each one's first element. Tensors that overlap stay as they overlap."""
        spans = []
        for name, tensor in tensors.items():
            if tensor.device.type != "cpu":
                raise EmulatorError(f"{name}: the emulator takes tensors on the CPU, this one is on {tensor.device}")
            if tensor.numel():
                extent = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
                start = tensor.data_ptr()
                spans.append((start, start + (extent + 1) * tensor.element_size(), name))
        merged: list[tuple[int, int, str]] = []
        for start, end, name in sorted(spans):
            if merged and start < merged[-1][1]:
                first, last, names = merged[-1]
                merged[-1] = (first, max(last, end), f"{names}, {name}")
            else:
                merged.append((start, end, name))
        fresh = [self._host(start, end, name) for start, end, name in merged]
        addresses = {}
        for name, tensor in tensors.items():
            pointer = tensor.data_ptr()
            if not tensor.numel():
                addresses[name] = START + 16 if pointer else 0  # between allocations: whoever reads it is wrong
                continue
            home = next(a for a in reversed(self.allocations) if a.host and a.host <= pointer < a.host + a.size)
            offset = home.offset + pointer - home.host
            if any(home is allocation for allocation in fresh):
                self._open(tensor, home, offset)
            addresses[name] = START + offset
        return addresses

    def _host(self, start: int, end: int, name: str) -> Allocation:
        for allocation in self.allocations:
            if allocation.host and allocation.host <= start and end <= allocation.host + allocation.size:
                return allocation
        allocation = self._allocate(name, end - start, start % 256, start)
        self.data[allocation.offset : allocation.offset + allocation.size] = host_bytes(start, end - start)
        return allocation

    def _open(self, tensor: Tensor, home: Allocation, offset: int) -> None:
        """The bytes of a tensor's elements may be accessed."""
        host_state = self.unwritten.state(home.host, home.size)
        itemsize = tensor.element_size()
        shape = (*tensor.shape, itemsize)
        strides = (*(stride * itemsize for stride in tensor.stride()), 1)

        def elements(array: ndarray, at: int) -> ndarray:
            return np.lib.stride_tricks.as_strided(array[at:], shape, strides)

        elements(self.state, offset)[...] = elements(host_state, offset - home.offset)

    def _allocate(self, name: str, size: int, residue: int, host: int) -> Allocation:
        """Room between guards, at an address whose lowest byte is as asked."""
        offset = -(-(len(self.data) + _GUARD) // 256) * 256 + residue
        total = -(-(offset + size + _GUARD) // 256) * 256
        more = total - len(self.data)
        self.data = np.concatenate([self.data, np.zeros(more, np.uint8)])
        self.state = np.concatenate([self.state, np.full(more, OUTSIDE, np.uint8)])
        allocation = Allocation(name, offset, size, host)
        self.allocations.append(allocation)
        return allocation

    def declare(self, kernel: Kernel) -> dict[str, int]:
        """Addresses of a module's variables in global and constant memory."""
        for variable in (*kernel.memory("global"), *kernel.memory("const")):
            if variable.name not in self._symbols and variable.size:
                allocation = self._allocate(variable.name, variable.size, 0, 0)
                at = allocation.offset
                data = variable.data.ljust(variable.size, b"\0")
                self.data[at : at + variable.size] = np.frombuffer(data, np.uint8)
                self.state[at : at + variable.size] = BEFORE
                self._symbols[variable.name] = START + at
        return self._symbols

    def fill(self, address: int, byte: int, size: int) -> None:
        """cudaMemset."""
        at = address - START
        if at < 0 or at + size > len(self.state) or (self.state[at : at + size] == OUTSIDE).any():
            raise EmulatorError(f"memset of {size} bytes at {self.describe(at)}: outside every allocation")
        self.data[at : at + size] = byte
        self.state[at : at + size] = BEFORE

    def space(self, machine: Machine, granule: int) -> Space:
        """Global memory as a launch sees it."""
        if not len(self.data):
            self._allocate("nothing", 0, 0, 0)
        states = self.state.reshape(-1, granule)
        codes = states.min(axis=1).astype(np.int64)[None]
        return Space(machine, "global", self.data.reshape(1, -1), codes, granule, START)

    def finish(self, memory: Space) -> None:
        """A launch is over: what it has written is written."""
        written = np.repeat(memory.writers[0] > BEFORE, memory.granule)
        self.state[written] = BEFORE

    def download(self) -> None:
        """Copy everything back to the tensors."""
        for allocation in self.allocations:
            if allocation.host:
                part = slice(allocation.offset, allocation.offset + allocation.size)
                host_bytes(allocation.host, allocation.size)[:] = self.data[part]
                self.unwritten.written(allocation.host, np.maximum(self.state[part], UNWRITTEN))

    def describe(self, offset: int) -> str:
        """An offset by the allocation that it is in or near."""
        if not self.allocations:
            return f"address {START + offset:#x}"
        nearest = min(
            self.allocations, key=lambda a: 0 if a.offset <= offset < a.offset + a.size else
            min(abs(offset - a.offset), abs(offset - a.offset - a.size)),
        )  # fmt: skip
        inside = offset - nearest.offset
        if inside < 0:
            return f"{nearest.name} - {-inside} bytes"
        end = f" ({inside - nearest.size} past its end)" if inside >= nearest.size else ""
        return f"{nearest.name} + {inside} bytes{end}"
