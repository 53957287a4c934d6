"""What was measured, to be read: docs/performance.md with its pictures, and the table in README.md.

    python -m benchmarks.report [--results benchmarks/results] [--docs docs] [--readme README.md] [--check]

The same results give the same bytes. Results of another device, commit or version never stand in one table or picture,
and what was refused is said to be, with its reason, and shown nowhere as a figure. With ``--check`` nothing is written:
the exit code is 1 where the pages are not what the results give.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _groups, _results
from benchmarks._groups import Result
from benchmarks._page import PICTURES, page, readme_block
from benchmarks._plots import THEMES, Plot, plots
from s2vfast import errors

START, END = "<!-- performance -->", "<!-- /performance -->"
PAGE = "performance.md"


def load(folder: Path) -> list[Result]:
    """All results of a folder.

    Raises:
        DataError: there are none, or one cannot be used; the message names file, row and field.
    """
    found = [_results.read(path) for path in _results.paths(folder)]
    if not found:
        raise errors.DataError(
            f"{folder}: holds no results (DEVICE/KIND.json); measure first: python -m benchmarks.run --out {folder}"
        )
    return found


def pages(results: Path, docs: Path, readme: Path) -> tuple[str, str, list[Plot], str]:
    """What the results give.

    Returns:
        The text of docs/performance.md; README's whole text with the block replaced; the pictures; a line on the rows.

    Raises:
        DataError: a result or README cannot be used.
    """
    groups = _groups.groups(load(results))
    drawn = {group: plots(group) for group in groups if group.device["type"] != _results.STATIC}
    text = replace(readme, readme_block(groups, os.path.relpath(docs / PAGE, readme.parent).replace(os.sep, "/")))
    refused = sum(len(group.refused(kind)) for group in groups for kind in _results.FIELDS)
    shown = sum(len(group.rows(kind)) for group in groups for kind in _results.FIELDS)
    pictures = [plot for found in drawn.values() for plot in found.values()]
    return page(groups, drawn), text, pictures, f"{shown} rows shown, {refused} not shown (refused)"


def replace(readme: Path, block: str) -> str:
    """README's text with another block between its marks.

    Raises:
        DataError: it cannot be read, or has no such marks.
    """
    try:
        text = readme.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.DataError(f"{readme}: cannot be read: {error}") from None
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise errors.DataError(
            f"{readme}: needs one line {START} and, below it, one line {END}, for the table to go between"
        )
    before, after = text.partition(START)[0], text.partition(END)[2]
    return f"{before}{START}\n{block}\n{END}{after}"


def stale(docs: Path, results: Path, readme: Path = _results.ROOT / "README.md") -> list[str]:
    """What is not as the results give it: a line for each page, and each picture that is missing or too many.

    The pictures' own bytes are not compared: another version of matplotlib draws other ones.
    """
    text, whole, pictures, _ = pages(results, docs, readme)
    found = []
    for path, wanted in ((docs / PAGE, text), (readme, whole)):
        if not path.is_file() or path.read_bytes().decode() != wanted:
            found.append(f"{path}: is not what {results} gives; run python -m benchmarks.report")
    wanted, there = {plot.file(theme) for plot in pictures for theme in THEMES}, _pictures(docs)
    found += [
        f"{docs / PICTURES / name}: is missing; run python -m benchmarks.report" for name in sorted(wanted - there)
    ]
    return found + [f"{docs / PICTURES / name}: belongs to no result; delete it" for name in sorted(there - wanted)]


def _pictures(docs: Path) -> set[str]:
    """Pictures that lie there and may be this program's."""
    return {path.name for theme in THEMES for path in (docs / PICTURES).glob(f"*-{theme.name}.png")}


def write(docs: Path, results: Path, readme: Path) -> str:
    """Write all pages and pictures, delete pictures that no result gives any more; the line that is printed."""
    text, whole, pictures, rows = pages(results, docs, readme)
    files = {name: content for plot in pictures for name, content in plot.files().items()}
    (docs / PICTURES).mkdir(parents=True, exist_ok=True)
    for name in _pictures(docs) - set(files):
        (docs / PICTURES / name).unlink()
    for name, content in files.items():
        (docs / PICTURES / name).write_bytes(content)
    (docs / PAGE).write_bytes(text.encode())
    readme.write_bytes(whole.encode())
    return f"{docs / PAGE}, {readme} and {len(files)} pictures written: {rows}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages; 1 with ``--check`` where they are stale, 2 where something cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=_results.RESULTS, help="folder of DEVICE/KIND.json")
    parser.add_argument("--docs", type=Path, default=_results.ROOT / "docs", help=f"folder of {PAGE} and {PICTURES}/")
    parser.add_argument("--readme", type=Path, default=_results.ROOT / "README.md")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; 1 where a page is not what the results give"
    )
    asked = parser.parse_args(arguments)
    try:
        if not asked.check:
            print(write(asked.docs, asked.results, asked.readme))
            return 0
        found = stale(asked.docs, asked.results, asked.readme)
        print("\n".join(found or ["the pages are what the results give"]))
        return int(bool(found))
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
