"""Results that are made up, as like to real ones as the report needs: nothing here was measured."""

from benchmarks import _results

VERSIONS = {"s2vfast": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "triton": "3.7.1"}
CPU = {"name": "AMD EPYC", "slug": "cpu", "type": "cpu", "threads": 2}
GPU = {"name": "NVIDIA H100 80GB HBM3", "slug": "nvidia-h100-80gb-hbm3", "type": "cuda", "threads": 0}
SIZES = {"N": 128, "S": 30, "V": 25, "D": 256, "H": 8, "tokens": 0}
GAINS = {"tube_mask": 9.0, "mlp": 1.3, "attention": 1.8}
"""Of each operation, torch's time over ours."""


def result(kind, rows, device=CPU, commit="3b446ea01234", date="2030-01-02", ceilings=None, command=None):
    """A whole result, made up."""
    command = command or f"python -m benchmarks.run {kind}"
    head = {"schema": _results.SCHEMA, "kind": kind, "command": command, "commit": commit, "date": date}
    record = head | {"versions": VERSIONS, "device": device, "ceilings": ceilings or {}, "rows": rows}
    _results.check(record, kind)
    return record


def times(p50):
    return {"p20": float(f"{p50 * 0.97:.4g}"), "p50": float(f"{p50:.4g}"), "p80": float(f"{p50 * 1.05:.4g}")}


def operations(device):
    """Rows of some operations; one rival is refused."""
    cuda, rows = device["type"] == "cuda", []
    for number, (op, gain) in enumerate(GAINS.items()):
        for shape in ("nwucla", "ntu"):
            for impl, ratio in (("triton" if cuda else "native", gain), ("torch", 1.0), ("reference", 0.4)):
                row = {"op": op, "impl": impl, "shape": shape, "sizes": SIZES, "pass": "forward", "state": "warm"}
                row |= {"dtype": "bfloat16" if cuda else "float32", "threads": device["threads"]}
                row |= {**times((10.0 + number) / ratio), "gflop": 74.0 * (op != "tube_mask"), "gexp": 0.0, "gb": 0.2}
                rows.append(row | {"bound": "matmul", "roofline": 0.4, "ratio": ratio})
    why = "does not agree with the reference at ntu: output 0 is off by 0.02 where 0.01 is allowed"
    return [*rows, {"op": "attention", "impl": "sdpa math", "refused": why}]


def step(impl, p50, clips=2, sweep="main", **more):
    """A row of a step."""
    row = {"impl": impl, "config": "ntu60", "sweep": sweep, "clips": clips, "tokens": 750, "ranks": 1}
    row |= {"empty_bodies": "compute", "precision": "float32", **times(p50), "clips_per_second": clips * 1000 / p50}
    row |= {"ratio": None, "versus": "reference", "difference": 1.2e-7, "gflop": 132.7 * clips / 2, "floor": 0.71}
    return row | {"peak_mib": 352.4 * clips, "launches": None, "breakdown": {}} | more


def steps():
    """Rows of steps: main ones with their breakdown, and a sweep."""
    rows = []
    for bodies, factor in (("compute", 1.0), ("share", 0.8)):
        for impl, p50, ratio in (("torch", 1000.0, 3.1), ("reference", 3100.0, 1.0)):
            parts = {"attention": 0.6 * p50, "linear maps": 0.4 * p50}
            rows.append(step(impl, factor * p50, ratio=ratio / factor, empty_bodies=bodies, breakdown=parts))
    return rows + [step("torch", 500.0 * clips, clips, "batch") for clips in (1, 2, 4)]


def data():
    row = {"what": "clip_sample", "threads": 1, "versus": "NumPy loader", **times(1.26), "other_p50": 293.2}
    row |= {"ratio": 233.1, "unit": "clips", "per_second": 50794.0}
    return [row]


def cold():
    row = {"impl": "torch", "config": "ntu60", "clips": 2, "cache": "none", **times(2.9)}
    return [row | {"phases": {"imports": 1.3, "build": 0.2, "first step": 1.4, "second step": 1.0}}]


def static():
    """Rows of kernels that were compiled, one of which fails a gate."""
    rows = []
    for arch in (80, 90):
        for dtype in ("float32", "bfloat16"):
            row = {"op": "attention", "kernel": "forward", "arch": arch, "dtype": dtype, "shapes": ["ntu"]}
            row |= {"registers": 120 + arch, "spills": 0, "shared": 65536, "instructions": {"HMMA": 64}}
            rows.append(
                row | {"options": {"BLOCK_M": 128}, "wrong": ["it spills"] * (arch == 90 and dtype != "float32")}
            )
    return rows


def everything(device=CPU, **more):
    """Results of all kinds."""
    ceilings = {"copy_gb_s": 21.3, "matmul_float32": 0.1874, "exp_g_s": 2.114}
    return [
        result("ops", operations(device), device, ceilings=ceilings, **more),
        result("step", steps(), device, ceilings=ceilings, **more),
        result("data", data(), device, **more),
        result("cold_start", cold(), device, **more),
        result("static", static(), _results.STATIC, **more),
    ]
