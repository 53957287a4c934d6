"""The CPU part of the compiled extension under AddressSanitizer and UndefinedBehaviorSanitizer."""

import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s2vfast import inputs
from s2vfast.ops import operation

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-pthread"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("s2vfast._native", sys.argv[1])
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
from s2vfast import verify
try:
    sys.modules[spec.name].use_lanes(int(sys.argv[2]))
except ValueError:
    sys.exit("no such registers")
sys.exit(verify.main(sys.argv[3:]))
"""


def library(compiler, name):
    """Path of a sanitizer's library, or None where the compiler has none."""
    path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) and os.path.exists(path) else None


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """(the extension, what has to be loaded before Python)."""
    pybind11 = pytest.importorskip("pybind11")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    libraries = [compiler and library(compiler, f"lib{name}.so") for name in ("asan", "ubsan")]
    if sys.platform != "linux" or not all(libraries):
        pytest.skip("no C++ compiler with sanitizers")
    folder = tmp_path_factory.mktemp("sanitized")
    includes = [f"-I{path}" for path in (sysconfig.get_path("include"), pybind11.get_include(), ROOT / "csrc")]

    def compiled(source):
        target = folder / f"{source.stem}.o"
        command = [compiler, *FLAGS, *SANITIZERS, *includes, "-c", source, "-o", target]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sorted((ROOT / "csrc").glob("*.cpp"))))
    target = folder / f"_native{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    subprocess.run([compiler, "-shared", "-pthread", *SANITIZERS, *objects, "-o", target], check=True)
    return target, ":".join(libraries)


@pytest.mark.slow
@pytest.mark.parametrize("registers", [4, 8, 0])
@pytest.mark.parametrize("shape", ["tiny", "odd", "empty", "one"])
def test_operations_stay_in_their_memory(build, shape, registers):
    """At shapes that fill no vector, and with nothing at all; by two threads; with the numbers of the reference."""
    extension, libraries = build
    native = [op for op in inputs.OPS if "native" in operation(op).implementations]
    assert len(native) >= 8
    environment = os.environ | {"LD_PRELOAD": libraries, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", RUN, extension, str(registers), *native, "--impl", "native", "--shape", shape]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    if "no such registers" in done.stderr:
        pytest.skip(f"this CPU has no registers of {registers} numbers")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("good") >= len(native)
