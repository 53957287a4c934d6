"""Kernels written by hand in PTX, for tests of single instructions."""

import numpy as np
import torch

from s2vfast.kernels import emulator

HEAD = ".version 8.3\n.target sm_90a\n.address_size 64\n"
REGISTERS = """
.reg .pred %p<16>; .reg .b16 %h<32>; .reg .b32 %r<128>; .reg .f32 %f<64>; .reg .b64 %rd<40>; .reg .f64 %fd<16>;
"""
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
LETTERS = {2: ("h", "b16"), 4: ("r", "b32"), 8: ("rd", "b64")}


def kernel(body, pointers=1, shared=0, name="k"):
    """An entry with pointers %rd20, %rd21 … and, if asked for, shared memory ``smem``; %r100 is the thread."""
    parameters = ", ".join(f".param .u64 p{i}" for i in range(pointers))
    loads = "".join(f"ld.param.u64 %rd{20 + i}, [p{i}];\n" for i in range(pointers))
    memory = f".shared .align 1024 .b8 smem[{shared}];\n" if shared else ""
    body = f"{REGISTERS}{memory}{loads}mov.u32 %r100, %tid.x;\n{body}\nret;\n"
    return f"{HEAD}.visible .entry {name}({parameters}) {{{body}}}"


def execute(body, *tensors, threads=32, grid=(1,), shared=0, dynamic=0, checks=None):
    """Run a body on tensors; what it has executed."""
    text = kernel(body, len(tensors), shared)
    return emulator.run_ptx(text, "k", grid, (threads,), *tensors, shared=dynamic, checks=checks)


def tensor(array):
    """A tensor that shares an array's memory, of whatever dtype."""
    flat = np.ascontiguousarray(array)
    flat = flat if flat.flags.writeable else flat.copy()
    return torch.from_numpy(flat.view(f"i{flat.dtype.itemsize}"))  # without a copy: results arrive in the array


def apply(instruction, *operands, out=np.uint32, checks=None):
    """One instruction on arrays, one element a thread; ``{d}`` and ``{0}``, ``{1}`` … stand for its registers.

    A predicate among the results is stored as 0 or 1: ``{p}`` is a predicate register.
    """
    count = max(len(operand) for operand in operands)
    arrays = [np.ascontiguousarray(np.broadcast_to(operand, count)) for operand in operands]
    result = np.zeros(count, out)
    size = result.dtype.itemsize
    lines = []
    for i, array in enumerate(arrays):
        letter, kind = LETTERS[max(array.dtype.itemsize, 2)]
        width = array.dtype.itemsize
        lines.append(f"mul.wide.u32 %rd1, %r101, {width}; add.u64 %rd2, %rd{21 + i}, %rd1;")
        lines.append(f"ld.global.{kind if width > 1 else 'u8'} %{letter}{10 + i}, [%rd2];")
    names = [f"%{LETTERS[max(array.dtype.itemsize, 2)][0]}{10 + i}" for i, array in enumerate(arrays)]
    letter, kind = LETTERS[size]
    lines.append(instruction.format(*names, d=f"%{letter}30", p="%p1"))
    if "{p}" in instruction and "{d}" not in instruction:
        lines.append(f"selp.{kind} %{letter}30, 1, 0, %p1;")
    lines.append(f"mul.wide.u32 %rd1, %r101, {size}; add.u64 %rd2, %rd20, %rd1; st.global.{kind} [%rd2], %{letter}30;")
    body = (
        "mov.u32 %r102, %ctaid.x; mov.u32 %r103, %ntid.x; mad.lo.u32 %r101, %r102, %r103, %r100;\n"
        f"setp.ge.u32 %p0, %r101, {count}; @%p0 ret;\n" + "\n".join(lines)
    )
    execute(body, tensor(result), *map(tensor, arrays), threads=64, grid=(-(-count // 64),), checks=checks)
    return result
