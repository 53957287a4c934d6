"""The stand-in for CUDA's runtime: what the extension's host code asks of it, and what it refuses."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch

import s2vfast
from s2vfast import errors, ops
from s2vfast.inputs import inputs
from s2vfast.kernels import emulator
from s2vfast.kernels.emulator import cuda

pytestmark = pytest.mark.skipif(bool(cuda.why_not()), reason=cuda.why_not())
SOURCE = Path(cuda.__file__).with_name("cudart.c")


def test_calls_are_launched_as_the_host_code_launches_them():
    given = inputs("mask_fill")
    with emulator.emulate(80, "native") as emulation:
        out = ops.mask_fill(**given, impl="native")
    assert torch.equal(out, ops.mask_fill(**given, impl="native"))  # the CPU's: the code of an item is the same
    assert ["forward_kernel" in name for name, _ in emulation.launches] == [True]
    assert emulation.counts.threads > 0
    assert s2vfast._extension.emulated() is None


def test_another_stream_is_a_mistake(monkeypatch):
    monkeypatch.setattr(cuda.Extension, "place", lambda self, tensor: {"device": 0, "stream": 7, "threads": 0})
    with emulator.emulate(80, "native"), pytest.raises(emulator.EmulatorError, match="stream 7"):
        ops.mask_fill(**inputs("mask_fill"), impl="native")


def test_another_device_is_refused(monkeypatch):
    place = {"device": 3, "stream": cuda.STREAM, "threads": 0}
    monkeypatch.setattr(cuda.Extension, "place", lambda self, tensor: place)
    with emulator.emulate(80, "native"), pytest.raises(RuntimeError, match="mask_fill: "):
        ops.mask_fill(**inputs("mask_fill"), impl="native")


def test_a_fault_comes_through_the_host_code(monkeypatch):
    real = cuda.Extension.addresses

    def elsewhere(self, tensors):
        return {name: at + 4096 * (name == "latents") for name, at in real(self, tensors).items()}

    monkeypatch.setattr(cuda.Extension, "addresses", elsewhere)
    with emulator.emulate(80, "native"):
        with pytest.raises(emulator.Fault, match=r"out of bounds.*mask_fill\.cuh:|out of bounds.*pack\.cuh:"):
            ops.mask_fill(**inputs("mask_fill"), impl="native")
        monkeypatch.undo()
        ops.mask_fill(**inputs("mask_fill"), impl="native")  # a fault leaves nothing behind
    assert issubclass(emulator.Fault, errors.S2vfastError)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    library = tmp_path_factory.mktemp("cudart") / "cudart.so"
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", SOURCE, "-o", library], check=True)
    return ctypes.CDLL(str(library))


class Dim(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


def test_launches_are_checked_as_the_runtime_does(runtime):
    seen = []
    function = ctypes.c_char_p(b"host")
    launch = cuda._LAUNCH(lambda *call: seen.append(call) or 0)
    fill = cuda._FILL(lambda *call: 0)
    runtime.s2v_emulator_connect.argtypes = (cuda._LAUNCH, cuda._FILL, ctypes.c_size_t, ctypes.c_int)
    runtime.s2v_emulator_connect(launch, fill, 160 * 1024, 5)
    none = ctypes.c_void_p()
    runtime.__getattr__("__cudaRegisterFunction")(
        none, function, none, ctypes.c_char_p(b"k"), 0, none, none, none, none, none
    )

    def start(grid, block, shared=0, what=function):
        arguments = (what, Dim(*grid), Dim(*block), none, ctypes.c_size_t(shared), none)
        return runtime.cudaLaunchKernel(*arguments)

    assert start((2, 3, 1), (32, 1, 1)) == 0
    assert seen[0][0] == b"k"
    assert seen[0][1][0:6] == [2, 3, 1, 32, 1, 1]
    assert start((0, 1, 1), (32, 1, 1)) != 0
    assert start((1, 70000, 1), (32, 1, 1)) != 0
    assert start((1, 1, 1), (2048, 1, 1)) != 0
    assert start((1, 1, 1), (32, 1, 1), what=ctypes.c_char_p(b"other")) != 0
    assert runtime.cudaGetLastError() != 0
    assert runtime.cudaGetLastError() == 0
    # More shared memory than 48 KiB has to be asked for, and there is a limit.
    assert start((1, 1, 1), (32, 1, 1), 100 * 1024) != 0
    assert runtime.cudaFuncSetAttribute(function, 8, 200 * 1024) != 0
    assert runtime.cudaFuncSetAttribute(function, 8, 100 * 1024) == 0
    assert start((1, 1, 1), (32, 1, 1), 100 * 1024) == 0
    value = ctypes.c_int()
    assert runtime.cudaDeviceGetAttribute(ctypes.byref(value), 16, 0) == 0
    assert value.value == 5
    assert len(seen) == 2
