"""Arrays of .npy files and of .npz archives as streams: headers are looked at before anything is made of their size."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from s2vfast.data.archive import AnyPath, check_member, damage, open_file
from s2vfast.errors import DataError


def npz_names(src: AnyPath) -> list[str]:
    """The arrays of an archive, without .npy; DataError where it is none."""
    with open_file(src) as (file, _), damage(src), zipfile.ZipFile(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


@contextlib.contextmanager
def npz_array(src: AnyPath, name: str) -> Iterator[IO[bytes]]:
    """One array of an archive, as a stream of its .npy bytes.

    Raises:
        DataError: not there, there twice, or refused.
    """
    where = f"{src}: {name}"
    with open_file(src) as (file, _), damage(where), zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if info.filename == f"{name}.npy"]
        if len(infos) != 1:
            raise DataError(f"{src}: {'two arrays' if infos else 'no array'} {name}")
        check_member(infos[0], where)
        with archive.open(infos[0]) as member:
            yield member


def read_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether in Fortran order, dtype) at the beginning of a .npy stream.

    Raises:
        DataError: no such header.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        return read(stream)
    except Exception as error:  # what numpy raises for a damaged header has no common class
        raise DataError(f"{where}: no readable numpy array ({type(error).__name__}: {error})") from error


def check_c_order(shape: tuple[int, ...], fortran: bool, where: str) -> None:
    """Refuse an array that cannot be read one sequence after another."""
    if fortran and len(shape) > 1:
        raise DataError(f"{where}: in Fortran order; save np.ascontiguousarray of it")


def read_array(stream: IO[bytes], where: str, limit: int) -> np.ndarray:
    """A whole array of numbers.

    Args:
        stream: at its beginning.
        where: what to call it in messages.
        limit: bytes that it may have.

    Raises:
        DataError: no numbers, too large, cut off, or more bytes than its shape has.
    """
    shape, fortran, dtype = read_header(stream, where)
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "fiub":
        raise DataError(f"{where}: holds {dtype}, expected numbers")
    if min(shape, default=0) < 0 or size > limit:
        raise DataError(f"{where}: shape {list(shape)} of {dtype}: {size:,} bytes, {limit:,} at most are read")
    data = stream.read(size + 1)  # no more than there is; past the end, where a checksum is looked at
    if len(data) != size:
        raise DataError(f"{where}: {len(data):,} bytes or more for shape {list(shape)} of {dtype} (cut off?)")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
