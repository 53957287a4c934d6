"""What the kernels compile to for the architecture and the shapes they are made for; `aot` does the others too."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from s2vfast import ops
from s2vfast.inputs import STEMS
from s2vfast.kernels import aot

WITH_KERNELS = [stem for stem in STEMS if "triton" in ops.operation(stem).implementations]
MATRIX_PRODUCTS = {"attention", "norm_linear", "add_norm", "mlp"}


@pytest.fixture(scope="module")
def report():
    """Every kernel for sm_90 in bfloat16, compiled in a process without the interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "s2vfast.kernels.aot", *WITH_KERNELS]
    command += ["--arch", "90", "--dtype", "bfloat16", "--shape", "ntu", "ntu_student", "--jobs", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("stem", WITH_KERNELS)
def test_no_spills_and_the_right_matrix_instructions(stem, report):
    kernels = [kernel for kernel in report if kernel["stem"] == stem]
    assert kernels
    for kernel in kernels:
        assert kernel["wrong"] == [], kernel["kernel"]
    if stem in MATRIX_PRODUCTS:
        assert any(kernel["instructions"]["HGMMA"] for kernel in kernels)


GOOD = aot.Compiled(
    stem="mlp",
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
        ({"stack": 8}, "registers spill"),
        ({"local": 3}, "registers spill"),
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
