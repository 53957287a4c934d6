"""What the programs that measure have in common: where they run, what they say, what they leave."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks import _results
from s2vfast import errors

DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
"""Of matrix operands, by type of device, where nothing else is asked for."""


def begin(device: str) -> torch.device:
    """The device of that name; what is written from now on is of the commit that there is now.

    Raises:
        ConfigError: there is none.
    """
    _results.origin()
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in DTYPES:
        raise errors.ConfigError(f"--device {device}: expected cpu, cuda or cuda:N")
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise errors.ConfigError(f"--device {device}: there is no GPU that PyTorch can use; give --device cpu")
        if (found.index or 0) >= torch.cuda.device_count():
            raise errors.ConfigError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
        torch.cuda.set_device(found)  # streams, events and graphs are made where this is
    return found


def dtype_of(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of matrix operands; None or nothing: the device's own of `DTYPES`."""
    return getattr(torch, name or DTYPES[device.type])


def progress(text: str) -> None:
    """A line on what is being done."""
    print(text, file=sys.stderr, flush=True)


def said(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def written(results: Iterable[dict[str, Any]], out: Path | None) -> dict[str, Any]:
    """The last of results, each the one before and more; in ``out`` after each: what is stopped has lost nothing."""
    made: dict[str, Any] = {}
    for made in results:
        if out:
            _results.write(made, out, whole=False)
    if out:
        _results.write(made, out)
    return made


def show(made: dict[str, Any], line: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    """Print a result, a line a row or as it is written; the exit code: 1 where a row was refused."""
    print(json.dumps(made) if as_json else "\n".join(map(line, made["rows"])))
    return int(any("refused" in row for row in made["rows"]))
