"""What was measured, to be read: docs/performance.md with two pictures, and the table in docs/training.md.

    python -m benchmarks.report [--results benchmarks/results] [--docs docs] [--summary docs/training.md] [--check]

The same results give the same bytes. A table has rows of one result, and so of one device, commit and set of versions;
the tables at the top combine results only where these are the same. What was refused is listed with its reason and is
nowhere a figure. With ``--check`` nothing is written: the exit code is 1 where the pages are not what the results give.
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
from benchmarks._report_tables import bars, code, details, figure, origin, plain, table, times
from benchmarks._results import Result, Row
from benchmarks.cases import STANDARD
from s2vfast import errors

MADE = "<!-- Made by python -m benchmarks.report; changes are lost. -->"
PAGE, PICTURES = "performance.md", "performance"
KINDS = ("step", "ops", "data", "cold_start", "static")
DEVICES = ("cuda", "cpu", "static")
OURS = ("triton", "native")
BODIES = {"compute": "every body computed", "share": "empty bodies shared", "drop": "empty bodies left out"}
OPERATION = "op impl shape pass dtype threads state p50 ratio rate bound roofline"

INTRODUCTION = """\
How fast s2vfast is: next to the training step as its authors published it, next to PyTorch's own kernels, and next to
the rates that the machine reaches at all. Below each table stand the command that measured it, commit, versions and
device. Nothing among them is estimated; what is modelled stands apart, at the end. Results of different machines,
commits or versions are never mixed."""
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
TEXTS = {
    "step": """### Training step

Masks, forward, backward, clipping, AdamW and the teacher's average, on clips that exist already. Empty bodies are
computed as published (`compute`), seen by the teacher once for all of them (`share`, the same loss), or left out
(`drop`, another loss). *Difference* is that of the first losses, relative.""",
    "ops": """### Operations

The parts of a step, each on its own: at the published model's shape where it was measured, with the backward pass where
there is one, on most threads, out of no cache where that was measured. All rows are below.""",
    "data": "### Data",
    "cold_start": """### Cold start

Seconds from the start of a process to the end of its first step; a second step comes after that.""",
    "static": """What the compiler makes of the Triton kernels, for GPUs that need not be there. Registers that spill go
through memory. A *gate* is a check that every kernel must pass: registers, shared memory, instructions of the matrix
units.""",
}


def measured(result: Result) -> list[Row]:
    """Rows that are measurements."""
    return [row for row in result["rows"] if "refused" not in row]


def title(result: Result) -> str:
    """The heading of a result's device."""
    return "Compiled, not run" if result["device"]["type"] == "static" else result["device"]["name"]


# What matters most.


def headline(rows: Sequence[Row], device: str) -> list[Row]:
    """Of an operation's rows those that stand for it: one shape, pass, dtype, state and number of threads.

    The first of `STANDARD` at which ours is measured, else at which anything is; backward with forward where it was
    measured; the dtype of matrix operands of this type of device; inputs in no cache rather than in one; most threads.
    """
    with_ours = {row["shape"] for row in rows if _is_ours(row)}

    def key(row: Row) -> tuple[Any, ...]:
        backward, cold = row["pass"] == "forward+backward", row["state"].startswith("cold")
        return row["shape"] in with_ours, -_rank(row), backward, row["dtype"] == DTYPES[device], cold, row["threads"]

    best = max(map(key, rows), default=None)
    return [row for row in rows if key(row) == best]


def _rank(row: Row) -> int:
    return STANDARD.index(row["shape"]) if row["shape"] in STANDARD else len(STANDARD)


def _is_ours(row: Row) -> bool:
    return row["impl"].partition(":")[0] in OURS


def _fastest(rows: Iterable[Row], condition: Callable[[Row], bool]) -> Row | None:
    return min(filter(condition, rows), key=lambda row: row["p50"], default=None)


def _by(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows with equal fields together, in their order."""
    parts: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        parts.setdefault(tuple(row[name] for name in names), []).append(row)
    return parts


def _headlines(result: Result) -> list[list[Row]]:
    """`headline` of each operation."""
    return [headline(rows, result["device"]["type"]) for rows in _by(measured(result), "op").values()]


def gains(result: Result) -> list[Row]:
    """Of each operation that has a kernel of ours the fastest one's row, the largest ratio first."""
    fastest = (_fastest(rows, lambda row: _is_ours(row) and row["ratio"] is not None) for rows in _headlines(result))
    return sorted(filter(None, fastest), key=lambda row: -row["ratio"])


def glance(result: Result) -> Iterator[tuple[str, str]]:
    """What matters most of a result: what, and its figures."""
    rows = measured(result)
    if result["kind"] == "step":
        rows = [r for r in rows if r["sweep"] == "main" and r["ratio"] is not None and r["impl"] != r["versus"]]
        for group in _by(rows, "config", "clips", "tokens", "ranks", "empty_bodies", "versus").values():
            best = min(group, key=lambda row: row["p50"])
            setting = f"{best['config']}, {best['clips']} clip{'s' * (best['clips'] > 1)}, {best['precision']}"
            text = f"**{times(best['ratio'])}** as fast as {code(best['versus'])}: {figure(best['p50'])} ms, "
            text += f"{figure(best['clips_per_second'])} clips a second ({code(best['impl'])})"
            yield f"A training step: {setting}, {BODIES.get(best['empty_bodies'], best['empty_bodies'])}", text
    elif result["kind"] == "ops":
        if text := ", ".join(f"{code(row['op'])} **{times(row['ratio'])}**" for row in gains(result)):
            yield "Operations that have a kernel of ours, as fast as `torch`", text
    elif result["kind"] == "data":
        for group in _by(rows, "what", "versus").values():
            row = min(group, key=lambda row: row["threads"])
            count = f", {row['threads']} thread{'s' * (row['threads'] > 1)}" if row["threads"] else ""
            rate = f"{figure(row['per_second'])} {row['unit']} a second"
            yield plain(row["what"]) + count, f"{rate}, **{times(row['ratio'])}** as fast as {plain(row['versus'])}"
    elif result["kind"] == "cold_start" and rows:
        caches = ["" if row["cache"] == "none" else f", Triton's cache {row['cache']}" for row in rows]
        texts = [
            f"{figure(row['p50'])} s ({code(row['impl'])}, {plain(row['config'])}, {row['clips']} clips{cache})"
            for row, cache in zip(rows, caches, strict=True)
        ]
        yield "From the start of a process to the end of its first step", ", ".join(texts)


def at_a_glance(results: Sequence[Result]) -> list[str]:
    """A table of what matters most for results of the same device, commit and versions; then what no GPU has shown."""
    by_origin: dict[tuple[Any, ...], list[Result]] = {}
    for number, result in enumerate(results):
        # Two of no known commit need not be of the same one.
        commit = number if result["commit"] == _results.UNKNOWN else result["commit"]
        by_origin.setdefault((title(result), commit, str(sorted(result["versions"].items()))), []).append(result)
    blocks: list[str] = []
    for group in by_origin.values():
        lines = [f"| {what} | {text} |" for result in group for what, text in glance(result)]
        if lines:
            used = sorted((result for result in group if any(glance(result))), key=lambda result: result["kind"])
            blocks += [f"**{title(group[0])}**", "\n".join(["| what | measured |", "| --- | --- |", *lines])]
            blocks.append(origin(used))
    return blocks


def without_gpu(results: Sequence[Result], link: str) -> list[str]:
    """That no GPU has run this, and what is unknown therefore; nothing where one has."""
    if any(measured(result) for result in results if result["device"]["type"] == "cuda"):
        return []
    text = "**No GPU has run this yet.**"
    if compiled := [row for result in results if result["kind"] == "static" for row in measured(result)]:
        wrong = sum(bool(row["wrong"]) for row in compiled)
        arches = ", ".join(f"sm_{arch}" for arch in sorted({row["arch"] for row in compiled}))
        text += f" Its kernels were [compiled]({link}) and not run, {len(compiled)} for {arches}; checked were spilled "
        text += f"registers, shared memory and matrix instructions: {f'{wrong} failed' if wrong else 'all passed'}."
    text += " All else about GPUs is unknown: times, speed-ups, memory, launches, several GPUs, and whether numbers "
    return [f"{text}agree where operands are bfloat16."]


# The page.


def _step(result: Result, picture: str) -> Iterator[str]:
    for (sweep,), rows in _by(measured(result), "sweep").items():
        settings = ("config", "clips", "tokens", "ranks", "empty_bodies", "precision", "versus")
        same = [name for name in settings if len({row[name] for row in rows}) == 1]
        names = ["impl", *(name for name in settings if name not in same)]
        names += "p50 clips_per_second ratio difference peak_mib launches floor".split()
        legend = ", ".join(f"{name.replace('_', ' ')} {rows[0][name]}" for name in same)
        blocks = [f"<sub>All: {plain(legend)}.</sub>", table(names, rows), origin([result])]
        yield from blocks if sweep == "main" else [details(f"Steps by {sweep}", *blocks)]
        if sweep == "main" and any(row["breakdown"] for row in rows):
            kinds = dict.fromkeys(kind for row in rows for kind in row["breakdown"])
            flat = table(["impl", "empty_bodies", *kinds], [row | row["breakdown"] for row in rows])
            yield from (picture, details("Where the time of a step goes, in ms", flat, origin([result])))


def _ops(result: Result, picture: str) -> Iterator[str]:
    def rated(rows: Iterable[Row | None]) -> list[Row]:
        return [row | {"rate": _rate(row)} for row in rows if row]

    first: list[Row | None] = []
    for rows in _headlines(result):
        first += [_fastest(rows, _is_ours), _fastest(rows, lambda row: row["impl"] == "torch")]
        first.append(_fastest(rows, lambda row: row["impl"] != "torch" and not _is_ours(row)))
    yield from (picture, table(OPERATION.split(), rated(first)), origin([result]))
    for (op,), rows in _by(measured(result), "op").items():
        rows.sort(key=lambda row: (_rank(row), row["pass"], row["dtype"], row["state"], row["threads"]))
        sizes = {row["shape"]: ", ".join(f"{name} {n}" for name, n in row["sizes"].items() if n) for row in rows}
        legend = "; ".join(f"`{shape}`: {text}" for shape, text in sizes.items())
        rows_table = table(OPERATION.split()[1:], rated(rows))
        yield details(f"<b>{op}</b>: {len(rows)} rows", rows_table, f"<sub>{legend}.</sub>", origin([result]))


def _rate(row: Row) -> str:
    """Matrix operations a second where an operation is made of these, else bytes."""
    what, unit = ("gflop", "GFLOP/s") if row["gflop"] else ("gb", "GB/s")
    return f"{figure(1000 * row[what] / row['p50'])} {unit}"


def _static(rows: Sequence[Row]) -> Iterator[tuple[list[str], list[Row]]]:
    """A line an architecture; then kernels that fail a gate."""
    arches = []
    for (arch,), kernels in sorted(_by(rows, "arch").items()):
        numbers: Row = {"architecture": f"sm_{arch}", "kernels": len(kernels)}
        numbers["most registers a thread"] = max(row["registers"] for row in kernels)
        numbers["with spills"] = sum(row["spills"] > 0 for row in kernels)
        numbers["most shared memory, KiB"] = max(row["shared"] for row in kernels) / 1024
        arches.append(numbers | {"fail a gate": sum(bool(row["wrong"]) for row in kernels)})
    yield list(arches[0]), arches
    if bad := [row | {"wrong": "; ".join(row["wrong"])} for row in rows if row["wrong"]]:
        yield ["op", "kernel", "arch", "dtype", "wrong"], bad


def section(result: Result, pictures: dict[str, str]) -> list[str]:
    """All of a result."""
    rows, blocks = measured(result), [TEXTS[result["kind"]]]
    if result["ceilings"]:
        rates = table(list(result["ceilings"]), [result["ceilings"]])
        blocks += ["Rates that the device reached in this run:", rates, origin([result])]
    if not rows:
        return []
    if result["kind"] == "step":
        return [*blocks, *_step(result, pictures.get("breakdown", ""))]
    if result["kind"] == "ops":
        return [*blocks, *_ops(result, pictures.get("speedup", ""))]
    if result["kind"] == "data":
        tables = [("what threads p50 versus other_p50 ratio per_second unit".split(), rows)]
    elif result["kind"] == "static":
        tables = list(_static(rows))
    else:
        phases = dict.fromkeys(name for row in rows for name in row["phases"])
        tables = [(["impl", "config", "clips", "cache", "p50", *phases], [row | row["phases"] for row in rows])]
    unit = "s" if result["kind"] == "cold_start" else "ms"
    return [
        *blocks,
        *(block for names, table_rows in tables for block in (table(names, table_rows, unit), origin([result]))),
    ]


def pictures_of(result: Result) -> dict[str, str]:
    """SVG pictures of a result, by name."""
    device = result["device"]["name"]
    if result["kind"] == "ops" and (rows := gains(result)):
        lines = [(row["op"], {"": row["ratio"]}, f"{times(row['ratio'])} {row['impl']}") for row in rows]
        return {"speedup": bars(f"Operations, times as fast as torch ({device})", lines)}
    rows = [row for row in measured(result) if row.get("breakdown") and row["sweep"] == "main"]
    lines = [(f"{row['impl']}, {row['empty_bodies']}", row["breakdown"], f"{figure(row['p50'])} ms") for row in rows]
    return {"breakdown": bars(f"Milliseconds of a training step ({device})", lines)} if rows else {}


def refusals(results: Sequence[Result]) -> str:
    """Rows that were refused, and why."""
    lines = [
        f"- {title(result)}, {result['kind']}, {code(' '.join(row[name] for name in names))}: {plain(row['refused'])}"
        for result in results
        for names in [_results.IDENTITY[result["kind"]]]
        for row in result["rows"]
        if "refused" in row
    ]
    if not lines:
        return "No row was refused: all that was measured is shown."
    return details(f"Refused and not shown: {len(lines)} row{'s' * (len(lines) > 1)}", "\n".join(lines))


def pages(folder: Path, docs: Path, summary: Path) -> tuple[dict[Path, bytes], str]:
    """All files that the results in a folder give, and a line on their rows.

    Raises:
        DataError: a result or the summary cannot be used.
    """
    results = [_results.read(path) for path in _results.paths(folder)]
    if not results:
        raise errors.DataError(
            f"{folder}: holds no results (DEVICE/KIND.json); measure first: python -m benchmarks.run --out {folder}"
        )
    results.sort(key=lambda result: KINDS.index(result["kind"]))
    results.sort(key=lambda result: result["date"], reverse=True)
    results.sort(key=lambda result: (DEVICES.index(result["device"]["type"]), title(result)))
    link = "#compiled-not-run"
    blocks = [MADE, "# Performance", INTRODUCTION, "## At a glance", *at_a_glance(results), *without_gpu(results, link)]
    blocks += [refusals(results), HOW_TO_READ]
    files: dict[Path, bytes] = {}
    for number, result in enumerate(results):
        if number == 0 or title(results[number - 1]) != title(result):
            blocks.append(f"## {title(result)}")
        pictures = {}
        for name, picture in pictures_of(result).items():
            path = docs / PICTURES / f"{result['device']['slug']}-{name}.svg"
            if files.setdefault(path, picture.encode()) == picture.encode():  # of several results that of the newest
                pictures[name] = f"![{name}]({PICTURES}/{path.name})"
        blocks += section(result, pictures)
    if (modelled := folder / "static" / "modelled.md").is_file():
        blocks.append(modelled.read_text("utf-8").strip())
    files[docs / PAGE] = ("\n\n".join(filter(None, blocks)) + "\n").encode()
    page = os.path.relpath(docs / PAGE, summary.parent).replace(os.sep, "/")
    head = "Medians, interleaved in one process but for the cold start; a ratio (×) is the other's time over "
    head += f"this one's. How it was measured, all rows and pictures: [{page}]({page})."
    block = "\n\n".join([MADE, head, *at_a_glance(results), *without_gpu(results, page + link)])
    files[summary] = replaced(summary, "performance", block, optional=True).encode()
    shown_rows = sum(len(measured(result)) for result in results)
    refused = sum(len(result["rows"]) for result in results) - shown_rows
    return files, f"{shown_rows} rows shown, {refused} not shown (refused)"


def stale(files: dict[Path, bytes], docs: Path) -> list[str]:
    """A line for each file that is not as the results give it, and for each picture that no result gives."""
    old = [path for path, content in files.items() if not path.is_file() or path.read_bytes() != content]
    lines = [f"{path}: is not what the results give; run python -m benchmarks.report" for path in old]
    leftover = sorted({*(docs / PICTURES).glob("*.*")} - set(files))
    return lines + [f"{path}: belongs to no result; delete it" for path in leftover]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages; 1 with ``--check`` where they are stale, 2 where something cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=_results.RESULTS, help="folder of DEVICE/KIND.json")
    parser.add_argument("--docs", type=Path, default=_results.ROOT / "docs", help=f"folder of {PAGE} and {PICTURES}/")
    parser.add_argument("--summary", type=Path, default=_results.ROOT / "docs/training.md")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a page is stale")
    options = parser.parse_args(arguments)
    try:
        files, rows = pages(options.results, options.docs, options.summary)
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
