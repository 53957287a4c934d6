"""Recordings in, batches out: formats read files, the store keeps them, and clips are made from the store."""

from s2vfast.data.layout import LAYOUTS, Layout, get_layout
from s2vfast.data.store import Body, Sequence, Store
from s2vfast.data.store_writer import SequenceInfo, write_store

__all__ = ["LAYOUTS", "Body", "Layout", "Sequence", "SequenceInfo", "Store", "get_layout", "write_store"]
