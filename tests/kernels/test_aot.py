"""What the kernels compile to, at the shapes they are made for."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from s2vfast import ops
from s2vfast.inputs import OPS
from s2vfast.kernels import aot

WITH_KERNELS = [op for op in OPS if "triton" in ops.operation(op).implementations]
MATRIX_PRODUCTS = {"attention", "norm_linear", "add_norm", "mlp"}


@pytest.fixture(scope="module")
def report():
    """Every kernel for every architecture and dtype, compiled in a process without the interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    kernels = []
    for words in (WITH_KERNELS, ["teacher_target", "--shape", "long"]):  # which has a kernel for long tracks alone
        command = [sys.executable, "-m", "s2vfast.kernels.aot", *words]
        command += ["--arch", "80", "90", "100", "--jobs", "2", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.stdout, done.stderr[-3000:]
        kernels += json.loads(done.stdout)
    return kernels


@pytest.mark.slow
@pytest.mark.parametrize("op", WITH_KERNELS)
def test_no_spills_and_the_right_matrix_instructions(op, report):
    kernels = [kernel for kernel in report if kernel["op"] == op]
    assert {(kernel["arch"], kernel["dtype"]) for kernel in kernels} == {(a, d) for a in aot.ARCHES for d in aot.DTYPES}
    for kernel in kernels:
        assert kernel["wrong"] == [], (kernel["kernel"], kernel["arch"], kernel["dtype"], kernel["shapes"])
    if op in MATRIX_PRODUCTS:
        for arch, instruction in ((80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")):
            found = [k for k in kernels if k["arch"] == arch and k["dtype"] == "bfloat16"]
            assert any(kernel["instructions"][instruction] for kernel in found), arch


GOOD = aot.Compiled(
    op="mlp",
    kernel="forward",
    arch=90,
    dtype="bfloat16",
    shapes=["ntu"],
    options={},
    registers=128,
    stack=0,
    local=0,
    shared=1024,
    instructions={"HGMMA": 4, "HMMA": 0, "UTCHMMA": 0, "MUFU": 1, "FFMA": 1, "all": 100},
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"stack": 8, "arch": 80}, "registers spill"),
        ({"local": 1}, "registers spill"),
        ({"shared": 232449}, "232449 bytes of shared memory, a block has 232448"),
        ({"arch": 80, "shared": 167936}, "shared memory"),
        ({"instructions": {**GOOD.instructions, "HMMA": 2}}, "2 HMMA on sm_90"),
        ({"arch": 80, "instructions": {**GOOD.instructions, "HMMA": 2}}, None),
    ],
)
def test_gates(changes, said):
    wrong = aot._gates(dataclasses.replace(GOOD, **changes))
    assert (said in wrong[0]) if said else not wrong


def test_with_the_interpreter_on_it_says_what_to_do():
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-m", "s2vfast.kernels.aot"], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "TRITON_INTERPRET is set" in done.stderr
