"""The words of the report: what matters most, how to read it, and a section for each device."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import _groups, _results, _tables
from benchmarks._groups import SWEEPS, Group, Row
from benchmarks._plots import THEMES, Plot
from benchmarks._tables import code, figure, origin, table, times

PICTURES = "performance"
MADE = "<!-- Made by python -m benchmarks.report; changes are lost. -->"
_MEASURED = {"step": "training steps", "ops": "operations", "data": "clips and masks", "cold_start": "cold start"}

HOW_TO_READ = """## How to read the figures

- **p50** is the median: half of the runs took longer. Three fifths of them lie between **p20** and **p80**.
- A **ratio** ("2.00×", times as fast) is the other's time over this one's. Both take turns in one process, so that
  whatever else the machine does slows both; the ratio is the median over these interleaved pairs, and so not quite the
  quotient of two medians.
- `torch` is PyTorch's own best kernels, `triton` and `native` are this project's, and `reference` is the paper in plain
  PyTorch: an operation, or the whole published training step. `:graph` says that it is replayed as one CUDA graph,
  `:compile` that torch.compile made it. Other names are other ways to do the same.
- The **roofline** is the least time that the device could take for a piece of work, at the rates that it reached itself
  in the same run: matrix products, bytes moved, exponentials, whichever takes longest (what the work is *bound by*).
  The share is that time over p50: about 100 % is all there is, and more means that the data were in a
  cache, or that the product which set the rate ran less well than this one. A step's **floor** is the
  same, for all of its work.
- **warm**: the same inputs again and again; **cold**: inputs that are in no cache; *not captured*: launched one by one
  instead of as a CUDA graph.
- **Not shown**: a row that was refused, because it does not compute the same or could not run. It is never a figure."""


def page(groups: Sequence[Group], drawn: Mapping[Group, Mapping[str, Plot]]) -> str:
    """docs/performance.md."""
    blocks = [MADE, "# Performance", INTRODUCTION, "## At a glance", *at_a_glance(groups)]
    blocks += without_gpu(groups, "#compiled-not-run")
    first = drawn.get(groups[0], {}).get("speedup")
    blocks += [picture(first) if first else "", not_shown(groups), HOW_TO_READ]
    for group in groups:
        if group.device["type"] == _results.STATIC:
            blocks += static(group)
        else:
            blocks += device(group, {name: plot for name, plot in drawn[group].items() if plot != first}, groups)
    return "\n\n".join(filter(None, blocks)) + "\n"


INTRODUCTION = """\
How fast s2vfast is: beside the training step as its authors published it, beside PyTorch's own kernels, and beside
what the machine could do at all. Every figure was measured by a command that is named below its table, at the commit
that is named there. Nothing is estimated, and results of different machines or versions are never mixed."""


def title(group: Group) -> str:
    """A group's heading."""
    name = "Compiled, not run" if group.device["type"] == _results.STATIC else group.device["name"]
    return name if group.newest else f"{name}, {_tables.name_of(group.commit)}, {group.date}"


def at_a_glance(groups: Iterable[Group]) -> list[str]:
    """A table a device of what matters most; of an older group only what no newer one has."""
    blocks: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    for group in groups:
        device = (group.device["slug"], group.device["name"])
        kinds = [kind for kind in _MEASURED if group.of(kind) and (*device, kind) not in seen]
        seen |= {(*device, kind) for kind in kinds}
        rows = [row for kind in kinds for row in GLANCES[kind](group)]
        empty = [kind for kind in kinds if not group.rows(kind)]
        rows += [[_MEASURED[kind], f"not shown: {len(group.refused(kind))} rows, all refused"] for kind in empty]
        if rows:
            results = [result for result in group.results if result["kind"] in kinds]
            blocks += [f"**{title(group)}**", table("what | measured", rows), origin(results)]
    return blocks


BODIES = {"compute": "every body computed", "share": "empty bodies shared", "drop": "empty bodies left out"}


def _glance_step(group: Group) -> Iterator[list[str]]:
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in group.rows("step"):
        if row["sweep"] == "main" and row["ratio"] is not None and row["impl"] != row["versus"]:
            names = ("config", "clips", "tokens", "ranks", "empty_bodies", "versus")
            settings.setdefault(tuple(row[name] for name in names), []).append(row)
    for rows in settings.values():
        best = min(rows, key=lambda row: row["p50"])
        bodies = BODIES.get(best["empty_bodies"], best["empty_bodies"])
        clips = f"{best['clips']} clip{'s' * (best['clips'] > 1)}"
        what = f"A training step: {best['config']}, {clips}, {best['precision']}, {bodies}"
        said = f"**{times(best['ratio'])}** as fast as {code(best['versus'])}: {figure(best['p50'])} ms, "
        yield [what, f"{said}{figure(best['clips_per_second'])} clips a second ({code(best['impl'])})"]


def _glance_ops(group: Group) -> Iterator[list[str]]:
    found, missing = [], []
    for stem in _groups.stems(group):
        rows = _groups.headline(group, stem)
        ours, _, _ = _groups.fastest(row for row in rows if row["ratio"] is not None)
        if ours:
            found.append(ours)
        elif not rows:
            missing.append(stem)
    if found:
        found.sort(key=lambda row: -row["ratio"])
        said = ", ".join(f"{code(row['stem'])} **{times(row['ratio'])}**" for row in found)
        yield ["Operations that have a kernel of ours, as fast as `torch`", said]
    if missing and group.rows("ops"):
        yield ["Operations of which nothing is shown", ", ".join(map(code, missing))]


def _glance_data(group: Group) -> Iterator[list[str]]:
    rows = group.rows("data")
    for what, versus in dict.fromkeys((row["what"], row["versus"]) for row in rows):
        row = min((r for r in rows if (r["what"], r["versus"]) == (what, versus)), key=lambda row: row["threads"])
        count = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""
        said = f"{figure(row['per_second'])} {row['unit']} a second, **{times(row['ratio'])}** as fast as {versus}"
        yield [_tables.plain(what) + count, _tables.plain(said)]


def _glance_cold_start(group: Group) -> Iterator[list[str]]:
    rows = group.rows("cold_start")
    caches = ["" if row["cache"] == "none" else f", Triton's cache {row['cache']}" for row in rows]
    said = [
        f"{figure(row['p50'])} s ({code(row['impl'])}, {_tables.plain(row['config'])}, {row['clips']} clips{how})"
        for row, how in zip(rows, caches, strict=True)
    ]
    if said:
        yield ["From the start of a process to the end of its first step", ", ".join(said)]


GLANCES = {"step": _glance_step, "ops": _glance_ops, "data": _glance_data, "cold_start": _glance_cold_start}


def without_gpu(groups: Sequence[Group], link: str) -> list[str]:
    """That no GPU has run this, and what is unknown therefore; nothing where one has."""
    gpus = [group for group in groups if group.device["type"] == "cuda"]
    if any(group.rows(kind) for group in gpus for kind in _MEASURED):
        return []
    if gpus:
        count = sum(len(group.refused(kind)) for group in gpus for kind in _MEASURED)
        said = f"**No GPU has given a figure yet.** One was tried, and {count} rows were refused."
    else:
        said = "**No GPU has run this yet.**"
    compiled = next((group for group in groups if group.rows("static")), None)
    if compiled:
        rows = compiled.rows("static")
        wrong = sum(bool(row["wrong"]) for row in rows)
        arches = ", ".join(f"sm_{arch}" for arch in _groups.arches(compiled))
        said += f" Its kernels were [compiled]({link}) and not run, {len(rows)} for {arches}; checked were spilled "
        said += f"registers, shared memory and matrix instructions: {f'{wrong} failed' if wrong else 'all passed'}."
    else:
        said += " Nor is there a result of compiling its kernels."
    said += " All else about GPUs is unknown: times, speed-ups, memory, launches, several GPUs, and whether numbers "
    return [f"{said}agree where operands are bfloat16."]


def not_shown(groups: Sequence[Group]) -> str:
    """How many rows were refused, and why."""
    lines = []
    for group in groups:
        for kind in _results.FIELDS:
            names = [" ".join(row[name] for name in _results.IDENTITY[kind]) for row in group.refused(kind)]
            for name, row in zip(names, group.refused(kind), strict=True):
                lines.append(f"- {title(group)}, {kind}, {code(name)}: {_tables.plain(row['refused'])}")
    if not lines:
        return "No row was refused: all that was measured is shown."
    summary = f"Refused and not shown: {len(lines)} row{'s' * (len(lines) > 1)}"
    return _tables.details(summary, "\n".join(lines))


def picture(plot: Plot) -> str:
    """A picture for light and dark pages."""
    light, dark = (f"{PICTURES}/{plot.file(theme)}" for theme in THEMES)
    alt = html.escape(plot.alt)
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="{alt}" src="{light}" width="720">\n</picture>'
    )


def device(group: Group, drawn: Mapping[str, Plot], groups: Sequence[Group]) -> list[str]:
    """The section of a device, or of its results of another commit."""
    pictures = {name: picture(plot) for name, plot in drawn.items()}
    blocks = [f"## {title(group)}"]
    same = [other for other in groups if other.device["name"] == group.device["name"]]
    missing = [what for kind, what in _MEASURED.items() if not any(other.of(kind) for other in same)]
    if group.newest and missing:
        blocks.append(f"Not measured on this device: {', '.join(missing)}.")
    if found := _tables.ceilings(group):
        blocks += ["### What the device reaches", found]
    if group.of("step"):
        blocks += ["### Training step", STEP, _tables.steps(group, "main"), pictures.get("breakdown", "")]
        if found := _tables.breakdown(group):
            blocks.append(_tables.details("Where the time of a step goes, in ms", found))
        for sweep in SWEEPS:
            if found := _tables.steps(group, sweep):
                blocks += [f"#### By {sweep}", pictures.get(sweep, ""), _tables.details(f"Steps by {sweep}", found)]
    if group.of("ops"):
        blocks += ["### Operations", OPERATIONS, _tables.overview(group)]
        blocks += [pictures.get("speedup", ""), pictures.get("roofline", "")]
        for stem in _groups.stems(group):
            count = sum(row["stem"] == stem for row in group.rows("ops"))
            refused = sum(row["stem"] == stem for row in group.refused("ops"))
            summary = f"<b>{stem}</b>: {count} rows" + (f", {refused} not shown" if refused else "")
            blocks.append(_tables.details(summary, _tables.operation(group, stem)))
    if group.of("data"):
        blocks += ["### Data", _tables.data(group)]
    if group.of("cold_start"):
        blocks += ["### Cold start", COLD_START, _tables.cold_start(group)]
    return blocks


STEP = """\
Masks, forward, backward, clipping, AdamW and the teacher's average, on clips that are there already. Empty bodies
are computed as published (`compute`), seen by the teacher once for all of them (`share`, the same loss), or left out
(`drop`, another loss). *Difference* is that of the first losses, relative."""
COLD_START = "From the start of a process to the end of its first step; a second step comes after that."
OPERATIONS = """\
The parts that a step is made of, each on its own: at the published model's shape where it was measured, with the
backward pass where there is one, on most threads, out of no cache where that was measured. All other rows are below."""


def static(group: Group) -> list[str]:
    """What was compiled ahead of time."""
    blocks = [f"## {title(group)}", STATIC, _tables.compiled(group)]
    for arch in _groups.arches(group):
        count = sum(row["arch"] == arch for row in group.rows("static"))
        blocks.append(_tables.details(f"sm_{arch}: {count} kernels", _tables.kernels(group, arch)))
    return blocks


STATIC = """\
What the compiler makes of the Triton kernels, for GPUs that need not be there. Registers that spill go through memory;
HGMMA, HMMA and UTCHMMA are instructions of the matrix units, FFMA and MUFU (exponentials and the like) of the others. A
*gate* is a check that every kernel must pass."""


def readme_block(groups: Sequence[Group], link: str) -> str:
    """What stands between README's marks."""
    said = "Medians, interleaved in one process but for the cold start; a ratio (×) is the other's time over "
    said += f"this one's. How it was measured, all rows and pictures: [{link}]({link})."
    return "\n\n".join([MADE, said, *at_a_glance(groups), *without_gpu(groups, f"{link}#compiled-not-run")])
