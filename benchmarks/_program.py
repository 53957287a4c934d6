"""What the programs that measure have in common: where they run, what they print, what they write."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import _results
from s2vfast import errors

DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
"""Default dtype of matrix operands by type of device."""


def begin(device: str) -> torch.device:
    """The device of that name; all that is written from now on is of today's commit.

    Raises:
        ConfigError: there is no such device.
    """
    _results.origin()
    try:
        selected_device = torch.device(device)
    except RuntimeError:
        selected_device = None
    if selected_device is None or selected_device.type not in DTYPES:
        raise errors.ConfigError(f"--device {device}: expected cpu, cuda or cuda:N")
    if selected_device.type == "cuda":
        if not torch.cuda.is_available():
            raise errors.ConfigError(f"--device {device}: there is no GPU that PyTorch can use; give --device cpu")
        if (selected_device.index or 0) >= torch.cuda.device_count():
            raise errors.ConfigError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
        torch.cuda.set_device(selected_device)  # streams, events and graphs belong to it
    return selected_device


def dtype_of(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of matrix operands; None: the device's own of `DTYPES`."""
    return getattr(torch, name or DTYPES[device.type])


def progress(text: str) -> None:
    """Print what is being done."""
    print(text, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """A number of 1 or more, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; 1 or more is expected")
    return int(text)


def add_matmul_precision(parser: argparse.ArgumentParser) -> None:
    """Adds --matmul-precision, for torch.set_float32_matmul_precision."""
    parser.add_argument(
        "--matmul-precision",
        choices=("highest", "high"),
        default="highest",
        help="of all that is measured, as train.matmul_precision",
    )


def add_output(parser: argparse.ArgumentParser, kind: str) -> None:
    """The options of every program: where its result goes."""
    parser.add_argument("--json", action="store_true", help="print the JSON instead of lines")
    parser.add_argument("--out", type=Path, help=f"folder to write DEVICE/{kind}.json to")


def finish(
    results: Iterable[dict[str, Any]],
    options: argparse.Namespace,
    line: Callable[[dict[str, Any]], str],
    ignore: str = "",
    summary: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: {},
) -> int:
    """Write each of growing results, so that what is stopped loses nothing; print the last one; the exit code.

    Args:
        results: each with the rows of the one before it, and more.
        options: ``out`` and ``json``.
        line: a row as a line.
        ignore: the reason of refused rows that are no mistake.
        summary: more fields of the JSON that is printed.

    Returns:
        1 where a row was refused, 2 where it cannot be measured.
    """
    record: dict[str, Any] = {}
    try:
        for record in results:
            if options.out:
                _results.write(record, options.out, complete=False)
        if options.out:
            _results.write(record, options.out)
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(record | summary(record)) if options.json else "\n".join(map(line, record["rows"])))
    return int(any(row.get("refused", ignore) != ignore for row in record["rows"]))


def replaced(page: Path, name: str, text: str, optional: bool = False) -> str:
    """A page with another text between ``<!-- name -->`` and ``<!-- /name -->``; ``optional``: it may lack both.

    Raises:
        DataError: it cannot be read, or has not one of each, in this order.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    try:
        page_text = page.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.DataError(f"{page}: cannot be read: {error}") from None
    if optional and start not in page_text and end not in page_text:
        return page_text
    if page_text.count(start) != 1 or page_text.count(end) != 1 or page_text.index(start) > page_text.index(end):
        raise errors.DataError(f"{page}: needs one line {start} and, below it, one line {end}, for the table")
    return f"{page_text.partition(start)[0]}{start}\n{text}\n{end}{page_text.partition(end)[2]}"
