"""What was measured, to be read: docs/performance.md with two pictures, and the table in README.md.

    python -m benchmarks.report [--results benchmarks/results] [--docs docs] [--readme README.md] [--check]

The same results give the same bytes. Results of another device, commit or version never stand in one table or picture.
What was refused is listed with its reason and is nowhere a figure. With ``--check`` nothing is written: the exit code
is 1 where the pages are not what the results give.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _results
from benchmarks._program import DTYPES, replaced
from benchmarks._report_tables import Group, bars, code, details, figure, groups, origin, plain, table, times
from benchmarks._results import Row
from benchmarks.cases import STANDARD
from s2vfast import errors

MADE = "<!-- Made by python -m benchmarks.report; changes are lost. -->"
PAGE, PICTURES = "performance.md", "performance"
OURS = ("triton", "native")
KINDS = {"step": "training steps", "ops": "operations", "data": "clips and masks", "cold_start": "cold start"}
BODIES = {"compute": "every body computed", "share": "empty bodies shared", "drop": "empty bodies left out"}

INTRODUCTION = """\
How fast s2vfast is: next to the training step as its authors published it, next to PyTorch's own kernels, and next to
the rates that the machine reaches at all. Below each table stand the command that measured it, commit, versions and
device. Nothing is estimated. Results of different machines, commits or versions are never mixed."""
HOW_TO_READ = """## How to read the figures

- **p50** is the median: half of the runs took longer. Three fifths of them lie between **p20** and **p80**.
- A **ratio** ("2.00×", times as fast) is the other's time over this one's: the median over pairs of runs that took
  turns in one process.
- `torch` is PyTorch's own best kernels, `triton` and `native` are this project's, and `reference` is the paper in plain
  PyTorch. `:graph` is replayed as one CUDA graph, `:compile` is made by torch.compile. Other names are rivals.
- The **roofline** is the least time for a piece of work at the rates that the device reached in the same run: matrix
  products, bytes moved, exponentials, whichever takes longest (the work is *bound by* it). The share is that time over
  p50. More than 100 % means that the data were in a cache. A step's **floor** is the same for all of its work.
- **warm**: the same inputs again and again. **cold**: inputs that are in no cache."""
STEP = """\
Masks, forward, backward, clipping, AdamW and the teacher's average, on clips that exist already. Empty bodies are
computed as published (`compute`), seen by the teacher once for all of them (`share`, the same loss), or left out
(`drop`, another loss). *Difference* is that of the first losses, relative."""
OPERATIONS = """\
The parts of a step, each on its own: at the published model's shape where it was measured, with the backward pass where
there is one, on most threads, out of no cache where that was measured. All rows are below."""
STATIC = """\
What the compiler makes of the Triton kernels, for GPUs that need not be there. Registers that spill go through memory.
A *gate* is a check that every kernel must pass: registers, shared memory, instructions of the matrix units."""


# What matters most.


def headline(group: Group, op: str) -> list[Row]:
    """An operation's rows that stand for it: one shape, pass, dtype, state and number of threads.

    The first of `STANDARD` at which ours is measured, else at which anything is; backward with forward where it was
    measured; the device's dtype of matrix operands; inputs in no cache rather than in one; most threads.
    """
    rows = [row for row in group.rows("ops") if row["stem"] == op]
    with_ours = {row["shape"] for row in rows if _is_ours(row)}
    dtype = DTYPES.get(group.device["type"])

    def key(row: Row) -> tuple[Any, ...]:
        backward, cold = row["pass"] == "forward+backward", row["state"].startswith("cold")
        return row["shape"] in with_ours, -_rank(row), backward, row["dtype"] == dtype, cold, row["threads"]

    best = max(map(key, rows), default=None)
    return [row for row in rows if key(row) == best]


def _rank(row: Row) -> int:
    return STANDARD.index(row["shape"]) if row["shape"] in STANDARD else len(STANDARD)


def _is_ours(row: Row) -> bool:
    return row["impl"].partition(":")[0] in OURS


def _fastest(rows: Iterable[Row], condition: Callable[[Row], bool]) -> Row | None:
    return min(filter(condition, rows), key=lambda row: row["p50"], default=None)


def _ops(group: Group) -> list[str]:
    """Operations that were measured or refused, in the order they were."""
    return list(dict.fromkeys(row["stem"] for result in group.of("ops") for row in result["rows"]))


def gains(group: Group) -> list[Row]:
    """Of each operation that has a kernel of ours the fastest one's row, the largest ratio first."""
    rows = [_fastest(headline(group, op), lambda r: _is_ours(r) and r["ratio"] is not None) for op in _ops(group)]
    return sorted(filter(None, rows), key=lambda row: -row["ratio"])


def _glance_step(group: Group) -> Iterator[list[str]]:
    settings: dict[tuple[Any, ...], list[Row]] = {}
    for row in group.rows("step"):
        if row["sweep"] == "main" and row["ratio"] is not None and row["impl"] != row["versus"]:
            names = ("config", "clips", "tokens", "ranks", "empty_bodies", "versus")
            settings.setdefault(tuple(row[name] for name in names), []).append(row)
    for rows in settings.values():
        best = min(rows, key=lambda row: row["p50"])
        clips = f"{best['clips']} clip{'s' * (best['clips'] > 1)}"
        bodies = BODIES.get(best["empty_bodies"], best["empty_bodies"])
        what = f"A training step: {best['config']}, {clips}, {best['precision']}, {bodies}"
        text = f"**{times(best['ratio'])}** as fast as {code(best['versus'])}: {figure(best['p50'])} ms, "
        yield [what, f"{text}{figure(best['clips_per_second'])} clips a second ({code(best['impl'])})"]


def _glance_ops(group: Group) -> Iterator[list[str]]:
    if rows := gains(group):
        text = ", ".join(f"{code(row['stem'])} **{times(row['ratio'])}**" for row in rows)
        yield ["Operations that have a kernel of ours, as fast as `torch`", text]


def _glance_data(group: Group) -> Iterator[list[str]]:
    rows = group.rows("data")
    for what, versus in dict.fromkeys((row["what"], row["versus"]) for row in rows):
        row = min((r for r in rows if (r["what"], r["versus"]) == (what, versus)), key=lambda row: row["threads"])
        count = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""
        text = f"{figure(row['per_second'])} {row['unit']} a second, **{times(row['ratio'])}** as fast as {versus}"
        yield [plain(what) + count, plain(text)]


def _glance_cold_start(group: Group) -> Iterator[list[str]]:
    texts = []
    for row in group.rows("cold_start"):
        cache = "" if row["cache"] == "none" else f", Triton's cache {row['cache']}"
        what = f"{code(row['impl'])}, {plain(row['config'])}, {row['clips']} clips{cache}"
        texts.append(f"{figure(row['p50'])} s ({what})")
    if texts:
        yield ["From the start of a process to the end of its first step", ", ".join(texts)]


GLANCES = {"step": _glance_step, "ops": _glance_ops, "data": _glance_data, "cold_start": _glance_cold_start}


def at_a_glance(every: Sequence[Group]) -> list[str]:
    """A table a device of what matters most; of an older group only what no newer one has."""
    blocks: list[str] = []
    seen: set[tuple[str, str, str]] = set()
    for group in every:
        device = (group.device["slug"], group.device["name"])
        kinds = [kind for kind in KINDS if group.rows(kind) and (*device, kind) not in seen]
        seen |= {(*device, kind) for kind in kinds}
        lines = [line for kind in kinds for line in GLANCES[kind](group)]
        if lines:
            pairs = [f"| {what} | {measured} |" for what, measured in lines]
            blocks += [f"**{group.title}**", "\n".join(["| what | measured |", "| --- | --- |", *pairs])]
            blocks.append(origin([result for result in group.results if result["kind"] in kinds]))
    return blocks


def without_gpu(every: Sequence[Group], link: str) -> list[str]:
    """That no GPU has run this, and what is unknown therefore; nothing where one has."""
    if any(group.rows(kind) for group in every if group.device["type"] == "cuda" for kind in KINDS):
        return []
    text = "**No GPU has run this yet.**"
    if compiled := [row for group in every for row in group.rows("static") if group.newest]:
        wrong = sum(bool(row["wrong"]) for row in compiled)
        arches = ", ".join(f"sm_{arch}" for arch in sorted({row["arch"] for row in compiled}))
        text += f" Its kernels were [compiled]({link}) and not run, {len(compiled)} for {arches}; checked were spilled "
        text += f"registers, shared memory and matrix instructions: {f'{wrong} failed' if wrong else 'all passed'}."
    text += " All else about GPUs is unknown: times, speed-ups, memory, launches, several GPUs, and whether numbers "
    return [f"{text}agree where operands are bfloat16."]


# The page.


OPERATION = "stem impl shape pass dtype threads state p50 ratio rate bound roofline".split()


def _steps(group: Group, sweep: str) -> str:
    """Steps of a sweep; what is the same in all rows stands below the table."""
    rows = [row for row in group.rows("step") if row["sweep"] == sweep]
    settings = ("config", "clips", "tokens", "ranks", "empty_bodies", "precision", "versus")
    same = [name for name in settings if len({row[name] for row in rows}) == 1]
    names = ["impl", *(name for name in settings if name not in same), "p50", "clips_per_second", "ratio"]
    names += ["difference", "peak_mib", "launches", "floor"]
    legend = ", ".join(f"{name.replace('_', ' ')} {rows[0][name]}" for name in same) if rows else ""
    return f"<sub>All: {plain(legend)}.</sub>\n\n{group.table('step', names, rows)}" if rows else ""


def _breakdown(group: Group) -> str:
    """Ms of each main step by kind of work."""
    rows = [row for row in group.rows("step") if row["breakdown"] and row["sweep"] == "main"]
    kinds = dict.fromkeys(kind for row in rows for kind in row["breakdown"])
    flat = [row | row["breakdown"] for row in rows]
    text = group.table("step", ["impl", "empty_bodies", *kinds], flat)
    return details("Where the time of a step goes, in ms", text) if rows else ""


def _operations(group: Group) -> Iterator[str]:
    """A table of the rows that stand for the operations, and all rows of each."""
    first = []
    for op in _ops(group):
        rows = headline(group, op)
        first += [_fastest(rows, _is_ours), _fastest(rows, lambda row: row["impl"] == "torch")]
        first.append(_fastest(rows, lambda row: row["impl"] != "torch" and not _is_ours(row)))
    yield group.table("ops", OPERATION, [row | {"rate": _rate(row)} for row in first if row])
    for op in _ops(group):
        rows = [row | {"rate": _rate(row)} for row in group.rows("ops") if row["stem"] == op]
        rows.sort(key=lambda row: (_rank(row), row["pass"], row["dtype"], row["state"], row["threads"]))
        sizes = {row["shape"]: ", ".join(f"{name} {n}" for name, n in row["sizes"].items() if n) for row in rows}
        legend = "; ".join(f"`{shape}`: {text}" for shape, text in sizes.items())
        if rows:
            text = group.table("ops", OPERATION[1:], rows)
            yield details(f"<b>{op}</b>: {len(rows)} rows", text, f"<sub>{legend}.</sub>")


def _rate(row: Row) -> str:
    """Matrix operations a second where an operation is made of these, else bytes."""
    what, unit = ("gflop", "GFLOP/s") if row["gflop"] else ("gb", "GB/s")
    return f"{figure(1000 * row[what] / row['p50'])} {unit}"


def device(group: Group, pictures: dict[str, str]) -> list[str]:
    """The section of a device, or of its results of another commit."""
    blocks = [f"## {group.title}"]
    missing = [what for kind, what in KINDS.items() if not group.of(kind)]
    blocks.append(f"Not measured here: {', '.join(missing)}." if missing else "")
    if runs := [result for result in group.results if result["ceilings"]]:
        rates = [{"in the run of": run["kind"], **run["ceilings"]} for run in runs]
        blocks += ["### Rates of the device", table(list(rates[0]), rates), origin(runs)]
    if group.rows("step"):
        blocks += ["### Training step", STEP, _steps(group, "main"), pictures.get("breakdown", ""), _breakdown(group)]
        for sweep in ("batch", "tokens", "ranks"):
            if text := _steps(group, sweep):
                blocks.append(details(f"Steps by {sweep}", text))
    if group.rows("ops"):
        blocks += ["### Operations", OPERATIONS, pictures.get("speedup", ""), *_operations(group)]
    if group.rows("data"):
        blocks += ["### Data", group.table("data", "what threads p50 versus other_p50 ratio per_second unit")]
    if rows := [row | row["phases"] for row in group.rows("cold_start")]:
        phases = dict.fromkeys(name for row in rows for name in row["phases"])
        names = ["impl", "config", "clips", "cache", "p50", *phases]
        text = "Seconds from the start of a process to the end of its first step; a second step comes after that."
        blocks += ["### Cold start", text, group.table("cold_start", names, rows, "s")]
    return blocks


def static(group: Group) -> list[str]:
    """What was compiled ahead of time, an architecture a line, and kernels that fail a gate."""
    arches = []
    for arch in sorted({row["arch"] for row in group.rows("static")}):
        rows = [row for row in group.rows("static") if row["arch"] == arch]
        numbers = {"architecture": f"sm_{arch}", "kernels": len(rows)}
        numbers["most registers a thread"] = max(row["registers"] for row in rows)
        numbers["with spills"] = sum(row["spills"] > 0 for row in rows)
        numbers["most shared memory, KiB"] = max(row["shared"] for row in rows) / 1024
        arches.append(numbers | {"fail a gate": sum(bool(row["wrong"]) for row in rows)})
    kernel = ("stem", "kernel", "arch", "dtype")
    lines = [
        f"- {' '.join(str(row[name]) for name in kernel)}: {'; '.join(row['wrong'])}"
        for row in group.rows("static")
        if row["wrong"]
    ]
    names = list(arches[0]) if arches else []
    return [f"## {group.title}", STATIC, group.table("static", names, arches), "\n".join(map(plain, lines))]


def refusals(every: Sequence[Group]) -> str:
    """Rows that were refused, and why."""
    lines = [
        f"- {group.title}, {kind}, {code(' '.join(row[name] for name in names))}: {plain(row['refused'])}"
        for group in every
        for kind, names in _results.IDENTITY.items()
        for row in group.rows(kind, True)
    ]
    if not lines:
        return "No row was refused: all that was measured is shown."
    return details(f"Refused and not shown: {len(lines)} row{'s' * (len(lines) > 1)}", "\n".join(lines))


def pages(results: Path, docs: Path, readme: Path) -> tuple[dict[Path, bytes], str]:
    """All files that the results give, and a line on their rows.

    Raises:
        DataError: a result or README cannot be used.
    """
    paths = _results.paths(results)
    if not paths:
        raise errors.DataError(
            f"{results}: holds no results (DEVICE/KIND.json); measure first: python -m benchmarks.run --out {results}"
        )
    every = groups([_results.read(path) for path in paths])
    link = "#compiled-not-run"
    blocks = [MADE, "# Performance", INTRODUCTION, "## At a glance", *at_a_glance(every), *without_gpu(every, link)]
    blocks += [refusals(every), HOW_TO_READ]
    files: dict[Path, bytes] = {}
    for group in every:
        if group.device["type"] == "static":
            blocks += static(group)
            continue
        pictures = {}
        for name, picture in _pictures(group).items() if group.newest else ():
            path = docs / PICTURES / f"{group.device['slug']}-{name}.svg"
            files[path] = picture.encode()
            pictures[name] = f"![{name}]({PICTURES}/{path.name})"
        blocks += device(group, pictures)
    files[docs / PAGE] = ("\n\n".join(filter(None, blocks)) + "\n").encode()
    page = os.path.relpath(docs / PAGE, readme.parent).replace(os.sep, "/")
    files[readme] = replaced(readme, "performance", readme_block(every, page), optional=True).encode()
    counts = [sum(len(group.rows(kind, refused)) for group in every for kind in _results.FIELDS) for refused in (0, 1)]
    return files, f"{counts[0]} rows shown, {counts[1]} not shown (refused)"


def _pictures(group: Group) -> dict[str, str]:
    """SVG pictures by name."""
    lines = [(row["stem"], {"": row["ratio"]}, f"{times(row['ratio'])} {row['impl']}") for row in gains(group)]
    rows = [row for row in group.rows("step") if row["breakdown"] and row["sweep"] == "main"]
    steps = [(f"{row['impl']}, {row['empty_bodies']}", row["breakdown"], f"{figure(row['p50'])} ms") for row in rows]
    pictures = {"speedup": ("Operations, times as fast as torch", lines)}
    pictures["breakdown"] = ("Milliseconds of a training step", steps)
    return {name: bars(f"{title} ({group.device['name']})", rows) for name, (title, rows) in pictures.items() if rows}


def readme_block(every: Sequence[Group], link: str) -> str:
    """The text between README's marks."""
    head = "Medians, interleaved in one process but for the cold start; a ratio (×) is the other's time over "
    head += f"this one's. How it was measured, all rows and pictures: [{link}]({link})."
    return "\n\n".join([MADE, head, *at_a_glance(every), *without_gpu(every, f"{link}#compiled-not-run")])


def stale(files: dict[Path, bytes], docs: Path) -> list[str]:
    """A line for each file that is not as the results give it, and for each picture that no result gives."""
    lines = []
    for path, content in files.items():
        if not path.is_file() or path.read_bytes() != content:
            lines.append(f"{path}: is not what the results give; run python -m benchmarks.report")
    leftover = sorted({*(docs / PICTURES).glob("*.*")} - set(files))
    return lines + [f"{path}: belongs to no result; delete it" for path in leftover]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages; 1 with ``--check`` where they are stale, 2 where something cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=_results.RESULTS, help="folder of DEVICE/KIND.json")
    parser.add_argument("--docs", type=Path, default=_results.ROOT / "docs", help=f"folder of {PAGE} and {PICTURES}/")
    parser.add_argument("--readme", type=Path, default=_results.ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a page is stale")
    options = parser.parse_args(arguments)
    try:
        files, rows = pages(options.results, options.docs, options.readme)
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        lines = stale(files, options.docs)
        print("\n".join(lines or ["the pages are what the results give"]))
        return int(bool(lines))
    (options.docs / PICTURES).mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)
    print(f"{len(files)} files written, {options.docs / PAGE} among them: {rows}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
