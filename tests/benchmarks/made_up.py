"""Results that are made up, as like to real ones as the report needs: nothing here was measured."""

from benchmarks import _results

VERSIONS = {"s2vfast": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "triton": "3.7.1"}
CPU = {"name": "AMD EPYC", "slug": "cpu", "type": "cpu", "threads": 2}
GPU = {"name": "NVIDIA H100 80GB HBM3", "slug": "nvidia-h100-80gb-hbm3", "type": "cuda", "threads": 0}
NOWHERE = {"name": "none: compiled ahead of time", "slug": "static", "type": "static", "threads": 0}
CEILINGS = {
    "cpu": {"copy_gb_s": 21.3, "matmul_float32": 0.1874, "exp_g_s": 2.114},
    "cuda": {"copy_gb_s": 2987.0, "matmul_float32": 51.2, "matmul_bfloat16": 771.0, "exp_g_s": 3671.0},
}
SIZES = {
    "ntu": {"N": 128, "S": 30, "V": 25, "D": 256, "H": 8, "tokens": 0},
    "ntu_student": {"N": 128, "S": 30, "V": 25, "D": 256, "H": 8, "tokens": 60},
    "nwucla": {"N": 128, "S": 4, "V": 20, "D": 64, "H": 2, "tokens": 0},
    "long": {"N": 16, "S": 64, "V": 32, "D": 256, "H": 8, "tokens": 0},
    "wide": {"N": 32, "S": 30, "V": 25, "D": 768, "H": 12, "tokens": 0},
}
# GFLOP, 1e9 exponentials and GB of the published shape on a GPU, whether there is a backward pass, its shapes.
OPERATIONS = {
    "clip_sample": (0, 0, 0.021, False, "ntu nwucla long"),
    "tube_mask": (0, 0, 0.018, False, "ntu nwucla long"),
    "embed_gather": (0.2, 0, 0.0094, True, "ntu nwucla long wide"),
    "mask_fill": (0, 0, 0.061, True, "ntu nwucla long wide"),
    "attention": (74, 0.58, 0.2, True, "ntu ntu_student nwucla long wide"),
    "norm_linear": (113, 0, 0.7, True, "ntu ntu_student nwucla long wide"),
    "add_norm": (0, 0, 0.69, True, "ntu ntu_student nwucla long wide"),
    "mlp": (302, 0, 0.79, True, "ntu ntu_student nwucla long wide"),
    "teacher_target": (0, 0, 0.45, False, "ntu nwucla"),
    "masked_mse": (0, 0, 0.27, True, "ntu nwucla"),
    "adamw_ema": (0, 0, 0.304, False, "ntu"),
}
SCALE = {"ntu": 1.0, "ntu_student": 0.08, "nwucla": 0.03, "long": 0.9, "wide": 1.3}
# Torch's time over an implementation's.
FASTER = {"triton": 1.7, "native": 2.3, "torch": 1.0, "reference": 0.41, "torch:compile": 1.18, "sdpa math": 0.2}
KINDS = ["linear maps", "attention", "norms and elementwise", "gather, scatter, copies"]
KINDS += ["optimizer", "masks", "other"]


def result(kind, rows, device=CPU, commit="3b446ea01234", date="2030-01-02", ceilings=None, command=None):
    """A whole result, made up."""
    command = command or f"python -m benchmarks.run {kind}"
    head = {"schema": _results.SCHEMA, "kind": kind, "command": command, "commit": commit, "date": date}
    made = head | {"versions": VERSIONS, "device": device, "ceilings": ceilings or {}, "rows": rows}
    _results.check(made, kind)
    return made


def times(p50):
    return {"p20": float(f"{p50 * 0.97:.4g}"), "p50": float(f"{p50:.4g}"), "p80": float(f"{p50 * 1.05:.4g}")}


def operations(device):
    """Rows of all operations; on a CPU, few have a kernel of ours. One baseline is refused."""
    cuda = device["type"] == "cuda"
    reached, rows = CEILINGS[device["type"]], []
    for number, (stem, (gflop, gexp, gb, backward, shapes)) in enumerate(OPERATIONS.items()):
        impls = ["triton", "torch", "reference", "torch:compile"] if cuda else ["torch", "reference"]
        if number < 4 or stem == "adamw_ema":
            impls.insert(0, "native")
        for shape in shapes.split():
            for one in ("forward", "forward+backward")[: 1 + backward]:
                size = SCALE[shape] * (1 if one == "forward" else 3) * (1 if cuda else 1 / 32)
                needs = {"gflop": gflop * size, "gexp": gexp * size, "gb": gb * size}
                dtype = "bfloat16" if cuda else "float32"
                least = {
                    "matmul": needs["gflop"] / reached[f"matmul_{dtype}"],
                    "exp": 1000 * needs["gexp"] / reached["exp_g_s"],
                    "memory": 1000 * needs["gb"] / reached["copy_gb_s"],
                }
                bound = max(least, key=least.get)
                for state in ("warm", "cold")[: 1 + cuda]:
                    for count in (0,) if cuda else (1, 2) if "native" in impls else (2,):
                        slow = (1.0 if state == "cold" or not cuda else 0.8) * (1.7 if count == 1 else 1)
                        for impl in impls:
                            speed = FASTER[impl] * (1 + 0.13 * (number * 7 % 5 - 2)) if impl != "torch" else 1.0
                            if stem == "tube_mask" and impl != "torch":
                                speed = speed * 6
                            p50 = least[bound] * slow * 2.6 / speed
                            row = {"stem": stem, "impl": impl, "shape": shape, "sizes": SIZES[shape], "dtype": dtype}
                            row |= {"pass": one, "state": state, "threads": count, **times(p50), **needs}
                            row |= {"bound": bound, "roofline": round(least[bound] / p50, 4), "ratio": round(speed, 3)}
                            rows.append(row)
    why = "does not agree with the reference at ntu: grad_qkv is off by 0.02 where 0.01 is allowed"
    return [*rows, {"stem": "attention", "impl": "sdpa math", "refused": why}]


def step(impl, p50, clips=2, tokens=750, ranks=1, sweep="main", **more):
    """A row of a step."""
    row = {"impl": impl, "config": "ntu60", "sweep": sweep, "clips": clips, "tokens": tokens, "ranks": ranks}
    row |= {"empty_bodies": "compute", "precision": "float32", **times(p50), "clips_per_second": clips * 1000 / p50}
    row |= {"ratio": None, "versus": "reference", "difference": 1.2e-7, "gflop": 132.7 * clips / 2, "floor": 0.71}
    return row | {"peak_mib": 352.4 * clips, "launches": None, "breakdown": {}} | more


def parts(whole, kinds=KINDS, tilt=0.62):
    """A step's time by kind of work."""
    weights = [tilt**place for place in range(len(kinds))]
    return {kind: round(whole * weight / sum(weights), 3) for kind, weight in zip(kinds, weights, strict=True)}


def steps(device):
    """Rows of steps: main ones with their breakdown, and sweeps."""
    if device["type"] == "cpu":
        main = {"torch": (1002.4, 3.093), "reference": (3116.5, 1.0)}
        clips, more = 2, {}
    else:
        main = {"triton:graph": (12.9, 8.61), "torch:graph": (26.4, 4.2), "torch:compile": (23.1, 4.81)}
        main |= {"reference": (111.2, 1.0)}
        clips, more = 64, {"precision": "bfloat16", "launches": 231}
    rows = []
    for empty in ("compute", "share"):
        for number, (impl, (p50, ratio)) in enumerate(main.items()):
            p50 = p50 * (0.87 if empty == "share" and impl != "reference" else 1)
            shown = parts(p50, KINDS[:5] if device["type"] == "cpu" else KINDS, 0.62 if number else 0.7)
            rows.append(step(impl, p50, clips, ratio=ratio, empty_bodies=empty, breakdown=shown, **more))
    for impl, (p50, ratio) in main.items():
        for count in (1, 2, 4, 8) if device["type"] == "cpu" else (16, 32, 64, 128, 256):
            took = p50 * (0.15 + 0.85 * count / clips)
            rows.append(step(impl, took, count, sweep="batch", ratio=ratio, **more))
        for tokens in (150, 375, 750, 1500):
            took = p50 * (tokens / 750) ** 1.4
            rows.append(step(impl, took, clips, tokens, sweep="tokens", ratio=ratio, **more))
    for ranks in (1, 2) if device["type"] == "cpu" else (1, 2, 4, 8):
        p50 = next(iter(main.values()))[0]
        took = p50 * (1.05 if ranks > 1 else 1)
        rows.append(step(next(iter(main)), took, clips * ranks, ranks=ranks, sweep="ranks", **more))
    return rows


def data():
    return [
        {"what": what, "threads": count, "versus": versus, **times(p50), "other_p50": p50 * ratio, "ratio": ratio}
        | {"unit": unit, "per_second": 1000 * 64 / p50 * count}
        for what, versus, unit, p50, ratio in (
            ("clip_sample", "NumPy loader", "clips", 1.26, 232.6),
            ("tube_mask", "torch.argsort, track by track", "tracks", 0.394, 178.9),
        )
        for count in (1, 2)
    ]


def cold(cuda):
    rows = [("torch", 2, "none", 3.2, {"imports": 1.9, "build": 0.2, "first step": 1.1})]
    if cuda:
        rows += [("triton", 64, "filled", 5.8, {"imports": 3.1, "build": 0.9, "first step": 1.8})]
        rows += [("triton", 64, "empty", 61.0, {"imports": 3.1, "build": 0.9, "first step": 57.0})]
    return [
        {"impl": impl, "config": "ntu60", "clips": clips, "cache": cache, **times(p50), "phases": phases}
        for impl, clips, cache, p50, phases in rows
    ]


def static():
    rows = []
    for arch in (80, 90, 100):
        for stem in OPERATIONS:
            for kernel in ("forward", "grad_rows", "grad_weight"):
                for dtype in ("bfloat16", "float32"):
                    wrong = arch == 90 and stem == "mlp" and kernel == "grad_rows" and dtype == "float32"
                    rows.append(
                        {"stem": stem, "kernel": kernel, "arch": arch, "dtype": dtype, "shapes": ["ntu", "nwucla"]}
                        | {"registers": 96 + 8 * len(stem), "spills": 16 * wrong, "shared": 49152}
                        | {"instructions": {"HGMMA": 8, "HMMA": 0, "UTCHMMA": 0, "MUFU": 9, "FFMA": 779, "all": 1296}}
                        | {"options": {"H": 8, "BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}}
                        | {"wrong": ["16 bytes of stack: registers spill"] * wrong}
                    )
    return rows


def everything(*devices, **more):
    """Results of all kinds of some devices."""
    made = []
    for device in devices:
        if device["type"] == "static":
            made.append(result("static", static(), device, **more))
            continue
        reached, cuda = CEILINGS[device["type"]], device["type"] == "cuda"
        made.append(result("ops", operations(device), device, ceilings=reached, **more))
        made.append(result("step", steps(device), device, ceilings=reached, **more))
        made.append(result("data", data(), device, **more))
        made.append(result("cold_start", cold(cuda), device, **more))
    return made
