"""One schema for all results, so that no figure is without its origin.

A result is a JSON file ``DEVICE/KIND.json``: the command, commit, versions, device and date of a measurement, and rows.
A row is a measurement or has the reason why there is none (``refused``). `FIELDS` has the fields of each kind.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import s2vfast
from s2vfast import errors
from s2vfast.doctor import facts

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
SCHEMA = 2
STATIC = {"name": "none: compiled ahead of time", "slug": "static", "type": "static", "threads": 0}
"""The ``device`` of what was compiled and not run."""
UNKNOWN = "unknown"  # a commit
PARTIAL = ".partial"  # the end of a file's name while its run goes on

Row = dict[str, Any]
Result = dict[str, Any]

_NUMBER = (int, float)
_TYPES = {"str": str, "int": int, "dict": dict, "list": list, "number": _NUMBER, "maybe": (*_NUMBER, type(None))}


def _fields(**names: str) -> dict[str, Any]:
    """Types by field, of names by type."""
    return {name: _TYPES[kind] for kind, text in names.items() for name in text.split()}


# command repeats the measurement from the repository's root; date is that of the beginning, UTC; ceilings are what the
# device reached in the same run, see `benchmarks._ceilings`, {} where not needed.
HEADER = _fields(int="schema", str="kind command commit date", dict="versions device ceilings", list="rows")
DEVICE = _fields(str="name slug type", int="threads")  # slug: the folder; type: cpu, cuda, static
TIMES = ("p20", "p50", "p80")
FIELDS: dict[str, dict[str, Any]] = {
    # An implementation of an operation, or a rival. Times in ms. pass: forward or forward+backward. state: warm
    # (the same inputs again) or cold (inputs in no cache). threads: 0 on a GPU. gflop of matrix products, gexp
    # exponentials and gb that must cross memory once, each 1e9; bound: which of them takes longest at the device's
    # ceilings (matmul, exp, memory); roofline: that time over p50. ratio: torch's time over this one's, median over
    # interleaved pairs, None where torch was not timed.
    "ops": _fields(
        str="op impl shape dtype pass state bound",
        dict="sizes",
        int="threads",
        number="p20 p50 p80 gflop gexp gb roofline",
        maybe="ratio",
    ),
    # A training step. Times in ms. impl: reference, or an implementation with train.mode. sweep: main, or what a series
    # of rows varies. ratio: the last contestant's (versus) time over this one's. difference: of the first losses from
    # its, relative. floor: the least time at the device's ceilings over p50. launches: kernels a step. breakdown: ms by
    # kind of work, {} where not measured.
    "step": _fields(
        str="impl config sweep empty_bodies precision versus",
        int="clips tokens ranks",
        number="p20 p50 p80 clips_per_second gflop",
        maybe="ratio difference floor peak_mib launches",
        dict="breakdown",
    ),
    # What a step is fed with. other_p50: of versus. unit: what is counted a second (clips, tracks).
    "data": _fields(str="what versus unit", int="threads", number="p20 p50 p80 other_p50 ratio per_second"),
    # From the start of a process to the end of its first step, in seconds. cache: Triton's (filled, empty, none).
    # phases: imports, build, first step, second step.
    "cold_start": _fields(str="impl config cache", int="clips", number="p20 p50 p80", dict="phases"),
    # A kernel that was compiled ahead of time. spills: bytes of stack plus instructions on local memory. wrong: static
    # gates that it fails.
    "static": _fields(
        str="op kernel dtype", int="arch registers spills shared", list="shapes wrong", dict="instructions options"
    ),
}
"""Types of the fields of each kind's rows; a refused row needs those of `IDENTITY` alone."""
IDENTITY = {
    "ops": ("op", "impl"),
    "step": ("impl", "config"),
    "data": ("what",),
    "cold_start": ("impl", "config"),
    "static": ("op",),
}


# Where a result is from.


def commit(root: Path = ROOT) -> str:
    """The commit that the working tree is at; ``+`` and a hash of the changes follow where it has any.

    Where there is no git, as on a machine that was sent the files alone, the environment's ``S2VFAST_COMMIT``.
    """

    def git(*words: str) -> bytes:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True).stdout

    try:
        name = git("rev-parse", "--short=12", "HEAD").decode().strip()
        # Results, and the pages that show them, do not change what is measured.
        only = ["--", ".", ":(exclude)benchmarks/results", ":(exclude)docs", ":(exclude)README.md"]
        changes = git("diff", "HEAD", *only)
        for path in git("ls-files", "--others", "--exclude-standard", "-z", *only).decode().split("\0"):
            if path:
                changes += path.encode() + (root / path).read_bytes()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("S2VFAST_COMMIT") or UNKNOWN
    return f"{name}+{hashlib.sha1(changes).hexdigest()[:8]}" if changes else name


@functools.cache
def origin() -> tuple[str, str]:
    """Commit and date (UTC) at the first call: what changes later has not been measured."""
    return commit(), datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")


def device_facts(device: torch.device) -> dict[str, Any]:
    """A result's ``device``."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return {"name": name, "slug": name.replace(" ", "-").lower(), "type": "cuda", "threads": 0}
    return {"name": facts()["machine"]["cpu"], "slug": "cpu", "type": "cpu", "threads": torch.get_num_threads()}


def versions(device: Mapping[str, Any]) -> dict[str, str]:
    """A result's ``versions`` on a device as of `device_facts`."""
    numbers = {"s2vfast": s2vfast.__version__, "torch": torch.__version__, "python": platform.python_version()}
    try:
        import triton

        numbers["triton"] = triton.__version__
    except ImportError:
        pass
    if device["type"] == "cuda":
        numbers["cuda"] = str(torch.version.cuda)
    return numbers


def _command() -> str:
    """This process's command as one would type it, without the folder of its results."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words, skip = [f"-m {spec.name}" if spec else Path(sys.argv[0]).name], False
    for word in sys.argv[1:]:
        if not skip and word != "--out" and not word.startswith("--out="):
            words.append(word)
        skip = word == "--out"
    return " ".join(["python", *words])


def result(
    kind: str,
    rows: Iterable[Mapping[str, Any]],
    device: Mapping[str, Any],
    ceilings: Mapping[str, float] | None = None,
    command: str = "",
) -> Result:
    """A result of this process.

    Args:
        kind: one of `FIELDS`.
        rows: its measurements.
        device: see `device_facts`.
        ceilings: what the device reached in this run.
        command: repeats it; empty: the command of this process.

    Raises:
        DataError: a row lacks a field, or a field holds something else.
    """
    name, date = origin()
    record = {
        "schema": SCHEMA,
        "kind": kind,
        "command": command or _command(),
        "commit": name,
        "date": date,
        "versions": versions(device),
        "device": dict(device),
        "ceilings": dict(ceilings or {}),
        "rows": [dict(row) for row in rows],
    }
    check(record, kind)
    return record


def percentiles(times: list[float]) -> dict[str, float]:
    """p20, p50 and p80 of measured times."""
    points = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return {name: digits(value) for name, value in zip(TIMES, points.tolist(), strict=True)}


def digits(value: float, count: int = 4) -> float:
    """A number with so many digits that count."""
    return float(f"{value:.{count}g}")


# What a result may hold.


def check(record: Any, where: str | Path) -> None:
    """Raise `DataError`, with file, row and field, unless ``record`` is a result that can be shown."""
    if not isinstance(record, dict):
        raise errors.DataError(f"{where}: expected an object with {', '.join(HEADER)}")
    _check_fields(record, HEADER, str(where))
    if record["schema"] != SCHEMA:
        raise errors.DataError(f"{where}: schema: expected {SCHEMA}, got {record['schema']}; measure again")
    kind, slug = record["kind"], record["device"].get("slug", "")
    _need(kind in FIELDS, where, "kind", f"one of {', '.join(FIELDS)}", kind)
    _check_fields(record["device"], DEVICE, f"{where}: device")
    _need(bool(re.fullmatch(r"[\w.-]+", slug)), where, "device: slug", "letters, digits, - and .", slug)
    try:
        datetime.date.fromisoformat(record["date"])
    except ValueError:
        _need(False, where, "date", "YYYY-MM-DD", record["date"])
    for name, value in record["ceilings"].items():
        _need(_is_number(value) and value > 0, where, f"ceilings: {name}", "a number above 0", value)
    for number, row in enumerate(record["rows"]):
        path = f"{where}: rows[{number}]"
        if not isinstance(row, dict):
            raise errors.DataError(f"{path}: expected an object")
        if "refused" in row:
            _check_fields(row, {**{name: FIELDS[kind][name] for name in IDENTITY[kind]}, "refused": str}, path)
            continue
        _check_fields(row, FIELDS[kind], path)
        if unknown := set(row) - set(FIELDS[kind]):
            raise errors.DataError(f"{path}: unknown field {min(unknown)!r}")
        for name in ("p50", "other_p50", "ratio"):
            _need(row.get(name) is None or row[name] > 0, path, name, "more than 0", row.get(name))
        for name in ("breakdown", "phases"):
            for part, value in row.get(name, {}).items():
                _need(_is_number(value) and value >= 0, path, f"{name}: {part}", "a number, 0 or more", value)


def _check_fields(record: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    for name, types in expected.items():
        if name not in record:
            raise errors.DataError(f"{where}: field {name!r} is missing")
        value = record[name]
        names = "/".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
        _need(isinstance(value, types) and not isinstance(value, bool), where, name, names, value)
        _need(not isinstance(value, float) or _is_number(value), where, name, "a finite number", value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _need(condition: bool, where: str | Path, what: str, expected: str, value: Any) -> None:
    if not condition:
        raise errors.DataError(f"{where}: {what}: expected {expected}, got {value!r}")


# Files.


def write(record: Result, out: Path, *, complete: bool = True) -> Path:
    """Write a result to out/DEVICE/KIND.json; a file of the same kind is replaced once this one is ``complete``.

    Until then it is KIND.json.partial, so that a run which is stopped loses neither its own rows nor older ones.
    """
    path = out / record["device"]["slug"] / f"{record['kind']}.json"
    partial = path.with_name(f"{path.name}{PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {name: value for name, value in record.items() if name != "rows"}
    lines = ",\n".join(f"  {json.dumps(row)}" for row in record["rows"])
    # One row a line: a diff then shows what changed.
    text = json.dumps(head, indent=1).removesuffix("\n}") + f',\n "rows": [\n{lines}\n ]\n}}\n'
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, partial)
    return partial.replace(path) if complete else partial


def promote(folder: Path) -> list[Path]:
    """Take the partial results of runs that were stopped, where there is no whole one with as many measured rows."""
    paths = []
    for partial in sorted(folder.glob(f"*/*.json{PARTIAL}")):
        path = partial.with_name(partial.name.removesuffix(PARTIAL))
        if not path.exists() or _measured(partial) > _measured(path):
            paths.append(partial.replace(path))
    return paths


def _measured(path: Path) -> int:
    return sum("refused" not in row for row in read(path)["rows"])


def read(path: Path) -> Result:
    """A written result.

    Raises:
        DataError: it cannot be read, or is no result; the message names file, row and field.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise errors.DataError(f"{path}: cannot be read as a result: {error}") from None
    if isinstance(record, dict) and record.get("schema") == 1:  # which called an operation a stem
        record["schema"] = SCHEMA
        for row in record.get("rows", ()):
            if "stem" in row:
                row["op"] = row.pop("stem")
    check(record, path)
    return record


def paths(folder: Path) -> list[Path]:
    """The results below a folder, by device: all its JSON files but the summary of `make gpu`."""
    return [path for path in sorted(folder.glob("*/*.json")) if path.name != "summary.json"]
