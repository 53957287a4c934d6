"""Gates on what the kernels of a step compile to for sm_90: the tables of today hold them, older ones do not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2vfast.kernels.model import gates
from s2vfast.kernels.model.gates import Allowance

ROOT = Path(__file__).parents[2]

ROW = {
    "op": "mlp",
    "kernel": "forward",
    "shape": "ntu",
    "pass": "forward",
    "flop": 1e9,
    "stack": 0,
    "local": 0,
    "resident": 2,
    "ahead": None,
    "narrow_copies": 0,
}
TOTAL = {"op": "mlp", "shape": "ntu", "pass": "forward", "flop_over_needed": 1.0, "exps_over_needed": 1.02}


def test_a_kernel_that_holds_all_gates_passes():
    assert gates.failures([ROW], [TOTAL], {}) == []
    assert gates.failures([ROW | {"resident": 1, "ahead": 1.0}], [TOTAL], {}) == []


@pytest.mark.parametrize(
    ("row", "total", "line"),
    [
        ({"stack": 8}, {}, "mlp forward: spills: 8, at most 0 is allowed"),
        ({"local": 2}, {}, "mlp forward: spills: 2, at most 0 is allowed"),
        ({"narrow_copies": 2}, {}, "mlp forward: narrow copies: 2, at most 0 is allowed"),
        ({"resident": 1}, {}, "mlp forward: overlap: 1, at most 0 is allowed"),
        ({"resident": 1, "ahead": 0.5}, {}, "mlp forward: overlap: 1, at most 0 is allowed"),
        ({}, {"flop_over_needed": 1.5}, "mlp forward: flop: 1.5, at most 1.1 is allowed"),
        ({}, {"exps_over_needed": 1.2}, "mlp forward: exps: 1.2, at most 1.1 is allowed"),
    ],
)
def test_a_gate_that_is_not_held_is_named(row, total, line):
    assert gates.failures([ROW | row], [TOTAL | total], {}) == [line]


@pytest.mark.parametrize(
    ("number", "executed", "said"),
    [
        (1.5, 1.5, None),
        (1.5, 1.49, None),
        (1.5, 1.51, "the exception allows 1.5: it is so"),
        (1.5, 1.3, "lower the exception's 1.5 to it"),
        (1.5, 1.05, "remove the exception"),
    ],
)
def test_an_exception_is_a_ratchet(number, executed, said):
    exceptions = {("mlp", "forward", "flop"): Allowance(number, "it is so")}
    wrong = gates.failures([ROW], [TOTAL | {"flop_over_needed": executed}], exceptions)
    assert (len(wrong) == 1 and said in wrong[0]) if said else not wrong


def test_an_exception_for_nothing_is_named():
    exceptions = {("mlp", "sideways", "flop"): Allowance(1.5, "it is so")}
    assert gates.failures([ROW], [TOTAL], exceptions) == ["mlp sideways flop: an exception for what is not there"]


def run(*command):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def step():
    """The modelled step of ntu60, every body computed, and the kernels it is made of."""
    return run("-m", "s2vfast.train.cost_model", "--config", "ntu60", "--empty", "0", "--device", "h200", "--json")


@pytest.mark.slow
def test_the_kernels_of_a_step_hold_the_gates(step):
    assert {row["op"] for row in step["kernels"]} == {"norm_linear", "attention", "add_norm", "mlp"}
    assert gates.failures(step["kernels"], step["passes"], gates.EXCEPTIONS) == []


@pytest.mark.slow
def test_a_modelled_step_is_the_sum_of_its_rows_and_does_not_get_slower(step):
    assert step["modelled_ms"] == pytest.approx(sum(row["modelled_ms"] for row in step["rows"]), abs=0.05)
    assert step["modelled_ms"] <= gates.MOST_STEP_MS


# Tiles as an older release had them, which the gates are made to refuse: bfloat16, sm_90, 750 tokens a track.
OLD_TILES = {
    ("mlp", "forward"): {"BLOCK_M": 64, "BLOCK_E": 64, "BLOCK_K": 256, "num_warps": 8, "num_stages": 2},
    ("mlp", "grad_hidden"): {"BLOCK_M": 128, "BLOCK_E": 64, "BLOCK_K": 256, "num_warps": 8, "num_stages": 2},
    ("attention", "grad_keys"): {"BLOCK_M": 64, "BLOCK_N": 128, "num_warps": 8, "num_stages": 2},
}
WITH_OLD_TILES = """
import contextlib, json, sys
from s2vfast.inputs import SHAPES
from s2vfast.kernels import _launch, aot
shapes = {"ntu": SHAPES["ntu"]}
with contextlib.ExitStack() as stack:
    for op, kernel, options in json.loads(sys.argv[1]):
        stack.enter_context(_launch.override(op, kernel, **options))
    rows = aot.model_kernels(["mlp", "attention"], "h200", shapes)
print(json.dumps([rows, aot.passes(rows, shapes)]))
"""


@pytest.mark.slow
def test_old_tiles_are_refused():
    old = [[*kernel, options] for kernel, options in OLD_TILES.items()]
    rows, totals = run("-c", WITH_OLD_TILES, json.dumps(old))
    exceptions = {key: value for key, value in gates.EXCEPTIONS.items() if key[0] in ("mlp", "attention")}
    wrong = "\n".join(gates.failures(rows, totals, exceptions))
    for line in ("mlp inference: flop: 1.5", "mlp forward: flop", "mlp grad_hidden: overlap"):
        assert line in wrong, wrong
    assert "attention grad_keys: overlap" in wrong
