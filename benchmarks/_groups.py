"""Which results may stand beside each other, and which of their rows stand for the others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks._ops import CPU_TRACKS
from benchmarks._results import UNKNOWN

Row = dict[str, Any]
Result = dict[str, Any]

OURS = ("triton", "native")
STANDARD = tuple(CPU_TRACKS)
"""Shapes, the published one first."""
SWEEPS = {"batch": "clips", "tokens": "tokens", "ranks": "ranks"}
"""What a series of steps varies, and the field that says it."""


@dataclass(frozen=True, eq=False)
class Group:
    """Results of one device, one commit and the same versions: what may stand in one table.

    Args:
        results: one or more, in the order they were read.
        newest: whether no group of the device is newer.
        files: what the names of its pictures begin with.
    """

    results: tuple[Result, ...]
    newest: bool
    files: str

    @property
    def device(self) -> dict[str, Any]:
        """The first result's ``device``; of the others, ``threads`` may differ."""
        return self.results[0]["device"]

    @property
    def commit(self) -> str:
        """All results' commit."""
        return self.results[0]["commit"]

    @property
    def date(self) -> str:
        """Of the newest result."""
        return max(result["date"] for result in self.results)

    def of(self, kind: str) -> list[Result]:
        """Results of a kind."""
        return [result for result in self.results if result["kind"] == kind]

    def rows(self, kind: str) -> list[Row]:
        """Rows of a kind that are measurements."""
        return [row for result in self.of(kind) for row in result["rows"] if "refused" not in row]

    def refused(self, kind: str) -> list[Row]:
        """Rows of a kind that are not shown."""
        return [row for result in self.of(kind) for row in result["rows"] if "refused" in row]

    def ceilings(self, kind: str) -> dict[str, float]:
        """What the device reached in the run of a kind."""
        return {name: value for result in self.of(kind) for name, value in result["ceilings"].items()}


def groups(results: Iterable[Result]) -> list[Group]:
    """Groups: GPUs, then CPUs, then what was only compiled; of each device the newest first.

    Of two of the same day, the one with more rows is taken for the newest.
    """
    found: dict[tuple[Any, ...], list[Result]] = {}
    for number, result in enumerate(results):
        device = result["device"]
        # Two of no known commit need not be of the same one.
        commit = f"{UNKNOWN} {number}" if result["commit"] == UNKNOWN else result["commit"]
        versions = tuple(sorted(result["versions"].items()))
        found.setdefault((device["type"], device["slug"], device["name"], commit, versions), []).append(result)
    made: list[Group] = []
    devices: set[tuple[str, str]] = set()
    for key in sorted(found, key=lambda key: _age(found[key]), reverse=True):
        _, slug, name, _, _ = key
        newest = (slug, name) not in devices
        taken = not newest or slug in {other for other, _ in devices}
        devices.add((slug, name))
        mark = hashlib.sha1(repr(key).encode()).hexdigest()[:8]
        made.append(Group(tuple(found[key]), newest, f"{slug}-{mark}" if taken else slug))
    order = {"cuda": 0, "cpu": 1, "static": 3}

    def place(group: Group) -> tuple[Any, ...]:
        # A stable sort: groups of a device stay in order of age.
        return order.get(group.device["type"], 2), group.device["slug"], group.device["name"]

    return sorted(made, key=place)


def _age(results: Sequence[Result]) -> tuple[Any, ...]:
    date = max(result["date"] for result in results)
    return date, sum(len(result["rows"]) for result in results), results[0]["commit"], str(results[0]["versions"])


def headline(group: Group, stem: str) -> list[Row]:
    """An operation's rows that stand for it: one shape, pass, dtype, state and number of threads.

    The first of `STANDARD` at which ours is measured, else at which anything is; backward with forward where it was
    measured; the device's dtype of matrix operands; inputs in no cache rather than in one; most threads.
    """
    rows = [row for row in group.rows("ops") if row["stem"] == stem]
    rows = [row for row in rows if row["shape"] in {r["shape"] for r in rows if is_ours(r["impl"])}] or rows
    dtype = "bfloat16" if group.device["type"] == "cuda" else "float32"
    choices = (
        lambda row: -rank(row["shape"]),
        lambda row: row["pass"] == "forward+backward",
        lambda row: row["dtype"] == dtype,
        lambda row: row["state"].startswith("cold"),
        lambda row: row["threads"],
    )
    for choice in choices:
        best = max(map(choice, rows), default=None)
        rows = [row for row in rows if choice(row) == best]
    return rows


def stems(group: Group) -> list[str]:
    """Operations that were measured or refused, in the order they were."""
    return list(dict.fromkeys(row["stem"] for result in group.of("ops") for row in result["rows"]))


def is_ours(impl: str) -> bool:
    """Whether it is this project's kernel."""
    return impl.partition(":")[0] in OURS


def fastest(rows: Iterable[Row]) -> tuple[Row | None, Row | None, Row | None]:
    """Of rows that stand beside each other: the fastest of ours, torch, the fastest of all others; None without any."""
    kinds: list[list[Row]] = [[], [], []]
    for row in rows:
        kinds[0 if is_ours(row["impl"]) else 1 if row["impl"] == "torch" else 2].append(row)
    ours, torch, others = (min(found, key=lambda row: row["p50"], default=None) for found in kinds)
    return ours, torch, others


def rank(shape: str) -> int:
    """A shape's place in `STANDARD`."""
    return STANDARD.index(shape) if shape in STANDARD else len(STANDARD)


def arches(group: Group) -> list[int]:
    """Architectures that kernels were compiled for."""
    return sorted({row["arch"] for row in group.rows("static")})
