"""What the tests run in processes of their own, in which Triton compiles: TRITON_INTERPRET must not be set there.

    python worker.py agree 80 bfloat16 odd,one STEM …   compare operations with the reference, in the emulator
    python worker.py long                                 loops that go round more often than at those shapes
    python worker.py tiles                                tiles of 128 rows, and of rows without a norm
    python worker.py planted                              faults planted into real kernels
    python worker.py tutorials                            kernels of somebody else

Prints one JSON object.
"""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import torch

from s2vfast import inputs, ops, verify
from s2vfast.inputs import SHAPES
from s2vfast.kernels import _launch, emulator, teacher_target
from s2vfast.reference.add_norm import add_norm
from s2vfast.reference.mlp import mlp

sys.path.insert(0, str(Path(__file__).parent))


def agree(arch, dtype, shapes, *names, impl="triton"):
    """{"op shape": [[name, error, allowed], …] or what went wrong}."""
    return {
        f"{op} {shape}": compared(int(arch), getattr(torch, dtype), SHAPES[shape], op, impl)
        for op in names
        if impl in ops.operation(op).implementations
        for shape in shapes.split(",")
    }


def compared(arch, dtype, shape, op, impl):
    try:
        with emulator.emulate(arch, impl) as emulation:
            rows = verify.verify(op, impl, shape, dtype=dtype)
        assert emulation.launches, "nothing was launched"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [[row.name, row.error, row.allowed] for row in rows]


# One split for all rows, and so many keys that every stage of copies is used again.
LONG = {
    "attention": ("N=1,L=330,D=32,H=1", {}),
    "norm_linear": ("N=1,L=330,D=128,H=1", {"weight_grad": {"BLOCK_M": 32, "SPLITS": 1}}),
    "mlp": ("N=1,L=330,D=32,H=1,E=384", {"grad_weight": {"BLOCK_M": 32, "BLOCK_D": 64, "BLOCK_E": 64, "SPLITS": 1}}),
}


def long():
    """{op: as in `agree`}, bfloat16 on sm_90."""
    results = {}
    for op, (sizes, changes) in LONG.items():
        with contextlib.ExitStack() as stack:
            for kernel, options in changes.items():
                stack.enter_context(_launch.override(op, kernel, **options))
            results[op] = compared(90, torch.bfloat16, SHAPES["tiny"].with_sizes(sizes), op, "triton")
    return results


LARGE = {"BLOCK_M": 128, "num_warps": 8}
LARGE_TILES = (
    ("norm_linear", "forward", LARGE | {"BLOCK_E": 64, "num_stages": 3}),
    ("norm_linear", "grad_normed", LARGE | {"BLOCK_E": 64, "num_stages": 3}),
    ("mlp", "forward", LARGE | {"BLOCK_E": 32, "num_stages": 3}),
    ("mlp", "grad_hidden", LARGE | {"BLOCK_E": 32, "num_stages": 1}),
    ("mlp", "grad_normed", LARGE | {"BLOCK_E": 64, "num_stages": 3}),
)


def tiles():
    """As `agree`: tiles of launches of many rows; long tracks; rows without a norm, which `verify` has not."""
    shape = SHAPES["tiny"].with_sizes("N=1,L=150,D=64,E=384")
    with contextlib.ExitStack() as stack:
        for op, kernel, options in LARGE_TILES:
            stack.enter_context(_launch.override(op, kernel, **options))
        result = {op: compared(90, torch.bfloat16, shape, op, "triton") for op in ("norm_linear", "mlp")}
    with mock.patch.object(teacher_target, "_MOST_TOKENS", 100):
        result["teacher_target"] = compared(90, torch.bfloat16, shape, "teacher_target", "triton")
    arguments = inputs.inputs("add_norm", SHAPES["tiny"].with_sizes("N=1,L=70,D=160"), dtype=torch.bfloat16)
    arguments |= {"weight": None, "bias": None}
    exact, _ = add_norm(**{name: v.double() if isinstance(v, torch.Tensor) else v for name, v in arguments.items()})
    with emulator.emulate(90):
        out, _ = ops.add_norm(**arguments, impl="triton")
    result["add_norm"] = [["without a norm", error(out, exact), 1e-5]]
    arguments = inputs.inputs("mlp", SHAPES["tiny"].with_sizes("N=1,L=70,D=160,E=96"), dtype=torch.bfloat16)
    with emulator.emulate(90), torch.no_grad():
        out = ops.mlp(**arguments, impl="triton")
    exact = mlp(**{name: v.double() if isinstance(v, torch.Tensor) else v for name, v in arguments.items()})
    result["mlp"].append(["without a gradient", error(out, exact), 4e-3])
    return result


def error(out, exact):
    return (out - exact).abs().max().item() / exact.abs().max().item()


def main(task, *words):
    torch.set_num_threads(1)
    if task == "agree":
        result = agree(*words)
    elif task == "tiles":
        result = tiles()
    elif task == "native":
        result = agree(*words, impl="native")
    elif task == "long":
        result = long()
    else:
        import planted
        import tutorials

        result = {"planted": planted.run, "tutorials": tutorials.run}[task]()
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
