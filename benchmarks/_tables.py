"""Results as Markdown: numbers, tables, and under each table its origin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import _groups
from benchmarks._groups import Group, Result, Row, rank

DASH = "–"
_INSTRUCTIONS = ("HGMMA", "HMMA", "UTCHMMA", "FFMA", "MUFU", "all")


# Cells.


def figure(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value else "0"


def times(value: float | None) -> str:
    """A ratio, as in '1.85×'."""
    if value is None:
        return DASH
    return f"{value:.2f}×" if value < 9.995 else f"{value:.1f}×" if value < 99.95 else f"{value:,.0f}×"


def spread(row: Row) -> str:
    """The median, and between which times three fifths of the runs lie."""
    return f"{figure(row['p50'])} [{figure(row['p20'])}–{figure(row['p80'])}]"


def share(value: float | None) -> str:
    """Per cent."""
    return DASH if value is None else f"{100 * value:.{1 if value < 0.095 else 0}f} %"


def rate(row: Row) -> str:
    """Of an operation: matrix operations a second where it is made of these, else bytes."""
    if not row["gflop"]:
        return f"{figure(1000 * row['gb'] / row['p50'])} GB/s"
    tera = row["gflop"] / row["p50"]
    return f"{figure(tera)} TFLOP/s" if tera >= 1 else f"{figure(1000 * tera)} GFLOP/s"


def name_of(commit: str) -> str:
    """A commit, and that it is not all that was measured where it is not."""
    if commit == "unknown":
        return "unknown commit"
    return f"commit `{commit}`" + (", with uncommitted changes" if "+" in commit else "")


def threads_of(result: Result) -> str:
    """As in ', 2 threads'; nothing on a GPU."""
    count = result["device"]["threads"]
    return f", {count} thread{'s' * (count > 1)}" if count else ""


def origin(results: Iterable[Result]) -> str:
    """What a table stands on: commands, commit, date, device, threads, versions; a line where these are the same."""
    commands: dict[str, dict[str, None]] = {}
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        device = result["device"]["name"] + threads_of(result)
        rest = " · ".join([name_of(result["commit"]), result["date"], device, versions])
        commands.setdefault(rest, {})[f"`{result['command']}`"] = None
    lines = [f"{', '.join(made)} · {rest}" for rest, made in commands.items()]
    return "<br>\n".join(f"<sub>{plain(line)}</sub>" for line in lines)


def plain(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(header: str, rows: Iterable[Sequence[str]]) -> str:
    """Markdown; ``header`` is cells between ``|``, those that begin with ``>`` are of numbers.

    A row that has fewer cells is filled up.
    """
    names = [name.strip() for name in header.split("|")]
    lines = [[name.lstrip(">") for name in names], ["---:" if name.startswith(">") else "---" for name in names]]
    lines += [[*row, *[""] * (len(names) - len(row))] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def details(summary: str, *blocks: str) -> str:
    """Blocks that are shown on a click."""
    return "\n\n".join([f"<details><summary>{summary}</summary>", *filter(None, blocks), "</details>"])


def code(name: str) -> str:
    """A name as it is typed."""
    return f"`{plain(name)}`"


def not_shown(row: Row) -> str:
    """What stands in place of figures."""
    return f"not shown: {plain(row['refused'])}"


# Tables.


def ceilings(group: Group) -> str:
    """What the device itself reached, in each run."""
    runs = [result for result in group.results if result["ceilings"]]
    if not runs:
        return ""
    names = dict.fromkeys(name for result in runs for name in result["ceilings"])
    header = "what the device reached" + "".join(f" | >in the run of {result['kind']}" for result in runs)
    rows = []
    for name in names:
        values = [result["ceilings"].get(name) for result in runs]
        rows.append([ceiling(name), *(DASH if value is None else figure(value) for value in values)])
    return f"{table(header, rows)}\n\n{origin(runs)}"


def ceiling(name: str) -> str:
    """What a ceiling is of, with its unit; see `benchmarks._ceilings`."""
    what, _, dtype = name.partition("_")
    if what == "matmul":
        return f"matrix products in {dtype}, TFLOP/s"
    return {"copy_gb_s": "memory, copying, GB/s", "exp_g_s": "exponentials, 1e9 a second"}.get(name, plain(name))


def overview(group: Group) -> str:
    """A line for each operation: see `_groups.headline`."""
    lines = []
    for stem in _groups.stems(group):
        rows = _groups.headline(group, stem)
        ours, torch, other = _groups.fastest(rows)
        lines.append([code(stem)])
        if not rows:
            count = sum(row["stem"] == stem for row in group.refused("ops"))
            lines[-1].append(f"not shown: all {count} were refused, see below")
            continue
        lines[-1] += [f"{rows[0]['shape']}, {rows[0]['pass']}", figure(torch["p50"]) if torch else DASH]
        lines[-1] += [f"{code(ours['impl'])} {figure(ours['p50'])}", times(ours["ratio"])] if ours else [DASH, DASH]
        lines[-1] += [f"{code(other['impl'])} {figure(other['p50'])}", times(other["ratio"])] if other else [DASH, DASH]
        shown = ours or torch or other or rows[0]
        lines[-1] += [f"{code(shown['impl'])} {share(shown['roofline'])} of {shown['bound']}"]
    header = "operation | at | >torch, ms | >fastest of ours, ms | >as fast as torch | >fastest other, ms"
    return f"{table(f'{header} | >as fast as torch | >of the roofline', lines)}\n\n{origin(group.of('ops'))}"


def operation(group: Group, stem: str) -> str:
    """All rows of an operation, its shapes' sizes, its origin."""
    results = [result for result in group.of("ops") if any(row["stem"] == stem for row in result["rows"])]
    rows = [row for row in group.rows("ops") if row["stem"] == stem]
    labels = shapes(rows)
    rows.sort(key=lambda row: (rank(row["shape"]), labels[_shape(row)], row["pass"], row["dtype"], *_when(row)))
    lines = []
    for row in rows:
        lines.append([code(row["impl"]), labels[_shape(row)], row["pass"], row["dtype"]])
        lines[-1] += [str(row["threads"] or DASH), row["state"], spread(row), times(row["ratio"]), rate(row)]
        lines[-1] += [row["bound"], share(row["roofline"])]
    for row in group.refused("ops"):
        if row["stem"] == stem:
            known = [str(row.get(name, DASH)) for name in ("shape", "pass", "dtype", "threads", "state")]
            lines.append([code(row["impl"]), *known, not_shown(row)])
    header = "implementation | shape | pass | dtype | >threads | state | >ms: p50 [p20–p80] | >ratio to torch | >rate"
    said = [f"`{labels[_shape(row)]}`: {_sizes(row['sizes'])}" for row in rows]
    legend = f"<sub>{'; '.join(dict.fromkeys(said))}.</sub>" if said else ""
    blocks = [table(f"{header} | bound by | >of the roofline", lines), legend, origin(results)]
    return "\n\n".join(filter(None, blocks))


def _when(row: Row) -> tuple[Any, ...]:
    return row["state"].partition(",")[0], row["threads"]


def _shape(row: Row) -> tuple[str, str]:
    return row["shape"], _sizes(row["sizes"])


def _sizes(sizes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items() if value)


def shapes(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """What a shape is called; with its sizes where two of the same name differ."""
    found = dict.fromkeys(map(_shape, rows))
    names = [name for name, _ in found]
    return {(name, sizes): name if names.count(name) == 1 else f"{name} ({sizes})" for name, sizes in found}


def steps(group: Group, sweep: str) -> str:
    """Steps of a sweep, or of none (main); below the table what is the same in all rows."""
    results = [r for r in group.of("step") if any(row.get("sweep", "main") == sweep for row in r["rows"])]
    rows = [row for row in group.rows("step") if row["sweep"] == sweep]
    refused = [row for row in group.refused("step") if row.get("sweep", "main") == sweep]
    if not results:
        return ""
    settings = ("config", "clips", "tokens", "ranks", "empty_bodies", "precision")
    same = [name for name in settings if rows and all(row.get(name) == rows[0][name] for row in [*rows, *refused])]
    varied = [name for name in settings if name not in same]
    lines = []
    for row in rows:
        lines.append([code(row["impl"]), *(str(row[name]) for name in varied), spread(row)])
        lines[-1] += [figure(row["clips_per_second"])]
        lines[-1] += [DASH if row["ratio"] is None else f"{times(row['ratio'])} {code(row['versus'])}"]
        lines[-1] += [DASH if row["difference"] is None else f"{row['difference']:.1g}"]
        lines[-1] += [DASH if row[name] is None else figure(row[name]) for name in ("peak_mib", "launches")]
        lines[-1] += [share(row["floor"])]
    known = [[plain(str(row.get(name, DASH))) for name in varied] for row in refused]
    lines += [[code(row["impl"]), *cells, not_shown(row)] for row, cells in zip(refused, known, strict=True)]
    names = [f" | {'>' * (name in ('clips', 'tokens', 'ranks'))}{name.replace('_', ' ')}" for name in varied]
    header = f"implementation{''.join(names)} | >ms: p50 [p20–p80] | >clips a second | >as fast as"
    said = ", ".join(f"{name.replace('_', ' ')} {rows[0][name]}" for name in same)
    legend = f"<sub>All: {plain(said)}.</sub>" if said else ""
    blocks = [table(f"{header} | >difference of losses | >peak MiB | >launches | >floor over p50", lines), legend]
    return "\n\n".join(filter(None, [*blocks, origin(results)]))


def breakdown(group: Group) -> str:
    """Where the time of each step goes."""
    rows = [row for row in group.rows("step") if row["breakdown"] and row["sweep"] == "main"]
    if not rows:
        return ""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row["breakdown"]))
    lines = []
    for row in rows:
        lines.append([code(row["impl"]), row["config"], str(row["clips"]), row["empty_bodies"]])
        lines[-1] += [figure(row["breakdown"][kind]) if kind in row["breakdown"] else DASH for kind in kinds]
    header = "implementation | config | >clips | empty bodies" + "".join(f" | >{plain(kind)}, ms" for kind in kinds)
    return f"{table(header, lines)}\n\n{origin(group.of('step'))}"


def data(group: Group) -> str:
    """What a step is fed with."""
    lines = []
    for row in group.rows("data"):
        lines.append([plain(row["what"]), str(row["threads"] or DASH), spread(row), plain(row["versus"])])
        lines[-1] += [figure(row["other_p50"]), times(row["ratio"]), f"{figure(row['per_second'])} {row['unit']}"]
    for row in group.refused("data"):
        known = [plain(str(row.get(name, DASH))) for name in ("threads", "versus")]
        lines.append([plain(row["what"]), known[0], not_shown(row), known[1]])
    header = "what | >threads | >ms: p50 [p20–p80] | against | >its ms | >times as fast | >a second"
    return f"{table(header, lines)}\n\n{origin(group.of('data'))}"


def cold_start(group: Group) -> str:
    """From the start of a process to the end of its first step."""
    phases = list(dict.fromkeys(phase for row in group.rows("cold_start") for phase in row["phases"]))
    lines = []
    for row in group.rows("cold_start"):
        lines.append([code(row["impl"]), plain(row["config"]), str(row["clips"]), row["cache"], spread(row)])
        lines[-1] += [figure(row["phases"][phase]) if phase in row["phases"] else DASH for phase in phases]
    for row in group.refused("cold_start"):
        known = [plain(str(row.get(name, DASH))) for name in ("clips", "cache")]
        lines += [[code(row["impl"]), plain(row["config"]), *known, not_shown(row)]]
    header = "implementation | config | >clips | Triton's cache | >seconds: p50 [p20–p80]" + "".join(
        f" | >{plain(p)}, s" for p in phases
    )
    return f"{table(header, lines)}\n\n{origin(group.of('cold_start'))}"


def compiled(group: Group) -> str:
    """What was compiled ahead of time, an architecture a line."""
    lines = []
    for arch in _groups.arches(group):
        rows = [row for row in group.rows("static") if row["arch"] == arch]
        counts = [len(rows), max(row["registers"] for row in rows), sum(row["spills"] > 0 for row in rows)]
        largest = figure(max(row["shared"] for row in rows) / 1024)
        lines.append([f"sm_{arch}", *map(str, counts), largest, str(sum(bool(row["wrong"]) for row in rows))])
    lines += [[plain(f"{row['stem']} {row.get('kernel', '')}"), not_shown(row)] for row in group.refused("static")]
    header = (
        "architecture | >kernels | >most registers a thread | >with spills | >most shared memory, KiB | >fail a gate"
    )
    return f"{table(header, lines)}\n\n{origin(group.of('static'))}"


def kernels(group: Group, arch: int) -> str:
    """All kernels of an architecture."""
    lines = []
    for row in (row for row in group.rows("static") if row["arch"] == arch):
        counts = [str(row["instructions"].get(name, DASH)) for name in _INSTRUCTIONS]
        lines.append([f"{row['stem']}: {row['kernel']}", row["dtype"], ", ".join(row["shapes"]), tile(row["options"])])
        lines[-1] += [str(row["registers"]), str(row["spills"]), figure(row["shared"] / 1024), *counts]
        lines[-1] += [plain("; ".join(row["wrong"])) or "none"]
    header = "kernel | dtype | shapes | tile | >registers | >spills, bytes | >shared, KiB"
    header += "".join(f" | >{name}" for name in _INSTRUCTIONS) + " | gates failed"
    return f"{table(header, lines)}\n\n{origin(group.of('static'))}"


def tile(options: dict[str, Any]) -> str:
    """Block sizes, warps and stages, as in '128×64, 4 warps, 2 stages'."""
    sizes = "×".join(str(value) for name, value in options.items() if name.startswith("BLOCK"))
    more = [f"{options[name]} {name[4:]}" for name in ("num_warps", "num_stages") if name in options]
    return ", ".join(filter(None, [sizes, *more])) or DASH
