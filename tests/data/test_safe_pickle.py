import collections
import contextlib
import io
import os
import pickle
import re
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest

from s2vfast.data.safe_pickle import load_pickle
from s2vfast.errors import DataError


def load(folder, data):
    path = folder / "data.pkl"
    path.write_bytes(data)
    return load_pickle(path)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


ARRAYS = {
    "f2": np.arange(12, dtype=np.float16).reshape(1, 2, 2, 3),
    "f4": np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 2, 2, 3),
    "big endian": np.linspace(-1, 1, 12).astype(">f8").reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(24.0).reshape(4, 6)[::2, 1::2],
    "empty": np.zeros((0, 3), np.float32),
    "no axis": np.array(3.5),
    "bool": np.array([True, False]),
    "read-only": np.frombuffer(b"12345678", dtype=np.int64),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_of_all_protocols_come_back(tmp_path, array, protocol):
    data = {
        "annotations": [{"keypoint": array, "label": 3, "name": "né"}],
        "split": {"a": ("x", None, True, 2**40, 1.5)},
    }
    assert same(data, load(tmp_path, pickle.dumps(data, protocol)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_pickles_of_numpy_1_and_2_are_read(tmp_path, core, protocol):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = pickle.dumps([array, np.float32(2.5), np.int64(7)], protocol)
    other = {"numpy.core": "numpy._core", "numpy._core": "numpy.core"}[core]
    # Names are text with a length before them in new protocols and lines in old ones.
    for module in ("multiarray", "numeric"):
        old, new = f"{other}.{module}".encode(), f"{core}.{module}".encode()
        data = data.replace(b"\x8c" + bytes([len(old)]) + old, b"\x8c" + bytes([len(new)]) + new)
        data = data.replace(b"c" + old + b"\n", b"c" + new + b"\n")
    if protocol >= 4:  # the frame's length changes with the names
        data = pickle.PROTO + bytes([4 if protocol == 4 else 5]) + data[11:]
    assert other.encode() + b"." not in data
    loaded = load(tmp_path, data)
    assert same(array, loaded[0])
    assert loaded[1:] == [2.5, 7]


class Calls:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (bytearray, "builtins.bytearray"),
        (np.load, "numpy.load"),
        (np.zeros, "numpy.zeros"),
    ],
)
def test_no_code_runs(tmp_path, function, name, protocol):
    marker = tmp_path / "ran"
    argument = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
    with pytest.raises(DataError, match="data.pkl: refused: it asks for") as caught:
        load(tmp_path, pickle.dumps({"annotations": [Calls(function, argument)]}, protocol))
    assert name.replace("builtins", "__builtin__" if protocol < 3 else "builtins") in str(caught.value)
    assert not marker.exists()


def test_objects_and_persistent_ids_are_refused_by_name(tmp_path):
    class Named(pickle.Pickler):
        def persistent_id(self, value):
            return "id" if value == "x" else None

    buffer = io.BytesIO()
    Named(buffer, 4).dump(["x"])
    with pytest.raises(DataError, match="refused: instruction BINPERSID"):
        load(tmp_path, buffer.getvalue())
    with pytest.raises(DataError, match="refused: instruction NEWOBJ"):
        load(tmp_path, pickle.dumps(collections.UserDict(), 4))
    with pytest.raises(DataError, match="numpy dtype 'O8'; only numbers and texts are read"):
        load(tmp_path, pickle.dumps(np.array([{}], dtype=object)))
    with pytest.raises(DataError, match="numpy dtype 'V8'; only numbers and texts are read"):
        load(tmp_path, pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "f4")])))


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


F4 = name("numpy", "dtype") + text("f4") + b"\x89\x88\x87R"
HUGE = 2**36
NEW_ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray")

# Hand-made pickles that ask for gigabytes, or meddle with what loads them.
HOSTILE = {
    "shape in _reconstruct": (NEW_ARRAY + number(HUGE) + b"\x85" + text("b") + b"\x87R", "without contents"),
    "shape in __setstate__": (
        NEW_ARRAY + b"K\x00\x85C\x01b\x87R(K\x01" + number(HUGE) + b"\x85" + F4 + b"\x89C\x04abcdtb",
        "shape [68719476736] and float32 with 4 bytes of data",
    ),
    "overflowing shape": (
        NEW_ARRAY + b"K\x00\x85C\x01b\x87R(K\x01(" + number(2**62) * 4 + b"t" + F4 + b"\x89C\x00tb",
        "with 0 bytes of data",
    ),
    "negative shape": (
        NEW_ARRAY + b"K\x00\x85C\x01b\x87R(K\x01" + number(-1) + b"\x85" + F4 + b"\x89C\x04abcdtb",
        "impossible shape",
    ),
    "frombuffer": (
        name("numpy.core.numeric", "_frombuffer") + b"(C\x04abcd" + F4 + number(HUGE) + b"\x85" + text("C") + b"tR",
        "with 4 bytes of data",
    ),
    "list as data": (
        NEW_ARRAY + b"K\x00\x85C\x01b\x87R(K\x01K\x01\x85" + F4 + b"\x89]tb",
        "numpy array of list instead of bytes",
    ),
    "bytes": (b"\x8e" + struct.pack("<Q", HUGE) + b"abc", "expected 68719476736 bytes"),
    "bytearray": (b"\x96" + struct.pack("<Q", HUGE) + b"abc", "expected 68719476736 bytes"),
    "text": (b"\x8d" + struct.pack("<Q", HUGE) + b"abc", "expected 68719476736 bytes"),
    "number": (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc", "not enough data"),
    "memo": (b"]r" + struct.pack("<I", 2**31 - 1), "memo number 2147483647 at instruction 3"),
    "memo as text": (b"]p99999999\n", "memo number 99999999"),
    "frame": (b"\x95" + struct.pack("<Q", HUGE) + b"]", "a frame of 68719476736 bytes where 2 are left"),
    "subclass of ndarray": (
        name("numpy.core.multiarray", "_reconstruct") + text("x") * 3 + b"\x87R",
        "class of its own",
    ),
    "other encoding": (name("_codecs", "encode") + text("x") + text("idna") + b"\x86R", "_codecs.encode to 'idna'"),
    "attributes of a helper": (name("_codecs", "encode") + b"}" + text("__call__") + b"K\x01sb", "damaged pickle"),
    "slots of a helper": (name("_codecs", "encode") + b"N}" + text("__call__") + b"K\x01s\x86b", "damaged pickle"),
    "bytes of a length": (name("builtins", "bytes") + number(HUGE) + b"\x85R", "a call of bytes with arguments"),
    "two-part names": (name("numpy", "ndarray.tofile"), "it asks for numpy.ndarray.tofile"),
    "stack underflow": (b"ab", "damaged pickle"),
    "persistent extension": (b"\x82\x01", "instruction EXT1"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_pickles_are_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load(tmp_path, b"\x80\x04" + data + b".")
    assert "\n" not in str(caught.value)


def test_hostile_pickles_take_no_memory(tmp_path):
    for index, (data, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{index}.pkl").write_bytes(b"\x80\x04" + data + b".")
    code = (
        "import pathlib, sys, resource\n"
        "from s2vfast.data.safe_pickle import load_pickle, DataError\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 64_000_000,) * 2)\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: load_pickle(path)\n"
        "    except DataError as error:\n"
        "        assert 'MemoryError' not in str(error), error\n"
        "        print(error)\n"
    )
    if not os.path.exists("/proc/self/statm") or not hasattr(resource, "RLIMIT_AS"):
        pytest.skip("needs Linux's /proc to limit memory")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == len(HOSTILE), done.stderr


def test_a_cut_pickle_is_one_clear_error(tmp_path):
    data = pickle.dumps({"annotations": [{"keypoint": np.ones((2, 3)), "label": 1}] * 2})
    for length in range(len(data)):
        with pytest.raises(DataError, match="data.pkl: (damaged pickle|refused)"):
            load(tmp_path, data[:length])


def test_noise_never_does_anything_but_fail(tmp_path):
    rng = np.random.default_rng(0)
    data = pickle.dumps({"annotations": [{"keypoint": np.ones((2, 3)), "label": 1}], "split": {"train": ["a"]}})
    for _ in range(400):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(256)
        with contextlib.suppress(DataError):
            load(tmp_path, bytes(broken))
