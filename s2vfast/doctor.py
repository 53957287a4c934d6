"""What is installed, what can run and why not: something to paste into a bug report.

Nothing here may fail: a part that cannot be found out is reported as the error that it gave.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch triton numpy rich safetensors PyYAML scikit-learn matplotlib tensorboard pybind11 ninja pytest"
).split()


def facts() -> dict[str, Any]:
    """Plain values, JSON-ready, by section.

    Sections: ``s2vfast``, ``machine``, ``packages``, ``cuda``, ``extension``, ``calibration``, ``operations``
    ({device: {op: {implementation: reasons against it}}}) and ``disk``. A section that could not be found out is
    ``{"error": text}``.
    """
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "s2vfast": _own,
        "machine": _machine,
        "packages": _packages,
        "cuda": _cuda,
        "extension": _extension,
        "calibration": _calibration,
        "operations": _operations,
        "disk": _disk,
    }
    return {name: _guarded(find) for name, find in sections.items()}


def report() -> str:
    """`facts` as text."""
    environment = facts()
    lines: list[str] = []
    for section in ("s2vfast", "machine", "packages", "cuda", "extension", "calibration", "disk"):
        lines += [section, *(f"  {key:<14} {_text(value)}" for key, value in environment[section].items()), ""]
    return "\n".join(lines + _operation_lines(environment["operations"]))


def _guarded(find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return find()
    except Exception as error:  # a doctor that falls ill helps nobody
        return {"error": f"{type(error).__name__}: {error}"}


def _own() -> dict[str, Any]:
    import s2vfast

    return {
        "version": s2vfast.__version__,
        "path": str(Path(s2vfast.__file__).parent),
        "S2VFAST_IMPL": os.environ.get("S2VFAST_IMPL", "not set"),
    }


def _calibration() -> dict[str, Any]:
    from s2vfast import calibrate

    files = sorted(calibrate.measurements().glob("*.json"))
    return {"kept": ", ".join(map(str, files)) or f"none in {calibrate.folder()}"}


def _machine() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count()
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "threads": f"{os.cpu_count()}, of which this process may use {usable}",
        "memory": _memory(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return _gigabytes(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _packages() -> dict[str, Any]:
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        return {"available": f"no (torch is {build})"}
    devices: dict[str, Any] = {"available": f"yes, CUDA {torch.version.cuda}"}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        devices[f"cuda:{index}"] = f"{device.name}, {_gigabytes(device.total_memory)}, sm_{device.major}{device.minor}"
    return devices


def _extension() -> dict[str, Any]:
    from s2vfast import _extension

    return {**_extension.facts(), "compiler now": shutil.which("g++") or shutil.which("c++") or "none found"}


def _operations() -> dict[str, Any]:
    import torch

    from s2vfast import ops

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {device: ops.availability(device) for device in devices}


def _disk() -> dict[str, Any]:
    return {
        "here": f"{_gigabytes(shutil.disk_usage(os.getcwd()).free)} free in {os.getcwd()}",
        "temporary": f"{_gigabytes(shutil.disk_usage(tempfile.gettempdir()).free)} free in {tempfile.gettempdir()}",
    }


def _gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value).replace("\n", "\n" + " " * 17)


def _operation_lines(operations: dict[str, Any]) -> list[str]:
    """One line for each operation and device, then each reason once with what it keeps from running."""
    if "error" in operations:
        return ["operations", f"  error          {operations['error']}"]
    lines = []
    for device, ops in operations.items():
        lines.append(f"operations on {device}")
        against: dict[tuple[str, str], list[str]] = {}
        for op, implementations in ops.items():
            can = [name for name, reasons in implementations.items() if not reasons]
            lines.append(f"  {op:<14} {', '.join(can) or 'nothing'}")
            for name, reasons in implementations.items():
                for reason in reasons:
                    # "mlp has no triton implementation" and the like are one reason for all.
                    against.setdefault((name, reason.removeprefix(f"{op} ")), []).append(op)
        if against:
            lines += ["  why not the others:"]
            lines += [f"    {name} ({', '.join(who)}): {reason}" for (name, reason), who in against.items()]
        lines.append("")
    return lines[:-1]


if __name__ == "__main__":
    print(report())
