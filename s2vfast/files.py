"""Files and folders that are there whole or as they were before, whatever interrupts the writing.

What is written gets a temporary name beside its own, ``.tmp-<name>-<host>-<process>``, is flushed to the disk, and
takes its name in one step. Errors of the disk are `OSError` here; `disk_errors` makes one clear line of them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = ".tmp-"
"""How the names of all temporaries begin."""
_OLD = "-old"


@contextlib.contextmanager
def disk_errors(path: str | Path, kind: type[Exception], what: str = "cannot be written") -> Iterator[None]:
    """Raise ``kind`` for an `OSError` of the block: "PATH: WHAT: the system's reason"."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: {what}: {error.strerror or error}") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the name ``path`` when the block ends, and vanishes if it fails.

    It is opened before the block, so that a folder that cannot be written to is noticed before the work.

    Raises:
        OSError: it cannot be written.
    """
    temporary = _temporary(path)
    recover(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:  # also Ctrl-C
        remove(temporary)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, which is there whole or as it was before; `OSError` where it cannot be."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """`write_text` of JSON that people can read."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def write_into(folder: Path, name: str, content: bytes) -> None:
    """Write and flush a file of a `NewFolder`, which needs no temporary name of its own."""
    with open(folder / name, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class NewFolder:
    """A folder that is made under a temporary name (`path`) by `make`, filled, and takes its own name with `commit`.

    Its files are flushed by whoever writes them (`write_into`, `sync`). `abandon` removes it; after `commit` that does
    nothing.

    Args:
        target: the name that it is to take; its parent exists.
        may_replace: whether what has that name by then may go.
    """

    def __init__(self, target: Path, may_replace: Callable[[Path], bool] = lambda path: True) -> None:
        self.target, self.path, self.may_replace = target, _temporary(target), may_replace

    def make(self) -> None:
        """Make it. Apart from `__init__`, so that a signal finds who will `abandon` it.

        Raises:
            OSError: it cannot be made.
        """
        self.path.mkdir()

    def commit(self) -> None:
        """Flush the folder and give it its name. What had that name goes once the new folder has taken its place.

        Raises:
            FileExistsError: it may not go. Nothing has changed then.
        """
        sync(self.path)
        old = None
        if os.path.lexists(self.target):
            if not self.may_replace(self.target):
                raise FileExistsError(errno.EEXIST, "something else has this name by now", str(self.target))
            old = self.path.with_name(self.path.name + _OLD)
            os.rename(self.target, old)
        try:
            if old is not None and not self.may_replace(old):  # it came between the look and the rename
                raise FileExistsError(errno.EEXIST, "something else has this name by now", str(self.target))
            # Of what may have come here meanwhile, this replaces an empty folder alone.
            os.rename(self.path, self.target)
        except OSError:
            if old is not None:
                os.rename(old, self.target)
            raise
        sync(self.target.parent)
        if old is not None:
            remove(old)

    def abandon(self) -> None:
        """Remove what was written."""
        remove(self.path)


def remove_folder(path: Path) -> None:
    """Remove a folder as far as the file system lets us; half of it never stays under its name."""
    temporary = _temporary(path)
    with contextlib.suppress(OSError):
        os.rename(path, temporary)
    remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder as far as that can be done; never raises for a file system that refuses."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        # A read-only disk refuses even to unlink what is not there.
        with contextlib.suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, so that a rename in it outlives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(folder: Path) -> None:
    """Remove what any interrupted writer left in a folder. Only while no other process writes to it."""
    if folder.is_dir():
        for temporary in folder.glob(f"{TEMPORARY}*"):
            remove(temporary)


def recover(target: Path) -> None:
    """Tidy up after killed writers of ``target``: those of this machine whose process is gone.

    A folder that was killed between giving up its name and being replaced gets its name back.

    Raises:
        OSError: its folder cannot be listed.
    """
    prefix = f"{TEMPORARY}{target.name}-{_host()}-"
    for path in sorted(target.absolute().parent.iterdir()):
        process, _, suffix = path.name.removeprefix(prefix).partition("-")
        if not path.name.startswith(prefix) or not process.isdigit() or _alive(int(process)):
            continue
        if suffix == _OLD[1:] and not os.path.lexists(target):
            os.rename(path, target)
        else:
            remove(path)


def _temporary(path: Path) -> Path:
    return path.absolute().parent / f"{TEMPORARY}{path.name}-{_host()}-{os.getpid()}"


def _host() -> str:
    return "".join(character if character.isalnum() else "_" for character in socket.gethostname())


def _alive(process: int) -> bool:
    if process == os.getpid():  # the number was used again: this process has not begun to write yet
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
