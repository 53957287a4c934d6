"""Compiled kernels in the emulator: every operation beside the reference, planted faults, other people's kernels."""

import concurrent.futures
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from s2vfast import inputs, ops
from s2vfast.kernels import emulator
from s2vfast.kernels.emulator import cuda

WORKER = Path(__file__).with_name("worker.py")
CSRC = WORKER.parents[3] / "csrc"
SHAPES = ("tiny", "odd", "one")
ARCHES, DTYPES = (80, 90), ("bfloat16", "float32")
# Two processes at a time.
_POOL = concurrent.futures.ThreadPoolExecutor(2)


def work(*words):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, WORKER, *words], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def begun(*words):
    return _POOL.submit(work, *words)


@functools.cache
def matrix():
    """All comparisons, begun together: (task, arch, dtype) → what comes of them."""
    tasks = ["agree"] + ([] if cuda.why_not() else ["native"])
    return {
        (t, a, d): begun(t, str(a), d, ",".join(SHAPES), *inputs.OPS) for t in tasks for a in ARCHES for d in DTYPES
    }


def with_implementation(name):
    return [op for op in inputs.OPS if name in ops.operation(op).implementations]


def judge(found, op):
    for shape in SHAPES:
        judge_rows(found[f"{op} {shape}"], op, shape)


def judge_rows(rows, op, shape):
    assert not isinstance(rows, str), f"{shape}: {rows}"
    gradients = [name for name, *_ in rows if name.startswith("gradient")]
    assert bool(gradients) == (op not in inputs.WITHOUT_GRADIENT)
    for name, error, allowed in rows:
        assert error <= allowed, f"{shape}: {name}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("op", with_implementation("triton"))
def test_triton_kernels_agree_with_the_reference(op, arch, dtype):
    judge(matrix()["agree", arch, dtype].result(), op)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["attention", "norm_linear", "mlp"])
def test_loops_that_go_round_many_times_agree_with_the_reference(op):
    judge_rows(begun("long").result()[op], op, "long")


@pytest.mark.slow
@pytest.mark.skipif(bool(cuda.why_not()), reason=cuda.why_not())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("op", [op for op in with_implementation("native") if (CSRC / f"{op}.cu").is_file()])
def test_cuda_kernels_agree_with_the_reference(op, arch, dtype):
    if (op, dtype) == ("attention", "float32"):
        pytest.skip("it takes bfloat16 and float16")
    judge(matrix()["native", arch, dtype].result(), op)


def test_large_tiles_agree_with_the_reference():
    for op, rows in begun("tiles").result().items():
        assert not isinstance(rows, str), f"{op}: {rows}"
        for name, error, allowed in rows:
            assert error <= allowed, f"{op}: {name}: error {error:.3g}, allowed {allowed:.3g}"


def test_planted_faults_are_found_and_named():
    found = begun("planted").result()
    kinds = set()
    for name, (expected, kind, message) in found.items():
        assert kind == expected, f"{name}: {message}"
        assert "PTX line" in message
        assert ".py:" in message or ".cu" in message  # the line of the source
        kinds.add(kind)
    assert len(kinds) >= 10


def test_kernels_of_tutorials_run_unchanged():
    for name, (error, allowed) in begun("tutorials").result().items():
        assert error <= allowed, name


def test_the_example_of_the_page_runs(tmp_path):
    page = (WORKER.parents[3] / "docs/emulator.md").read_text("utf-8")
    example = tmp_path / "example.py"
    example.write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1))
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "'add.f32'" in done.stdout


def test_every_kind_of_fault_is_on_the_page():
    page = (WORKER.parents[3] / "docs/emulator.md").read_text("utf-8")
    for kind in emulator.KINDS:
        assert kind.replace("race between ", "") in page


def test_the_command_line():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "s2vfast.verify", "masked_mse", "--emulate", "80", "--dtype", "bfloat16"]
    done = subprocess.run([*command, "--sizes", "N=3,L=7,D=24"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("good") == 3
    assert "triton" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, env={**env, "TRITON_INTERPRET": "1"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "TRITON_INTERPRET" in done.stderr
