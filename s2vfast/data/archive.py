"""Zip archives as they were downloaded: what lies in them is read in place, nothing is unpacked to the disk.

A `Member` stands for a file of an archive where readers take a path. An archive is refused as a whole if a name in it
is absolute or leads out of it, or if its files would become more than their bytes may (`s2vfast.data.limits`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from s2vfast.data.limits import FREE_EXPANSION, MAX_EXPANSION, NotRead, describe, open_plain
from s2vfast.errors import DataError

SUFFIX = ".zip"
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, LookupError, ArithmeticError)
DAMAGE += (RuntimeError, NotImplementedError)
"""What zipfile and its decompressors raise for a damaged archive."""


@dataclass(frozen=True, order=True)
class Member:
    """A file of an archive: what readers ask of a path."""

    archive: Path
    inside: PurePosixPath
    """Its name in the archive."""

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.inside.name

    @property
    def stem(self) -> str:
        """The last part of its name without the suffix."""
        return self.inside.stem

    @property
    def suffix(self) -> str:
        """With its dot."""
        return self.inside.suffix

    @property
    def parent(self) -> PurePosixPath:
        """The folder in the archive."""
        return self.inside.parent

    def __str__(self) -> str:
        return f"{self.archive}/{self.inside}"


AnyPath = Path | Member
"""What a recording is read from."""


def is_archive(path: AnyPath) -> bool:
    """Whether a path is that of a zip archive, by its suffix."""
    return isinstance(path, Path) and path.suffix.lower() == SUFFIX and path.is_file()


def is_single(path: AnyPath) -> bool:
    """Whether a path is one file to be read: neither a folder nor an archive, nor nothing."""
    return isinstance(path, Member) or (path.is_file() and not is_archive(path))


def members(archive: Path, accept: Callable[[str], bool] = lambda name: True) -> list[Member]:
    """The files of an archive whose names are accepted, in their order, without those that macOS adds.

    Raises:
        DataError: no readable archive, or one that is refused.
    """
    names = sorted(name for name in _opened(archive)[1] if accept(name) and not name.startswith("__MACOSX/"))
    return [Member(archive, PurePosixPath(name)) for name in names]


def only_member(path: AnyPath) -> AnyPath:
    """The one file of an archive that holds no other, any other path as it is."""
    if isinstance(path, Member) or not is_archive(path):
        return path
    inside = members(path)
    return inside[0] if len(inside) == 1 else path


@contextlib.contextmanager
def open_file(path: AnyPath, limit: int | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """A plain file or a member, open for reading, and its size in bytes.

    Raises:
        NotRead: not plain, larger than ``limit``, encrypted, damaged (which may show when it is read).
        OSError: it cannot be opened.
    """
    if not isinstance(path, Member):
        with os.fdopen(open_plain(path, limit), "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
        return
    archive, infos = _opened(path.archive)
    info = infos.get(str(path.inside))
    if info is None:
        raise NotRead(path, "is not in the archive")
    if limit is not None and info.file_size > limit:
        raise NotRead(path, f"{info.file_size:,} bytes, {limit:,} at most are read")
    check_member(info, path)
    with damage(path), archive.open(info) as member:
        yield member, info.file_size


def file_size(path: AnyPath) -> int:
    """Bytes of a plain file or a member."""
    with open_file(path) as (_, size):
        return size


def read_bytes(path: AnyPath, limit: int) -> bytes:
    """All bytes of a plain file or a member; errors as of `open_file`."""
    with open_file(path, limit) as (file, size):
        content = file.read(size + 1)  # past the end: there a member's checksum is looked at
    if len(content) != size:
        raise NotRead(path, "changed while it was read")
    return content


def check_member(info: zipfile.ZipInfo, where: AnyPath | str) -> None:
    """Raise NotRead unless a member can be read within its limits."""
    if info.flag_bits & 1:
        raise NotRead(where, "is encrypted; unpack it")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotRead(where, "compressed by another method than deflate")
    if info.file_size > FREE_EXPANSION + MAX_EXPANSION * info.compress_size:
        raise NotRead(where, f"{info.compress_size:,} bytes that become {info.file_size:,}: refused")


@contextlib.contextmanager
def damage(where: AnyPath | str) -> Iterator[None]:
    """One line, `NotRead`, for what zipfile and its decompressors raise."""
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        raise NotRead(where, f"damaged ({error})") from error


def _opened(path: Path) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """An archive and its files by their names; kept open, as a data set has a hundred thousand in one."""
    about = path.stat()
    return _open(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=4)
def _open(path: Path, modified: int, size: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    with damage(path):
        archive = zipfile.ZipFile(os.fdopen(open_plain(path), "rb"))
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename
        if name.endswith("/"):  # a folder
            continue
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or name[1:2] == ":":
            raise DataError(f"{path}: refused: {describe(name)} in it is no name, absolute or leads out of the archive")
        if str(PurePosixPath(name)) in infos:
            raise DataError(f"{path}: two files {describe(name)} in it")
        infos[str(PurePosixPath(name))] = info
    expanded = sum(info.file_size for info in infos.values())
    if expanded > FREE_EXPANSION + MAX_EXPANSION * size:
        raise DataError(f"{path}: refused: {size:,} bytes that become {expanded:,}")
    return archive, infos
