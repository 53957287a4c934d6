"""Tensor cores: mma.sync, ldmatrix, stmatrix, and Hopper's wgmma with its descriptors.

Products are exact; a product of matrices is added up in float64 with its accumulator and rounded to float32 once.
Hardware may round within; that is not documented.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from s2vfast.kernels.emulator.arithmetic import f2, f4, f8, u2, u4, widen_bf16
from s2vfast.kernels.emulator.faults import Fault, Site, Unsupported
from s2vfast.kernels.emulator.generate import address
from s2vfast.kernels.emulator.lanes import Lanes
from s2vfast.kernels.emulator.memory import COPYING
from s2vfast.kernels.emulator.ptx import Immediate, Instruction, Negated, Register, Vector
from s2vfast.kernels.emulator.table import instruction, known

if TYPE_CHECKING:
    from s2vfast.kernels.emulator.generate import Writer
    from s2vfast.kernels.emulator.machine import Group, Machine

_LANE = np.arange(32)
_ROW, _COLUMN = _LANE >> 2, _LANE & 3  # of a lane in a fragment: groupID and threadID_in_group


def _fragments(k: int, half: bool) -> tuple[ndarray, ndarray]:
    """Where the elements of A [16, k] and B [k, 8] are in [lane, register(, half)], flattened.

    Args:
        k: depth of the product.
        half: 16-bit elements, two to a register; else 32-bit ones.
    """
    per = 2 if half else 1
    step = 4 * per  # columns of A that one register of all lanes covers
    registers_a, registers_b = 2 * k // step, k // step
    a, b = np.zeros((16, k), np.int64), np.zeros((k, 8), np.int64)
    for lane in range(32):
        row, column = lane >> 2, (lane & 3) * per
        for part in range(per):
            for register in range(registers_a):
                flat_index = (lane * registers_a + register) * per + part
                a[row + 8 * (register & 1), column + part + step * (register >> 1)] = flat_index
            for register in range(registers_b):
                b[column + part + step * register, row] = (lane * registers_b + register) * per + part
    return a.reshape(-1), b.reshape(-1)


_RESULT = np.stack([(_ROW + 8 * (i >> 1)) * 8 + 2 * _COLUMN + (i & 1) for i in range(4)])  # [register, lane] in [16, 8]
_TABLES = {(k, half): _fragments(k, half) for k, half in ((16, True), (8, True), (8, False), (4, False))}


def _tf32(bits: ndarray) -> ndarray:
    """float32 of tf32 operands, of which the tensor cores ignore the low 13 bits."""
    return (bits & u4(0xFFFFE000)).view(f4)


_WIDEN = {"bf16": widen_bf16, "f16": lambda bits: bits.view(f2).astype(f4), "tf32": _tf32}


class TensorCores:
    """Matrix products of a launch.

    Args:
        machine: the launch.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def _whole(self, g: Group, guard: ndarray | None, site: Site) -> None:
        if not g.whole or (guard is not None and not guard.all()):
            cta, thread = int(np.ravel(g.cta)[0]), int(np.ravel(g.tid)[0])
            detail = "an instruction for whole warps, of which some lanes do not execute it"
            raise Fault("divergent", detail, site, self.machine.cta_name(cta), thread)

    def mma(self, g: Group, kind: str, k: int, jobs: tuple, site: Site) -> list[ndarray]:
        """mma.sync.m16n8: jobs of (A, B, C) registers, independent of each other; the results, four float32 each.

        Args:
            g: who executes.
            kind: bf16, f16, tf32.
            k: depth.
            jobs: (a, b, c), each a tuple of arrays.
            site: the first of the instructions.
        """
        self._whole(g, None, site)
        rows, threads = g.shape
        half = kind != "tf32"
        table_a, table_b = _TABLES[k, half]
        warps = rows * threads // 32

        def matrices(which: int, table: ndarray, height: int) -> ndarray:
            count = len(jobs[0][which])
            words = np.empty((len(jobs), rows, threads, count), u4)
            for number, job in enumerate(jobs):
                for i, register in enumerate(job[which]):
                    words[number, :, :, i] = register
            elements = words.view(u2) if half else words
            flat = elements.reshape(len(jobs) * warps, -1).take(table, axis=1)
            return _WIDEN[kind](flat).astype(f8).reshape(len(jobs) * warps, height, -1)

        product = matrices(0, table_a, 16) @ matrices(1, table_b, k)
        parts = product.reshape(len(jobs) * warps, 128).take(_RESULT.reshape(-1), axis=1)
        parts = parts.reshape(len(jobs), rows, threads // 32, 4, 32)
        results = []
        for number, (_, _, c) in enumerate(jobs):
            results += [(parts[number, :, :, i].reshape(rows, threads) + c[i]).astype(f4) for i in range(4)]
        return results

    def load_matrices(
        self, g: Group, where: ndarray, count: int, trans: bool, guard: ndarray | None, site: Site
    ) -> list:
        """ldmatrix: 8 x 8 matrices of 16 bits; lane i gives the address of row i % 8 of matrix i / 8."""
        self._whole(g, guard, site)
        lanes = self._matrix_lanes(g, where, count, site)
        words = self.machine.shared.read(lanes, 16, site)
        tiles = np.ascontiguousarray(words).view(u2).reshape(words.shape[0], -1, count, 8, 8)
        if trans:
            tiles = tiles.swapaxes(-1, -2)
        registers = np.ascontiguousarray(tiles).view(u4).reshape(words.shape[0], -1, count, 32)
        return [registers[:, :, i].reshape(words.shape[0], -1) for i in range(count)]

    def store_matrices(
        self, g: Group, where: ndarray, values: tuple, trans: bool, guard: ndarray | None, site: Site
    ) -> None:
        """stmatrix: the other way round."""
        self._whole(g, guard, site)
        lanes = self._matrix_lanes(g, where, len(values), site)
        rows = max(value.shape[0] for value in values)
        words = np.stack([np.broadcast_to(value, (rows, g.shape[1])).reshape(rows, -1, 32) for value in values], axis=2)
        tiles = words.view(u2).reshape(rows, -1, len(values), 8, 8)
        if trans:
            tiles = tiles.swapaxes(-1, -2)
        chunks = np.ascontiguousarray(tiles).view(np.complex128).reshape(rows, -1)
        self.machine.shared.write(lanes, chunks, site)

    def _matrix_lanes(self, g: Group, where: ndarray, count: int, site: Site) -> Lanes:
        """The lanes that give addresses."""
        where = np.broadcast_to(where, (where.shape[0], g.shape[1]))
        if count == 4:
            return self.machine.shared.select(g, where, 16, None, site)
        columns = np.flatnonzero((np.arange(g.shape[1]) & 31) < 8 * count)
        return self.machine.shared.select(g, where[:, columns], 16, None, site, columns)

    # --- wgmma

    def wgmma(
        self, g: Group, kind: str, n: int, d: tuple, a: ndarray | tuple, b: ndarray, scale_d: ndarray,
        signs: tuple[int, int], trans: tuple[int, int], registers: frozenset[int], site: Site,
    ) -> list[ndarray]:  # fmt: skip
        """wgmma.mma_async m64nNk16 (k8 of tf32): the accumulators when all is done.

        Args:
            g: who executes.
            kind: bf16, f16 or tf32.
            n: columns.
            d: accumulators, N / 2 arrays.
            a: four registers, or descriptors.
            b: descriptors.
            scale_d: whether the accumulators count.
            signs: factors of A and B, 1 or -1.
            trans: whether A and B lie with their K outside.
            registers: that it works on until it is waited for.
            site: the instruction.
        """
        self._whole(g, None, site)
        if g.shape[1] % 128 or (g.tid[:, ::128] & 127).any():
            self._refuse(g, "divergent", "wgmma is for whole groups of four warps", site)
        rows = g.shape[0]
        groups = g.shape[1] // 128
        if isinstance(a, tuple):
            words = np.empty((rows, g.shape[1], 4), u4)
            for i, register in enumerate(a):
                words[:, :, i] = register
            elements = words if kind == "tf32" else words.view(u2)
            k = 8 if kind == "tf32" else 16
            flat = elements.reshape(rows, groups * 4, -1).take(_TABLES[k, k == 16][0], axis=2)
            left = _WIDEN[kind](flat).astype(f8).reshape(rows, groups, 64, k)
        else:
            left = self._operand(g, a, 64, trans[0], kind, site)
        right = self._operand(g, b, n, trans[1], kind, site).swapaxes(-1, -2)
        product = (left @ right) * (signs[0] * signs[1])  # [a, groups, 64, n]
        tiles = product.reshape(product.shape[0], groups, 4, 16, n // 8, 8)
        results = []
        for i in range(n // 8):
            flat = tiles[:, :, :, :, i].reshape(product.shape[0], groups, 4, 128)
            for j in range(4):
                part = flat.take(_RESULT[j], axis=3).reshape(product.shape[0], -1)
                results.append((part + np.where(scale_d, d[4 * i + j], f4(0))).astype(f4))
        g.wgmma_open |= registers
        return results

    def _operand(self, g: Group, descriptor: ndarray, height: int, trans: int, kind: str, site: Site) -> ndarray:
        """float64 [a, groups, height, 16 or 8] from shared memory."""
        per_group = np.broadcast_to(descriptor, (descriptor.shape[0], g.shape[1])).reshape(descriptor.shape[0], -1, 128)
        if (per_group != per_group[:, :, :1]).any():
            self._refuse(g, "divergent", "the threads of four warps give different descriptors", site)
        values = np.unique(per_group[:, :, 0] >> np.uint64(62))
        layouts = np.unique((per_group[:, :, 0] >> np.uint64(16)) & np.uint64(0x3FFF3FFF3FFF))
        if len(values) > 1 or len(layouts) > 1:
            raise Unsupported(f"{site}: blocks with different layouts of one operand")
        layout = int(layouts[0])
        leading, stride, base = (layout & 0x3FFF) << 4, (layout >> 16 & 0x3FFF) << 4, layout >> 33 & 7
        swizzle = {0: 0, 1: 128, 2: 64, 3: 32}[int(values[0])]
        start = ((per_group[:, :, :1] & np.uint64(0x3FFF)) << np.uint64(4)).astype(np.int64)
        table = _chunks(height, trans, swizzle, leading, stride)
        offsets = start + table  # [a, groups, chunks]
        if swizzle:
            # The pattern repeats at multiples of 8 rows of the swizzle's width, moved by the base offset.
            mask = {128: 7, 64: 3, 32: 1}[swizzle]
            offsets = offsets ^ (((offsets >> 7) - base & mask) << 4)
        columns = np.repeat(np.arange(0, g.shape[1], 128), len(table))
        flat = offsets.reshape(offsets.shape[0], -1)
        shared = self.machine.shared
        lanes = shared.select(g, flat, 16, None, site, columns)
        self._fenced(shared, lanes, site)
        words = shared.read(lanes, 16, site)
        codes, index = shared._codes(shared.readers, lanes, 16)
        codes[index] |= COPYING
        g.wgmma_reads.append(lanes)
        bits = np.ascontiguousarray(words).view(u4 if kind == "tf32" else u2)
        elements = _WIDEN[kind](bits).astype(f8)
        a, groups = words.shape[0], flat.shape[1] // len(table)
        if trans:  # chunks [k, height / 8] of 8 along the height
            return elements.reshape(a, groups, 16, height).swapaxes(-1, -2)
        return elements.reshape(a, groups, height, -1)

    def _fenced(self, shared, lanes: Lanes, site: Site) -> None:
        codes, index = shared._codes(shared.writers, lanes, 16)
        late = codes[index] >= self.machine.proxy_fence
        if late.any():
            late = late.any(axis=-1) if late.ndim > 2 else late
            detail = "wgmma reads {address}, written since the last fence.proxy.async"
            shared.fault("missing fence", detail, lanes, late, site)

    def commit(self, g: Group) -> None:
        """wgmma.commit_group."""
        g.wgmma_groups.append((g.wgmma_open, g.wgmma_reads))
        g.wgmma_open, g.wgmma_reads = frozenset(), []

    def wait(self, g: Group, left: int) -> None:
        """wgmma.wait_group: all but the last ``left`` groups are done."""
        done = g.wgmma_groups[: len(g.wgmma_groups) - left]
        g.wgmma_groups = g.wgmma_groups[len(done) :]
        shared = self.machine.shared
        if done:
            for _, reads in done:
                for lanes in reads:
                    codes, index = shared._codes(shared.readers, lanes, 16)
                    codes[index] &= ~COPYING
            for _, reads in g.wgmma_groups:  # what is still read stays so
                for lanes in reads:
                    codes, index = shared._codes(shared.readers, lanes, 16)
                    codes[index] |= COPYING

    def check_registers(self, g: Group, touched: frozenset[int], site: Site) -> None:
        """Complain about registers that wgmma is working on."""
        busy = g.wgmma_open.union(*(registers for registers, _ in g.wgmma_groups))
        if wrong := busy & touched:
            name = self.machine.program.kernel.registers[min(wrong)].name
            self._refuse(g, "wgmma before its wait", f"{name} is used while wgmma works on it", site)

    def _refuse(self, g: Group, kind: str, detail: str, site: Site) -> None:
        raise Fault(kind, detail, site, self.machine.cta_name(int(np.ravel(g.cta)[0])), int(np.ravel(g.tid)[0]))

    def late_registers(self, g: Group, names: str, site: Site) -> None:
        """Complain about registers written after the last wgmma.fence."""
        self._refuse(g, "missing fence", f"{names} written since the last wgmma.fence", site)


def _chunks(height: int, trans: int, swizzle: int, leading: int, stride: int) -> ndarray:
    """Offsets of an operand's 16-byte pieces: [height, 2] along K, or [16, height / 8] with K outside."""
    width = swizzle or 16
    if not trans:
        row = np.arange(height)[:, None]
        piece = np.arange(2)[None, :]
        return ((row >> 3) * stride + (row & 7) * width + piece * (16 if swizzle else leading)).reshape(-1)
    k = np.arange(16)[:, None]
    piece = np.arange(height // 8)[None, :]
    if not swizzle:
        return ((k & 7) * 16 + (k >> 3) * leading + piece * stride).reshape(-1)
    per = width // 16
    return ((k & 7) * width + (k >> 3) * stride + piece % per * 16 + piece // per * leading).reshape(-1)


@instruction("mma")
def _mma(w: Writer, first: Instruction) -> None:
    """Several mma that do not need each other's results, as one."""
    pattern = r"sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(bf16|f16|tf32)\.\2\.f32"
    match = re.fullmatch(pattern, ".".join(first.modifiers))
    if not match or (int(match[1]), match[2] != "tf32") not in _TABLES or w.guard is not None:
        raise Unsupported(f"the emulator does not know {first.opcode}" + (" under a guard" if w.guard else ""))
    jobs = []
    for ins in w.run:
        _, a, b, c = ins.operands
        parts = ((a, "u4"), (b, "u4"), (c, "f4"))
        fields = ("".join(f"{w.use(item, kind)}, " for item in _items(operand)) for operand, kind in parts)
        jobs.append("(" + ", ".join(f"({field})" for field in fields) + ")")
    results = w.variable(f"m.tensor.mma(g, {match[2]!r}, {match[1]}, ({', '.join(jobs)},), {w.site})")
    for number, ins in enumerate(w.run):
        for i, item in enumerate(_items(ins.operands[0])):
            w.define(item, "f4", f"{results}[{4 * number + i}]")


def _items(operand: object) -> tuple:
    return operand.items if isinstance(operand, Vector) else (operand,)


@instruction("ldmatrix")
def _ldmatrix(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16")
    target, source = ins.operands
    items = _items(target)
    where = address(w, source, "shared")
    trans = "trans" in ins.modifiers
    words = w.variable(f"m.tensor.load_matrices(g, {where}, {len(items)}, {trans}, {w.guard}, {w.site})")
    for i, item in enumerate(items):
        w.define(item, "u4", f"{words}[{i}]")


@instruction("stmatrix")
def _stmatrix(w: Writer, ins: Instruction) -> None:
    known(ins.modifiers, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", "b16")
    target, source = ins.operands
    values = "".join(f"{w.use(item, 'u4')}, " for item in _items(source))
    where = address(w, target, "shared")
    w.emit(f"m.tensor.store_matrices(g, {where}, ({values}), {'trans' in ins.modifiers}, {w.guard}, {w.site})")


@instruction("wgmma")
def _wgmma(w: Writer, ins: Instruction) -> None:
    name = ins.modifiers[0]
    if name == "fence":
        w.written_since_fence.clear()
        return
    if name == "commit_group":
        w.emit("m.tensor.commit(g)")
        return
    if name == "wait_group":
        w.emit(f"m.tensor.wait(g, {ins.operands[0].value})")
        return
    pattern = r"mma_async\.sync\.aligned\.m64n(\d+)k(?:16\.f32\.(bf16|f16)\.\2|8\.f32\.(tf32)\.tf32)"
    match = re.fullmatch(pattern, ".".join(ins.modifiers))
    if not match or w.guard is not None:
        raise Unsupported(f"the emulator does not know {ins.opcode}")
    d, a, b, scale_d, scale_a, scale_b, *trans = ins.operands
    in_registers = isinstance(a, Vector)
    transposed = [item.value for item in trans] or [0] * (1 if in_registers else 2)
    transposed = [0, *transposed] if in_registers else transposed
    late = [item.name for item in (*d.items, *(a.items if in_registers else ())) if isinstance(item, Register)]
    if in_registers or not (isinstance(scale_d, Immediate) and scale_d.value == 0):
        late = [name for name in late if name in w.written_since_fence]
        if late:
            w.emit(f"m.tensor.late_registers(g, {', '.join(late[:4])!r}, {w.site})")
    # Where nothing is accumulated, what the registers held does not matter.
    fresh = isinstance(scale_d, Immediate) and scale_d.value == 0
    zero = w.constant(0, "f4")
    accumulators = "".join(f"{zero if fresh else w.use(item, 'f4')}, " for item in d.items)
    left = "(" + "".join(f"{w.use(item, 'u4')}, " for item in a.items) + ")" if in_registers else w.use(a, "u8")
    scale = w.condition(scale_d) if isinstance(scale_d, (Register, Negated)) else w.use(scale_d, "b1")
    busy = frozenset(item.index for item in (*d.items, *(a.items if in_registers else ())))
    kind = match[2] or match[3]
    results = w.variable(
        f"m.tensor.wgmma(g, {kind!r}, {match[1]}, ({accumulators}), {left}, {w.use(b, 'u8')}, {scale}, "
        f"({scale_a.value}, {scale_b.value}), ({transposed[0]}, {transposed[1]}), {w.constant_object(busy)}, {w.site})"
    )
    for i, item in enumerate(d.items):
        w.define(item, "f4", f"{results}[{i}]")
