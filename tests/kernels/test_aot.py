"""What the kernels compile to, at the shapes they are made for."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from s2vfast.kernels import aot

WITH_KERNELS = aot.with_kernels()
MATRIX_PRODUCTS = {"attention", "norm_linear", "add_norm", "mlp"}
OLDER = re.search(r"OLDER_TRITON := triton-(\S+)", (Path(__file__).parents[2] / "Makefile").read_text())[1]
OLDER_TRITON = Path(sys.prefix) / f"triton-{OLDER}"
"""Where `make test` puts the oldest Triton that is supported, beside the one that is installed."""


def compiled(*architectures: int, dtypes=aot.DTYPES, older: bool = False):
    """Every kernel for architectures and dtypes, compiled in a process without the interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if older:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(OLDER_TRITON), env.get("PYTHONPATH"))))
        which = [sys.executable, "-c", "import triton; print(triton.__version__)"]
        assert subprocess.run(which, capture_output=True, text=True, env=env).stdout == f"{OLDER}\n"
    kernels = []
    for words in ([], ["teacher_target", "--shape", "long"]):  # which has a kernel for long tracks alone
        command = [sys.executable, "-m", "s2vfast.kernels.aot", *words]
        command += ["--arch", *map(str, architectures), "--dtype", *dtypes, "--jobs", "2", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.stdout, done.stderr[-3000:]
        kernels += json.loads(done.stdout)
    return kernels


@pytest.fixture(scope="module")
def report():
    """What the installed Triton makes of them."""
    return compiled(*aot.ARCHES)


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


@pytest.mark.slow
def test_the_oldest_triton_makes_as_good_kernels():
    if not OLDER_TRITON.is_dir():
        pytest.skip(f"{OLDER_TRITON} is not there; make test puts it there")
    kernels = compiled(90, dtypes=["bfloat16"], older=True)  # what a run on a GPU has, in half the time
    assert {kernel["op"] for kernel in kernels} == set(WITH_KERNELS)
    wrong = [(k["op"], k["kernel"], k["dtype"], k["shapes"], k["wrong"]) for k in kernels if k["wrong"]]
    assert not wrong
    for op in MATRIX_PRODUCTS:
        assert any(kernel["instructions"]["HGMMA"] for kernel in kernels if kernel["op"] == op), op


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


@pytest.mark.parametrize("name", ["graph_mix", "nothing"])
def test_an_operation_without_kernels_is_named(name, capsys):
    with pytest.raises(SystemExit):
        aot.main([name])
    assert f"no operation {name!r} with Triton kernels; there are " in capsys.readouterr().err


def test_with_the_interpreter_on_it_says_what_to_do():
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-m", "s2vfast.kernels.aot"], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "TRITON_INTERPRET is set" in done.stderr
