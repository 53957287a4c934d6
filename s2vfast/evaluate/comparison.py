"""The table of a paper from several results: runs of one method averaged, the floor first, the best in bold.

It reads what ``evaluate --json`` prints and ``evaluate --out`` writes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2vfast.errors import ConfigError, DataError
from s2vfast.evaluate import table
from s2vfast.evaluate.metrics import ACCURACIES

RESULTS = "results.json"
FLOOR = "floor: "
METRICS = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class", "map": "mAP"}
"""What ``--metric`` takes, and what it is called in results."""


@dataclass(frozen=True)
class Result:
    """One file of results."""

    path: Path
    method: str
    """The name that was given, or what the result says of its encoder."""
    run: str
    """What has been measured: the same text, the same encoder."""
    data: str
    """Fingerprint of the store."""
    store: str
    split: str
    rows: list[dict[str, Any]]
    """As of `s2vfast.evaluate.table.rows`."""


@dataclass
class Cell:
    """A number of the table, over runs or seeds."""

    values: list[float] = field(default_factory=list)
    """One a file."""
    own: list[tuple[float | None, int]] = field(default_factory=list)
    """Standard deviation and count that each file has of its own."""

    @property
    def mean(self) -> float:
        """Over files."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over files; of a single one its own; None where there was one measurement."""
        return statistics.stdev(self.values) if len(self.values) > 1 else self.own[0][0]

    @property
    def count(self) -> int:
        """Measurements that mean and std are of: files, or what a single one has averaged."""
        return len(self.values) if len(self.values) > 1 else self.own[0][1]


@dataclass(frozen=True)
class Table:
    """Methods × columns; the floor's methods come first."""

    methods: list[str]
    columns: list[tuple[str, str]]
    """(split, measure)."""
    cells: dict[tuple[str, tuple[str, str]], Cell]
    metric: str

    def best(self, column: tuple[str, str]) -> float:
        """The largest mean of a column, as it is printed."""
        return max(round(cell.mean, 1) for (_, own), cell in self.cells.items() if own == column)

    def is_best(self, method: str, column: tuple[str, str]) -> bool:
        """Whether a number is the largest of its column, of several."""
        several = sum(own == column for _, own in self.cells) > 1
        return several and round(self.cells[method, column].mean, 1) == self.best(column)


def read(name: str | Path) -> Result:
    """A file of results, or a folder that has one.

    Args:
        name: the path; ``METHOD=PATH`` names the method.

    Raises:
        DataError: nothing there, or no results of evaluate.
    """
    method, _, text = str(name).rpartition("=")
    path = Path(text)
    if not path.exists() and Path(name).exists():  # a path with = in it
        method, path = "", Path(name)
    path, content = content_of(path)
    try:
        rows = content.get("table") or table.rows({content["protocol"]: content})
        run, untrained = content.get("run", str(path)), content.get("untrained", False)
        return Result(
            path,
            method or _method(content),
            f"{run}{' untrained' if untrained else ''}",
            content["store_fingerprint"],
            Path(content["store"]).name,
            content["split"],
            [row for row in rows if isinstance(row["value"], (int, float))],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: results that lack something ({error}); evaluate the run again") from error


def content_of(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file of results at a path, or in the folder there, and what it holds; errors as of `read`."""
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    try:
        content = _json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict) or "store_fingerprint" not in content:
        raise DataError(
            f"{path}: holds no results; a file is expected that `s2vfast evaluate … --out FILE.json` wrote, or what "
            f"`--json` printed"
        )
    return path, content


def _json(text: str) -> Any:
    """The object of a file, or of its last line, as ``--json`` prints it after other lines."""
    for part in (text, (text.strip().splitlines() or [""])[-1]):
        with contextlib.suppress(ValueError):
            return json.loads(part)
    return None


def _method(content: dict[str, Any]) -> str:
    if "runs" in content:
        name = content["protocol"] + (f", {content['linear']}" if "linear" in content else "")
    else:
        name = "untrained" if content["untrained"] else content["objective"]
    features = table.pooled(content)
    return name if features == table.pooled({}) else f"{name}, {features}"


def compare(results: Sequence[Result], metric: str = "top1") -> Table:
    """Results as one table: files of one method are runs of it.

    Raises:
        ConfigError: an unknown metric, or one that no result has.
        DataError: the same measurement of one run in two files.
    """
    if metric not in METRICS:
        raise ConfigError(f"--metric: {metric!r} is not one of {', '.join(METRICS)}")
    names = {result.data: result.store for result in results}
    cells: dict[tuple[str, tuple[str, str]], Cell] = {}
    sources: dict[tuple[str, str, tuple[str, str]], Path] = {}
    floors: set[tuple[str, tuple[str, str], float]] = set()
    for result in results:
        split = result.split if len(names) == 1 else f"{names[result.data]} {result.split}"
        for row in result.rows:
            if row["metric"] != METRICS[metric]:
                continue
            method, measure = result.method, row["measure"]
            if measure.startswith(FLOOR):
                features, measure = measure.removeprefix(FLOOR).split(", ", 1)
                method = f"{FLOOR}{features}"
            if row["labels"] != 100:
                measure = f"{measure}, {row['labels']:g} % of labels"
            column = (split, measure)
            if method.startswith(FLOOR):
                # The floor asks nothing of a run: the same number in several files is one measurement.
                if (method, column, row["value"]) in floors:
                    continue
                floors.add((method, column, row["value"]))
            elif (earlier := sources.setdefault((method, result.run, column), result.path)) != result.path:
                raise DataError(
                    f"{result.path}: {measure} of {result.run} is in {earlier} too; name each run's results once, or "
                    f"give the two a name: NAME=FILE"
                )
            cell = cells.setdefault((method, column), Cell())
            cell.values.append(row["value"])
            cell.own.append((row["std"], row["of"]))
    if not cells:
        raise ConfigError(f"--metric: no result has {metric}")
    methods = list(dict.fromkeys(method for method, _ in cells))
    methods.sort(key=lambda method: (not method.startswith(FLOOR), method != "untrained"))
    columns = list(dict.fromkeys(column for _, column in cells))
    return Table(methods, sorted(columns, key=lambda column: column[0]), cells, metric)


def markdown(content: Table) -> str:
    """A table of Markdown."""

    def number(cell: Cell, best: bool) -> str:
        mean = f"{cell.mean:.1f}"
        return (f"**{mean}**" if best else mean) + ("" if cell.std is None else f" ± {cell.std:.1f}")

    head, body = _grid(content, number, lambda text: text.replace("|", "\\|"))
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{_note(content)}\n"


def latex(content: Table) -> str:
    """A tabular of LaTeX with booktabs' lines."""

    def number(cell: Cell, best: bool) -> str:
        mean = f"{cell.mean:.1f}"
        return (f"\\textbf{{{mean}}}" if best else mean) + ("" if cell.std is None else f" $\\pm$ {cell.std:.1f}")

    head, body = _grid(content, number, _escaped)
    floors = sum(method.startswith(FLOOR) for method in content.methods)
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule", f"{' & '.join(head)} \\\\", "\\midrule"]
    for index, line in enumerate(body):
        lines += ["\\midrule"] if 0 < floors == index else []
        lines.append(f"{' & '.join(line)} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"% {_note(content)}"]) + "\n"


def comma_separated(content: Table) -> str:
    """A line a number, unrounded: method, split, measure, metric, mean, std, runs, best."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "split", "measure", "metric", "mean", "std", "runs", "best"])
    for method in content.methods:
        for column in content.columns:
            if cell := content.cells.get((method, column)):
                std = "" if cell.std is None else cell.std
                best = int(content.is_best(method, column))
                writer.writerow([method, *column, METRICS[content.metric], cell.mean, std, cell.count, best])
    return text.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "csv": comma_separated, "latex": latex}
"""What ``--format`` takes."""


def _grid(
    content: Table, number: Callable[[Cell, bool], str], escape: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    """Head and lines of text, empty where a method has no such number."""
    several = len({split for split, _ in content.columns}) > 1
    head = ["", *(escape(f"{split}, {measure}" if several else measure) for split, measure in content.columns)]
    body = []
    for method in content.methods:
        line = [escape(method)]
        for column in content.columns:
            cell = content.cells.get((method, column))
            line.append("" if cell is None else number(cell, content.is_best(method, column)))
        body.append(line)
    return head, body


def _note(content: Table) -> str:
    """What the numbers are: metric, and how many runs they are of."""
    counts = sorted({cell.count for cell in content.cells.values() if cell.std is not None})
    runs = " or ".join(map(str, counts))
    of = f"; mean ± sample standard deviation over {runs} runs, seeds or lists" if counts else ""
    splits = {split for split, _ in content.columns}
    where = f", split {next(iter(splits))}" if len(splits) == 1 else ""
    return f"{ACCURACIES.get(content.metric, METRICS[content.metric])} in per cent{where}{of}."


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "&%$#_{}" else character for character in text)


def text_of(names: Iterable[str | Path], format: str = "md", metric: str = "top1") -> str:
    """Files of results as a table.

    Args:
        names: as of `read`.
        format: md, csv or latex.
        metric: one of `METRICS`.

    Raises:
        ConfigError: an unknown format or metric.
        DataError: a file that holds no results.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format: {format!r} is not one of {', '.join(FORMATS)}")
    return FORMATS[format](compare([read(name) for name in names], metric))
