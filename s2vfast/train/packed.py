"""A run as one file: a safetensors file whose metadata has the config, run.json, the card and a hash of it all.

safetensors rather than a zip: reading one runs no code, its header can be read without its weights, and other programs
that read safetensors read this too. What a run's folder is good for besides training, such a file is good for:
`s2vfast.train.rundir` and `s2vfast.train.checkpoint` read either.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2vfast import errors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "s2vfast run 1"
SUFFIX = ".safetensors"
"""Of the name of a file."""
MAX_HEADER = 64 * 2**20
"""Bytes: a header names some thousand tensors at most."""
_SIZE = 8  # bytes of the number that a safetensors file begins with


@dataclass(frozen=True)
class Packed:
    """What a file says of its run."""

    config: str
    """``config.yaml``."""
    about: dict[str, Any]
    """``run.json``."""
    step: int
    """Of the checkpoint."""
    meta: dict[str, Any]
    """Plain values of the checkpoint."""
    card: str
    """What the model is and how to use it, Markdown."""
    sha256: str
    """Of header and tensors."""


def pack(tensors: Mapping[str, Tensor], packed: Packed) -> bytes:
    """The content of a file, the same for the same run; ``packed.sha256`` is computed."""
    import safetensors.torch

    metadata = {
        "format": FORMAT,
        "config": packed.config,
        "about": json.dumps(packed.about),
        "step": str(packed.step),
        "meta": json.dumps(packed.meta),
        "card": packed.card,
    }
    header, data = _split(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    header["__metadata__"] = metadata
    metadata["sha256"] = _digest(header, data)
    # Written here: safetensors writes metadata in another order each time.
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def read(path: str | Path) -> Packed:
    """What a file says of its run; the weights are not looked at.

    Raises:
        CheckpointError: no file of `pack`.
    """
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(_SIZE))
            metadata = json.loads(file.read(size)).get("__metadata__", {}) if size <= MAX_HEADER else {}
        if metadata.get("format") != FORMAT:
            raise ValueError
        about, meta = json.loads(metadata["about"]), json.loads(metadata["meta"])
        return Packed(metadata["config"], about, int(metadata["step"]), meta, metadata["card"], metadata["sha256"])
    except OSError as error:
        raise errors.CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        raise errors.CheckpointError(
            f"{path}: holds no run; the folder of a run is expected, or a file that `s2vfast pack` made of one"
        ) from None


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The weights of a file.

    Raises:
        CheckpointError: no file of `pack`, or not what was written.
    """
    import safetensors.torch

    packed = read(path)
    try:
        content = Path(path).read_bytes()
        if _digest(*_split(content)) != packed.sha256:
            raise errors.CheckpointError(f"{path}: damaged: its SHA-256 is not what was written; fetch the file again")
        return safetensors.torch.load(content)
    except OSError as error:
        raise errors.CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:_SIZE])
    return json.loads(content[_SIZE : _SIZE + size]), content[_SIZE + size :]


def _digest(header: dict[str, Any], data: bytes) -> str:
    metadata = {name: text for name, text in header["__metadata__"].items() if name != "sha256"}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True)
    return hashlib.sha256(text.encode() + b"\n" + data).hexdigest()
