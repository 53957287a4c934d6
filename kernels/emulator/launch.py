"""Triton kernels in the emulator: compiled to PTX as a launch on a GPU would be, executed on tensors of the CPU."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from s2vfast.kernels import _launch
from s2vfast.kernels.emulator.counts import Counts
from s2vfast.kernels.emulator.device import DeviceMemory, Unwritten
from s2vfast.kernels.emulator.faults import EmulatorError
from s2vfast.kernels.emulator.machine import SHARED_LIMIT, Checks, Machine
from s2vfast.kernels.emulator.program import programs

_SCALARS = {"i1": "?", "u1": "?", "i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I", "i64": "q"}
_SCALARS |= {"u64": "Q", "fp32": "f", "f32": "f", "fp64": "d", "f64": "d"}


@dataclass(frozen=True)
class Binary:
    """A compiled Triton kernel."""

    name: str
    ptx: str
    shared: int  # bytes of a block
    scratch: int  # bytes of global memory a block


@dataclass
class Emulation:
    """What has been launched within `emulate`."""

    arch: int
    checks: Checks = field(default_factory=Checks)
    launches: list[tuple[str, Counts]] = field(default_factory=list)  # name of the kernel, what it executed
    unwritten: Unwritten = field(default_factory=Unwritten)

    @property
    def counts(self) -> Counts:
        """Of all launches together."""
        return sum((counts for _, counts in self.launches), Counts())

    def launch(self, call: _launch.Launch) -> None:
        """Make a launch of a Triton kernel."""
        if 0 in call.grid:
            return
        binary, types, bound = _compiled(call, self.arch)
        tensors: dict[str, Tensor] = {}
        values: list[tuple[str, Any]] = []
        for name, kind in types.items():
            _flatten(name, kind, bound[name], values, tensors)
        device = DeviceMemory(self.unwritten)
        blocks = functools.reduce(lambda a, b: a * b, call.grid)
        if binary.scratch:
            tensors["scratch"] = torch.empty(binary.scratch * blocks, dtype=torch.uint8)
        addresses = device.place(tensors)
        parameters = _packed(values, addresses, [addresses.get("scratch", 0), 0])
        program = programs(binary.ptx, self.checks.worst)[binary.name]
        grid = (*call.grid, 1, 1)[:3]
        machine = Machine(program, grid, program.kernel.threads, parameters, device, binary.shared, self.checks)
        if machine.shared_bytes > SHARED_LIMIT[self.arch] + 1024:
            limit = SHARED_LIMIT[self.arch]
            raise EmulatorError(f"{binary.name}: {binary.shared} bytes of shared memory, a block has {limit}")
        self.launches.append((binary.name, machine.run()))
        device.download()


def run(
    kernel: Any, grid: tuple[int, ...], *args: Any, arch: int = 80, checks: Checks | None = None, **options: Any
) -> Counts:
    """kernel[grid](*args, **options) in the emulator; tensors are on the CPU and changed in place.

    Args:
        kernel: a function decorated by triton.jit.
        grid: one to three numbers of program instances.
        args: the kernel's arguments: tensors, tuples of them, numbers, None.
        arch: 80 or 90; what it is compiled for.
        checks: what it is watched for.
        options: constexpr arguments, num_warps, num_stages.

    Returns:
        What it has executed.

    Raises:
        Fault: the kernel breaks a rule.
        Unsupported: it uses what the emulator does not know.
    """
    emulation = Emulation(arch, checks or Checks())
    emulation.launch(_launch.Launch(kernel, tuple(grid), args, options))
    return emulation.counts


def run_ptx(
    text: str,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *args: Tensor | int | float | bytes,
    shared: int = 0,
    checks: Checks | None = None,
) -> Counts:
    """A kernel of a PTX text in the emulator; tensors are on the CPU and changed in place.

    Args:
        text: PTX, as nvcc -ptx or Triton writes it.
        name: the kernel, or a part of its name that no other kernel's has.
        grid: one to three numbers of blocks.
        block: one to three numbers of threads.
        args: one for each parameter: tensors stand for pointers, bytes for structures.
        shared: bytes of shared memory beside the kernel's own.
        checks: what it is watched for.

    Returns:
        What it has executed.
    """
    checks = checks or Checks()
    kernels = programs(text, checks.worst)
    fitting = [kernel for kernel in kernels if name in kernel]
    if name not in kernels and len(fitting) != 1:
        raise EmulatorError(f"{name}: expected the name of one kernel among {', '.join(kernels)}")
    program = kernels[name if name in kernels else fitting[0]]
    sizes, offsets = program.kernel.parameter_sizes, list(program.kernel.parameters.values())
    if len(args) != len(sizes):
        raise EmulatorError(f"{program.kernel.name}: {len(args)} arguments, it takes {len(sizes)}")
    device = DeviceMemory()
    addresses = device.place({f"argument {i}": arg for i, arg in enumerate(args) if isinstance(arg, Tensor)})
    data = bytearray(program.kernel.parameter_bytes)
    for i, (arg, size, offset) in enumerate(zip(args, sizes, offsets, strict=True)):
        if isinstance(arg, Tensor):
            arg = addresses[f"argument {i}"]
        if isinstance(arg, float):
            arg = struct.pack("<f" if size == 4 else "<d", arg)
        elif isinstance(arg, int):
            arg = (arg & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        if len(arg) != size:
            raise EmulatorError(f"{program.kernel.name}: argument {i} has {len(arg)} bytes, the parameter {size}")
        data[offset : offset + size] = arg
    grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
    counts = Machine(program, grid, block, bytes(data), device, shared, checks).run()
    device.download()
    return counts


@contextlib.contextmanager
def emulate_triton(emulation: Emulation) -> Iterator[None]:
    """Within the block the launches of `kernels._launch` are made in the emulator."""
    with _launch.intercept(emulation.launch, emulation.arch), emulation.unwritten.watching():
        yield


def _flatten(name: str, kind: Any, value: Any, values: list[tuple[str, Any]], tensors: dict[str, Tensor]) -> None:
    """Arguments that the compiled kernel takes, in order: (type, tensor's name or number)."""
    if isinstance(kind, (tuple, list)):
        for i, (item_kind, item) in enumerate(zip(kind, value, strict=True)):
            _flatten(f"{name}[{i}]", item_kind, item, values, tensors)
    elif kind == "constexpr":
        return
    elif kind.startswith("*"):
        tensors[name] = value
        values.append(("pointer", name))
    elif kind in _SCALARS:
        values.append((kind, value))
    else:
        raise EmulatorError(f"{name}: the emulator does not pass arguments of type {kind}")


def _packed(values: list[tuple[str, Any]], addresses: dict[str, int], more: list[int]) -> bytes:
    """The bytes of the kernel's parameters, each at a multiple of its size."""
    data = b""
    for kind, value in (*values, *(("u64", pointer) for pointer in more)):
        letter, number = ("Q", addresses[value]) if kind == "pointer" else (_SCALARS[kind], value)
        size = struct.calcsize(letter)
        data += b"\0" * (-len(data) % size) + struct.pack("<" + letter, number)
    return data


def _compiled(call: _launch.Launch, arch: int) -> tuple[Binary, dict[str, Any], dict[str, Any]]:
    """PTX of the kernel as this launch specialises it, from Triton's cache where it is; types and bound arguments."""
    if arch not in SHARED_LIMIT:
        raise EmulatorError(f"arch: expected one of {', '.join(map(str, SHARED_LIMIT))}, got {arch}")
    if not hasattr(call.kernel, "_pack_args"):
        raise EmulatorError(
            f"{getattr(call.kernel, '__name__', call.kernel)}: expected a function compiled by triton.jit; "
            "TRITON_INTERPRET must not be set where it is defined"
        )
    source, options, bound = _launch.specialized(call, arch)
    key = f"{source.hash()} {options.hash()} {arch}"
    if key not in _BINARIES:
        _BINARIES[key] = _compile(source, options, arch)
    names = list(call.kernel.signature.parameters)
    bound = bound if isinstance(bound, dict) else dict(zip(names, bound, strict=True))
    return _BINARIES[key], source.signature, bound


_BINARIES: dict[str, Binary] = {}


def _compile(source: Any, options: Any, arch: int) -> Binary:
    import triton
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.cache import get_cache_manager

    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    options = backend.parse_options(dict(options.__dict__, **source.parse_options()))
    words = ("s2vfast emulator", triton.__version__, source.hash(), backend.hash(), options.hash())
    cache = get_cache_manager(hashlib.sha256(" ".join(words).encode()).hexdigest())
    file = cache.get_file("kernel.json")
    if file is not None:
        with open(file, encoding="utf-8") as stored:
            return Binary(**json.load(stored))
    metadata: dict[str, Any] = {"target": target, **options.__dict__}
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    module = source.make_ir(target, options, functions, modules, context)
    # All stages but the last, ptxas, which needs as long as the others and gives what only a GPU can execute.
    for name, stage in stages.items():
        if name == "cubin":
            break
        module = stage(module, metadata)
    binary = Binary(metadata["name"], module, metadata["shared"], metadata.get("global_scratch_size") or 0)
    cache.put(json.dumps(binary.__dict__), "kernel.json", binary=False)
    return binary
