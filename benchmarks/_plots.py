"""Pictures of results, each for a light and a dark page: the same rows give the same bytes."""

from __future__ import annotations

import functools
import math
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks import _groups, _tables
from benchmarks._groups import SWEEPS, Group, Row
from benchmarks._sheet import (
    MARGIN,
    SMALL,
    THEMES,
    TINY,
    WIDTH,
    Sheet,
    Theme,
    apart,
    decades,
    mark,
    powers,
    readable_on,
    uncrossed,
)
from benchmarks._tables import figure, times
from s2vfast import errors

MOST_KINDS = 8  # of work in a step; of more, the smallest are summed up
OTHER = "other"  # in `benchmarks._step_profile` what is no kind of its own
MOST_BARS = 8
NAMES = 1.45  # inches for the names of bars
_COLOURS = {"triton": 0, "native": 1, "torch": 2, "reference": 7}
_OTHERS = (3, 5, 4, 6)


@dataclass(frozen=True)
class Plot:
    """A picture that can be drawn.

    Args:
        name: its file's, without theme and suffix.
        alt: what it says, in words.
        draw: makes it in a theme's colours.
    """

    name: str
    alt: str
    draw: Callable[[Theme], Sheet]

    def file(self, theme: Theme) -> str:
        """Name of its file."""
        return f"{self.name}-{theme.name}.png"

    def files(self) -> dict[str, bytes]:
        """Its files, by name."""
        try:
            import matplotlib
        except ImportError:
            raise errors.S2vfastError("pictures are drawn by matplotlib: pip install matplotlib") from None
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # whatever the settings of this machine are
            return {self.file(theme): self.draw(theme).png() for theme in THEMES}


_Made = tuple[str, Callable[[Theme], Sheet]]


def plots(group: Group) -> dict[str, Plot]:
    """The pictures that a group has rows for: speedup, roofline, breakdown, and one a sweep."""
    makers: dict[str, Callable[[Group], _Made | None]] = {}
    makers |= {"speedup": _speedup, "roofline": _roofline, "breakdown": _breakdown}
    makers |= {sweep: functools.partial(_sweep, sweep=sweep) for sweep in SWEEPS}
    made = {name: maker(group) for name, maker in makers.items()}
    return {name: Plot(f"{group.files}-{name}", *found) for name, found in made.items() if found}


def _small(group: Group) -> str:
    return f"{group.device['name']} · {_tables.name_of(group.commit).replace('`', '')} · {group.date}"


def _colours(theme: Theme, impls: Iterable[str]) -> dict[str, str]:
    """A colour for each implementation, its own where it has one that is not taken."""
    found: dict[str, int] = {}
    for impl in impls:
        own = _COLOURS.get(re.split("[:,]", impl)[0])
        free = [number for number in (own, *_OTHERS) if number is not None and number not in found.values()]
        found[impl] = (free or [len(theme.colours) - 1])[0]
    return {impl: theme.colours[number] for impl, number in found.items()}


# Speed-up over torch.


def _speedup(group: Group) -> _Made | None:
    found: list[tuple[Row, Row | None]] = []
    for stem in _groups.stems(group):
        rows = [row for row in _groups.headline(group, stem) if row["ratio"] is not None]
        ours, _, rival = _groups.fastest(rows)
        if ours:
            found.append((ours, rival))
    if not found:
        return None
    found.sort(key=lambda pair: -pair[0]["ratio"])
    said = ", ".join(f"{ours['stem']} {times(ours['ratio'])} ({ours['impl']})" for ours, _ in found)
    return f"Operations, times as fast as torch: {said}", lambda theme: _draw_speedup(theme, group, found)


def _draw_speedup(theme: Theme, group: Group, found: list[tuple[Row, Row | None]]) -> Sheet:
    slot, width = 0.47, WIDTH - NAMES - MARGIN
    note = "Right of 1: faster than torch. Grey: the fastest of all other ways that were measured. Below a name: the "
    note += "shape; fwd+bwd: forward and backward pass."
    sheet = Sheet(theme, "Operations: times as fast as torch", _small(group), note, slot * len(found) + 0.25)
    axes = sheet.axes(NAMES, width, 0, slot * len(found))
    ratios = [row["ratio"] for pair in found for row in pair if row]
    low, high = min(1 / 1.05, *ratios), max(2.0, *ratios)
    axes.set_xscale("log", base=2)
    words = max(len(f"{times(row['ratio'])} {row['impl']}") for pair in found for row in pair if row)
    # Room for words beside the longest bar.
    axes.set_xlim(low, low * (high / low) ** (width / (width - 0.25 - 0.07 * words)))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.grid(axis="x", color=theme.faint, linewidth=0.6)
    axes.axvline(1, color=theme.muted, linewidth=1)
    for place, (ours, rival) in enumerate(found):
        bars = [(ours, _colours(theme, [ours["impl"]])[ours["impl"]])] + [
            (row, theme.colours[-1]) for row in [rival] if row
        ]
        for number, (row, colour) in enumerate(bars):
            y = place + 0.36 * (number - (len(bars) - 1) / 2)
            axes.barh(y, row["ratio"] - 1, 0.3, left=1, color=colour)
            x, down = sheet.place(axes, max(row["ratio"], 1), y)
            style = {"color": theme.muted} if number else {"weight": "bold"}
            said = f"{times(row['ratio'])} {row['impl']}"
            # On a ground of its own, as lines of the grid are behind it.
            ground = {"facecolor": theme.ground, "edgecolor": "none", "pad": 0.6}
            sheet.write(x + 0.06, down, said, size=SMALL, bbox=ground, **style)
        y = sheet.top + slot * (place + 0.5)
        sheet.write(NAMES - 0.1, y - 0.01, ours["stem"], ha="right", va="bottom")
        what = f"{ours['shape']}, {ours['pass'].replace('forward', 'fwd').replace('backward', 'bwd')}"
        sheet.write(NAMES - 0.1, y + 0.02, what, ha="right", va="top", size=TINY, color=theme.muted)
    axes.set_yticks([])
    mark(axes.xaxis, powers(low, axes.get_xlim()[1], 2))
    return sheet


# Roofline.


def _speed(row: Row) -> float:
    """TFLOP/s of matrix products."""
    return row["gflop"] / row["p50"]


def _intensity(row: Row) -> float:
    """Operations of matrix products a byte."""
    return row["gflop"] / row["gb"]


def _roofline(group: Group) -> _Made | None:
    ceilings, found = group.ceilings("ops"), []
    for stem in _groups.stems(group):
        rows = [row for row in _groups.headline(group, stem) if row["gflop"] and row["gb"] and row["roofline"]]
        ours, torch, _ = _groups.fastest(rows)
        if ours or torch:
            found.append([row for row in (ours, torch) if row])
    roofs = {rows[0]["dtype"]: ceilings.get(f"matmul_{rows[0]['dtype']}") for rows in found}
    if not found or not all(roofs.values()) or not ceilings.get("copy_gb_s"):
        return None
    said = ", ".join(f"{rows[0]['stem']} {_reached(rows[0])}" for rows in found)
    return (
        f"How much of what the device can do each operation with matrix products reaches: {said}",
        lambda theme: _draw_roofline(theme, group, found, ceilings["copy_gb_s"], roofs),
    )


def _reached(row: Row) -> str:
    return f"{row['impl']} {_tables.share(row['roofline'])} of {row['bound']}"


def _draw_roofline(theme: Theme, group: Group, found: list[list[Row]], memory: float, roofs: dict[str, float]) -> Sheet:
    note = (
        "Disc: the fastest kernel of ours; ring: torch. Short bar: the most that the device can do for this operation, "
    )
    note += "as its matrix products (matmul), its memory or its exponentials (exp) take longest; per cent: how much of "
    note += "that is reached."
    height, left, width = 2.8, 0.62, 3.15
    sheet = Sheet(theme, "Roofline: how near to the device's limits", _small(group), note, height + 0.5)
    axes = sheet.axes(left, width, 0.1, height)
    unit, scale = ("TFLOP/s", 1) if max(roofs.values()) >= 10 else ("GFLOP/s", 1000)
    slope, peak, least = memory / 1000, max(roofs.values()), min(roofs.values())
    points = [row for rows in found for row in rows]
    limits = [_speed(rows[0]) / rows[0]["roofline"] for rows in found]
    low = min(*map(_intensity, points), least / slope / 12) / 2.5
    high = max(*map(_intensity, points), peak / slope) * 2.5
    bottom, top = min(*map(_speed, points), *limits, least / 12) / 2, max(*map(_speed, points), *limits, peak) * 2
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom * scale, top * scale))
    axes.grid(color=theme.faint, linewidth=0.6)
    places = [sheet.place(axes, _intensity(rows[0]), _speed(rows[0]) * scale) for rows in found]
    for dtype, roof in roofs.items():
        ends = [low, roof / slope, high]
        axes.plot(ends, [min(roof, at * slope) * scale for at in ends], color=theme.muted, linewidth=1.2)
        x, y = sheet.place(axes, low, roof * scale)
        y = min(y - 0.03, *(up - 0.06 for across, up in places if across < x + 2))  # no point is covered
        sheet.write(x + 0.05, y, f"matmul, {dtype}: {figure(roof * scale)} {unit}", va="bottom", size=SMALL)
    _along(sheet, axes, f"memory: {figure(memory)} GB/s", (slope, scale), [low, bottom / slope, least / slope], points)
    column = left + width + 0.2
    heights = uncrossed(places, column, apart([y for _, y in places], 0.33))
    for rows, limit, (x, y), height in zip(found, limits, places, heights, strict=True):
        at, ends = _intensity(rows[0]), [*(_speed(row) * scale for row in rows), limit * scale]
        axes.plot([at, at], [min(ends), max(ends)], color=theme.faint, linewidth=1, zorder=2)
        axes.plot([at], ends[-1:], "_", color=theme.text, markersize=10, zorder=3)
        for row, end in zip(rows, ends, strict=False):
            colour = _colours(theme, [row["impl"]])[row["impl"]]
            inside = theme.ground if row["impl"] == "torch" else colour
            style = {"color": colour, "markerfacecolor": inside, "markeredgewidth": 1.5, "markersize": 6.5, "zorder": 4}
            axes.plot([at], [end], "o", **style)
        sheet.line((x + 0.06, y), (column - 0.04, height), theme.faint)
        sheet.write(column, height, rows[0]["stem"], va="bottom")
        sheet.write(column, height + 0.02, _reached(rows[0]), va="top", size=TINY, color=theme.muted)
    mark(axes.xaxis, decades(low, high))
    mark(axes.yaxis, decades(bottom * scale, top * scale))
    axes.set_xlabel("operations of matrix products a byte", size=SMALL, color=theme.muted)
    axes.set_ylabel(unit, size=SMALL, color=theme.muted, labelpad=2)
    return sheet


def _along(
    sheet: Sheet, axes: Any, said: str, slope: tuple[float, float], ends: list[float], points: list[Row]
) -> None:
    """Words above the slope, between where it is seen first and ``ends[-1]``, where the points are far away."""
    rise, scale = slope
    first, last = math.log(max(ends[:2])), math.log(ends[2])
    taken = [math.log(_intensity(row)) for row in points]
    places = [first + share * (last - first) for share in (0.5, 0.35, 0.65)]
    middle = math.exp(max(places, key=lambda place: min(abs(place - other) for other in taken)))
    (x, y), (further, higher) = (sheet.place(axes, at, at * rise * scale) for at in (middle, 2 * middle))
    turned = math.atan2(y - higher, further - x)
    gap = 0.12 if any(_speed(row) > 0.8 * rise * _intensity(row) for row in points) else 0.04
    x, y = x - gap * math.sin(turned), y - gap * math.cos(turned)
    style = {"rotation": math.degrees(turned), "rotation_mode": "anchor", "ha": "center", "va": "bottom"}
    sheet.write(x, y, said, size=SMALL, **style)


# What a step's time goes to.


def _breakdown(group: Group) -> _Made | None:
    rows = [row for row in group.rows("step") if any(row["breakdown"].values()) and row["sweep"] == "main"]
    if not rows:
        return None
    said = []
    for row in rows[:MOST_BARS]:
        largest = sorted(row["breakdown"].items(), key=lambda item: -item[1])[:3]
        parts = ", ".join(f"{kind} {figure(ms)}" for kind, ms in largest)
        said.append(
            f"{row['impl']}, {row['clips']} clips, {row['empty_bodies']}: {figure(row['p50'])} ms, most in {parts}"
        )
    return f"Where a step's time goes. {'; '.join(said)}", lambda theme: _draw_breakdown(theme, group, rows)


def _kinds(rows: list[Row]) -> list[str]:
    """Kinds of work that are drawn on their own, those of the largest shares first."""
    shares: dict[str, float] = {}
    for row in rows:
        for kind, ms in row["breakdown"].items():
            shares[kind] = max(shares.get(kind, 0.0), ms / sum(row["breakdown"].values()))
    kinds = sorted(shares.keys() - {OTHER}, key=lambda kind: (-shares[kind], kind))
    return kinds[: MOST_KINDS - 1]


def _draw_breakdown(theme: Theme, group: Group, rows: list[Row]) -> Sheet:
    kinds = _kinds(rows)
    names = [*kinds, *([OTHER] if any(row["breakdown"].keys() - kinds for row in rows) else [])]
    colours = {**dict(zip(kinds, theme.colours, strict=False)), OTHER: theme.colours[-1]}
    labels = _labels(rows, ("config", "clips", "empty_bodies", "precision"))
    columns, slot, width = 3, 0.5, WIDTH - NAMES - 0.85
    legend = 0.2 * math.ceil(len(names) / columns) + 0.05
    note = "A coloured bar is a whole step, divided by kind of work (ms); the thin bar below it is the step's length "
    note += f"beside the others'. The table has the small parts{', and more steps' * (len(rows) > MOST_BARS)}."
    rows = rows[:MOST_BARS]
    sheet = Sheet(theme, "Where the time of a step goes", _small(group), note, legend + slot * len(rows))
    for number, kind in enumerate(names):
        x = MARGIN + number % columns * (WIDTH - 2 * MARGIN) / columns
        y = sheet.top + 0.2 * (number // columns) + 0.05
        sheet.write(x, y, "■", color=colours[kind])
        sheet.write(x + 0.15, y, kind, size=SMALL)
    axes = sheet.axes(NAMES, width, legend, slot * len(rows))
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xticks=[], yticks=[])
    for place, row in enumerate(rows):
        whole, at = sum(row["breakdown"].values()), 0.0
        for kind in names:
            ms = row["breakdown"].get(kind, 0.0) if kind in kinds else whole - at * whole
            axes.barh(
                place - 0.05, ms / whole, 0.5, left=at, color=colours[kind], edgecolor=theme.ground, linewidth=0.8
            )
            if ms / whole * width > 0.07 * len(figure(ms)) + 0.06:  # its letters fit in
                x, y = sheet.place(axes, at + ms / whole / 2, place - 0.05)
                sheet.write(x, y, figure(ms), ha="center", size=SMALL, color=readable_on(colours[kind]))
            at += ms / whole
        axes.barh(place + 0.31, row["p50"] / max(row["p50"] for row in rows), 0.09, color=theme.muted)
        y = sheet.place(axes, 0, place - 0.05)[1]
        sheet.write(NAMES - 0.1, y, "\n".join(textwrap.wrap(labels[place], 20)), ha="right", size=SMALL)
        sheet.write(NAMES + width + 0.08, y, f"{figure(row['p50'])} ms", weight="bold")
    return sheet


def _labels(rows: list[Row], names: tuple[str, ...]) -> list[str]:
    """What each row is called: its implementation, and what other rows of the same implementation have otherwise."""
    found = []
    for row in rows:
        same = [other for other in rows if other["impl"] == row["impl"]]
        varied = [name for name in names if len({other[name] for other in same}) > 1]
        found.append(row["impl"] + "".join(f", {row[name]}" + " clips" * (name == "clips") for name in varied))
    return found


# How a step grows.


def _y(row: Row, sweep: str) -> float:
    return row["p50"] if sweep == "tokens" else row["clips_per_second"]


def _sweep(group: Group, sweep: str) -> _Made | None:
    rows = [row for row in group.rows("step") if row["sweep"] == sweep]
    lines: dict[str, list[Row]] = {}
    for row, label in zip(rows, _labels(rows, ("config", "empty_bodies", "precision")), strict=True):
        lines.setdefault(label, []).append(row)
    lines = {label: sorted(found, key=lambda row: row[SWEEPS[sweep]]) for label, found in lines.items()}
    if not any(len({row[SWEEPS[sweep]] for row in rows}) > 1 for rows in lines.values()):
        return None
    said = [
        f"{label}: {', '.join(f'{figure(_y(row, sweep))} at {row[SWEEPS[sweep]]}' for row in found)}"
        for label, found in lines.items()
    ]
    return f"{TITLES[sweep][0]}. {'; '.join(said)}", lambda theme: _draw_sweep(theme, group, sweep, lines)


TITLES = {
    "batch": ("Clips a second by clips a step", "clips a step"),
    "tokens": ("Milliseconds a step by tokens a track", "tokens a track"),
    "ranks": ("Clips a second by number of processes", "processes (ranks)"),
}


def _draw_sweep(theme: Theme, group: Group, sweep: str, lines: dict[str, list[Row]]) -> Sheet:
    field, (title, below) = SWEEPS[sweep], TITLES[sweep]
    height, left, width = 2.2, 0.62, 3.75
    ours = next(iter(lines))
    note = "Both axes are logarithmic."
    straight = sweep == "tokens" or (sweep == "ranks" and group.device["type"] == "cuda")
    if straight:
        note += f" Dashed: {ours}, were it in proportion from its first point on."
    elif sweep == "ranks":
        note += " The processes share the CPU's threads: level is the best that there can be."
    sheet = Sheet(theme, title, _small(group), note, height + 0.5)
    axes = sheet.axes(left, width, 0.1, height)
    points = [(row[field], _y(row, sweep)) for rows in lines.values() for row in rows]
    x, y = zip(*points, strict=True)
    low, high = min(y) / 2.2, max(y) * 2.2
    axes.set(xscale="log", yscale="log", xlim=(min(x) / 1.3, max(x) * 1.2), ylim=(low, high))
    axes.grid(color=theme.faint, linewidth=0.6)
    taken = [sheet.place(axes, *point) for point in points]
    ends, colours = [], _colours(theme, lines)
    for label, rows in lines.items():
        at, values = [row[field] for row in rows], [_y(row, sweep) for row in rows]
        axes.plot(at, values, "o-", color=colours[label], linewidth=1.8, markersize=4.5, zorder=3)
        if straight and label == ours:
            axes.plot(at, [values[0] * one / at[0] for one in at], "--", color=colours[label], linewidth=0.9, zorder=2)
        ends.append(sheet.place(axes, at[-1], values[-1])[1])
    for point in points:
        _label(sheet, axes, point, taken)
    for label, end in zip(lines, apart(ends, 0.16), strict=True):
        sheet.write(left + width + 0.1, end, label, color=colours[label], weight="bold", size=SMALL)
    mark(axes.xaxis, sorted(set(x)))
    mark(axes.yaxis, decades(low, high))
    axes.set_xlabel(below, size=SMALL, color=theme.muted)
    return sheet


def _label(sheet: Sheet, axes: Any, point: tuple[float, float], taken: list[tuple[float, float]]) -> None:
    """A point's value, left above or right below it, where it covers nothing; else the table has it."""
    x, y = sheet.place(axes, *point)
    for across, down in ((-0.06, -0.12), (0.08, 0.13)):
        place = (x + across, y + down)
        if all(abs(place[0] - u) > 0.4 or abs(place[1] - v) > 0.11 or (u, v) == (x, y) for u, v in taken):
            taken.append(place)
            ground = {"facecolor": sheet.theme.ground, "edgecolor": "none", "pad": 0.4}
            sheet.write(*place, figure(point[1]), ha="center", size=SMALL, bbox=ground)
            return
