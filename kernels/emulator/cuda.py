"""The compiled extension's CUDA code in the emulator: its own host code, and PTX of nvcc for its kernels.

The extension's object files are linked with a stand-in for CUDA's runtime (cudart.c) that hands every launch to the
emulator: grids, order of arguments, sizes of shared memory and streams are those of the real host code.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from s2vfast import _extension
from s2vfast.kernels.emulator.device import DeviceMemory
from s2vfast.kernels.emulator.faults import EmulatorError
from s2vfast.kernels.emulator.launch import Emulation
from s2vfast.kernels.emulator.machine import SHARED_LIMIT, Machine
from s2vfast.kernels.emulator.program import Program, programs

ROOT = Path(__file__).parents[2]
STREAM = 0x5EA4  # the stream that calls are made on: whatever is launched on another is a mistake
MULTIPROCESSORS = 2  # few, so that blocks that share the work in rounds have more than one
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t,
    ctypes.c_void_p,
)  # fmt: skip
_FILL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p)
_FAILED = 719  # cudaErrorLaunchFailure


def why_not() -> str:
    """Why CUDA code cannot be emulated here; empty if it can."""
    if not list((ROOT / "csrc").glob("*.cu")):
        return "the CUDA sources are not here: the emulator of the extension needs a checkout"
    if _nvcc() is None:
        return "no nvcc was found (CUDACXX, CUDA_HOME, PATH)"
    if _objects() is None:
        return "the extension's CUDA objects are not in build/: `make install` where nvcc is makes them"
    return ""


class Extension:
    """The extension as the operations see it; its functions run their CUDA part in the emulator.

    Args:
        module: the extension, linked with the stand-in.
        emulation: where launches are counted.
    """

    def __init__(self, module: ModuleType, emulation: Emulation) -> None:
        self._module, self._emulation = module, emulation
        self._device = DeviceMemory(emulation.unwritten)
        self._error: Exception | None = None
        self._callbacks = _LAUNCH(self._launch), _FILL(self._fill)
        library = ctypes.CDLL(module.__file__)
        library.s2v_emulator_connect.argtypes = (_LAUNCH, _FILL, ctypes.c_size_t, ctypes.c_int)
        library.s2v_emulator_connect(*self._callbacks, SHARED_LIMIT[emulation.arch], MULTIPROCESSORS)

    def place(self, tensor: Tensor) -> dict[str, int]:
        """Where a call runs: on device 0."""
        return {"device": 0, "stream": STREAM, "threads": 0}

    def addresses(self, tensors: dict[str, Tensor]) -> dict[str, int]:
        """Where tensors lie in the emulator's global memory."""
        return self._device.place(tensors)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)

        @functools.wraps(function)
        def call(*args: Any, **more: Any) -> Any:
            try:
                return function(*args, **more)
            except RuntimeError:
                if self._error is not None:
                    raise self._error from None
                raise
            finally:
                self._device.download()
                self._device, self._error = DeviceMemory(self._emulation.unwritten), None

        return call

    def _launch(self, name: bytes, sizes: Any, arguments: Any, shared: int, stream: int | None) -> int:
        try:
            self._check_stream(stream)
            program = _program(name.decode(), self._emulation)
            data = bytearray(program.kernel.parameter_bytes)
            offsets = program.kernel.parameters.values()
            for i, (offset, size) in enumerate(zip(offsets, program.kernel.parameter_sizes, strict=True)):
                data[offset : offset + size] = ctypes.string_at(arguments[i], size)
            grid, block = tuple(sizes[0:3]), tuple(sizes[3:6])
            checks = self._emulation.checks
            machine = Machine(program, grid, block, bytes(data), self._device, shared, checks)
            self._emulation.launches.append((program.kernel.name, machine.run()))
        except Exception as error:
            self._error = error
            return _FAILED
        return 0

    def _fill(self, at: int, byte: int, count: int, stream: int | None) -> int:
        try:
            self._check_stream(stream)
            self._device.fill(at, byte, count)
        except Exception as error:
            self._error = error
            return _FAILED
        return 0

    def _check_stream(self, stream: int | None) -> None:
        if stream != STREAM:
            raise EmulatorError(f"launched on stream {stream}, the call is to run on {STREAM}")


@contextlib.contextmanager
def emulate_extension(emulation: Emulation) -> Iterator[None]:
    """Within the block the compiled extension runs its CUDA part in the emulator, on tensors of the CPU.

    Raises:
        EmulatorError: it cannot; the message says why.
    """
    if reason := why_not():
        raise EmulatorError(reason)
    with _extension.stand_in(Extension(_module(), emulation)), emulation.unwritten.watching():
        yield


@functools.cache
def _nvcc() -> Path | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    names = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    path = next(filter(None, (shutil.which(name) for name in names if name)), None)
    return Path(path) if path else None


def _objects() -> Path | None:
    """The folder of the extension's objects."""
    folder = ROOT / "build" / f"native-cuda-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    return folder if (folder / "bindings.o").is_file() else None


@functools.cache
def _module() -> ModuleType:
    """The extension's objects linked with the stand-in, loaded beside the extension itself."""
    folder = _objects()
    objects = sorted(folder.glob("*.o"))
    target = folder / "emulated" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    source = Path(__file__).with_name("cudart.c")
    newest = max(path.stat().st_mtime for path in (*objects, source))
    if not target.is_file() or target.stat().st_mtime < newest:
        target.parent.mkdir(exist_ok=True)
        compiler = os.environ.get("CXX", "g++")
        stand_in, partial = target.with_name(f"cudart.{os.getpid()}.o"), target.with_name(f"partial.{os.getpid()}.so")
        _run(os.environ.get("CC", "gcc"), "-O2", "-fPIC", "-c", source, "-o", stand_in)
        _run(compiler, "-shared", "-pthread", *objects, stand_in, "-o", partial)
        stand_in.unlink()
        partial.replace(target)  # whole or not at all: another process may be loading it
    spec = importlib.util.spec_from_file_location("_native", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(*command: Any) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise EmulatorError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")


def _program(name: str, emulation: Emulation) -> Program:
    """The kernel that the host code calls by this name."""
    for text in _texts(emulation.arch):
        for candidate, program in programs(text, emulation.checks.worst).items():
            if _plain(candidate) == _plain(name):
                return program
    raise EmulatorError(f"{name}: no such kernel in the PTX of csrc/")


def _plain(name: str) -> str:
    """A mangled name without what nvcc makes of paths and times."""
    return re.sub(r"(_GLOBAL__N__|_INTERNAL_)[0-9a-f]{8}(_\d+_\w+?_cu_)[0-9a-f]{8}", r"\1\2", name)


@functools.cache
def _texts(arch: int) -> tuple[str, ...]:
    """PTX of every .cu file, with line numbers, made once for each version of the sources."""
    sources = sorted((ROOT / "csrc").glob("*.cu"))
    headers = sorted((ROOT / "csrc").glob("*.*h"))
    digest = hashlib.sha256()
    for path in (*sources, *headers):
        digest.update(path.read_bytes())
    folder = _objects() / "emulated"
    folder.mkdir(exist_ok=True)
    target = {80: "sm_80", 90: "sm_90a"}[arch]

    def make(source: Path) -> str:
        ptx = folder / f"{source.stem}.{target}.{digest.hexdigest()[:16]}.ptx"
        if not ptx.is_file():
            for old in folder.glob(f"{source.stem}.{target}.*.ptx"):
                old.unlink()
            partial = ptx.with_suffix(f".{os.getpid()}")
            flags = ("-O3", "-std=c++17", "-fmad=false", "-lineinfo", f"-arch={target}", "-ptx")
            _run(_nvcc(), *flags, source, "-o", partial)
            partial.replace(ptx)
        return ptx.read_text("utf-8")

    with concurrent.futures.ThreadPoolExecutor(min(torch.get_num_threads(), 2)) as pool:
        return tuple(pool.map(make, sources))
