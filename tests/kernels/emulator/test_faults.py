"""Each check on hand-made PTX: the fault is found and named, and code beside it that is right is left alone."""

import contextlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s2vfast.kernels import emulator
from s2vfast.kernels.emulator.device import DeviceMemory, Unwritten

sys.path.insert(0, str(Path(__file__).parent))
from assemble import execute, kernel, tensor

MINE = "mul.wide.u32 %rd1, %r100, 4; add.u64 %rd2, %rd20, %rd1;"  # %rd2: a thread's own word of the first pointer
SLOT = "shl.b32 %r1, %r100, 2; mov.u32 %r2, smem; add.u32 %r3, %r2, %r1;"  # %r3: of shared memory
NEXT = "xor.b32 %r4, %r3, {};"  # %r4: that of another thread


def words(count=256):
    return np.arange(count, dtype=np.uint32)


@contextlib.contextmanager
def refused(kind, said=""):
    with pytest.raises(emulator.Fault, match=said or None) as caught:
        yield
    assert caught.value.kind == kind
    assert caught.value.site.line > 0
    assert kind in emulator.KINDS


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (MINE + "ld.global.b32 %r5, [%rd2+4];", "out of bounds", r"4 bytes at argument 0 \+ 256 bytes.*thread 63"),
        (MINE + "st.global.b32 [%rd2-4], %r100;", "out of bounds", r"argument 0 - 4 bytes.*thread 0;"),
        (MINE + "ld.global.v2.b32 {%r5,%r6}, [%rd2];", "misaligned", "8 bytes at argument 0 .*thread 1"),
        ("ld.global.b32 %r5, [%rd20+16777216];", "out of bounds", "past its end"),
        ("mov.u64 %rd3, 0; ld.global.b32 %r5, [%rd3];", "out of bounds", "argument 0"),
        ("ld.shared.b32 %r5, [smem+512];", "out of bounds", r"shared smem \+ 512"),
        ("ld.shared.b32 %r5, [smem];", "uninitialised", r"shared memory at shared smem \+ 0"),
        (MINE + "st.global.b32 [%rd2], %r9;", "uninitialised", "register %r9"),
    ],
)
def test_memory(body, kind, said):
    with refused(kind, said):
        execute(body, tensor(words(64)), threads=64, shared=512)


def test_a_masked_access_may_point_anywhere():
    body = MINE + "setp.lt.u32 %p1, %r100, 10; mov.u32 %r5, 7; @%p1 ld.global.b32 %r5, [%rd2]; mov.u64 %rd3, 1;"
    body += "selp.b64 %rd4, %rd2, %rd3, %p1; @%p1 ld.global.b32 %r5, [%rd4]; @%p1 st.global.b32 [%rd2], %r5;"
    execute(body, tensor(words(10)), threads=64)


def test_memory_that_torch_has_not_written():
    unwritten = Unwritten()
    with unwritten.watching():
        half = torch.empty(64, dtype=torch.int32)
    half[:32] = 5
    text = kernel(MINE + "ld.global.b32 %r5, [%rd2];")
    for threads in (32, 33):
        device = DeviceMemory(unwritten)
        parameters = device.place({"half": half})["half"].to_bytes(8, "little")
        program = emulator.programs(text)["k"]
        machine = emulator.Machine(program, (1, 1, 1), (threads, 1, 1), parameters, device, 0, emulator.Checks())
        if threads == 32:
            machine.run()
        else:
            with refused("uninitialised", r"half \+ 128 bytes"):
                machine.run()
    assert (half[32:].view(torch.float32) != half[32:].view(torch.float32)).all()  # it holds NaN


@pytest.mark.parametrize(
    ("ordering", "kind"),
    [("bar.sync 0;", None), ("bar.warp.sync -1;", "race between warps"), ("", "race between warps")],
)
@pytest.mark.parametrize("what", ["read after write", "write after read", "write after write"])
def test_order_between_warps(what, ordering, kind):
    actions = {
        "read after write": ("st.shared.b32 [%r3], %r100;", "ld.shared.b32 %r5, [%r4];"),
        "write after read": ("ld.shared.b32 %r5, [%r3];", "st.shared.b32 [%r4], %r100;"),
        "write after write": ("st.shared.b32 [%r3], %r100;", "st.shared.b32 [%r4], %r100;"),
    }[what]
    start = SLOT + NEXT.format(128) + "st.shared.b32 [%r3], 1; bar.sync 0;"
    with refused(kind, "smem") if kind else contextlib.nullcontext():
        execute(start + actions[0] + ordering + actions[1], tensor(words()), threads=64, shared=512)


@pytest.mark.parametrize(("ordering", "kind"), [("bar.warp.sync -1;", None), ("", "race between lanes")])
def test_order_between_lanes(ordering, kind):
    body = SLOT + NEXT.format(4) + "st.shared.b32 [%r3], %r100;" + ordering + "ld.shared.b32 %r5, [%r4];"
    with refused(kind) if kind else contextlib.nullcontext():
        execute(body, tensor(words()), threads=64, shared=512)
    execute(body, tensor(words()), threads=64, shared=512, checks=emulator.Checks(lanes=False))


def test_many_readers_are_remembered():
    # All lanes read one word, then one of another warp writes it.
    body = SLOT + "st.shared.b32 [%r3], 1; bar.sync 0; ld.shared.b32 %r5, [smem]; setp.eq.u32 %p1, %r100, {};"
    body += "@%p1 st.shared.b32 [smem], %r100;"
    for writer in (0, 40):
        with refused("race between warps", "read"):
            execute(body.format(writer), tensor(words()), threads=64, shared=512)


def test_writing_the_same_is_forgiven_and_something_else_is_not():
    same = SLOT + "st.shared.b32 [smem], 5; bar.sync 0; ld.shared.b32 %r5, [smem];"
    execute(same, tensor(words()), threads=64, shared=512)
    with refused("race between warps", "different values"):
        execute(same.replace("[smem], 5", "[smem], %r100"), tensor(words()), threads=64, shared=512)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("st.global.b32 [%rd20], %r5;", "race between blocks"),
        (
            "setp.eq.u32 %p1, %r5, 0; @%p1 st.global.b32 [%rd20], 9; @!%p1 ld.global.b32 %r6, [%rd20];",
            "race between blocks",
        ),
        (
            "setp.eq.u32 %p1, %r5, 0; @!%p1 ld.global.b32 %r6, [%rd20]; @%p1 st.global.b32 [%rd20], 9;",
            "race between blocks",
        ),
        ("ld.global.b32 %r6, [%rd20]; st.global.b32 [%rd20+4], 5;", None),
        ("atom.global.add.u32 %r6, [%rd20], 1;", None),
    ],
)
def test_order_between_blocks(body, kind):
    with refused(kind, "block") if kind else contextlib.nullcontext():
        execute("mov.u32 %r5, %ctaid.x;" + body, tensor(words()), threads=1, grid=(3,))


COPY = (
    SLOT
    + """
mul.wide.u32 %rd1, %r100, 16; add.u64 %rd2, %rd20, %rd1; shl.b32 %r5, %r100, 4; add.u32 %r6, %r2, %r5;
cp.async.cg.shared.global [%r6], [%rd2], 16; cp.async.commit_group;
cp.async.cg.shared.global [%r6+1024], [%rd2], 16; cp.async.commit_group;
{wait}
ld.shared.b32 %r7, [%r6{offset}];
"""
)


@pytest.mark.parametrize(
    ("wait", "offset", "good"),
    [
        ("cp.async.wait_group 1;", "", True),
        ("cp.async.wait_group 1;", "+1024", False),
        ("cp.async.wait_all;", "+1024", True),
        ("", "", False),
        ("bar.sync 0;", "", False),
    ],
)
def test_copies_are_waited_for(wait, offset, good):
    with contextlib.nullcontext() if good else refused("cp.async before its wait", "smem"):
        execute(COPY.format(wait=wait, offset=offset), tensor(words()), threads=64, shared=2048)


def test_copies_of_other_warps_need_a_barrier_too():
    other = "xor.b32 %r4, %r6, 512; ld.shared.b32 %r7, [%r4];"
    body = COPY.format(wait="cp.async.wait_group 0; {}" + other, offset="")
    with refused("race between warps"):
        execute(body.replace("{}", ""), tensor(words()), threads=64, shared=2048)
    execute(body.replace("{}", "bar.sync 0;"), tensor(words()), threads=64, shared=2048)


def test_copies_filled_with_zeros():
    result = np.ones(4, np.uint32)
    body = """
    mov.u32 %r1, smem; mov.u64 %rd3, 1; cp.async.ca.shared.global [%r1], [%rd20], 4, 0; mov.u32 %r2, 4;
    cp.async.ca.shared.global [%r1+4], [%rd20], 4, %r2; cp.async.wait_all; ld.shared.b32 %r3, [%r1];
    ld.shared.b32 %r4, [%r1+4]; st.global.b32 [%rd21], %r3; st.global.b32 [%rd21+4], %r4;
    """
    execute(body, tensor(words() + np.uint32(7)), tensor(result), threads=1, shared=16)
    assert result.tolist() == [0, 7, 1, 1]


@pytest.mark.parametrize(
    "body",
    [
        "setp.lt.u32 %p1, %r100, 32; @%p1 bra END; bar.sync 0; END:",  # a warp leaves
        "setp.lt.u32 %p1, %r100, 32; @%p1 bra B; bar.sync 0; bra.uni END; B: bar.sync 0; END:",  # two places
        "setp.lt.u32 %p1, %r100, 16; @%p1 bra END; shfl.sync.bfly.b32 %r1, %r100, 1, 31, -1; END:",
        "setp.lt.u32 %p1, %r100, 16; @%p1 bra END; bar.warp.sync -1; END:",
        "setp.lt.u32 %p1, %r100, 16; @%p1 shfl.sync.bfly.b32 %r1, %r100, 1, 31, -1;",
    ],
)
def test_divergence(body):
    with refused("divergent"):
        execute(body, tensor(words()), threads=64)


def test_barriers_of_a_number_of_threads():
    # Two pairs of warps hand each other something, each pair at a barrier of its own.
    body = (
        SLOT
        + """
    st.shared.b32 [%r3], %r100; xor.b32 %r4, %r3, 128; setp.lt.u32 %p1, %r100, 64; @%p1 bra FIRST;
    bar.sync 2, 64; bra.uni READ; FIRST: bar.sync 1, 64; READ: ld.shared.b32 %r5, [%r4];
    """
        + MINE
        + "st.global.b32 [%rd2], %r5;"
    )
    result = words(128)
    execute(body, tensor(result), threads=128, shared=512)
    assert result.tolist() == [i ^ 32 for i in range(128)]


def test_a_loop_without_end():
    with refused("no progress"):
        execute("L: bra L;", tensor(words()), checks=emulator.Checks(most_blocks=100))


def test_a_fault_names_line_source_block_and_thread():
    text = kernel(f".loc 1 42 3\n{MINE} ld.global.b32 %r5, [%rd2+4];") + '\n.file 1 "/somewhere/kernel.cu"\n'
    with pytest.raises(emulator.Fault) as caught:
        emulator.run_ptx(text, "k", (1,), (64,), tensor(words(64)))
    fault = caught.value
    assert (fault.cta, fault.thread, fault.site.source) == ((0, 0, 0), 63, "kernel.cu:42")
    assert re.search(r"PTX line \d+ \(kernel\.cu:42\): ld\.global\.b32 %r5, \[%rd2\+4\]", str(fault))
    assert text.splitlines()[fault.site.line - 1].strip().endswith("ld.global.b32 %r5, [%rd2+4];")


def test_local_memory_belongs_to_a_thread():
    result = np.zeros(64, np.uint32)
    body = ".local .align 4 .b8 depot[16]; mov.u64 %rd3, depot; cvta.local.u64 %rd4, %rd3; st.u32 [%rd4+4], %r100;"
    body += "ld.local.u32 %r5, [depot+4];" + MINE + "st.global.b32 [%rd2], %r5;"
    execute(body, tensor(result), threads=64)
    assert result.tolist() == list(range(64))
    with refused("uninitialised"):
        execute(body.replace("[depot+4]", "[depot+8]"), tensor(result), threads=64)


def test_neighbouring_tensors_do_not_hide_an_overrun():
    memory = torch.arange(20, dtype=torch.int32)
    body = MINE + "ld.global.b32 %r5, [%rd2];"
    execute(body, memory[:10], memory[10:], threads=10)
    with refused("out of bounds", "argument 0"):
        execute(body, memory[:10], memory[12:], threads=11)


def test_counts():
    body = (
        SLOT
        + """
    mov.u32 %r9, 0; L: st.shared.b32 [%r3], %r100; add.u32 %r3, %r3, 256; add.u32 %r9, %r9, 1;
    setp.lt.u32 %p1, %r9, 16; @%p1 bra L; bar.sync 0;
    shl.b32 %r5, %r100, 7; and.b32 %r6, %r5, 4095; add.u32 %r7, %r2, %r6; ld.shared.b32 %r8, [%r7];
    st.global.b32 [%rd2], %r8; ex2.approx.f32 %f1, 0f00000000;
    """
    )
    body = MINE + body
    counts = execute(
        body,
        torch.zeros(128, dtype=torch.int32),
        threads=64,
        grid=(2,),
        shared=4096,
        checks=emulator.Checks(traffic=True),
    )
    assert counts.instructions["store.shared.4"] == 16 * 2 * 2  # by warps: 16 rounds, 2 warps, 2 blocks
    assert counts.instructions["barrier"] == 4
    assert counts.instructions["mufu"] == 4
    # 64 words of each block lie one after the other: 8 sectors; a stride of 128 bytes: all lanes in one bank.
    assert counts.sectors == {"store": 2 * 8}
    assert counts.wavefronts["load"] == 4 * 32
    assert counts.conflicts["load"] == 4 * 31
    assert counts.conflicts["store"] == 0


def test_blocks_that_wait_for_each_other():
    # Block 1 waits for a flag of block 0, which stands at a later place by then.
    flag, data = torch.zeros(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    body = """
    mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; @%p1 bra WRITE;
    WAIT: ld.acquire.gpu.global.b32 %r2, [%rd20]; setp.eq.u32 %p2, %r2, 0; @%p2 bra WAIT;
    ld.global.b32 %r3, [%rd21]; st.global.b32 [%rd21+4], %r3; ret;
    WRITE: st.global.b32 [%rd21], 77; st.release.gpu.global.b32 [%rd20], 1;
    """
    execute(body, flag, data, threads=1, grid=(2,))
    assert data.tolist() == [77, 77]
