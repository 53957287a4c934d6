"""Published checkpoints of Skeleton2vec and MAMP, their naming both ways, and files of golden numbers."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "check_golden": "golden",
    "from_mamp": "mamp",
    "to_mamp": "mamp",
    "from_published": "skeleton2vec",
    "to_published": "skeleton2vec",
    "import_checkpoint": "importer",
    "read_checkpoint": "published_checkpoint",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    # On demand: the command line's help reads `commands`, and need not wait for torch.
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
