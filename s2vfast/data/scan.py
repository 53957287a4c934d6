"""Which files below a folder are recordings: links are followed, suffixes are read in any case, copies are left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from s2vfast.data.archive import AnyPath, Member, is_archive, is_single, members
from s2vfast.errors import DataError

_COPY = re.compile(r"(?P<original>.+?)(?: ?\(\d+\)| - Copy(?: \(\d+\))?|[ _-]copy\d*)", re.IGNORECASE)
_LISTED = 3


def scan(
    src: AnyPath, suffix: str | tuple[str, ...], accept: Callable[[Any], bool] = lambda path: True, first: bool = False
) -> tuple[list[Any], list[str]]:
    """The files below a folder, or in a zip archive, that end in a suffix, and what was passed over.

    A folder that a link leads to is entered once, so a loop of links ends. What macOS writes beside a file (``._name``)
    is passed over, and so is a copy, as browsers and file managers name it (``name (1)``, ``name_copy``), whose
    original lies in the same folder: it would be the same recording twice.

    Args:
        src: a file, which is taken as it is, a folder, or a zip archive.
        suffix: with its dot, in any case; or several.
        accept: whether a file of that suffix is meant.
        first: whether to stop at the first file.

    Returns:
        (paths or members in the order of their stems, one note for each kind of file that was passed over).
    """
    if is_single(src):
        return [src], []
    by_folder: dict[Any, list[Any]] = {}
    hidden = []
    for path in _walk(src, suffix):
        if path.name.startswith("._"):
            hidden.append(path)
        elif accept(path):
            by_folder.setdefault(path.parent, []).append(path)
            if first:
                return [path], []
    paths, copies = [], []
    for files in by_folder.values():
        stems = {path.stem.lower() for path in files}
        for path in files:
            match = _COPY.fullmatch(path.stem)
            is_copy = match is not None and match["original"].lower() in stems
            (copies if is_copy else paths).append(path)
    notes = []
    if copies:
        notes.append(f"copies beside their originals left out ({len(copies):,}): {_names(copies)}")
    if hidden:
        notes.append(f"files of macOS left out ({len(hidden):,}): {_names(hidden)}")
    return sorted(paths, key=lambda path: (path.stem, path)), notes


def _walk(src: AnyPath, suffix: str | tuple[str, ...]) -> Iterator[AnyPath]:
    """All files with a suffix at or below a folder or in an archive, the folders in order."""
    endings = (suffix,) if isinstance(suffix, str) else suffix

    def ends(name: str) -> bool:
        return name.lower().endswith(endings) and len(name) > min(map(len, endings))

    if is_archive(src):
        yield from members(src, lambda name: ends(name.rpartition("/")[2]))
        return
    for folder, folders, files in _folders(src):
        for name in [*files, *folders]:  # a folder named like a recording is said, when it is read
            if ends(name):
                yield Path(folder, name)


def _folders(src: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, each folder once whatever links lead to it, those in a folder in the order of their names."""
    entered: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(src, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in entered:
            folders.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        folders.sort()
        yield folder, folders, files


def picture_folders(src: Path, suffix: str, accept: Callable[[str], bool] = lambda name: True) -> Iterator[Path]:
    """The folders at or below ``src`` that hold a picture, in the order of their places: a recording each.

    Args:
        src: a folder.
        suffix: of pictures, with its dot, in any case.
        accept: whether a name with that suffix is meant.
    """
    for folder, _, files in _folders(src):
        if any(name.lower().endswith(suffix) and not name.startswith(".") and accept(name) for name in files):
            yield Path(folder)


def original_stem(path: AnyPath) -> str:
    """A file's name without its suffix and without what a copy's name has after the original's."""
    match = _COPY.fullmatch(path.stem)
    return match["original"] if match else path.stem


def only_folder(paths: list[Any], src: AnyPath) -> None:
    """Refuse files that lie in several folders, each of which would be a dataset.

    Raises:
        DataError: names the folders.
    """
    folders = sorted({recording_name(path, src).rpartition("/")[0] or "." for path in paths})
    if len(folders) > 1:
        raise DataError(f"{src}: {len(folders)} datasets, in {', '.join(folders[:5])}; import one of these folders")


def recording_name(path: AnyPath, src: AnyPath) -> str:
    """What a recording is called: its file's place below ``src``, without the suffix."""
    if path == src:
        return path.stem
    inside = path.inside if isinstance(path, Member) else path.relative_to(src)
    return inside.with_suffix("").as_posix()


def _names(paths: list[Any]) -> str:
    names = sorted(path.name for path in paths)
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
