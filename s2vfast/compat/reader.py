"""Checkpoint files of others, read without running anything that is in them.

A ``.pth`` file is a pickle, and a pickle is a program. PyTorch's reader of weights carries out what builds tensors and
plain containers and refuses the rest. Objects that training scripts save with their weights (`STAND_INS`:
the command line's arguments, paths, NumPy's numbers) are replaced by `OpaqueObject`, which does nothing at all.
"""

from __future__ import annotations

import mmap
import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from s2vfast import errors
from s2vfast.data.limits import FREE_EXPANSION, MAX_EXPANSION

_NUMPY = ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")
STAND_INS = (
    "argparse.Namespace",
    *(f"pathlib.{kind}Path" for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")),
    *(f"pathlib._local.{kind}Path" for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")),
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in _NUMPY),
    "numpy.dtype",
    "numpy.ndarray",
)
"""Objects that a file may hold and that are not built: an `OpaqueObject` of this name stands for each."""
FORMATS = ("safetensors", "zip", "legacy")
_LONGEST_HEADER = 100_000_000  # of a safetensors file, by its own rules


class OpaqueObject:
    """An object of a training script that is not built: it holds its arguments and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_file(path: str | Path) -> tuple[str, Any]:
    """What a checkpoint file holds.

    Args:
        path: a file of torch.save (zip or legacy) or safetensors; its content decides, not its name.

    Returns:
        (one of `FORMATS`, the containers and tensors as they are in the file, on the CPU).

    Raises:
        CheckpointError: no such file, no checkpoint, or one that asks for more than weights; nothing of it was run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            form = _format(file.read(9))
            file.seek(0)
            return form, _safetensors(file) if form == "safetensors" else _pickled(file)
    except OSError as error:
        hint = "; a checkpoint file is expected" if path.is_dir() else ""
        raise errors.CheckpointError(f"{path}: cannot be read: {error.strerror or error}{hint}") from error
    except Exception as error:  # what a damaged file raises has no common class
        raise errors.CheckpointError(f"{path}: {_reason(str(error) or type(error).__name__)}") from error


def printable(name: Any) -> str:
    """Something that a file says, fit for a line on a terminal."""
    text = str(name)[:200]
    return text if text.isprintable() else ascii(text)


def _format(start: bytes) -> str:
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER:
        return "safetensors"
    return "legacy"


def _safetensors(file: Any) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load(file.read())


def _pickled(file: Any) -> Any:
    _check_size(file)
    allowed = [
        type(name, (OpaqueObject,), {"__module__": home})
        for home, _, name in (name.rpartition(".") for name in STAND_INS)
    ]
    with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_size(file: Any) -> None:
    """Raise ValueError where a small file would take much memory.

    An archive of torch.save is stored, not compressed. Among what weights may hold, ``bytearray`` alone takes a size in
    place of its content.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size and _format(file.read(9)) != "zip":
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            pickles = [content.find(b"bytearray\n") >= 0]
    else:
        with zipfile.ZipFile(file) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            if total > size * MAX_EXPANSION + FREE_EXPANSION:
                raise ValueError(f"its {size:,} bytes become {total:,}")
            names = [name for name in archive.namelist() if name.endswith(".pkl")]
            pickles = [b"bytearray\n" in archive.read(name) for name in names]
    if any(pickles):
        raise ValueError("GLOBAL bytearray")
    file.seek(0)


def _reason(message: str) -> str:
    """PyTorch's words, which are long and advise to run what is in the file, as one line."""
    # The same name may be an object to build or a function to call.
    if match := re.search(r"GLOBAL (\S+)", message):
        return (
            f"refused, and nothing of it was run: it asks for {printable(match[1])}, which weights do not need. If you "
            f"trust where it is from, save its weights alone, as safetensors or by torch.save of the state dict"
        )
    if "TorchScript" in message:
        return "refused: a TorchScript program; save the state dict of the model it was made from"
    if "legacy .tar" in message:
        return "refused: PyTorch's tar format of before 2017; load and save it again with an old PyTorch"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # Behind the advice stands what was wrong.
    reasons = [line for line in lines if "eights only load failed" not in line and "heck the documentation" not in line]
    reasons = (reasons or lines)[-1].partition(". ")[0]
    return f"no checkpoint of torch.save or safetensors, or a damaged one ({printable(reasons)})"
