"""Read pickles of numbers without trusting them.

A pickle is a program: loading one may call any function and ask for any amount of memory. Here a pickle is read twice.
The first reading lists its instructions and refuses those that plain data does not need, lengths that the file does
not have, and memo numbers that would make the reader allocate tables (`_scan`). The second builds the objects, with the
few numpy names that arrays are made of replaced by stand-ins of our own (`_NAMES`), which check that an array's shape
fits the bytes that are really there; numpy's own reconstruction is never called. What comes out are dicts, lists,
tuples, texts, numbers and arrays that share the memory of the bytes read.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
from typing import Any, BinaryIO

import numpy as np

from s2vfast.data.archive import AnyPath, open_file
from s2vfast.data.limits import describe
from s2vfast.errors import DataError

MAX_INSTRUCTIONS = 50_000_000  # the pickles of NTU 120 have about 7 million; bounds the memory for small objects

_ALLOWED = frozenset(
    """PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    GLOBAL STACK_GLOBAL REDUCE BUILD EMPTY_SET ADDITEMS FROZENSET""".split()
)
_MEMO_WRITES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


def load_pickle(path: AnyPath) -> Any:
    """Load a pickle of plain containers and numpy arrays.

    Raises:
        DataError: the file is damaged, or asks for anything else, which the message names.
    """
    try:
        with open_file(path) as (file, size):
            _scan(file, size)
            file.seek(0)
            return _finish(_Unpickler(file).load())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DataError:
        raise
    except _Refused as error:
        raise DataError(f"{path}: refused: {error}") from error
    except Exception as error:  # what a damaged pickle raises has no common class
        raise DataError(f"{path}: damaged pickle ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """A pickle that asks for what plain data does not need."""


class _Clamped:
    """A file whose reads are cut to its size before memory is asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.budget = file, size

    def read(self, count: int) -> bytes:
        data = self.file.read(min(count, self.budget))
        self.budget -= len(data)
        return data

    def readline(self) -> bytes:
        data = self.file.readline()
        self.budget -= len(data)
        return data


def _scan(file: BinaryIO, size: int) -> None:
    """Go through the instructions of a pickle without carrying any out."""
    clamped = _Clamped(file, size)
    for number, (instruction, argument, _) in enumerate(pickletools.genops(clamped), start=1):
        name = instruction.name
        if name not in _ALLOWED:
            raise _Refused(f"instruction {name}; only numpy arrays, lists, dicts, texts and numbers are read")
        if number > MAX_INSTRUCTIONS:
            raise _Refused(f"more than {MAX_INSTRUCTIONS} instructions")
        if name in _MEMO_WRITES and not 0 <= argument <= number:
            raise _Refused(f"memo number {argument} at instruction {number}")
        if name == "FRAME" and argument > clamped.budget:
            raise _Refused(f"a frame of {argument} bytes where {clamped.budget} are left")


class _DType:
    """Stands for a numpy dtype: numbers, booleans and texts only."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?([fiu][248]|[iub]1|[US]\d{1,6})", code):
            raise _Refused(f"numpy dtype {describe(code)}; only numbers and texts are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise _Refused("numpy dtype of unknown make")
        if any(item is not None for item in state[2:5]):
            raise _Refused("numpy dtype with fields; only numbers are read")
        if state[1] in "<>":
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for a numpy array until its contents come."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("numpy array of unknown make")
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array over ``data``, which must be exactly as long as shape and dtype say."""
    if not isinstance(dtype, _DType):
        raise _Refused("numpy array without a dtype of numbers")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused("numpy array with an impossible shape")
    if not isinstance(data, (bytes, bytearray)):
        raise _Refused(f"numpy array of {type(data).__name__} instead of bytes")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise _Refused(f"numpy array of shape {list(shape)} and {dtype.dtype} with {len(data)} bytes of data")
    return np.frombuffer(data, dtype=dtype.dtype).reshape(shape, order=order)


class _Name:
    """What a name in a pickle turns into: callable, but with no attribute that a pickle could set."""

    __slots__ = ()


class _MakeArray(_Name):
    __slots__ = ()

    def __call__(self, kind: Any, *_: Any) -> _Array:
        if kind is not _NDARRAY:
            raise _Refused("numpy array of a class of its own")
        return _Array()


class _MakeDType(_Name):
    __slots__ = ()

    def __call__(self, code: Any, *_: Any) -> _DType:
        return _DType(code)


class _MakeScalar(_Name):
    __slots__ = ()

    def __call__(self, dtype: Any, data: Any) -> Any:
        return _array(data, dtype, (), "C").item()


class _MakeFromBuffer(_Name):
    __slots__ = ()

    def __call__(self, data: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
        stand_in = _Array()
        stand_in.array = _array(data, dtype, shape, "F" if order == "F" else "C")
        return stand_in


class _Encode(_Name):
    """Bytes in pickles of protocol 2 and older are texts that are encoded again."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise _Refused(f"_codecs.encode to {describe(encoding)}")
        return text.encode("latin1")


class _MakeEmptyBytes(_Name):
    """No bytes at all are written as a call of bytes without arguments by protocol 2 and older."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> bytes:
        if arguments:
            raise _Refused("a call of bytes with arguments")
        return b""


class _MakeDict(_Name):
    """OrderedDict and defaultdict come out as plain dicts; what they are made with is a list of pairs or a factory."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> dict[Any, Any]:
        return dict(arguments[0]) if arguments and isinstance(arguments[0], (list, tuple)) else {}


class _MakeSet(_Name):
    """A set of texts or numbers, as protocols before 4 write it: made of a list."""

    __slots__ = ()

    def __call__(self, members: Any = ()) -> set[Any]:
        if not isinstance(members, (list, tuple)):
            raise _Refused("a set that is not made of a list")
        return set(members)


_NDARRAY = _Name()
_NAMES: dict[tuple[str, str], _Name] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _MakeDType(),
    ("_codecs", "encode"): _Encode(),
    ("__builtin__", "bytes"): _MakeEmptyBytes(),
    ("builtins", "bytes"): _MakeEmptyBytes(),
}
for _builtins in ("builtins", "__builtin__"):
    _NAMES[_builtins, "set"] = _NAMES[_builtins, "frozenset"] = _MakeSet()
    for _factory in ("list", "dict", "int"):  # of a defaultdict; called it makes nothing
        _NAMES[_builtins, _factory] = _Name()
for _kind in ("OrderedDict", "defaultdict"):
    _NAMES["collections", _kind] = _MakeDict()
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _MakeArray()
    _NAMES[f"{_core}.multiarray", "scalar"] = _MakeScalar()
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _MakeFromBuffer()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"it asks for {module}.{name}; only numpy arrays, lists, dicts, texts and numbers are read")
        return _NAMES[module, name]


def _finish(data: Any) -> Any:
    """Put arrays in the place of their stand-ins, down to the depth that a dataset has.

    What stands in several places is walked once at each depth: else four levels of lists of one list would be N^4.
    """
    walked: dict[tuple[int, int], Any] = {}

    def walk(value: Any, depth: int) -> Any:
        if isinstance(value, _Array):
            if value.array is None:
                raise _Refused("numpy array without contents")
            return value.array
        if depth == 0 or not isinstance(value, (dict, list, tuple, set, frozenset)):
            return value
        if (key := (id(value), depth)) not in walked:
            if isinstance(value, dict):
                walked[key] = {name: walk(item, depth - 1) for name, item in value.items()}
            else:
                walked[key] = [walk(item, depth - 1) for item in value]
        return walked[key]

    return walk(data, 4)
