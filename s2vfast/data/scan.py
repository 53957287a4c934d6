"""Which files below a folder are recordings: links are followed, suffixes are read in any case, copies are left out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

_COPY = re.compile(r"(?P<original>.+?)(?: ?\(\d+\)| - Copy(?: \(\d+\))?|[ _-]copy\d*)", re.IGNORECASE)
_LISTED = 3


def scan(src: Path, suffix: str, accept: Callable[[Path], bool] = lambda path: True) -> tuple[list[Path], list[str]]:
    """The files below a folder that end in a suffix, and what was passed over.

    A folder that a link leads to is entered once, so a loop of links ends. What macOS writes beside a file (``._name``)
    is passed over, and so is a copy, as browsers and file managers name it (``name (1)``, ``name_copy``), whose
    original lies in the same folder: it would be the same recording twice.

    Args:
        src: a file, which is taken as it is, or a folder.
        suffix: with its dot, in any case.
        accept: whether a file of that suffix is meant.

    Returns:
        (paths in the order of their stems, one note for each kind of file that was passed over).
    """
    if src.is_file():
        return [src], []
    by_folder: dict[Path, list[Path]] = {}
    entered: set[tuple[int, int]] = set()
    hidden: list[Path] = []
    for folder, folders, files in os.walk(src, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in entered:
            folders.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        folders.sort()
        for name in [*files, *(name for name in folders if name.lower().endswith(suffix))]:  # said, when it is read
            path = Path(folder, name)
            if path.suffix.lower() == suffix:
                if name.startswith("._"):
                    hidden.append(path)
                elif accept(path):
                    by_folder.setdefault(path.parent, []).append(path)
    paths, copies = [], []
    for files in by_folder.values():
        stems = {path.stem.lower() for path in files}
        for path in files:
            match = _COPY.fullmatch(path.stem)
            is_copy = match is not None and match["original"].lower() in stems
            (copies if is_copy else paths).append(path)
    notes = []
    if copies:
        notes.append(f"{len(copies)} copies beside their originals left out: {_names(copies)}")
    if hidden:
        notes.append(f"{len(hidden)} files of macOS left out: {_names(hidden)}")
    return sorted(paths, key=lambda path: (path.stem, path)), notes


def _names(paths: list[Path]) -> str:
    names = sorted(path.name for path in paths)
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
