"""The operations in another project: torch and numpy are all they need, and the example of their docstring runs."""

import os
import subprocess
import sys
import textwrap

import pytest

from s2vfast import ops

# Everything else that s2vfast can use; what is None in sys.modules cannot be imported.
ABSENT = "jsonargparse rich safetensors yaml triton sklearn matplotlib tensorboard onnx".split()
BLOCKED = f"import sys\nsys.modules |= dict.fromkeys({ABSENT})\n"
EXAMPLE = textwrap.dedent(ops.__doc__.split("::\n")[1].split("``python -m")[0])


def run(code: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "S2VFAST_IMPL")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs_with_torch_and_numpy_alone():
    shown = run(f"{BLOCKED}{EXAMPLE}\nprint(qkv.grad.abs().sum().item() > 0, 'torch._dynamo' in sys.modules)")
    assert shown == "True False\n"


@pytest.mark.parametrize("op", ["attention", "clip_sample", "tube_mask", "embed_gather", "mask_fill", "adamw_ema"])
def test_compiled_operations_neither_import_the_compiler(op):
    if reasons := ops.availability("cpu")[op]["native"]:
        pytest.skip(reasons[0])
    code = f"from s2vfast import inputs, ops\nops.{op}(**inputs.inputs({op!r}), impl='native')"
    assert run(f"{BLOCKED}{code}\nprint('torch._dynamo' in sys.modules)") == "False\n"


def test_they_load_in_less_than_a_third_of_a_second():
    code = (
        "import time, torch\nbegin = time.process_time()\nfrom s2vfast import ops\nprint(time.process_time() - begin)"
    )
    assert min(float(run(code)) for _ in range(3)) < 0.3
