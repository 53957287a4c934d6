"""Packages and the compiled extension; everything else is in pyproject.toml.

The extension needs a C++17 compiler, pybind11 and ninja, no torch headers and no GPU. Where one of these is missing, or
compiling fails, the installation goes on without it: the reason is printed, and kept for `s2vfast doctor`. Its part for
GPUs needs nvcc as well (CUDACXX names one, CUDA_HOME the folder; S2VFAST_CUDA=0 leaves that part out), and no GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.cpp"))
CUDA_SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.cu"))
HEADERS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").glob("*.*h"))
# Each operation is rounded on its own, in any implementation: no fused multiply-add, no fast math.
COMPILE = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread"]
# Code for sm_80 and sm_90a (H100, H200), and PTX from which newer GPUs make their own.
GPU_CODE = ["80,code=sm_80", "90a,code=sm_90a", "90,code=compute_90"]
COMPILE_CUDA = [
    *("-O3", "-std=c++17", "-fmad=false", "-Xptxas", "-v", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
    *(f"-gencode=arch=compute_{code}" for code in GPU_CODE),
]
# kernels/ lies at the root, where readers look for it, and is installed inside the package.
KERNELS = ["s2vfast.kernels", *(f"s2vfast.kernels.{name}" for name in find_packages("kernels"))]
# Both are read by s2vfast/_extension.py: why there is no extension, why it has no part for GPUs.
MISSING_NOTE = "_native_missing.txt"
NO_CUDA_NOTE = "_native_no_cuda.txt"


class NotBuilt(Exception):
    """Why there is no extension, in one line and maybe the compiler's own lines below it."""


class NoCuda(Exception):
    """Why there is no part for GPUs, likewise."""


class NinjaBuild(build_ext):
    """Builds through ninja in build/native, so that a second build compiles only what has changed."""

    def build_extension(self, ext: Extension) -> None:
        """Compile and link ``ext``."""
        target = Path(self.get_ext_fullpath(ext.name)).absolute()
        target.parent.mkdir(parents=True, exist_ok=True)
        note, no_cuda = target.parent / MISSING_NOTE, target.parent / NO_CUDA_NOTE
        no_cuda.unlink(missing_ok=True)
        try:
            try:
                built = _ninja(ext, target.name, _cuda())
            except NoCuda as reason:
                no_cuda.write_text(f"{reason}\n", "utf-8")
                print(f"warning: the compiled extension is built WITHOUT its part for GPUs: {reason}", file=sys.stderr)
                built = _ninja(ext, target.name, None)
        except NotBuilt as reason:
            target.unlink(missing_ok=True)
            no_cuda.unlink(missing_ok=True)
            note.write_text(f"{reason}\n", "utf-8")
            print(f"warning: s2vfast is installed WITHOUT its compiled extension: {reason}", file=sys.stderr)
            return
        note.unlink(missing_ok=True)
        shutil.copy2(built, target)

    def copy_extensions_to_source(self) -> None:
        """For an editable installation: the extension, or the reason why there is none, goes beside the sources."""
        for ext in self.extensions:
            built = Path(self.build_lib, *ext.name.split(".")[:-1])
            package = Path(self.get_finalized_command("build_py").get_package_dir(ext.name.rpartition(".")[0]))
            for name in (Path(self.get_ext_filename(ext.name)).name, MISSING_NOTE, NO_CUDA_NOTE):
                # Replaced, not written over: a process that has the old file loaded keeps it.
                (package / name).unlink(missing_ok=True)
                if (built / name).exists():
                    shutil.copy2(built / name, package / name)


def _ninja(ext: Extension, name: str, cuda: Path | None) -> Path:
    """The built library; raises `NotBuilt`, or `NoCuda` where the fault is with nvcc.

    Args:
        ext: what to build.
        name: file name of the library.
        cuda: nvcc; None: without the part for GPUs.
    """
    compiler, ninja = _tools()
    try:
        import pybind11
    except ImportError:
        raise NotBuilt("pybind11 is not installed") from None
    kind = "cuda" if cuda else "cpu"
    folder = ROOT / "build" / f"native-{kind}-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    includes = [sysconfig.get_path("include"), pybind11.get_include(), str(ROOT / "csrc")]
    link = ["-shared", "-pthread"] if sys.platform != "darwin" else ["-bundle", "-undefined", "dynamic_lookup"]
    flags = [*COMPILE, *os.environ.get("CXXFLAGS", "").split(), *(f"-I{path}" for path in includes)]
    flags += ["-DS2V_CUDA"] if cuda else []
    lines = [
        f"cxx = {_escape(compiler)}",
        f"flags = {' '.join(map(_escape, flags))}",
        "rule compile",
        "  command = $cxx $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx {' '.join(link)} $in -o $out",
    ]
    objects = []
    for source in ext.sources:
        objects.append(f"{Path(source).stem}.o")
        lines.append(f"build {objects[-1]}: compile {_escape(str(ROOT / source))}")
    if cuda:
        # -Xptxas -v: registers and spills of every kernel, kept beside its object.
        lines += [
            f"nvcc = {_escape(str(cuda))} -ccbin {_escape(compiler)}",
            "rule compile_cuda",
            f"  command = $nvcc {' '.join(COMPILE_CUDA)} -MD -MF $out.d -c $in -o $out "
            "> $out.ptxas.txt 2>&1 || (cat $out.ptxas.txt; exit 1)",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
        for source in CUDA_SOURCES:
            objects.append(f"{Path(source).stem}.cu.o")
            lines.append(f"build {objects[-1]}: compile_cuda {_escape(str(ROOT / source))}")
        # nvcc links CUDA's runtime in: the library loads where there is neither CUDA nor a GPU.
        lines += ["rule link_cuda", "  command = $nvcc -cudart static -shared -Xcompiler -pthread $in -o $out"]
    lines.append(f"build {name}: {'link_cuda' if cuda else 'link'} {' '.join(objects)}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n", "utf-8")
    run = subprocess.run([ninja, "-C", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(run.stdout)
    if run.returncode:
        errors = [line for line in run.stdout.splitlines() if "error" in line] or run.stdout.splitlines()[-3:]
        if cuda:
            raise NoCuda("\n".join([f"{cuda} failed", *errors[:5]]))
        raise NotBuilt("\n".join([f"{compiler} failed", *errors[:5]]))
    return folder / name


def _cuda() -> Path:
    """nvcc; raises `NoCuda`."""
    if os.environ.get("S2VFAST_CUDA") == "0":
        raise NoCuda("S2VFAST_CUDA=0")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes), "nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next(filter(None, (shutil.which(place) for place in places if place)), None)
    if found is None:
        raise NoCuda("no nvcc was found (CUDACXX, CUDA_HOME, PATH, /usr/local/cuda)")
    return Path(found)


def _tools() -> tuple[str, str]:
    """The C++ compiler and ninja."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        raise NotBuilt(f"no C++ compiler ({', '.join(names)}) was found")
    try:
        import ninja

        return compiler, str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        found = shutil.which("ninja")
    if found is None:
        raise NotBuilt("ninja is not installed")
    return compiler, found


def _escape(text: str) -> str:
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    # configs/ too.
    packages=[*find_packages(include=["s2vfast", "s2vfast.*"]), *KERNELS, "s2vfast.configs"],
    package_dir={"s2vfast.kernels": "kernels", "s2vfast.configs": "configs"},
    package_data={
        "s2vfast": ["py.typed"],
        "s2vfast.configs": ["*.yaml"],
        "s2vfast.data": ["cameras/*.json", "layouts/*.json", "lists/*.txt"],
        "s2vfast.kernels": ["README.md", "tuned/*.json"],
        "s2vfast.kernels.emulator": ["cudart.c"],
        "s2vfast.kernels.model.devices": ["*.json"],
        "s2vfast.models": ["*.safetensors"],
        "s2vfast.view": ["assets/*"],
    },
    ext_modules=[Extension("s2vfast._native", sources=SOURCES, depends=HEADERS)],
    cmdclass={"build_ext": NinjaBuild},
)
