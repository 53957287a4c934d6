"""Depth in files: MATLAB 5 (.mat), MSR-Action3D's raw .bin, 16-bit PNG, NumPy's .npy. Nothing in them is run.

Every reader gives arrays [T, H, W] or pictures [H, W] of raw units, 0 (or NaN) where nothing was measured. What a file
says of its size is held against its bytes before there is an array of that size (`s2vfast.data.limits`).
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from s2vfast.data.archive import AnyPath, open_file, read_bytes
from s2vfast.data.formats.npy import read_array
from s2vfast.data.limits import (
    FREE_EXPANSION,
    MAX_ARRAY_BYTES,
    MAX_DEPTH_EXPANSION,
    MAX_FRAMES,
    MAX_PICTURE_BYTES,
    MAX_SIDE,
    NotRead,
    describe,
)
from s2vfast.errors import DataError

_INT8, _UINT8, _UINT16, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 2, 4, 5, 6, 14, 15
"""Types of elements ("mi..." in MATLAB's description of its MAT-files, version 5)."""
_COMPLEX = 0x0800
_CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single", 8: "int8"}
_CLASSES |= {9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64", 15: "uint64"}
"""Of arrays ("mx...")."""
_NUMBERS = range(6, 16)
_LARGEST_HEAD = 256
"""Bytes of an element that is no array's numbers."""


class _Malformed(ValueError):
    """Why a file is not read."""


class _Element:
    """The bytes of an element, inflated as they are asked for where it is compressed."""

    def __init__(self, raw: memoryview, compressed: bool) -> None:
        self.raw, self.at = raw, 0
        self.inflate = zlib.decompressobj() if compressed else None

    def read(self, size: int) -> bytes:
        """The next bytes, all of them."""
        if self.inflate is None:
            data = bytes(self.raw[self.at : self.at + size])
            self.at += size
        else:
            # zlib takes no size 0: that would be no limit.
            data = self.inflate.decompress(self.inflate.unconsumed_tail or self._next(), size) if size else b""
        if len(data) != size:
            raise _Malformed(f"cut off: {len(data):,} bytes of {size:,}")
        return data

    def _next(self) -> memoryview:
        raw, self.raw = self.raw, self.raw[:0]
        return raw

    def check_end(self) -> None:
        """Raise unless the compressed bytes end here, up to padding, and their checksum fits."""
        if self.inflate is not None:
            self.inflate.decompress(self.inflate.unconsumed_tail or self._next(), 8)
            if not self.inflate.eof:
                raise _Malformed("more bytes than its array has, or cut off")

    def tag(self) -> tuple[int, int, bytes]:
        """(type, size, the data where it stands in the tag itself)."""
        first, second = struct.unpack("<2I", head := self.read(8))
        if first >> 16:  # a small element
            if first >> 16 > 4:
                raise _Malformed("a small element of more than 4 bytes")
            return first & 0xFFFF, first >> 16, head[4 : 4 + (first >> 16)]
        return first, second, b""

    def head(self, kind: int, what: str) -> bytes:
        """A short element of a type."""
        kind_here, size, data = self.tag()
        if kind_here != kind or size > _LARGEST_HEAD:
            raise _Malformed(f"{what}: an element of type {kind_here} and {size:,} bytes, expected type {kind}")
        return data or self.read(-(-size // 8) * 8)[:size]


def read_mat(path: AnyPath, name: str = "depth") -> np.ndarray:
    """An array of numbers from 0 to 65,535 of a MATLAB 5 file, as save -v6 and -v7 write them.

    Args:
        path: the file.
        name: of the variable, [H, W, T], or [H, W] of one frame.

    Returns:
        uint16 [T, H, W].

    Raises:
        NotRead: no such file or variable, one of another kind, damaged, or more than its bytes may become.
    """
    raw = read_bytes(path, MAX_ARRAY_BYTES)
    try:
        return _mat(raw, name)
    except (_Malformed, zlib.error, struct.error) as error:
        raise NotRead(path, f"no readable MATLAB 5 file with {name}, numbers of 16 bits: {error}") from None


def _mat(raw: bytes, name: str) -> np.ndarray:
    if raw[:10] == b"MATLAB 7.3" or raw[512:516] == b"\x89HDF":
        raise _Malformed("it is of version 7.3 (HDF5); save it with -v7")
    if len(raw) < 136 or raw[126:128] not in (b"IM", b"MI"):
        raise _Malformed("its header is another")
    if raw[124:128] != b"\x00\x01IM":
        raise _Malformed("it is big-endian or of another version; save it with -v7 on a usual machine")
    limit = FREE_EXPANSION + MAX_DEPTH_EXPANSION * len(raw)
    at, names = 128, []
    while at < len(raw):
        if len(raw) - at < 8:
            raise _Malformed("cut off")
        kind, size = struct.unpack_from("<2I", raw, at)
        if size > len(raw) - at - 8:
            raise _Malformed(f"cut off: {len(raw) - at - 8:,} bytes of {size:,}")
        element = _Element(memoryview(raw)[at + 8 : at + 8 + size], kind == _COMPRESSED)
        at += 8 + size
        if kind == _COMPRESSED:
            kind, size, _ = element.tag()
        if kind != _MATRIX:
            raise _Malformed(f"an element of type {kind}, expected an array")
        flags = struct.unpack("<2I", element.head(_UINT32, "flags").ljust(8, b"\0")[:8])[0]
        sizes = np.frombuffer(_whole(element.head(_INT32, "dimensions"), 4), "<i4").tolist()
        variable = element.head(_INT8, "name").decode("latin-1")
        if variable == name:
            return _numbers(element, flags, sizes, limit)
        names.append(describe(variable))
    raise _Malformed(f"it holds {', '.join(names[:5]) or 'nothing'}")


def _whole(data: bytes, size: int) -> bytes:
    if len(data) % size:
        raise _Malformed(f"{len(data)} bytes of numbers of {size}")
    return data


def _numbers(element: _Element, flags: int, sizes: list[int], limit: int) -> np.ndarray:
    if flags & 0xFF not in _NUMBERS or flags & _COMPLEX:
        kind = "complex" if flags & _COMPLEX else _CLASSES.get(flags & 0xFF, "of an unknown class")
        raise _Malformed(f"it is {kind}")
    if len(sizes) not in (2, 3) or min(sizes) < 1 or max(sizes[:2]) > MAX_SIDE or sizes[2:] > [MAX_FRAMES]:
        raise _Malformed(f"its sizes are {sizes}, expected height, width and frames")
    height, width, frames = [*sizes, 1][:3]
    kind, size, data = element.tag()
    # Whatever the class is, MATLAB writes numbers in the smallest type that holds them all.
    dtype = {_UINT8: np.dtype("u1"), _UINT16: np.dtype("<u2")}.get(kind)
    count = height * width * frames
    if dtype is None or size != count * dtype.itemsize:
        raise _Malformed(f"{size:,} bytes of type {kind} for sizes {sizes}")
    if size > limit:
        raise _Malformed(f"it would become {size:,} bytes, {limit:,} at most of a file of its size: refused")
    array = np.frombuffer(data or element.read(size), dtype).reshape(frames, width, height)
    element.check_end()
    return array.astype(np.uint16, copy=False).transpose(0, 2, 1)


def read_bin(path: AnyPath) -> np.ndarray:
    """MSR-Action3D's raw depth: frames, width and height as uint32, then uint32 depth, row after row.

    Returns:
        uint16 [T, H, W].

    Raises:
        NotRead: other bytes than those.
    """
    raw = read_bytes(path, MAX_ARRAY_BYTES)
    if len(raw) < 12:
        raise NotRead(path, f"{len(raw)} bytes; frames, width and height and the depth of all pixels are expected")
    frames, width, height = struct.unpack_from("<3I", raw)
    if not (1 <= frames <= MAX_FRAMES and 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise NotRead(path, f"{frames} frames of {width} x {height} pixels: no raw depth")
    if len(raw) != 12 + 4 * frames * width * height:
        expected = f"{12 + 4 * frames * width * height:,} are expected of {frames} frames of {width} x {height} pixels"
        raise NotRead(path, f"{len(raw):,} bytes, {expected} (cut off?)")
    depth = np.frombuffer(raw, "<u4", offset=12).reshape(frames, height, width)
    if depth.max() > 0xFFFF:
        raise NotRead(path, f"a depth of {depth.max():,}; at most 65,535 is expected")
    return depth.astype(np.uint16)


def read_png(path: AnyPath) -> np.ndarray:
    """A 16-bit PNG of one channel: uint16 [H, W].

    Raises:
        NotRead: no such picture.
        DataError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError("PNG files of depth need Pillow; pip install 's2vfast[depth]'") from None
    raw = read_bytes(path, MAX_PICTURE_BYTES)
    if len(raw) < 26 or raw[:8] != b"\x89PNG\r\n\x1a\n" or raw[12:16] != b"IHDR":
        raise NotRead(path, "no PNG; a 16-bit PNG of one channel is expected")
    width, height, bits, colour = struct.unpack_from(">2I2B", raw, 16)
    if (bits, colour) != (16, 0):
        channels = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}.get(colour, "unknown")
        raise NotRead(path, f"a PNG of {bits} bits, {channels}; 16 bits of one channel (grey) are expected")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise NotRead(path, f"{width:,} x {height:,} pixels, {MAX_SIDE:,} at most a side")
    if 2 * width * height > (limit := FREE_EXPANSION + MAX_DEPTH_EXPANSION * len(raw)):
        raise NotRead(path, f"{len(raw):,} bytes that become {2 * width * height:,}, {limit:,} at most: refused")
    try:
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
            return np.asarray(image, dtype=np.uint16)
    except Exception as error:  # what Pillow raises for a damaged picture has no common class
        raise NotRead(path, f"damaged PNG ({type(error).__name__}: {error})") from None


class Pictures:
    """The pictures of a recording, read one at a time whenever they are asked for.

    Args:
        paths: of 16-bit PNGs, in the order of frames; None is a frame of which there is no picture.
    """

    def __init__(self, paths: Sequence[Path | None]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        first: np.ndarray | None = None
        missing = 0
        for path in self.paths:
            if path is None and first is None:  # nobody knows yet how large it would be
                missing += 1
                continue
            picture = np.zeros_like(first) if path is None else read_png(path)
            if first is None:
                first = picture
                yield from itertools.repeat(np.zeros_like(picture), missing)
            yield picture


def read_npy(path: AnyPath) -> np.ndarray:
    """A .npy file of depth: numbers [T, H, W], or [H, W] of one frame; floating ones are metres.

    Raises:
        DataError: no such array.
    """
    with open_file(path) as (file, _):
        depth = read_array(file, str(path), MAX_ARRAY_BYTES)
    depth = depth[None] if depth.ndim == 2 else depth
    if depth.ndim != 3 or depth.dtype.kind not in "fiu" or not depth.size or max(depth.shape[1:]) > MAX_SIDE:
        raise NotRead(path, f"{describe(depth)}, expected numbers [frames, height, width]")
    return depth
