"""What the tests run in processes of their own, in which Triton compiles: TRITON_INTERPRET must not be set there.

    python worker.py agree 80 bfloat16 odd,one STEM …   compare operations with the reference, in the emulator
    python worker.py planted                              faults planted into real kernels
    python worker.py tutorials                            kernels of somebody else

Prints one JSON object.
"""

import json
import sys
from pathlib import Path

import torch

from s2vfast import ops, verify
from s2vfast.inputs import SHAPES
from s2vfast.kernels import emulator

sys.path.insert(0, str(Path(__file__).parent))


def agree(arch, dtype, shapes, *names, impl="triton"):
    """{"op shape": [[name, error, allowed], …] or what went wrong}."""
    return {
        f"{op} {shape}": compared(int(arch), getattr(torch, dtype), shape, op, impl)
        for op in names
        if impl in ops.operation(op).implementations
        for shape in shapes.split(",")
    }


def compared(arch, dtype, shape, op, impl):
    try:
        with emulator.emulate(arch, impl) as emulation:
            rows = verify.verify(op, impl, SHAPES[shape], dtype=dtype)
        assert emulation.launches, "nothing was launched"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [[row.name, row.error, row.allowed] for row in rows]


def main(task, *words):
    torch.set_num_threads(1)
    if task == "agree":
        result = agree(*words)
    elif task == "native":
        result = agree(*words, impl="native")
    else:
        import planted
        import tutorials

        result = {"planted": planted.run, "tutorials": tutorials.run}[task]()
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
