"""Lists of names, one a line: those that come with the package (``lists/*.txt``) and those of a user's file."""

from __future__ import annotations

import functools
import importlib.resources
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2vfast.data.limits import MAX_NAMES_BYTES, read_plain
from s2vfast.errors import DataError

NONE = "none"
"""What ``--exclude`` takes in place of a list where nothing is to be left out."""
_SUFFIX = re.compile(r"\.(?:json|jsonl|npy|npz|csv|txt|skeleton|pkl|pickle|zip|mp4|avi)$", re.IGNORECASE)


def shipped() -> list[str]:
    """Names of the lists that come with the package."""
    return sorted(entry.name.removesuffix(".txt") for entry in _folder().iterdir() if entry.name.endswith(".txt"))


@functools.cache
def shipped_names(name: str) -> tuple[str, ...]:
    """The names of a list that comes with the package."""
    return tuple(_lines((_folder() / f"{name}.txt").read_text("utf-8")))


def ntu_classes(count: int) -> list[str]:
    """Names of actions 1 to ``count`` of NTU RGB+D; of more than its 120, codes A001 to A999."""
    names = shipped_names("ntu_classes")
    return list(names[:count]) if count <= len(names) else ntu_codes(count)


def ntu_codes(count: int) -> list[str]:
    """A001 and so on: classes that are numbered as NTU RGB+D's and may be others."""
    return [f"A{action:03d}" for action in range(1, count + 1)]


def read_names(path: str | Path) -> list[str]:
    """The names in a file, one a line. What follows a ``#`` at the start of a line or after a blank is a comment.

    Raises:
        DataError: no such file, no text, or no name in it.
    """
    path = Path(path)
    try:
        names = _lines(read_plain(path, MAX_NAMES_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text; a list of names, one a line, is expected") from error
    if not names:
        raise DataError(f"{path}: no name in it; a list of names, one a line, is expected")
    return names


def stem(name: str) -> str:
    """A recording's name without the suffix of its file, its folders before it with slashes between them."""
    return _SUFFIX.sub("", name.strip().replace("\\", "/").removeprefix("./"))


def key(name: str) -> str:
    """What two spellings of a recording's name have in common: case and the suffix of its file do not count."""
    return stem(name).casefold()


def example(names: list[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@dataclass
class Exclusion:
    """The recordings that an import leaves out, and those of them that it has met."""

    label: str
    """What the list is called."""
    names: dict[str, str]
    """`key` -> name as it stands in the list."""
    by_user: bool
    """Whether somebody asked for it; else it is the format's own."""
    met: set[str] = field(default_factory=set)
    """Keys of the names that the dataset has."""

    @property
    def reason(self) -> str:
        """Why such a recording is not in the store."""
        return f"named in {self.label}"

    def notes(self) -> list[str]:
        """What there is to say after the import."""
        if not self.met and not self.by_user:
            return []
        hint = "" if self.by_user else " (--exclude none keeps them)"
        lines = [f"{len(self.met):,} of the {len(self.names):,} names of {self.label} left out{hint}"]
        if self.by_user and (absent := [name for key, name in self.names.items() if key not in self.met]):
            lines.append(f"{len(absent):,} names of {self.label} are not here: {example(absent)}")
        return lines


def exclusion(request: str | Path | None, own: str | None) -> Exclusion | None:
    """What an import leaves out.

    Args:
        request: a file, the name of a list that comes with the package, or "none"; None: nobody asked.
        own: the list that the format leaves out if nobody asks.

    Raises:
        DataError: neither a file nor a list.
    """
    label = str(request) if request is not None else own
    if label is None or label == NONE:
        return None
    if label in shipped() and not label.endswith("_classes"):
        names = shipped_names(label)
    elif Path(label).exists():
        label, names = Path(label).name, tuple(read_names(label))
    else:
        lists = [name for name in shipped() if not name.endswith("_classes")]
        raise DataError(f"--exclude {label}: neither a file nor one of {', '.join([*lists, NONE])}")
    return Exclusion(label, {key(name): name for name in names}, request is not None)


def _folder() -> Any:
    return importlib.resources.files("s2vfast.data") / "lists"


def _lines(text: str) -> list[str]:
    lines = (re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))
