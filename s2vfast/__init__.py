"""s2vfast: self-supervised pretraining on 3D skeleton sequences, with kernels that can be named and compared.

Importing it imports nothing heavy; what is used is loaded at its first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Config": "s2vfast.config",
    "EMA": "s2vfast.train.ema",
    "Feed": "s2vfast.train.feed",
    "Model": "s2vfast.evaluate.model",
    "S2vfastError": "s2vfast.errors",
    "Store": "s2vfast.data.store",
    "Trainer": "s2vfast.train.trainer",
    "load": "s2vfast.evaluate.model",
    "use_impl": "s2vfast.ops",
}
_MODULES = (
    "compat",
    "data",
    "evaluate",
    "models",
    "networks",
    "objectives",
    "ops",
    "presets",
    "reference",
    "train",
    "view",
)

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
