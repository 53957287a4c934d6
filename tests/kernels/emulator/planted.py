"""Faults planted into real kernels: a line of their PTX is changed, and the emulator is to say so."""

import re
from unittest import mock

import torch

from s2vfast import verify
from s2vfast.inputs import SHAPES
from s2vfast.kernels import emulator
from s2vfast.kernels.emulator import cuda, launch
from s2vfast.kernels.emulator.program import programs


def without(pattern, which=0):
    """Take an instruction out: the first that fits, or another."""

    def change(text):
        found = list(re.finditer(rf"^[^\n;]*{pattern}[^\n]*;", text, re.MULTILINE))
        match = found[which]
        return text[: match.start()] + text[match.end() :]

    return change


def instead(pattern, replacement, count=0):
    def change(text):
        changed, times = re.subn(pattern, replacement, text, count=count, flags=re.MULTILINE)
        assert times, pattern
        return changed

    return change


def everywhere_the_same(text):
    """The partial sums of all blocks go to the first one's place."""
    base = re.search(r"ld\.param\.b64\s+(%rd\d+), \[_forward_kernel_param_3\]", text).group(1)
    at = text.rindex("st.global")
    return text[:at] + re.sub(r"\[ %rd\d+ \+ 0 \]", f"[ {base} + 0 ]", text[at:], count=1)


# name: operation, architecture, sizes, kernel, change, kind
PLANTED = {
    "no mask": ("attention", 80, "", "_forward_kernel", instead(r"@%p\d+ ld\.global", "ld.global"), "out of bounds"),
    "two bytes on": (
        "attention", 80, "", "_forward_kernel", instead(r"(ld\.global\.v4.*\[ %rd\d+ \+ )0", r"\g<1>2", 1),
        "misaligned",
    ),
    "a tile that is not stored": (
        "attention", 80, "", "_forward_kernel", without(r"st\.shared\.v4\.b32"), "uninitialised",
    ),
    "no barrier": ("attention", 80, "L=140", "_forward_kernel", instead(r"bar\.sync\s+0;", ""), "race between warps"),
    "no barrier of a warp": ("attention", 90, "", "_forward_kernel", without(r"bar\.warp\.sync"), "race between lanes"),
    "one place for all blocks": (
        "masked_mse", 80, "N=4,S=8,D=64", "_forward_kernel", everywhere_the_same, "race between blocks",
    ),
    "no wait for copies": (
        "attention", 80, "L=140", "_forward_kernel", instead(r"cp\.async\.wait_group\s+\d", "cp.async.wait_group 7"),
        "cp.async before its wait",
    ),
    "a barrier in a branch": (
        "attention", 80, "", "_forward_kernel",
        instead(
            r"bar\.sync\s+0;",
            "{ .reg .pred %q; .reg .b32 %t; mov.u32 %t, %tid.x; setp.lt.u32 %q, %t, 32; @%q bra SKIP; bar.sync 0; }"
            " SKIP:",
            1,
        ),
        "divergent",
    ),
    "no wait for wgmma": (
        "attention", 90, "", "_forward_kernel", instead(r"wgmma\.wait_group[^;]*;", ""), "wgmma before its wait",
    ),
    "no fence": ("attention", 90, "", "_forward_kernel", instead(r"fence\.proxy\.async[^;]*;", ""), "missing fence"),
    "a loop that stands still": (
        "attention", 80, "L=140", "_forward_kernel", instead(r"(add\.s64\s+(%rd\d+), \2, )64;", r"\g<1>0;"),
        "no progress",
    ),
    "cuda without a bound": (
        "mask_fill", 80, "", "flag_kernel", instead(r"@%p1 bra", "@!%p1 bra", 1), "out of bounds",
    ),
    "cuda without a barrier": (
        "mask_fill", 80, "", "forward_kernel", instead(r"bar\.sync\s+0;", ""), "race between warps",
    ),
}  # fmt: skip


def plant(name, op, arch, sizes, kernel, change, impl):
    """What running an operation with a changed kernel says: kind, message."""

    def changed(text, worst=False):
        names = re.findall(r"\.entry ([\w$]+)\(", text, re.MULTILINE)
        if not any(kernel in name for name in names):
            return programs(text, worst)
        if len(names) == 1:
            return programs(change(text), worst)
        # Of nvcc's kernels those of that name alone.
        parts = re.split(r"(?=^(?:\.visible )?\.entry )", text, flags=re.MULTILINE)
        return programs("".join(change(part) if fits(part) else part for part in parts), worst)

    def fits(part):
        header = part.split("(", 1)[0]
        return kernel in header and ("bar.sync" in part or kernel != "forward_kernel")

    # Two lanes of a warp are what is found first where a barrier is missing.
    checks = emulator.Checks(most_blocks=2000, lanes="warp" in name)
    try:
        with (
            mock.patch.object(launch, "programs", changed),
            mock.patch.object(cuda, "programs", changed),
            emulator.emulate(arch, impl, checks),
        ):
            verify.verify(op, impl, SHAPES["tiny"].with_sizes(sizes), dtype=torch.bfloat16)
    except emulator.Fault as fault:
        return [fault.kind, str(fault)]
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def run():
    """{name: [expected kind, kind, message]}."""
    results = {}
    for name, (op, arch, sizes, kernel, change, kind) in PLANTED.items():
        impl = "native" if name.startswith("cuda") else "triton"
        if impl == "native" and cuda.why_not():
            continue
        results[name] = [kind, *plant(name, op, arch, sizes, kernel, change, impl)]
    return results
