"""The house rules that a reader relies on: one op everywhere, imports that point one way, short files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = (
    "clip_sample tube_mask token_mask embed_gather mask_fill norm_linear attention add_norm mlp batch_norm joint_mix "
    "graph_mix graph_attention temporal_conv temporal_branches teacher_target masked_mse adamw_ema point_sample "
    "voxelize sparse_conv"
).split()
LONGEST = 440

# What each part of the package may import of the package; every part may import itself, errors and config (config:
# errors alone), except reference, which stands on its own.
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "config": {"errors", "presets"},  # presets: Config.from_preset alone
    "presets": {"configs"},
    "reference": set(),
    "kernels": {"reference"},  # what the draws are for, and where they stand in the counter
    "kernels.aot": {"kernels", "ops", "inputs"},
    "kernels.model": {"kernels"},
    "kernels.emulator": {"kernels", "_extension"},
    "_extension": {"_native"},
    "ops": {"reference", "kernels", "_extension"},
    "networks": {"ops", "data"},
    "objectives": {"networks", "ops", "reference", "data"},
    "calibrate": {"files", "ops", "kernels", "verify"},
    "compat": {"files", "train", "objectives", "networks", "ops", "reference", "data", "presets"},
    "data": {"files", "ops", "reference", "_extension"},
    "train": {"files", "calibrate", "objectives", "networks", "ops", "reference", "data", "presets"},
    "train.cost_model": {"train", "objectives", "presets", "inputs", "kernels"},
    "models": {"train"},
    "signals": {"train"},
    "evaluate": {"files", "models", "train", "objectives", "networks", "ops", "reference", "data", "presets"},
    "view": {"files", "train", "evaluate", "objectives", "networks", "ops", "data", "presets"},
    "live": {"files", "train", "evaluate", "view", "objectives", "networks", "ops", "data", "presets"},
    "inputs": {"ops", "reference"},
    "verify": {"ops", "inputs", "kernels"},
    "doctor": {"ops", "_extension", "calibrate"},
    "demo": {"files", "train", "evaluate", "view", "data", "presets", "doctor"},
    "cli": {
        "signals",
        "train",
        "evaluate",
        "view",
        "live",
        "objectives",
        "data",
        "presets",
        "compat",
        "doctor",
        "demo",
        "completion",
        "models",
    },
    "completion": {"presets", "models"},
    "__main__": {"cli"},
}
FREE_OF = {
    "reference": {"errors", "config"},
    "errors": {"config"},
    "files": {"errors", "config"},
}
# These run on a bare GPU machine.
BARE = (
    "s2vfast/ops/",
    "s2vfast/inputs.py",
    "s2vfast/verify.py",
    "s2vfast/calibrate/",
    "s2vfast/networks/",
    "s2vfast/reference/",
    "s2vfast/train/calibration.py",
    "s2vfast/train/trainer.py",
    "kernels/",
    "benchmarks/",
)
BARE_PACKAGES = {"torch", "triton", "numpy"}


def tracked() -> list[str]:
    """Paths of the repository's files, new ones included, ignored ones not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout: nothing says which files belong to the repository")
    return [path for path in listed if (ROOT / path).is_file()]


def source_files() -> list[str]:
    """The Python files of the package: s2vfast/ and kernels/."""
    return [path for path in tracked() if path.endswith(".py") and path.startswith(("s2vfast/", "kernels/"))]


def imports(path: str, module_level: bool = False, types: bool = True) -> list[str]:
    """Dotted names of what a file imports; ``from a import b`` is ``a.b``, as b may be a module.

    Args:
        path: the file.
        module_level: leave out what functions import.
        types: count what is imported for type checkers alone.
    """
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    nodes = _module_level(tree.body) if module_level else list(ast.walk(tree))
    if not types:
        checked = (
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        for_types = {id(inner) for node in checked for inner in ast.walk(node)}
        nodes = [node for node in nodes if id(node) not in for_types]
    # Where a relative import starts: kernels/ is installed as s2vfast.kernels.
    package = [*(["s2vfast"] if path.startswith("kernels/") else []), *Path(path).parent.parts]
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*home, *([node.module] if node.module else [])])
            names += [f"{prefix}.{alias.name}" for alias in node.names]
    return names


def _module_level(body):
    """Statements that run at import: not those inside functions, nor those for type checkers alone."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            for block in ("body", "orelse", "finalbody"):
                yield from _module_level(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from _module_level(handler.body)


def part_of(path: str) -> str:
    if path == "kernels/aot.py":  # a program beside the kernels, which runs the operations
        return "kernels.aot"
    if path == "s2vfast/data/commands.py":  # of the command line
        return "cli"
    if path == "s2vfast/train/cost_model.py":  # a program beside the trainer, which models its kernels
        return "train.cost_model"
    if path.startswith("kernels/model/"):
        return "kernels.model"
    if path.startswith("kernels/emulator/"):
        return "kernels.emulator"
    return "kernels" if path.startswith("kernels/") else Path(path).parts[1].removesuffix(".py")


def table() -> dict[str, dict[str, str]]:
    """kernels/README.md's table: {op: {column: cell}}."""
    lines = [line for line in (ROOT / "kernels/README.md").read_text("utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_the_table_has_every_operation_and_no_other():
    modules = {path.stem for path in (ROOT / "s2vfast/ops").glob("*.py") if not path.stem.startswith("_")}
    assert set(table()) == modules
    assert modules == set(OPS)


def test_the_table_says_what_is_measured():
    from benchmarks.cases import CASES

    assert set(CASES) == {op for op, row in table().items() if row["benchmark"] == "yes"}


@pytest.mark.parametrize("op", OPS)
def test_an_operation_has_one_name_everywhere(op):
    from s2vfast import ops

    row = table()[op]
    registered = {name for name, reasons in ops.availability("cpu").items() if name == op for name in reasons}
    assert registered == set(ops.IMPLEMENTATIONS)
    implemented = {name for name in registered if f"{op} has no {name} implementation" not in _reasons(op, name)}
    files = {
        "reference": f"s2vfast/reference/{op}.py",
        "triton": f"kernels/{op}.py",
        "test": f"tests/ops/test_{op}.py",
    }
    for column in ("reference", "torch", "triton", "native", "test", "benchmark"):
        said = row[column] != "–"
        if column in files:
            assert said == (ROOT / files[column]).is_file(), f"{op}: {column} says {row[column]}: {files[column]}"
        if column in registered:
            assert said == (column in implemented), f"{op}: {column} says {row[column]}: s2vfast/ops/{op}.py"
        if not said:
            assert re.search(rf"\b{column}\b[^;]*:", row["why something is missing"]), f"{op}: no reason for {column}"
    assert row["reference"] == row["torch"] == row["test"] == "yes"
    shared = (ROOT / f"csrc/{op}.cuh").is_file()
    assert shared == (row["native"] != "–"), f"csrc/{op}.cuh holds what host and device share"
    assert row["native"] in ("–", "cpu", "cuda", "cpu, cuda")
    assert (ROOT / f"csrc/{op}.cpp").is_file() == ("cpu" in row["native"]), f"csrc/{op}.cpp runs it on a CPU"
    assert (ROOT / f"csrc/{op}.cu").is_file() == ("cuda" in row["native"]), f"csrc/{op}.cu launches it on a GPU"


def _reasons(op, name):
    from s2vfast import ops

    return ops.availability("cpu")[op][name]


def test_kernels_and_sources_belong_to_an_operation():
    known = {*OPS, "text", "text_ntu", "text_pkummd", "philox", "parallel", "pack", "matrix", "cuda_launch"}
    known |= {"bindings", "bindings_graph", "bindings_points", "product", "lanes", "numbers", "require", "prefetch"}
    known |= {"split_product"}
    assert {path.stem for path in (ROOT / "csrc").iterdir() if path.is_file()} <= known
    # What starts with an underscore is shared by kernels, aot is the program that compiles them all.
    kernels = {path.stem for path in (ROOT / "kernels").glob("*.py") if not path.stem.startswith("_")}
    assert kernels <= {*OPS, "aot"}
    assert {path.stem for path in (ROOT / "kernels/tuned").glob("*.json")} == kernels - {"aot"}
    assert {path.stem for path in (ROOT / "s2vfast/reference").glob("*.py")} <= {
        *OPS,
        "__init__",
        "augment",
        "freqmixformer",
        "hitrs",
        "infogcn",
        "philox",
        "skeattnclr",
        "skeleton2vec",
        "stgcn",
        "streams",
    }


def test_imports_point_one_way():
    wrong = []
    for path in source_files():
        part = part_of(path)
        if part == "__init__":
            continue
        assert part in MAY_IMPORT, f"{path}: a new part; say in MAY_IMPORT what it may import"
        allowed = MAY_IMPORT[part] | ({part, "errors", "config", "__version__"} - FREE_OF.get(part, set()))
        for name in imports(path, types=False):
            parts = name.split(".")
            if parts[0] == "s2vfast" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path} imports {name}")
            if parts[0] == "kernels":
                wrong.append(f"{path} imports {name}; kernels/ is installed as s2vfast.kernels")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_kernels_by_that_name():
    files = [path for path in tracked() if path.endswith(".py")]
    assert not [path for path in files for name in imports(path) if name.split(".")[0] == "kernels"]


def test_the_numeric_core_needs_torch_triton_and_numpy_alone():
    wrong = []
    for path in tracked():
        # A conftest is what pytest itself reads.
        if path.endswith(".py") and path.startswith(BARE) and not path.endswith("conftest.py"):
            for name in imports(path, module_level=True):
                top = name.split(".")[0]
                if top not in BARE_PACKAGES | {"s2vfast", "benchmarks"} and top not in sys.stdlib_module_names:
                    wrong.append(f"{path} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_files_stay_readable():
    code = [path for path in tracked() if path.endswith((".py", ".cpp", ".cu", ".cuh", ".h"))]
    lengths = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path in code}
    assert not {path: length for path, length in lengths.items() if length > LONGEST}


# Bare participles and pronouns, and words that meant several things: a reader cannot tell what such a variable holds.
BANNED_NAMES = set(
    "found given theirs mine wanted known kept made chosen taken told shown asked said there rest places place room "
    "spread beside together mend tell others some share shares whole ours".split()
)
# Fields of configs, whose names people's files have.
CONFIG_FIELDS = {("s2vfast/data/augment/spatial.py", "others")}


def test_names_say_what_they_hold():
    wrong = []
    for path in tracked():
        if path.endswith(".py") and path.startswith(("s2vfast/", "kernels/", "benchmarks/")):
            for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    name = node.id
                elif isinstance(node, ast.arg):
                    name = node.arg
                else:
                    continue
                if name in BANNED_NAMES and (path, name) not in CONFIG_FIELDS:
                    wrong.append(f"{path}:{node.lineno}: {name}")
    assert not wrong, "\n".join(wrong)


# Places on somebody's disk, and hosts that packages come from: a checkout must work anywhere. Written so that this file
# does not match itself.
ELSEWHERE = re.compile(
    r"""(?<![\w.}$)*-])/(?:w[o]rk|r[o]ot|h[o]me|U[s]ers)/\w | files\.pyth[o]nhosted | \bpyp[i]\.org | npm[j]s\.org
    | downl[o]ad\.pytorch""",
    re.VERBOSE,
)


def test_no_file_speaks_of_one_machine():
    wrong = []
    for path in tracked():
        try:
            lines = (ROOT / path).read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # not text
        wrong += [f"{path}:{number}: {line}" for number, line in enumerate(lines, 1) if ELSEWHERE.search(line)]
    assert not wrong, "\n".join(wrong)
