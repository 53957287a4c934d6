"""What a user gets: the wheel's contents, the editable installation, and the package without its optional parts."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools 77 or newer")
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


MODELS = {f"s2vfast/models/{path.name}" for path in (ROOT / "s2vfast/models").glob("*.safetensors")}

# The editable installation would lend an unpacked wheel what the wheel lacks.
NO_CHECKOUT = (
    "import sys; sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith('__editable__')]\n"
)


def python(code: str, cwd: Path, path: Path | None = None) -> str:
    """What a fresh interpreter prints, away from the checkout; ``path``: where an unpacked wheel lies."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        variables["PYTHONPATH"] = str(path)
        code = NO_CHECKOUT + code
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_wheel(source: Path, out: Path, **environment: str) -> tuple[Path, str]:
    """(the wheel of a checkout, what the build said)."""
    command = "-m pip wheel -v --no-build-isolation --no-deps --no-index --disable-pip-version-check -w".split()
    done = subprocess.run(
        [sys.executable, *command, str(out), str(source)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("s2vfast-*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what setup.py reads, so that a build leaves the checkout alone."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "requirements.txt", "Makefile"):
        shutil.copy(ROOT / name, copy)
    if (ROOT / "README.md").exists():
        shutil.copy(ROOT / "README.md", copy)
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_native_*.txt")
    for name in ("s2vfast", "kernels", "configs", "csrc", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))[0]


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    held = names(wheel)
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "s2vfast").rglob("*.py")}
    expected |= {f"s2vfast/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    expected |= {f"s2vfast/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    expected |= {f"s2vfast/view/assets/{path.name}" for path in (ROOT / "s2vfast/view/assets").iterdir()}
    expected |= {f"s2vfast/data/layouts/{path.name}" for path in (ROOT / "s2vfast/data/layouts").iterdir()}
    expected |= MODELS
    assert expected <= held, sorted(expected - held)
    assert "s2vfast/kernels/README.md" in held
    assert any(name.startswith("s2vfast/configs/") and name.endswith(".yaml") for name in held)
    assert {name.split("/")[0] for name in held} == {"s2vfast", f"s2vfast-{version()}.dist-info"}
    assert not [name for name in held if "test" in name.split("/")[-1] or name.endswith((".cpp", ".cuh", ".o"))]
    assert [name for name in held if name.endswith("LICENSE")]


def test_the_source_distribution_holds_what_a_wheel_is_built_from(checkout, tmp_path):
    code = f"import setuptools.build_meta as build; build.build_sdist({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    sources = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} | {"pyproject.toml", "setup.py", "LICENSE"}
    folders = ("configs", "kernels/tuned", "s2vfast/data/layouts", "s2vfast/data/cameras", "s2vfast/view/assets")
    data = {f"{folder}/{path.name}" for folder in folders for path in (ROOT / folder).iterdir() if path.is_file()}
    assert MODELS | sources | data <= held, sorted((MODELS | sources | data) - held)


# An operation that has a compiled implementation.
USE = (
    "import torch; from s2vfast.ops import tube_mask; tube_mask("
    "torch.rand(2, 6, 5, 3), segment_frames=3, tube_len=1, keep=2, motion_weight=0.1, ids=torch.arange(2))"
)


def version() -> str:
    import s2vfast

    return s2vfast.__version__


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")
def test_the_wheel_holds_a_working_extension(wheel, tmp_path):
    assert [name for name in names(wheel) if name.startswith("s2vfast/_native.") and not name.endswith(".txt")]
    where = unpacked(wheel, tmp_path / "site")
    code = (
        "import s2vfast, s2vfast.kernels, importlib.resources as r; from s2vfast import _extension;"
        "print(s2vfast.__file__); print(_extension.why_not() or _extension.load().__file__);"
        "print(s2vfast.kernels.__file__);"
        "print(sorted(p.name for p in r.files('s2vfast.configs').iterdir() if p.name.endswith('.yaml')))"
    )
    home, extension, kernels, presets = python(code, tmp_path, where).splitlines()
    assert home.startswith(str(where))
    assert extension.startswith(str(where / "s2vfast" / "_native."))
    assert kernels == str(where / "s2vfast" / "kernels" / "__init__.py")
    assert presets == str(sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))


def test_pip_installs_the_wheel_without_a_compiler(wheel, tmp_path):
    """What is on an index of packages: description, links, types; and a command that works."""
    (tmp_path / "empty").mkdir()
    site, bare = tmp_path / "site", os.environ | {"PATH": str(tmp_path / "empty"), "PYTHONPATH": str(tmp_path / "site")}
    words = f"-m pip install --no-index --no-deps --disable-pip-version-check --target {site} {wheel}"
    done = subprocess.run([sys.executable, *words.split()], env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version_words = [sys.executable, site / "bin/s2vfast", "--version"]
    assert subprocess.run(version_words, env=bare, capture_output=True, text=True).stdout == f"s2vfast {version()}\n"
    assert (site / "s2vfast/py.typed").is_file()
    metadata = (site / f"s2vfast-{version()}.dist-info/METADATA").read_text("utf-8")
    assert "Description-Content-Type: text/markdown" in metadata
    assert "Project-URL: Paper, https://" in metadata
    assert "# s2vfast\n" in metadata


def test_a_second_build_compiles_only_what_changed(checkout, wheel, tmp_path):
    (folder,) = (checkout / "build").glob("native-*")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.o")}
    assert before
    os.utime(checkout / "csrc" / "parallel.cpp")
    build_wheel(checkout, tmp_path)
    changed = {path.name for path in folder.glob("*.o") if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"parallel.o"}


@pytest.mark.parametrize("broken", ["no compiler", "a compiler that fails"])
def test_without_a_compiler_the_installation_goes_on_and_says_so(checkout, tmp_path, broken):
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho 'error: this compiler knows no C++17' >&2\nexit 1\n")
    compiler.chmod(0o755)
    source = tmp_path / "source"
    shutil.copytree(checkout, source, ignore=shutil.ignore_patterns("build"))
    built, said = build_wheel(source, tmp_path, CXX=str(tmp_path / "none" if broken == "no compiler" else compiler))
    assert "WITHOUT its compiled extension" in said
    where = unpacked(built, tmp_path / "site")
    assert not list((where / "s2vfast").glob("_native.*"))
    code = f"from s2vfast import _extension, doctor; print(_extension.why_not()); {USE}; print(doctor.report())"
    why, report = python(code, tmp_path, where).split("s2vfast\n", 1)
    reason = "no C++ compiler" if broken == "no compiler" else "this compiler knows no C++17"
    assert reason in why
    assert reason in report


@pytest.mark.skipif(
    not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()), reason="there is no nvcc here"
)
def test_with_nvcc_no_kernel_spills(checkout, wheel, tmp_path):
    code = f"from s2vfast import _extension; {USE}; print(_extension.facts()['cuda'])"
    assert python(code, tmp_path, unpacked(wheel, tmp_path / "site")).strip().endswith("True")
    reports = list(checkout.glob("build/native-cuda-*/*.cu.o.ptxas.txt"))
    assert {path.name.split(".")[0] for path in reports} == {path.stem for path in (ROOT / "csrc").glob("*.cu")}
    for report in reports:
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill", report.read_text())
        assert frames, report.name
        assert set(frames) == {("0", "0", "0")}, report.name
        assert all(f"for 'sm_{arch}'" in report.read_text() for arch in ("80", "90a")), report.name


def stub_nvcc(folder, script):
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{script}\n")
    nvcc.chmod(0o755)
    return str(nvcc)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["off", "broken"])
def test_without_nvcc_the_part_for_gpus_is_left_out_with_the_reason(checkout, tmp_path, kind):
    source = tmp_path / "source"
    shutil.copytree(checkout, source, ignore=shutil.ignore_patterns("build"))
    broken = {"CUDACXX": stub_nvcc(tmp_path, "echo 'error: this nvcc is broken' >&2; exit 1")}
    built, said = build_wheel(source, tmp_path, **({"S2VFAST_CUDA": "0"} if kind == "off" else broken))
    assert "WITHOUT its part for GPUs" in said
    where = unpacked(built, tmp_path / "site")
    code = f"from s2vfast import _extension as e, ops; {USE}; print(e.facts(), ops.availability('cuda')['mask_fill'])"
    printed = python(code, tmp_path, where)
    assert "'cuda': False" in printed
    assert ("S2VFAST_CUDA=0" if kind == "off" else "this nvcc is broken") in printed
    assert "built without CUDA" in printed


@pytest.mark.parametrize("blocked", ["triton", "s2vfast._native", "triton s2vfast._native"])
def test_imports_without_optional_parts(tmp_path, blocked):
    code = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + ".") for b in {blocked.split()!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from s2vfast import data, doctor, evaluate, networks, objectives, ops, train, view
{USE}
print(doctor.report())
"""
    report = python(code, tmp_path)
    if "_native" in blocked:
        assert "the compiled extension is missing" in report
    assert "operations on cpu" in report
    assert "error " not in report


def test_importing_the_package_is_light(tmp_path):
    code = "import sys, s2vfast; print(sorted({'torch', 'numpy', 'triton', 'yaml'} & set(sys.modules)))"
    assert python(code, tmp_path).strip() == "[]"


def test_the_checkout_is_installed_editable(tmp_path):
    direct = importlib.metadata.distribution("s2vfast").read_text("direct_url.json") or ""
    if '"editable": true' not in direct:
        pytest.skip("s2vfast is not installed from this checkout (`make install` does)")
    code = (
        "import s2vfast, s2vfast.kernels, importlib.resources as r;"
        "print(s2vfast.__file__); print(s2vfast.kernels.__file__);"
        "print(any(p.name == 'demo.yaml' for p in r.files('s2vfast.configs').iterdir()))"
    )
    home, kernels, presets = python(code, tmp_path).splitlines()
    assert Path(home) == ROOT / "s2vfast" / "__init__.py"
    assert Path(kernels) == ROOT / "kernels" / "__init__.py"
    assert presets == "True"
    code = "import importlib.util; print(importlib.util.find_spec('kernels'), importlib.util.find_spec('configs'))"
    assert python(code, tmp_path).strip() == "None None"


def test_the_pins_satisfy_what_the_package_declares():
    """requirements.txt is installed first and s2vfast with --no-deps: both must agree."""
    declared = [Requirement(text) for text in importlib.metadata.requires("s2vfast") or []]
    lines = [line for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if line and line[0] != "#"]
    pins = {}
    for pin in map(Requirement, lines):
        (exact,) = pin.specifier
        assert exact.operator == "==", f"{pin} is no exact version"
        if pin.marker is None or pin.marker.evaluate():
            pins[pin.name.lower()] = exact.version
    for wanted in declared:
        extras = {"", *importlib.metadata.metadata("s2vfast").get_all("Provides-Extra", [])}
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            assert wanted.name.lower() in pins, f"{wanted} is not pinned in requirements.txt"
            assert pins[wanted.name.lower()] in wanted.specifier, f"{wanted}: pinned to {pins[wanted.name.lower()]}"
    assert "torch" in pins
    assert not [wanted for wanted in declared if wanted.name == "torch" and "<" in str(wanted.specifier)]


def test_workflows_and_citation_are_up_to_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["license"]) == (version(), "Apache-2.0")
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert [path.stem for path in workflows] == ["docs", "tests", "wheels"]
    for path in workflows:
        content = yaml.safe_load(path.read_text("utf-8"))
        assert content["permissions"] == {"contents": "read"}
        assert "secrets" not in path.read_text("utf-8")
        steps = [step for job in content["jobs"].values() for step in job["steps"]]
        for command in re.findall(r"^make (\w+)", "\n".join(step.get("run", "") for step in steps), re.MULTILINE):
            assert command in targets, f"{path.name}: make {command}"
