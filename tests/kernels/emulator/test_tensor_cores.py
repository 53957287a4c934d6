"""Matrix instructions against products of whole matrices; where elements lie is written here as PTX's manual has it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast.kernels import emulator
from s2vfast.reference import philox

sys.path.insert(0, str(Path(__file__).parent))
from assemble import execute, tensor

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32}


def matrix(rows, columns, seed, kind="bf16"):
    """Random numbers of a type, as float64 and as bits."""
    draws = philox.uniform(philox.random_bits(seed, 0, torch.arange(rows), 77, columns)) * 4 - 2
    typed = draws.to(DTYPES[kind])
    if kind == "tf32":
        bits = typed.numpy().view(np.uint32) & np.uint32(0xFFFFE000)
        return bits.view(np.float32).astype(np.float64), bits
    return typed.double().numpy(), typed.view(torch.int16).numpy().view(np.uint16)


def packed(pair):
    return int(pair[0]) | int(pair[1]) << 16


def registers_of(a, b, c, half):
    """Registers of a warp, [lane, count] each."""
    ra, rb, rc = [], [], []
    k = a.shape[1]
    for lane in range(32):
        g, t = lane // 4, lane % 4
        if half:
            rows = [(g + 8 * (i % 2), 2 * t + 8 * (i // 2)) for i in range(k // 4)]
            ra.append([packed(a[row, column : column + 2]) for row, column in rows])
            rb.append([packed(b[2 * t + 8 * i : 2 * t + 8 * i + 2, g]) for i in range(k // 8)])
        else:
            ra.append([a[g + 8 * (i % 2), t + 4 * (i // 2)] for i in range(k // 2)])
            rb.append([b[t + 4 * i, g] for i in range(k // 4)])
        rc.append([c[g, 2 * t], c[g, 2 * t + 1], c[g + 8, 2 * t], c[g + 8, 2 * t + 1]])
    return np.array(ra, np.uint32), np.array(rb, np.uint32), np.array(rc, np.float32)


def load(pointer, count, first, kind="b32"):
    """PTX that reads a thread's own numbers."""
    lines = [f"mul.wide.u32 %rd1, %r100, {4 * count}; add.u64 %rd2, %rd{pointer}, %rd1;"]
    lines += [f"ld.global.{kind} %r{first + i}, [%rd2+{4 * i}];" for i in range(count)]
    return "\n".join(lines)


def names(first, count):
    return "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"


@pytest.mark.parametrize(("kind", "k"), [("bf16", 16), ("f16", 16), ("bf16", 8), ("f16", 8), ("tf32", 8), ("tf32", 4)])
def test_mma(kind, k):
    half = kind != "tf32"
    (a, a_bits), (b, b_bits) = matrix(16, k, 1, kind), matrix(k, 8, 2, kind)
    c = matrix(16, 8, 3, "tf32")[0].astype(np.float32)
    ra, rb, rc = registers_of(a_bits, b_bits, c, half)
    result = np.zeros((32, 4), np.float32)
    na, nb = ra.shape[1], rb.shape[1]
    body = load(21, na, 0) + load(22, nb, 8) + load(23, 4, 12)
    body += f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 {names(16, 4)}, {names(0, na)}, {names(8, nb)}, "
    body += names(12, 4) + "; mul.wide.u32 %rd1, %r100, 16; add.u64 %rd2, %rd20, %rd1;"
    body += f"st.global.v4.b32 [%rd2], {names(16, 4)};"
    execute(body, tensor(result), tensor(ra), tensor(rb), tensor(rc))
    expected = (a @ b + c).astype(np.float32)
    assert result.tolist() == registers_of(a_bits, b_bits, expected, half)[2].tolist()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_matrices_from_and_to_shared_memory(count, trans):
    words = philox.random_bits(5, 0, torch.arange(8 * count), 77, 8).numpy().astype(np.uint16)  # [8 * count, 8]
    loaded, stored = np.zeros((32, count), np.uint32), np.zeros((8 * count, 8), np.uint16)
    suffix = f"x{count}{'.trans' if trans else ''}"
    body = f"""
    mov.u32 %r1, smem; shl.b32 %r2, %r100, 4; add.u32 %r3, %r1, %r2; mul.wide.u32 %rd1, %r100, 16;
    setp.lt.u32 %p1, %r100, {8 * count}; add.u64 %rd2, %rd22, %rd1; @%p1 ld.global.v4.b32 {names(4, 4)}, [%rd2];
    @%p1 st.shared.v4.b32 [%r3], {names(4, 4)}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.{suffix}.shared.b16 {names(10, count)}, [%r3];
    mul.wide.u32 %rd3, %r100, {4 * count}; add.u64 %rd4, %rd20, %rd3;
    """ + "".join(f"st.global.b32 [%rd4+{4 * i}], %r{10 + i};" for i in range(count))
    body += f"""
    add.u32 %r20, %r3, 1024;
    stmatrix.sync.aligned.m8n8.{suffix}.shared.b16 [%r20], {names(10, count)}; bar.warp.sync -1;
    @%p1 ld.shared.v4.b32 {names(4, 4)}, [%r20]; add.u64 %rd2, %rd21, %rd1; @%p1 st.global.v4.b32 [%rd2], {names(4, 4)};
    """
    execute(body, tensor(loaded), tensor(stored), tensor(words), shared=2048)
    for lane in range(32):
        for i in range(count):
            tile = words[8 * i : 8 * i + 8]
            tile = tile.T if trans else tile
            assert loaded[lane, i] == packed(tile[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2])
    assert (stored == words).all()


def layout(bits, trans, swizzle, rows):
    """Bytes of an operand [rows, 16] in shared memory, leading and stride byte offsets; PTX, 'matrix descriptor'."""
    memory = np.zeros(32768, np.uint8)
    width = swizzle or 16
    if not trans:
        leading, stride = (rows // 8 * 128, 128) if not swizzle else (0, 8 * width)
    elif not swizzle:
        leading, stride = 1024 * 4, 128
    else:
        leading, stride = 16 * width, 8 * width
    for row in range(rows):
        for k in range(16):
            if not trans:
                at = row // 8 * stride + row % 8 * width
                at += k // 8 * leading + k % 8 * 2 if not swizzle else k * 2
            elif not swizzle:
                at = row // 8 * stride + k // 8 * leading + k % 8 * 16 + row % 8 * 2
            else:
                per = width // 2
                at = row // per * leading + k // 8 * stride + k % 8 * width + row % per * 2
            at ^= {0: 0, 32: (at >> 7 & 1) << 4, 64: (at >> 7 & 3) << 4, 128: (at >> 7 & 7) << 4}[swizzle]
            memory[at : at + 2] = np.frombuffer(int(bits[row, k]).to_bytes(2, "little"), np.uint8)
    return memory, leading, stride


def descriptor(start, leading, stride, swizzle):
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | {0: 0, 128: 1, 64: 2, 32: 3}[swizzle] << 62


WGMMA = """
mov.u32 %r1, smem; mul.lo.u32 %r2, %r100, 16; mov.u32 %r3, 0;
COPY: add.u32 %r4, %r2, %r3; cvt.u64.u32 %rd1, %r4; add.u64 %rd2, %rd21, %rd1;
ld.global.v4.b32 {{%r5,%r6,%r7,%r8}}, [%rd2];
add.u32 %r9, %r1, %r4; st.shared.v4.b32 [%r9], {{%r5,%r6,%r7,%r8}}; add.u32 %r3, %r3, 2048; setp.lt.u32 %p1, %r3, 65536;
@%p1 bra COPY;
{fence}
{barrier}
{registers}
mov.u64 %rd5, {a}; mov.u64 %rd6, {b}; mov.pred %p2, 0;
{before}
wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {d}, {left}, %rd6, {scale}, 1, 1{trans};
wgmma.commit_group.sync.aligned;
{wait}
mul.wide.u32 %rd7, %r100, {bytes}; add.u64 %rd8, %rd20, %rd7;
{stores}
"""


def wgmma(n=16, kind="bf16", swizzle=(0, 0), trans=(0, 0), in_registers=False, **changes):
    """Run one m64nNk16; the result and what it should be."""
    (a, a_bits), (b, b_bits) = matrix(64, 16, 1, kind), matrix(n, 16, 2, kind)
    bytes_a, *offsets_a = layout(a_bits, trans[0], swizzle[0], 64)
    bytes_b, *offsets_b = layout(b_bits, trans[1], swizzle[1], n)
    memory = np.concatenate([bytes_a, bytes_b])
    result = np.zeros((128, n // 2), np.float32)
    more = np.zeros((128, 4), np.uint32)
    for thread in range(128):
        row, column = 16 * (thread // 32) + thread % 32 // 4, 2 * (thread % 4)
        for i in range(4):
            at = row + 8 * (i % 2), column + 8 * (i // 2)
            more[thread, i] = packed(a_bits[at[0], at[1] : at[1] + 2])
    d = names(30, n // 2)
    parts = {
        "fence": "fence.proxy.async;",
        "barrier": "bar.sync 0;",
        "registers": load(22, 4, 20),
        "before": "wgmma.fence.sync.aligned;",
        "wait": "wgmma.wait_group.sync.aligned 0;",
        "a": descriptor(1024, *offsets_a, swizzle[0]),
        "b": descriptor(1024 + 32768, *offsets_b, swizzle[1]),
        "left": names(20, 4) if in_registers else "%rd5",
        "trans": f", {trans[1]}" if in_registers else f", {trans[0]}, {trans[1]}",
        "scale": "0",
        "stores": "".join(f"st.global.b32 [%rd8+{4 * i}], %r{30 + i};\n" for i in range(n // 2)),
    }
    body = WGMMA.format(n=n, kind=kind, d=d, bytes=2 * n, **{**parts, **changes})
    execute(body, tensor(result), tensor(memory), tensor(more), threads=128, shared=65536)
    product = (a @ b.T).astype(np.float32)
    expected = np.zeros_like(result)
    for thread in range(128):
        row, column = 16 * (thread // 32) + thread % 32 // 4, 2 * (thread % 4)
        for i in range(n // 2):
            expected[thread, i] = product[row + 8 * (i // 2 % 2), column + 8 * (i // 4) + i % 2]
    return result, expected


@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_wgmma_reads_every_layout(swizzle, trans):
    result, expected = wgmma(n=64, swizzle=(swizzle, swizzle), trans=trans)
    assert (result == expected).all()


@pytest.mark.parametrize(("n", "kind"), [(8, "bf16"), (16, "f16"), (32, "bf16"), (128, "bf16")])
def test_wgmma_of_every_width_and_with_its_left_operand_in_registers(n, kind):
    for in_registers in (False, True):
        result, expected = wgmma(n=n, kind=kind, in_registers=in_registers)
        assert (result == expected).all()


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"fence": ""}, "missing fence", "fence.proxy.async"),
        ({"wait": ""}, "wgmma before its wait", "%r30 is used"),
        ({"wait": "mov.b32 %r120, %r30; add.u32 %r121, %r120, 1;"}, "wgmma before its wait", "%r30 is used"),
        ({"wait": "wgmma.wait_group.sync.aligned 1;"}, "wgmma before its wait", "%r30 is used"),
        ({"wait": "st.shared.b32 [smem], %r1; wgmma.wait_group.sync.aligned 0;"}, "wgmma before its wait", "smem"),
        ({"before": "", "in_registers": True, "registers": load(22, 4, 20)}, "missing fence", "%r20"),
        ({"a": descriptor(1024 + 65536 - 512, 1024, 128, 0)}, "out of bounds", "shared"),
    ],
)
def test_wgmma_is_watched(changes, kind, said):
    with pytest.raises(emulator.Fault, match=said) as caught:
        wgmma(**changes)
    assert caught.value.kind == kind
    assert caught.value.site.line > 0


def test_a_copy_made_before_the_wait_is_another_name():
    result, expected = wgmma(wait="mov.b32 %r120, %r30; wgmma.wait_group.sync.aligned 0; mov.b32 %r30, %r120;")
    assert (result == expected).all()


def test_a_missing_barrier_before_wgmma():
    with pytest.raises(emulator.Fault, match="race between warps"):
        wgmma(barrier="")


def test_an_instruction_for_whole_warps_needs_them():
    body = "setp.lt.u32 %p1, %r100, 16; @%p1 bra END; mov.u32 %r1, smem;"
    body += "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1]; END:"
    with pytest.raises(emulator.Fault, match="divergent.*ldmatrix"):
        execute(body, tensor(np.zeros(1, np.uint32)), shared=128)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_warps_that_have_parted(count):
    # Odd warps of one block and even ones of the other: no rectangle of blocks and threads.
    result = np.zeros((2, 128), np.uint32)
    body = f"""
    mov.u32 %r1, smem; shr.u32 %r2, %r100, 5; mov.u32 %r3, %ctaid.x; and.b32 %r5, %r100, 31;
    mad.lo.u32 %r6, %r2, 1024, %r1; mad.lo.u32 %r7, %r5, 16, %r6; mad.lo.u32 %r8, %r3, 128, %r100;
    mul.wide.u32 %rd1, %r8, 4; add.u64 %rd2, %rd20, %rd1; add.u32 %r9, %r2, %r3; and.b32 %r9, %r9, 1;
    mov.b32 %r10, %r8; mov.b32 %r11, %r8; mov.b32 %r12, %r8; mov.b32 %r13, %r8;
    setp.eq.u32 %p1, %r9, 0; @%p1 bra EVEN;
    stmatrix.sync.aligned.m8n8.x{count}.shared.b16 [%r7], {names(10, count)}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {names(20, count)}, [%r7];
    add.u32 %r30, %r{19 + count}, 1; bra.uni END;
    EVEN: shfl.sync.bfly.b32 %r30, %r8, 1, 31, -1;
    END: st.global.b32 [%rd2], %r30;
    """
    execute(body, tensor(result), threads=128, grid=(2,), shared=4096)
    for block in range(2):
        for thread in range(128):
            number = block * 128 + thread
            assert result[block, thread] == (number + 1 if (thread // 32 + block) % 2 else number ^ 1)
