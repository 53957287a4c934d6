"""What the kernels compile to, without a GPU: registers, stack, shared memory, matrix instructions; and gates on these.

    python -m s2vfast.kernels.aot [OP ...] [--arch 80 90 100] [--dtype bfloat16] [--shape ntu] [--jobs 2] [--json]
    python -m s2vfast.kernels.aot --model --device h200 [OP ...] [--shape ntu] [--json]

Every operation with kernels runs forward and backward at the shapes that the tuned tables are made for, but its
launches are recorded instead of made; what was recorded is compiled exactly as the launch would have, with Triton's own
ptxas.
A kernel fails for stack or spilled registers, for more shared memory than a block can have, and for HMMA on sm_90,
where its matrix products should be HGMMA. ``--model`` says what each launch executes, what binds it and how long it
should take on a device (`s2vfast.kernels.model`).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2vfast.kernels import model

if TYPE_CHECKING:
    from s2vfast.inputs import Shape

Rows = list[dict[str, Any]]

ARCHES = (80, 90, 100)
DTYPES = ("bfloat16", "float32")
MODELLED_SHAPES = ("ntu", "ntu_student")
MODELLED_OPS = ("norm_linear", "attention", "add_norm", "mlp")
MAIN_SHAPES = ("ntu", "ntu_student", "nwucla")
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block
_MATRIX = ("HGMMA", "HMMA", "UTCHMMA")


@dataclass(frozen=True)
class Compiled:
    """One kernel as it was compiled, and what is wrong with it."""

    op: str
    kernel: str
    arch: int
    dtype: str
    shapes: list[str]  # names of the shapes that launch it
    options: dict[str, Any]  # constexprs, num_warps, num_stages
    registers: int  # a thread
    stack: int  # bytes a thread
    local: int  # instructions that touch local memory: spills
    shared: int  # bytes a block
    instructions: dict[str, int]  # HGMMA, HMMA, UTCHMMA, MUFU, FFMA, all
    wrong: list[str] = field(default_factory=list)


def with_kernels() -> list[str]:
    """Operations that have Triton kernels."""
    from s2vfast import ops
    from s2vfast.inputs import OPS

    return [op for op in OPS if "triton" in ops.operation(op).implementations]


def compile_kernels(
    ops: list[str], arches: list[int], dtypes: list[str], shapes: list[str], jobs: int = 2
) -> list[Compiled]:
    """Compile what the operations launch, in ``jobs`` processes.

    Args:
        ops: operations.
        arches: 80, 90, 100.
        dtypes: of matrix operands.
        shapes: names in `s2vfast.inputs.SHAPES`.
        jobs: processes.
    """
    work = [(op, arch, dtype, tuple(shapes)) for op in ops for arch in arches for dtype in dtypes]
    if jobs == 1:
        return [kernel for item in work for kernel in _compile_op(*item)]
    # spawn: a fork of a process with threads of PyTorch's may hang.
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        return [kernel for results in pool.map(_compile_op, *zip(*work, strict=True)) for kernel in results]


def _compile_op(op: str, arch: int, dtype: str, shapes: tuple[str, ...]) -> list[Compiled]:
    import torch

    from s2vfast.inputs import SHAPES
    from s2vfast.kernels import _launch

    torch.set_num_threads(1)
    unique: dict[str, tuple[Any, list[str]]] = {}
    for shape in shapes:
        for launch, _ in _record(op, arch, dtype, SHAPES[shape]):
            source, options, _ = _launch.specialized(launch, arch)
            key = _key(launch, source, options)
            _, users = unique.setdefault(key, ((launch, source, options), []))
            if shape not in users:
                users.append(shape)
    return [_examine(op, arch, dtype, launch_and_source, users) for launch_and_source, users in unique.values()]


def _key(launch: Any, source: Any, options: Any) -> str:
    """What is the same for launches that compile to the same."""
    return f"{launch.kernel.fn.__name__} {source.signature} {source.constants} {source.attrs} {options}"


def _record(
    op: str, arch: int, dtype: str, shape: Shape, seed: int | None = 0, changes: dict[str, Any] | None = None
) -> list[tuple[Any, str]]:
    """What the public operation launches at that shape, and in which pass: inference, forward, backward.

    Inference is a forward pass that no backward pass follows. Without a seed numbers are what the memory holds: much
    faster, for operations whose launches sizes alone decide. Changes replace arguments.
    """
    import torch
    from torch import Tensor

    from s2vfast import inputs as random
    from s2vfast import ops
    from s2vfast.kernels import _launch

    arguments = random.inputs(op, shape, dtype=getattr(torch, dtype), seed=seed) | (changes or {})
    leaves = [value for value in arguments.values() if isinstance(value, Tensor) and value.is_floating_point()]
    differentiable = op not in random.WITHOUT_GRADIENT
    for leaf in leaves:
        leaf.requires_grad_(differentiable)
    with _launch.capture(arch) as launches:
        if differentiable:
            with torch.no_grad():
                getattr(ops, op)(**arguments, impl="triton")
        inference = len(launches)
        outputs = getattr(ops, op)(**arguments, impl="triton")
        forward = len(launches)
        if differentiable:
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            results = [out for out in outputs if out is not None and out.requires_grad]
            torch.autograd.backward(results, [torch.empty_like(out) for out in results])
    return [
        (launch, "inference" if i < inference else "forward" if i < forward else "backward")
        for i, launch in enumerate(launches)
    ]


def _examine(op: str, arch: int, dtype: str, launch_and_source: tuple[Any, Any, Any], shapes: list[str]) -> Compiled:
    launch, source, options = launch_and_source
    compiled = _compile(source, options, arch)
    sass, usage = _disassemble(compiled.asm["cubin"])
    instructions = {name: len(re.findall(rf"\b{name}\b", sass)) for name in (*_MATRIX, "MUFU", "FFMA")}
    instructions["all"] = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE))
    result = Compiled(
        op=op,
        kernel=_name(launch),
        arch=arch,
        dtype=dtype,
        shapes=shapes,
        options={name: value for name, value in launch.options.items() if isinstance(value, (int, float, str, bool))},
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        local=_local(sass),
        shared=compiled.metadata.shared,
        instructions=instructions,
    )
    result.wrong.extend(_gates(result))
    return result


def _compile(source: Any, options: Any, arch: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget

    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options.__dict__)


def _local(sass: str) -> int:
    return len(re.findall(r"\b(?:LDL|STL)\b", sass))


def _name(launch: Any) -> str:
    return launch.kernel.fn.__name__.strip("_").removesuffix("_kernel")


def model_kernels(
    ops: list[str],
    device: str,
    shapes: dict[str, Shape],
    dtype: str = "bfloat16",
    changes: dict[str, dict[str, Any]] | None = None,
) -> Rows:
    """A row for every launch of the operations on a device: `model.Modelled`, and what it is of.

    Rows of inference are there only where they are not those of the forward pass.

    Args:
        ops: operations.
        device: one of `model.NAMES`.
        shapes: sizes by name.
        dtype: of matrix operands.
        changes: operation → arguments that are replaced.
    """
    return [
        {"op": op, "shape": name} | row
        for op in ops
        for name, shape in shapes.items()
        for row in _model_op(op, model.device(device), shape, dtype, (changes or {}).get(op))
    ]


def _model_op(op: str, device: model.Device, shape: Shape, dtype: str, changes: dict[str, Any] | None) -> Rows:
    from s2vfast.kernels import _launch

    rows, recorded = [], []
    for launch, name in _record(op, device.arch, dtype, shape, None, changes):
        specialized = _launch.specialized(launch, device.arch)
        recorded.append((launch, name, specialized, _key(launch, *specialized[:2])))
    forward = {key for _, name, _, key in recorded if name == "forward"}
    for launch, name, (source, options, bound), key in recorded:
        if name == "inference" and key in forward:
            continue
        compiled = _compile(source, options, device.arch)
        sass, usage = _disassemble(compiled.asm["cubin"])
        facts = bound if isinstance(bound, dict) else dict(zip(launch.kernel.arg_names, bound, strict=True))
        modelled = model.model_launch(
            op,
            _name(launch),
            sass,
            {**facts, **launch.options},
            blocks=math.prod(launch.grid),
            warps=compiled.metadata.num_warps,
            registers=int(usage["REG"]),
            shared=compiled.metadata.shared,
            hbm=_tensor_bytes(launch.args),
            device=device,
        )
        rows.append(
            {"kernel": _name(launch), "pass": name}
            | {"registers": int(usage["REG"]), "stack": int(usage["STACK"]), "shared": compiled.metadata.shared}
            | {"local": _local(sass)}
            | modelled.as_dict()
        )
    return rows


def _tensor_bytes(arguments: Any) -> float:
    """Bytes of all tensors among arguments, those that share memory once."""
    from torch import Tensor

    spans: dict[int, int] = {}
    flat = [item for value in arguments for item in (value if isinstance(value, tuple) else (value,))]
    for tensor in flat:
        if isinstance(tensor, Tensor) and tensor.numel():
            size = tensor.numel() * tensor.element_size()
            spans[tensor.data_ptr()] = max(spans.get(tensor.data_ptr(), 0), size)
    return float(sum(spans.values()))


def passes(rows: Rows, shapes: dict[str, Shape]) -> Rows:
    """Of each operation, shape and pass: ms, and executed over needed matrix products and exponentials."""
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["op"], row["shape"], row["pass"])
        empty = {"op": key[0], "shape": key[1], "pass": key[2], "ms": 0.0, "flop": 0.0, "exps": 0.0}
        total = sums.setdefault(key, empty)
        for name in ("ms", "flop", "exps"):
            total[name] += row[name]
    for total in sums.values():
        needed = model.needed_work(total["op"], shapes[total["shape"]], total["pass"] == "backward")
        for name in ("flop", "exps"):
            amount = getattr(needed, name) if needed else 0.0
            total[f"{name}_over_needed"] = round(total[name] / amount, 3) if amount else None
        total["tflops"] = round(needed.flop / total["ms"] / 1e9, 1) if needed else None
    return list(sums.values())


def _gates(kernel: Compiled) -> list[str]:
    wrong = []
    if kernel.stack or kernel.local:
        wrong.append(f"{kernel.stack} bytes of stack, {kernel.local} instructions on local memory: registers spill")
    if kernel.shared > SHARED_LIMIT[kernel.arch]:
        wrong.append(f"{kernel.shared} bytes of shared memory, a block has {SHARED_LIMIT[kernel.arch]}")
    if kernel.arch == 90 and kernel.instructions["HMMA"]:
        wrong.append(f"{kernel.instructions['HMMA']} HMMA on sm_90, where matrix products should be HGMMA")
    return wrong


def _disassemble(cubin: bytes) -> tuple[str, dict[str, str]]:
    """SASS, and the resources of the one function in it."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)

        def dump(tool: str, *words: str) -> str:
            return subprocess.run([tools / tool, *words, file], capture_output=True, text=True, check=True).stdout

        usage = dump("cuobjdump", "--dump-resource-usage")
        sass = dump("nvdisasm", "-c") if (tools / "nvdisasm").exists() else dump("cuobjdump", "-sass")
    return sass, dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage.splitlines()[-1]))


def main(arguments: list[str] | None = None) -> int:
    """Print the report; 1 if a kernel fails a gate."""
    from s2vfast.inputs import SHAPES

    available = with_kernels()
    parser = argparse.ArgumentParser(prog="python -m s2vfast.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"operations (default: all): {', '.join(available)}")
    parser.add_argument("--arch", nargs="+", type=int, choices=ARCHES, default=list(ARCHES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--shape", nargs="+", choices=SHAPES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--model", action="store_true", help="model every launch on --device, in bfloat16")
    parser.add_argument("--device", choices=model.NAMES, default="h200")
    options = parser.parse_args(arguments)
    if unknown := [op for op in options.ops if op not in available]:
        parser.error(f"no operation {unknown[0]!r} with Triton kernels; there are {', '.join(available)}")
    if options.model:
        modelled_shapes = {name: SHAPES[name] for name in options.shape or MODELLED_SHAPES}
        rows = model_kernels(options.ops or list(MODELLED_OPS), options.device, modelled_shapes)
        totals = passes(rows, modelled_shapes)
        print(json.dumps({"launches": rows, "passes": totals}, indent=1) if options.json else _model_text(rows, totals))
        return 0
    shapes = options.shape or list(MAIN_SHAPES)
    compiled = compile_kernels(options.ops or available, options.arch, options.dtype, shapes, options.jobs)
    if options.json:
        print(json.dumps([dataclasses.asdict(kernel) for kernel in compiled], indent=1))
    else:
        for kernel in compiled:
            print(_line(kernel))
    return int(any(kernel.wrong for kernel in compiled))


def _model_text(rows: Rows, totals: Rows) -> str:
    lines = []
    for row in rows:
        lines += [
            f"{row['op']} {row['kernel']} ({row['shape']}, {row['pass']}): {row['ms']:.3f} ms, {row['bound']}",
            f"    {row['blocks']} blocks, {row['waves']} waves, {row['resident']} at once ({row['limited_by']}); "
            f"{row['registers']} registers, {row['shared']} bytes shared; copies {row['ahead']} iterations ahead",
            "    busy " + ", ".join(f"{unit} {part:.0%}" for unit, part in row["busy"].items()),
        ]
    lines += [
        f"{total['op']} {total['pass']} ({total['shape']}): {total['ms']:.3f} ms; executed over needed: products "
        f"{total['flop_over_needed']}, exponentials {total['exps_over_needed']}; {total['tflops']} TFLOP/s"
        for total in totals
    ]
    return "\n".join(lines)


def _line(kernel: Compiled) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in kernel.instructions.items() if count and name != "all")
    options = " ".join(f"{name}={value}" for name, value in kernel.options.items())
    head = f"{kernel.op} {kernel.kernel} sm_{kernel.arch} {kernel.dtype} ({', '.join(kernel.shapes)})"
    body = (
        f"{kernel.registers} registers, {kernel.shared} bytes shared, {counts or 'no counted instruction'}; {options}"
    )
    return "\n".join([head, f"    {body}", *(f"    FAILS: {reason}" for reason in kernel.wrong)])


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        # The interpreter's kernels cannot be compiled.
        sys.exit("error: TRITON_INTERPRET is set; unset it to compile")
    sys.exit(main())
