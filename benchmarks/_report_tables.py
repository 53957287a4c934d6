"""What the report is made of: numbers, Markdown tables, the origin of results, bars as SVG."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks._results import UNKNOWN, Result, Row

DASH = "–"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a100", "#7d8590")
"""Told apart by colour-blind readers, too, on light and dark pages (after Okabe and Ito)."""


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


def percent(value: float) -> str:
    """Per cent."""
    return f"{100 * value:.{1 if value < 0.095 else 0}f} %"


def plain(text: str) -> str:
    """Text that stays in its cell and is no markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def code(name: str) -> str:
    """A name as it is typed."""
    return f"`{plain(name)}`"


def details(summary: str, *blocks: str) -> str:
    """Blocks that are shown on a click."""
    return "\n\n".join([f"<details><summary>{summary}</summary>", *blocks, "</details>"])


CELLS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "impl": ("implementation", code),
    "op": ("operation", code),
    "ratio": ("times as fast", times),
    "difference": ("difference of losses", lambda value: f"{value:.1g}"),
    "floor": ("floor over p50", percent),
    "roofline": ("of the roofline", percent),
    "bound": ("bound by", str),
    "clips_per_second": ("clips a second", figure),
    "per_second": ("a second", figure),
    "other_p50": ("its ms", figure),
    "peak_mib": ("peak MiB", figure),
    "matmul_float32": ("products in float32, TFLOP/s", figure),
    "matmul_bfloat16": ("products in bfloat16, TFLOP/s", figure),
    "copy_gb_s": ("copies, GB/s", figure),
    "exp_g_s": ("exponentials, 1e9 a second", figure),
}
"""Header and text of a field's cells; for other fields the name, and three digits that count or plain text."""


def _cell(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        return DASH
    if name == "p50":
        return f"{figure(value)} [{figure(row['p20'])}–{figure(row['p80'])}]"
    return CELLS[name][1](value) if name in CELLS else figure(value) if isinstance(value, float) else plain(str(value))


def table(names: Sequence[str], rows: Sequence[Row], unit: str = "ms") -> str:
    """A Markdown table of the rows' fields of these names; ``p50`` has its range, in ``unit``."""
    headers = [f"{unit}: p50 [p20–p80]" if name == "p50" else CELLS.get(name, (name,))[0] for name in names]
    numbers = [any(isinstance(row.get(name), (int, float)) for row in rows) for name in names]
    lines = [[plain(header.replace("_", " ")) for header in headers], ["---:" if one else "---" for one in numbers]]
    lines += [[_cell(row, name) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def origin(results: Iterable[Result]) -> str:
    """What a table stands on: commands, commit, date, device, threads, versions; a line where these are the same."""
    commands: dict[str, dict[str, None]] = {}
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        count = result["device"]["threads"]
        threads = f", {count} thread{'s' * (count > 1)}" if count else ""
        commit = "unknown commit" if result["commit"] == UNKNOWN else f"commit `{result['commit']}`"
        commit += ", with uncommitted changes" if "+" in result["commit"] else ""
        facts = " · ".join([commit, result["date"], result["device"]["name"] + threads, versions])
        commands.setdefault(facts, {})[f"`{result['command']}`"] = None
    lines = [f"{', '.join(names)} · {facts}" for facts, names in commands.items()]
    return "<br>\n".join(f"<sub>{plain(line)}</sub>" for line in lines)


def bars(title: str, lines: Sequence[tuple[str, Mapping[str, float], str]]) -> str:
    """A picture of horizontal bars: each a label, the values that it is made of by kind, and the text at its end."""
    kinds = list(dict.fromkeys(kind for _, values, _ in lines for kind in values))
    colours = {kind: COLOURS[min(number, len(COLOURS) - 1)] for number, kind in enumerate(kinds)}
    left, width, slot, top = 150, 400, 22, 34
    scale = width / max(sum(values.values()) for _, values, _ in lines)
    legend = [kind for kind in kinds if kind]
    height = top + slot * len(lines) + 16 * -(-len(legend) // 3) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 {height}" width="680" font-family="sans-serif" '
        'font-size="12">',
        "<style>text{fill:#1f2328}@media(prefers-color-scheme:dark){text{fill:#f0f6fc}}</style>",
        f'<text x="8" y="20" font-size="14" font-weight="bold">{html.escape(title)}</text>',
    ]
    for number, (label, values, text) in enumerate(lines):
        x, y = float(left), top + slot * number
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{html.escape(label)}</text>')
        for kind, value in values.items():
            shape = f'<rect x="{x:.1f}" y="{y}" width="{value * scale:.1f}" height="16" fill="{colours[kind]}">'
            parts.append(f"{shape}<title>{html.escape(kind)} {figure(value)}</title></rect>")
            x += value * scale
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 13}">{html.escape(text)}</text>')
    for number, kind in enumerate(legend):
        x, y = 8 + 220 * (number % 3), top + slot * len(lines) + 14 + 16 * (number // 3)
        parts.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{colours[kind]}"/>')
        parts.append(f'<text x="{x + 16}" y="{y}">{html.escape(kind)}</text>')
    return "\n".join([*parts, "</svg>", ""])
