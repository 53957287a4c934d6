"""The report of an import, as JSON and as text: every tensor of the file is in it."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from s2vfast.compat.published_checkpoint import MappedTensor, PublishedCheckpoint
from s2vfast.compat.source_networks import SkippedTensor
from s2vfast.config import Config


def describe(
    weights: PublishedCheckpoint, config: Config, config_source: str, assumed: dict[str, Any]
) -> dict[str, Any]:
    """The report.

    Args:
        weights: what was read.
        config: of the run that was made.
        config_source: what it was made from.
        assumed: fields of it that no weight shows, with where they are from.

    Returns:
        Plain values: file, sha256, format, naming, role, prefix, student_prefix, sizes, config (what it was made from),
        model, assumed, clips, mapped, skipped, missing, converted (dtype → tensors that became float32).
    """
    dtypes = [str(value.dtype).removeprefix("torch.") for value in weights.tensors.values()]
    data, model = config.to_dict()["data"], config.to_dict()["model"]
    return {
        "file": str(weights.path),
        "sha256": weights.sha256,
        "format": weights.format,
        "naming": weights.naming.name,
        "role": weights.role,
        "prefix": weights.prefix,
        "student_prefix": weights.student_prefix,
        "sizes": {name: value for name, value in asdict(weights.sizes).items() if name != "sources"},
        "model": {name: model[name] for name in ("dim", "heads", "depth", "mlp_ratio", "norm_eps")}
        | {"decoder_depth": config.objective.decoder_depth},
        "config": config_source,
        "assumed": assumed,
        "clips": {name: data[name] for name in CLIPS},
        "mapped": [mapped(tensor) for tensor in weights.mapped],
        "skipped": [skipped(tensor) for tensor in weights.skipped],
        "missing": [{"name": name, "then": then} for name, then in weights.missing.items()],
        "converted": {name: dtypes.count(name) for name in sorted(set(dtypes)) if name != "float32"},
    }


def text(summary: dict[str, Any]) -> str:
    """The report to read; equal lines of several blocks are one line with their numbers."""
    under = f", under {summary['prefix']!r}" if summary["prefix"] else ""
    if summary["student_prefix"] is not None:
        under += f"; the student, under {summary['student_prefix']!r}, goes along"
    lines = [f"{summary['file']} ({summary['format']}): {summary['naming']}, {_ROLES[summary['role']]}{under}", ""]
    rows = [("in the file", "shape", "in the run", "shape", "how")]
    for one in summary["mapped"]:
        along = summary["student_prefix"] is not None and one["name"].startswith("student.")
        names = [name.removeprefix(summary["student_prefix" if along else "prefix"]) for name in one["source_names"]]
        rows.append((_joined(names), _shape(one["source_shape"]), one["name"], _shape(one["shape"]), one["how"]))
    lines += _table([rows[0], *_folded(rows[1:])])
    lines += ["", f"{len(summary['mapped'])} parameters of the run. Left out of the file:"]
    skipped = _folded([(one["source_name"], _shape(one["shape"]), one["why"]) for one in summary["skipped"]])
    lines += _table(skipped) or ["  nothing"]
    lines += ["", "Not in the file:"]
    lines += _table([(one["name"], one["then"]) for one in summary["missing"]])
    lines += ["", "What weights do not show:"]
    for name, value in summary["assumed"].items():
        odd = "published" in value and value["published"] != value["value"]
        note = f"   (the published one is {value['published']:g}: are features to be the same?)" if odd else ""
        number = value["value"]
        text_of = f"{number:g}" if isinstance(number, float) else str(number)
        lines.append(f"  {name} = {text_of}, of {value['from']}{note}")
    clips = ", ".join(f"{name} {value}" for name, value in summary["clips"].items())
    lines.append(f"  clips, of {summary['config']}: {clips}")
    for dtype, count in summary["converted"].items():
        lines.append(f"{count} tensors were {dtype} and are float32 now{' (rounded)' if dtype == 'float64' else ''}")
    return "\n".join(lines)


CLIPS = ("frames", "bodies", "sampling", "center", "scale", "align", "velocity")
_ROLES = {
    "trained": "the network that was trained is evaluated",
    "teacher": "the teacher is evaluated",
    "student": "the student is evaluated",
    "unnamed": "the only network in it is evaluated, whether student or teacher it does not say",
}


def mapped(tensor: MappedTensor) -> dict[str, Any]:
    """One line of the report, as JSON has it."""
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "source_names": list(tensor.source_names),
        "source_shape": list(tensor.source_shape),
        "how": tensor.how,
    }


def skipped(tensor: SkippedTensor) -> dict[str, Any]:
    """The same of what is left out."""
    shape = None if tensor.shape is None else list(tensor.shape)
    return {"source_name": tensor.source_name, "shape": shape, "why": tensor.why}


def _shape(shape: list[int] | None) -> str:
    return "" if shape is None else str(list(shape))


def _joined(names: list[str]) -> str:
    """Names that differ in one word as one: ``attn.{queries,keys,values}.weight``."""
    if len(names) == 1:
        return names[0]
    words = [name.split(".") for name in names]
    if len({len(one) for one in words}) > 1:
        return ", ".join(names)
    return ".".join(
        column[0] if len(set(column)) == 1 else "{" + ",".join(column) + "}" for column in zip(*words, strict=True)
    )


def _folded(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that differ in the numbers of blocks alone as one, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = {}
    for row in rows:
        numbers = re.findall(r"(?:layers|blocks)\.(\d+)\.", " ".join(row))
        key = tuple(re.sub(r"(layers|blocks)\.\d+\.", r"\1.*.", cell) for cell in row)
        # Only where all numbers in the row are the same one.
        number = int(numbers[0]) if numbers and len(set(numbers)) == 1 else -1
        groups.setdefault(key if number >= 0 else row, []).append((number, row))
    folded = []
    for members in groups.values():
        numbers = [number for number, _ in members]
        low, high = numbers[0], numbers[-1]
        if len(members) == 1:
            folded.append(members[0][1])
        elif numbers == list(range(low, high + 1)):
            folded.append(tuple(re.sub(r"(layers|blocks)\.\d+\.", rf"\1.{low}-{high}.", c) for c in members[0][1]))
        else:
            folded += [row for _, row in members]
    return folded


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns that line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
