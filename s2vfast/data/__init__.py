"""Recordings in, batches out: formats read files, the store keeps them, and clips are made from the store."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2vfast.data.layout import LAYOUTS, Layout, get_layout
    from s2vfast.data.point_layout import PointLayout
    from s2vfast.data.point_store import PointSequence, PointStore
    from s2vfast.data.store import Body, Sequence, Store
    from s2vfast.data.store_writer import SequenceInfo, write_store

__all__ = [
    "LAYOUTS",
    "Body",
    "Layout",
    "PointLayout",
    "PointSequence",
    "PointStore",
    "Sequence",
    "SequenceInfo",
    "Store",
    "get_layout",
    "write_store",
]

_HOMES = {"LAYOUTS": "layout", "Layout": "layout", "get_layout": "layout"}
_HOMES |= {"Body": "store", "Sequence": "store", "Store": "store"}
_HOMES |= {"PointLayout": "point_layout", "PointSequence": "point_store", "PointStore": "point_store"}
_HOMES |= {"SequenceInfo": "store_writer", "write_store": "store_writer"}


def __getattr__(name: str) -> Any:
    # On demand: the command line's help reads `commands`, and need not wait for numpy.
    if name in _HOMES:
        return getattr(importlib.import_module(f"s2vfast.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
