"""What every command of evaluation asks for: options that exist, a store that fits, a file that is there whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import s2vfast.errors as errors
from s2vfast import files
from s2vfast.data.store import Store
from s2vfast.train import rundir


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless ``value`` is known."""
    if value not in choices:
        raise errors.ConfigError(f"{name}: {value!r} is not one of {', '.join(choices)}")


def check_counts(**values: int) -> None:
    """Raise `ConfigError` unless all are 1 or more."""
    for name, value in values.items():
        if value < 1:
            raise errors.ConfigError(f"{name}: {value}; 1 or more is expected")


def open_store(run_dir: str | Path, store_path: str | Path) -> Store:
    """A store of the run's layout, which need not be the one that it was pretrained on."""
    store = Store.open(store_path)
    rundir.check_store(run_dir, store, store_path, exact=False)
    return store


@contextlib.contextmanager
def whole_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write to that takes the name ``path`` when the block ends, and vanishes if it fails.

    It is opened before the block, so that a place that cannot be written to is found out before the work.
    """
    if path.exists() and not overwrite:
        raise errors.DataError(f"{path}: exists already; name another file or allow overwriting (--overwrite)")
    with files.disk_errors(path, errors.DataError), files.whole_file(path) as file:
        yield file
