"""What recordings show, where their files do not say it: by a file, by a pattern of their names, by their folders.

``--labels FILE.csv`` has a line a recording and a header; columns are separated by commas, semicolons or tabs::

    file,class,subject,view,repetition,setup,part
    walk/clip_01.json,walk,anna,1,1,1,train

``file`` (or ``name``) is needed, and one of the others, mostly ``class`` (or ``label``); ``camera`` is view. A column
of another name is left aside. ``--labels FILE.json`` holds the same as ``{"clip_01.json": "walk"}``,
``{"clip_01.json": {"class": "walk", "subject": 3}}`` or a list of objects with ``file``. A recording is named by its
place below the folder, or by its file alone where that is enough; the suffix may be left out. An empty class is none.

``--labels '{class}_{subject}_*'`` takes fields from names: what is in braces from the columns above, ``*`` anything.
With a slash the pattern covers folders too, from the last backwards: ``{subject}/{class}/*``. ``--labels folder`` is
``{class}/*``. Without ``--labels`` the folders are the classes where every recording lies in one and there are two or
more; folders called train, val and test around them are parts of a split. ``--labels none`` leaves all without.

Classes are numbered in the order of their names, numbers as numbers. Subjects, views, repetitions and setups that are
not whole numbers are numbered in that order too, from 1.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2vfast.data.formats.base import Source, parts_of
from s2vfast.data.limits import MAX_CLASSES, MAX_LABELS_BYTES, MAX_NAME, NotJson, describe, parse_json, read_plain
from s2vfast.data.names import stem
from s2vfast.data.store import Sequence
from s2vfast.data.store_writer import Splits, check_text
from s2vfast.errors import DataError

FIELDS = ("class", "subject", "view", "repetition", "setup", "part")
ALIASES = {"label": "class", "action": "class", "camera": "view", "split": "part", "name": "file"}
PARTS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}
_NUMBERED = ("subject", "view", "repetition", "setup")
_RUNS = re.compile(r"[0-9]+|[^0-9]+")


@dataclass
class Entry:
    """What is said of one recording."""

    fields: dict[str, str]
    """Field of `FIELDS` -> text."""
    where: str
    """The line or key that says it, for messages."""
    recording: str | None = None
    """The recording that it was used for."""


class Labelling:
    """Labels of a dataset's recordings, as one call of the importer was told.

    Args:
        option: a file, a pattern, ``folder``, ``none``, or None.
        source: the dataset; its classes and notes are changed.

    Raises:
        DataError: a file that cannot be read, a pattern that fits no name, a format with labels of its own.
    """

    def __init__(self, option: str | Path | None, source: Source) -> None:
        self.entries: dict[str, Entry] | None = None
        self.parts: dict[str, list[str]] = {}
        self.unnamed = 0
        self.from_file = False
        text = None if option is None else str(option)
        if text is None and source.names is None:
            return  # the format's own
        if text == "none":
            self.entries = {}
        elif text is None:
            self.entries = _folders(source.names or [], source.notes)
        elif text == "folder" or "{" in text:
            if source.names is None:
                raise DataError(f"--labels {text}: this format names its recordings itself; give a .csv or .json file")
            self.entries = _pattern("{class}/*" if text == "folder" else text, source.names)
            if unfit := len(source.names) - len(self.entries):
                source.notes.append(f"--labels {text}: fits {unfit:,} names not: no label")
        else:
            self.entries = _file(Path(text))
            self.from_file = True
        source.classes = _ordered(entry.fields.get("class", "") for entry in self.entries.values())
        if len(source.classes) > MAX_CLASSES:
            raise DataError(f"--labels {text}: {len(source.classes):,} classes, {MAX_CLASSES:,} at most")
        source.labelled = False  # what the files say of classes does not matter any more
        self.classes = {name: number for number, name in enumerate(source.classes)}
        self.numbers = {field: self._numbers(field, source.notes) for field in _NUMBERED}

    def _numbers(self, field: str, notes: list[str]) -> dict[str, int]:
        """Text -> number of a field."""
        texts = _ordered(entry.fields.get(field, "") for entry in (self.entries or {}).values())
        if all(re.fullmatch(r"[0-9]{1,9}", text) for text in texts):
            return {text: int(text) for text in texts}
        first = ", ".join(f"{text} is {at}" for at, text in enumerate(texts[:3], 1))
        notes.append(f"{field}s numbered by their names: {first}{', ...' if len(texts) > 3 else ''}")
        return {text: at for at, text in enumerate(texts, 1)}

    def apply(self, sequences: Iterable[Sequence], notes: list[str]) -> Iterator[Sequence]:
        """The sequences with what is said of them; afterwards ``notes`` has what was said of none.

        Raises:
            DataError: one entry fits two recordings, or a file's entries fit none.
        """
        fitted = 0
        for sequence in sequences:
            if self.entries is not None:
                entry = self._entry(sequence.name)
                self.unnamed += entry is None
                fitted += entry is not None
                self._label(sequence, {} if entry is None else entry.fields)
            yield sequence
        if not self.from_file or self.entries is None:
            return
        unused = [entry.where for entry in self.entries.values() if entry.recording is None]
        if not fitted:
            raise DataError(
                f"--labels: none of its {len(self.entries):,} entries is a recording's; the first: {unused[0]}"
            )
        if self.unnamed:
            notes.append(f"--labels says nothing of {self.unnamed:,} recordings: no label")
        if unused:
            listed = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
            notes.append(f"--labels: {len(unused):,} entries are of no recording that was read: {listed}")

    def splits(self) -> Splits:
        """A split of the parts that were said, called "default"."""
        return {"default": parts_of(self.parts)} if self.parts else {}

    def _entry(self, name: str) -> Entry | None:
        entries = self.entries or {}
        entry = entries.get(name) or entries.get(stem(name)) or entries.get(stem(name).rpartition("/")[2])
        if entry is not None:
            if entry.recording not in (None, name):
                raise DataError(
                    f"--labels: {entry.where} is said of {entry.recording} and of {name}; write the folder to the name"
                )
            entry.recording = name
        return entry

    def _label(self, sequence: Sequence, fields: dict[str, str]) -> None:
        sequence.label = self.classes.get(fields.get("class", ""), -1)
        for field in _NUMBERED:
            if field in fields:
                setattr(sequence, field, self.numbers[field].get(fields[field], -1))
        if part := fields.get("part"):
            self.parts.setdefault(PARTS[part.lower()], []).append(sequence.name)


def _ordered(texts: Iterable[str]) -> list[str]:
    """Texts that are none but empty, each once, numbers in them as numbers."""
    return sorted(
        {text for text in texts if text},
        key=lambda text: (
            [(0, int(part), "") if re.match("[0-9]", part) else (1, 0, part) for part in re.findall(_RUNS, text)],
            text,
        ),
    )


def _folders(names: list[str], notes: list[str]) -> dict[str, Entry]:
    """By the folders that the recordings lie in, where all do."""
    paths = [name.split("/") for name in names]
    entries: dict[str, Entry] = {}
    tops = {path[0].lower() for path in paths if len(path) > 1}
    in_parts = bool(tops) and tops <= PARTS.keys() and all(len(path) > 1 for path in paths)
    below = [path[1:] if in_parts else path for path in paths]
    classes = {path[-2] for path in below if len(path) > 1}
    by_folder = len(classes) > 1 and all(len(path) > 1 for path in below)
    for name, path in zip(names, paths, strict=True):
        fields = {"class": path[-2]} if by_folder else {}
        if in_parts:
            fields["part"] = path[0]
        entries[name] = Entry(fields, name)
    if by_folder:
        notes.append(f"classes are the folders of the recordings, {len(classes)} of them; --labels says otherwise")
    else:
        notes.append("no labels: --labels takes a file, a pattern of names, or folder")
    return entries


def _pattern(pattern: str, names: list[str]) -> dict[str, Entry]:
    """By a pattern of names; a name that it does not fit has no entry."""
    compiled = _compile(pattern)
    entries = {}
    for name in names:
        tail = "/".join(name.split("/")[-pattern.count("/") - 1 :])
        if match := compiled.fullmatch(tail):
            entries[name] = Entry({key.lower(): text for key, text in match.groupdict().items()}, name)
            _check(entries[name], f"--labels {pattern}: {name}")
    if not entries:
        first = f", as {names[0]}" if names else ""
        raise DataError(f"--labels {pattern}: fits no name of the {len(names):,} recordings{first}")
    return entries


def _compile(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern."""
    expression, used = "", set()
    for text in re.split(r"(\{[^{}]*\}|\*)", pattern):
        if text == "*":
            expression += "[^/]*?"
        elif text.startswith("{") and text.endswith("}"):
            field = ALIASES.get(text[1:-1], text[1:-1])
            if field not in FIELDS or field in used:
                problem = "stands twice" if field in used else f"is none of {', '.join(FIELDS)}"
                raise DataError(f"--labels {pattern}: {text} {problem}")
            used.add(field)
            expression += f"(?P<{field}>[^/]+?)"
        else:
            expression += re.escape(text)
    return re.compile(expression)


def _file(path: Path) -> dict[str, Entry]:
    """By a .csv or .json file."""
    if path.suffix.lower() not in (".csv", ".tsv", ".json"):
        raise DataError(
            f"--labels {path}: expected a .csv or .json file, a pattern like '{{class}}_{{subject}}_*', folder, or none"
        )
    try:
        raw = read_plain(path, MAX_LABELS_BYTES)
    except OSError as error:
        raise DataError(f"--labels {path}: cannot be read: {error.strerror or error}") from None
    rows = _json_rows(raw, path) if path.suffix.lower() == ".json" else _csv_rows(raw, path)
    entries: dict[str, Entry] = {}
    for where, name, fields in rows:
        key = stem(name)
        if key in entries:
            raise DataError(f"{where}: {describe(name)} stands twice")
        entries[key] = Entry(fields, f"{where} ({name})")
        _check(entries[key], where)
    if not entries:
        raise DataError(f"--labels {path}: no recording in it")
    return entries


def _check(entry: Entry, where: str) -> None:
    """Raise DataError for a field that no store can hold."""
    for field, text in entry.fields.items():
        check_text(f"{where}: {field}", text)
    part = entry.fields.get("part")
    if part and part.lower() not in PARTS:
        raise DataError(f"{where}: part {describe(part)}, expected train, val or test")


def _csv_rows(raw: bytes, path: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(where, name, fields) of every line."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: no UTF-8; save it as UTF-8") from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns: list[str] | None = None
    try:
        for line in reader:
            where = f"{path}:{reader.line_num}"
            if not any(cell.strip() for cell in line):
                continue
            if columns is None:
                columns = [ALIASES.get(cell.strip().lower(), cell.strip().lower()) for cell in line]
                if "file" not in columns or not set(FIELDS) & set(columns):
                    raise DataError(f"{where}: expected a header with file and class, it has {describe(header)}")
                continue
            if len(line) != len(columns):
                raise DataError(f"{where}: {len(line)} columns, the header has {len(columns)}")
            cells = dict(zip(columns, (cell.strip() for cell in line), strict=True))
            yield where, cells["file"], {field: cells[field] for field in FIELDS if cells.get(field)}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}") from None


def _json_rows(raw: bytes, path: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(where, name, fields) of every entry."""
    try:
        data = parse_json(raw)
    except NotJson as error:
        raise DataError(f"{path}{'' if error.line is None else f':{error.line}'}: not JSON: {error}") from None
    items: Iterable[tuple[str, Any, Any]]
    if isinstance(data, dict):
        items = ((f"{path}: {describe(name)}", name, value) for name, value in data.items())
    elif isinstance(data, list):
        names = (item.get("file", item.get("name")) if isinstance(item, dict) else None for item in data)
        items = ((f"{path}: entry {at}", name, data[at]) for at, name in enumerate(names))
    else:
        raise DataError(f"{path}: expected an object of file: class, or a list of objects with file and class")
    for where, name, value in items:
        if not isinstance(name, str) or len(name) > 4 * MAX_NAME:
            raise DataError(f"{where}: file {describe(name)}, expected a text")
        value = value if isinstance(value, dict) else {"class": value}
        fields = {}
        for key, content in value.items():
            field = ALIASES.get(str(key).lower(), str(key).lower())
            if field in FIELDS and content is not None:
                if not isinstance(content, (str, int)) or isinstance(content, bool):
                    raise DataError(f"{where}: {field} {describe(content)}, expected a text or a whole number")
                fields[field] = str(content)
        yield where, name, fields
