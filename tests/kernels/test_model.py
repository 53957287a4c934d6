"""The model of a launch: its parts on programs made by hand, its counts against what the emulator executes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2vfast.kernels import model
from s2vfast.kernels.model import launches, pipeline, sass, work

H200 = model.device("h200")
LOOP = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/                   ISETP.GE.AND P0, PT, R0, UR4, PT ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0030*/                   DEPBAR.LE SB0, {left} ;
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        {first}
        /*0060*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*0070*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0080*/                   MUFU.EX2 R4, R24 ;
        {last}
        /*00a0*/                   LDGDEPBAR ;
        /*00b0*/                   UISETP.NE.AND UP0, UPT, UR5, URZ, UPT ;
        /*00c0*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*00d0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00e0*/                   EXIT ;
.L_x_2:
        /*00f0*/                   BRA `(.L_x_2);
"""
COPY = "/*0050*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR6][R2.64] ;"
NARROW = "/*0050*/                   LDGSTS.E [R9], desc[UR6][R2.64] ;"


def program(left="0x0", copy=COPY, early=False):
    nothing = "/*0090*/                   NOP ;"
    return LOOP.format(left=left, first=copy if early else nothing, last=nothing if early else copy)


def modelled(text, **changes):
    sizes = {"blocks": 132, "warps": 4, "registers": 128, "shared": 16384, "hbm": 0.0, "device": H200} | changes
    return launches.model_launch("mlp", "forward", text, {"E": 256, "BLOCK_E": 64}, **sizes)


def test_a_program_is_read():
    code = sass.Code(program())
    assert code.loops == code.matrix_loops() == [sass.Loop(3, 12)]
    path = code.path()
    assert path == list(range(15))  # the branch to itself behind EXIT is not reached
    names = [instruction.name for instruction in code.trace(path, {code.loops[0]: 3})]
    assert names.count("HGMMA") == names.count("MUFU") == 3
    assert names.count("S2R") == names.count("EXIT") == 1
    assert [instruction.name for instruction in code.trace(path, {code.loops[0]: 0})].count("HGMMA") == 0
    wide = sass.Code("        /*0000*/  LDS.128 R4, [R2+UR4] ;").instructions[0]
    assert wide.writes == ("R4", "R5", "R6", "R7")
    assert wide.reads == ("R2", "UR4")
    assert wide.width == 16


def test_what_is_executed_is_counted():
    result = modelled(program())
    assert result.flop == 132 * 4 * 2 * 64 * 64 * 16
    assert result.exps == 132 * 4 * 4 * 32
    assert result.l2 == 132 * 4 * 32 * 16 * (4 + 1)
    # Two warpgroups that execute the same product do twice the work.
    assert modelled(program(), warps=8).flop == 2 * result.flop


def test_copies_for_iterations_that_do_not_come_move_nothing():
    off = COPY.replace(" ;", ", !PT ;")
    assert modelled(program(copy=off)).l2 == 132 * 4 * 32 * 16  # the store alone
    # Two iterations are copied before the loop, so that the copies of its last two are off: a predicate says so.
    filled = program().replace(".L_x_0:", f"{COPY}\n{COPY}\n.L_x_0:", 1)
    assert modelled(filled).l2 == modelled(program()).l2
    assert modelled(filled).ahead == modelled(program()).ahead


@pytest.mark.parametrize(
    ("left", "early", "ahead"),
    [("0x0", False, 0.0), ("0x0", True, 1.0), ("0x1", False, 1.0), ("0x1", True, 2.0)],
)
def test_copies_that_overlap_are_told_from_those_that_do_not(left, early, ahead):
    result = modelled(program(left, early=early))
    assert result.ahead == ahead
    assert (result.ms < modelled(program()).ms) == (ahead > 0.0)


def test_what_is_copied_before_a_loop_is_not_copied_again_in_it():
    start = "/*0000*/                   S2R R0, SR_TID.X ;\n"
    begun = program().replace(start, start + COPY.replace("0050", "0008") + "\n")
    assert begun != program()
    assert modelled(begun).l2 == modelled(program()).l2


def test_a_loop_that_few_blocks_go_through_is_gone_around():
    code = sass.Code(program())
    names = [code.instructions[i].name for i in code.path(avoided=tuple(code.loops))]
    assert "HGMMA" not in names
    assert names[-2:] == ["STG", "EXIT"]


def test_narrow_copies_are_counted():
    assert modelled(program(copy=NARROW)).narrow_copies == 1
    assert modelled(program()).narrow_copies == 0


def test_units_take_as_long_as_their_rates_say():
    def cycles(line, times=64, warps=1):
        trace = sass.Code(f"        /*0000*/  {line} ;").instructions * times
        return max(pipeline.run([trace], [0.0], warps, H200).ends) / (times * warps)

    assert cycles("MUFU.EX2 R4, R2") == pytest.approx(18 + 8, rel=0.05)  # one warp waits for its own result
    assert cycles("MUFU.EX2 RZ, R2", warps=4) == pytest.approx(8, rel=0.05)
    assert cycles("FFMA RZ, R2, R2, R2", warps=4) == pytest.approx(1, rel=0.05)
    assert cycles("IADD3 RZ, R2, R2, R2", warps=4) == pytest.approx(2, rel=0.05)
    assert (
        pipeline.cost(sass.Code("  /*0000*/ HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24 ;").instructions[0], H200)
        == 128
    )


def test_residency_is_what_the_hardware_allows():
    assert launches.occupancy(4, 128, 16384, H200) == (4, "registers")
    assert launches.occupancy(8, 170, 196608, H200) == (1, "registers")
    assert launches.occupancy(4, 32, 100_000, H200) == (2, "shared memory")
    assert launches.occupancy(4, 255, 74 * 1024, H200) == (2, "registers")


def test_memory_bounds_a_launch_from_below():
    result = modelled(program(), hbm=43e9)
    assert result.bound == "HBM"
    assert result.ms == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("name", model.NAMES)
def test_every_rate_has_a_source(name):
    device = model.device(name)
    values = {field.name for field in dataclasses.fields(device)} - {"name", "arch", "sources"}
    assert values == set(device.sources)
    assert device.flop_a_cycle * device.clock * device.multiprocessors == pytest.approx(
        {90: 989e12, 80: 312e12}[device.arch], rel=0.01
    )


def test_needed_work_is_what_the_operations_are_made_of():
    from s2vfast.inputs import SHAPES

    shape = SHAPES["ntu"]
    assert work.needed_work("mlp", shape, False).flop == 4 * 96000 * 256 * 1024
    assert work.needed_work("attention", shape, False).exps == 128 * 8 * 750**2
    assert work.needed_work("mask_fill", shape, False) is None


EMULATED = """
import json, sys
from s2vfast import inputs, ops
from s2vfast.kernels import aot, emulator, model
import torch
shape = inputs.SHAPES["tiny"].with_sizes(sys.argv[2])
rows = [row for row in aot.model_kernels([sys.argv[1]], sys.argv[3], {"small": shape}) if row["pass"] != "inference"]
arch = model.device(sys.argv[3]).arch
arguments = inputs.inputs(sys.argv[1], shape, dtype=torch.bfloat16)
leaves = [x for x in arguments.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
with emulator.emulate(arch) as emulation:
    for leaf in leaves:
        leaf.requires_grad_()
    out = getattr(ops, sys.argv[1])(**arguments, impl="triton")
    out = out[0] if isinstance(out, tuple) else out
    out.backward(torch.ones_like(out))
def flop(counts):
    total = 0
    for name, number in counts.instructions.items():
        if name.startswith(("wgmma.m", "mma.m")):
            m, n_and_k = name.split(".m")[1].split("n")
            n, k = n_and_k.split("k")
            total += 2 * int(m) * int(n) * int(k) * number / (4 if name.startswith("wgmma") else 1)
    return total
executed = [[name, flop(counts), counts.instructions["mufu"] * 32] for name, counts in emulation.launches]
print(json.dumps({"modelled": rows, "emulated": executed}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "sizes", "device"),
    [
        ("attention", "N=1,L=150,D=64,H=2", "h200"),
        ("attention", "N=1,L=60,D=64,H=2", "h200"),
        ("mlp", "N=1,L=64,D=256,E=1024", "h200"),
        ("attention", "N=1,L=150,D=64,H=2", "a100"),
    ],
)
def test_counts_are_those_of_the_emulator(op, sizes, device):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", EMULATED, op, sizes, device]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report["modelled"]) == len(report["emulated"])
    assert any(row["flop"] for row in report["modelled"])
    for row, (name, flop, special) in zip(report["modelled"], report["emulated"], strict=True):
        assert row["kernel"] in name
        assert row["flop"] == flop, name
        if row["exps"] and op == "attention":
            assert row["exps"] <= special <= 2 * row["exps"], name  # divisions and logarithms are special too
