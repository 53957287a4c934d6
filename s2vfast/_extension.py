"""The compiled extension, loaded at its first use; the package works without it."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from s2vfast import errors

# Written by the installation where the extension, or its part for GPUs, could not be built.
_NOTE = Path(__file__).with_name("_native_missing.txt")
_NO_CUDA_NOTE = Path(__file__).with_name("_native_no_cuda.txt")


_stand_in: Any = None


@contextlib.contextmanager
def stand_in(extension: Any) -> Iterator[None]:
    """Within the block something else stands for the extension: the emulator of its CUDA part."""
    global _stand_in
    before, _stand_in = _stand_in, extension
    try:
        yield
    finally:
        _stand_in = before


def emulated() -> Any:
    """What stands for the extension, or None."""
    return _stand_in


@functools.cache
def _attempt() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("s2vfast._native"), ""
    except ImportError as error:
        # pybind11 makes an ImportError of a signal that comes while the module is set up.
        if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
            raise error.__cause__ from None
        return None, f"the compiled extension is missing: {_reason(error)}"


def _reason(error: ImportError) -> str:
    """What the installation noted or, for an extension that is there and does not load, what the loader says."""
    if isinstance(error, ModuleNotFoundError):
        if _NOTE.is_file():
            return f"it was not built, {_NOTE.read_text('utf-8').strip()}; mend that and install s2vfast again"
        return f"{error}; installing s2vfast (`make install`) builds it where there is a C++ compiler"
    return f"it was built but cannot be loaded, {error}; install s2vfast again"


def why_not() -> str:
    """Why the extension cannot be used; empty if it can."""
    return _attempt()[1]


def load() -> ModuleType:
    """The extension.

    Raises:
        ImplementationError: it is missing; the message says why.
    """
    if _stand_in is not None:
        return _stand_in
    module, reason = _attempt()
    if module is None:
        raise errors.ImplementationError(reason)
    return module


def facts() -> dict[str, Any]:
    """``path`` and what the build can do (compiler, vectors, threads, cuda), or ``missing``: the reason.

    Without a part for GPUs ``no cuda`` says why.
    """
    module, reason = _attempt()
    if module is None:
        return {"missing": reason}
    result = {"path": module.__file__, **module.features()}
    if not result["cuda"] and _NO_CUDA_NOTE.is_file():
        result["no cuda"] = _NO_CUDA_NOTE.read_text("utf-8").strip()
    return result
