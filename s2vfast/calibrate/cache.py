"""Where measurements are kept: a file a device and set of versions, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import torch

import s2vfast
from s2vfast import errors, files, kernels, ops
from s2vfast.calibrate import measurements
from s2vfast.calibrate.measure import Row, candidates
from s2vfast.calibrate.record import from_json
from s2vfast.config.registry import PLUGIN
from s2vfast.ops import _linear

FORMAT = 1


def environment(device: torch.device) -> dict[str, Any]:
    """What times depend on: device, driver, versions, products' precision, threads of a CPU; values that JSON holds."""
    facts: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "s2vfast": _version()}
    facts["matmul_precision"] = _linear.precision()
    if device.type == "cuda":
        facts |= {"driver": _driver(), "triton": _triton()}
    else:
        facts["threads"] = torch.get_num_threads()
    if plugins := _plugins():
        facts["plugins"] = plugins
    return facts


def device_name(device: torch.device) -> str:
    """A GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def path(facts: dict[str, Any]) -> Path:
    """The file of an environment."""
    name = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower()).strip("-")[:40]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return measurements() / f"{name}-{digest}.json"


def read(facts: dict[str, Any]) -> tuple[list[Row], str]:
    """The rows that are kept for an environment, and why a file that is there is ignored, in a line.

    Rows of an operation whose implementations are others by now are left out.
    """
    file = path(facts)
    try:
        content = json.loads(file.read_text("utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("environment") != facts:
            return [], f"{file}: ignored: of another device or version; it is going to be replaced"
        rows = [checked(row) for row in content["rows"]]
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"{file}: ignored: damaged ({type(error).__name__}: {error}); it is going to be replaced"
    names: dict[Any, set[str]] = {}
    for row in rows:
        names.setdefault((row["op"], row["key"]), set()).add(row["impl"])
    operations = ops.availability("cpu")
    current = {key for key, impls in names.items() if key[0] in operations and impls == set(candidates(key[0]))}
    return [row for row in rows if (row["op"], row["key"]) in current], ""


def checked(row: Any) -> Row:
    """A row that JSON has read; ValueError, KeyError or TypeError where it is none."""
    good = isinstance(row["op"], str) and isinstance(row["impl"], str) and isinstance(row["key"], list)
    if not good or not ("why" in row or row["ms"] > 0):
        raise ValueError(f"no row of a calibration: {row!r}")
    return row | {"key": from_json(row["key"])}


def write(facts: dict[str, Any], rows: list[Row]) -> Path:
    """Keep rows, with those that are there for other calls; the file, which is there whole or as it was.

    Raises:
        TrainingError: it cannot be written.
    """
    new = {(row["op"], row["key"]) for row in rows}
    rows = [row for row in read(facts)[0] if (row["op"], row["key"]) not in new] + rows
    file = path(facts)
    with files.disk_errors(file, errors.TrainingError):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, {"format": FORMAT, "environment": facts, "rows": rows})
    return file


def _version() -> str:
    """Version and hash of everything that runs: a checkout's kernels change under one number."""
    root, compiled = Path(s2vfast.__file__).parent, Path(kernels.__path__[0])
    sources = [*root.glob("ops/*.py"), *compiled.glob("*.py"), *compiled.glob("tuned/*.json")]
    digest = 0
    for source in sorted(sources):
        digest = zlib.crc32(source.read_bytes(), digest)
    for extension in sorted(root.glob("_native*.so")):
        stat = extension.stat()
        digest = zlib.crc32(f"{stat.st_size} {stat.st_mtime_ns}".encode(), digest)
    return f"{s2vfast.__version__}+{digest:08x}"


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text("utf-8").splitlines()[0]
    except (OSError, IndexError):
        return str(torch._C._cuda_getDriverVersion())


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


def _plugins() -> list[str]:
    """Hashes of plugins that have registered implementations."""
    used = {
        str(getattr(function, "__module__", ""))
        for op in ops.availability("cpu")
        for function in ops.operation(op).implementations.values()
    }
    names = sorted(name for name in used if name.startswith(PLUGIN) and name in sys.modules)
    texts = (Path(str(sys.modules[name].__file__)).read_bytes() for name in names)
    return [f"{zlib.crc32(text):08x}" for text in texts]
