"""Small recordings of depth for tests: a person-like box before a camera, written as the formats have it."""

import struct
import zlib

import numpy as np
from PIL import Image

from s2vfast.data.point_store import PointSequence

HEADER = b"MATLAB 5.0 MAT-file, made by a test".ljust(124) + b"\x00\x01IM"


def frames(count=4, height=12, width=16, seed=0, empty=()):
    """uint16 [count, height, width]: a box of about 2,000 units away that walks to the right, 0 around it."""
    rng = np.random.default_rng(seed)
    depth = np.zeros((count, height, width), np.uint16)
    for frame in set(range(count)) - set(empty):
        left = 1 + frame % (width - 6)
        depth[frame, 2:-1, left : left + 4] = rng.integers(1900, 2100, (height - 3, 4))
    return depth


def element(kind, data):
    return struct.pack("<2I", kind, len(data)) + data + bytes(-len(data) % 8)


def mat_array(depth, name="depth", flags=6, stored=4, sizes=None):
    """An array of a MATLAB file: [T, H, W] as [H, W, T] in Fortran order, of any class and type of stored numbers."""
    sizes = sizes or [depth.shape[1], depth.shape[2], depth.shape[0]]
    numbers = np.ascontiguousarray(depth.transpose(0, 2, 1)).astype({2: "u1", 4: "<u2", 9: "<f8"}[stored]).tobytes()
    text = name.encode()
    head = element(6, struct.pack("<2I", flags, 0)) + element(5, struct.pack(f"<{len(sizes)}i", *sizes))
    head += struct.pack("<2H", 1, len(text)) + text.ljust(4, b"\0") if len(text) <= 4 else element(1, text)
    return element(14, head + element(stored, numbers))


def mat(*arrays, compressed=True):
    """A MATLAB 5 file of arrays of `mat_array`."""
    packed = [zlib.compress(array) for array in arrays]
    parts = [struct.pack("<2I", 15, len(p)) + p for p in packed] if compressed else arrays
    return HEADER + b"".join(parts)


def raw(depth):
    """MSR-Action3D's .bin."""
    count, height, width = depth.shape
    return struct.pack("<3I", count, width, height) + depth.astype("<u4").tobytes()


def png(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.astype(np.uint16)).save(path)


def sequence(name="s", counts=(3, 0, 2), seed=0, **facts):
    """A recording of points."""
    points = np.random.default_rng(seed).normal([0.2, 0.1, 2.5], 0.3, (sum(counts), 3)).astype(np.float32)
    return PointSequence(name, facts.pop("label", 0), len(counts), points, np.array(counts, np.int64), **facts)
