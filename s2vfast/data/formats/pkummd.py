"""PKU-MMD: long untrimmed recordings, cut here to one sequence per labelled action.

A folder holds, anywhere below it, skeleton files of 150 numbers a line (two bodies of 25 joints, x y z in metres, zeros
where a body is absent) and label files of the same names with ``class,start,end,confidence`` a line. Names end in the
camera: 0002-L.txt, 0002-M.txt, 0002-R.txt (part 1), A01N01-L.txt (part 2, performer and number). Labels count classes
from 1; an action covers frames start to end - 1, counted from 0. Sequences are named after the recording and the line
of the label file, 0002-L.003. Views are 1 (L), 2 (M) and 3 (R).

Splits come from ``cross-subject.txt`` and ``cross-view.txt`` where the folder has them. Without cross-view.txt, xview
is made from the names as published: the middle and right cameras train, the left one is the test. Without
cross-subject.txt there is no xsub, because the names of part 1 do not tell the performer.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from s2vfast.data.archive import AnyPath, is_single, open_file, read_bytes
from s2vfast.data.formats.base import MAX_METRES, BrokenRecording, Source, find_absurd
from s2vfast.data.formats.text import BYTE_ORDER_MARK, parse_pkummd, split_lines, whole_number
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.limits import MAX_LIST_BYTES, MAX_TEXT_BYTES
from s2vfast.data.names import shipped_names
from s2vfast.data.scan import original_stem, scan
from s2vfast.data.store import Body, Sequence
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

CLASSES = 51
VIEWS = {"L": 1, "M": 2, "R": 3}
_NAME = re.compile(r"(?:A(\d{2,3})N\d{2,3}|\d{4})-([LMR])")
_IN_LIST = re.compile(r"\b(?:A\d{2,3}N\d{2,3}|\d{4})-[LMR]\b")


def detect(src: Path) -> bool:
    """A folder with files like 0002-L.txt below it, or one such file."""
    return _is_named(src) if is_single(src) else bool(scan(src, ".txt", _is_named, first=True)[0])


def _is_named(path: AnyPath) -> bool:
    return path.suffix.lower() == ".txt" and _NAME.fullmatch(original_stem(path)) is not None


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All recordings below ``src``, in the order of their names. The layout is always kinect_v2.

    Without ``labelled``, ``src`` may be one skeleton file of any name.
    """
    skeletons, labels, empty = {}, {}, []
    paths, notes = ([], []) if is_single(src) else scan(src, ".txt", _is_named)
    if is_single(src):
        if labelled:
            raise DataError(f"{src}: expected a folder of skeleton files and label files")
        skeletons[src.stem] = src
    for path in sorted(paths):
        if isinstance(path, Path) and path.is_dir():
            continue
        with open_file(path) as (file, _):
            first = file.readline(100_000)
        if not first.strip():
            empty.append(path)
            continue
        files = labels if b"," in first else skeletons
        stem = original_stem(path)
        if stem in files:
            raise DataError(f"{path}: a second file of this name and kind, the first is {files[stem]}")
        files[stem] = path
    for path in empty:  # without a line to tell which kind it is, it stands for the kind that is missing
        stem = original_stem(path)
        (skeletons if stem not in skeletons else labels).setdefault(stem, path)
    if not skeletons:
        raise DataError(f"{src}: no skeleton files named like 0002-L.txt below")
    lists = {key: _find_list(src, file) for key, file in (("xsub", "cross-subject.txt"), ("xview", "cross-view.txt"))}
    if not labels:
        notes.append("no label files: every recording is one sequence without a label")
    if lists["xview"] is None:
        notes.append("no cross-view.txt: split xview made from the names, cameras M and R train, L is the test")
    if lists["xsub"] is None:
        notes.append("no cross-subject.txt: no split xsub")
    return Source(
        layout=LAYOUTS["kinect_v2"],
        classes=list(shipped_names("pkummd_classes")),
        items=[(skeletons[name], labels.get(name)) for name in sorted(skeletons)],
        read=partial(read_recording, labelled=labelled and bool(labels)),
        splits=partial(splits, lists=lists),
        notes=notes,
        labelled=labelled,
    )


def splits(infos: list[SequenceInfo], lists: dict[str, dict[str, set[str]] | None]) -> Splits:
    """Splits from the official lists (recordings by part), xview from the names without one."""
    result: Splits = {}
    for split, by_part in lists.items():
        if by_part is not None:
            result[split] = {
                part: [info.name for info in infos if info.name.partition(".")[0] in recordings]
                for part, recordings in by_part.items()
            }
        elif split == "xview":
            test_view = VIEWS["L"]
            result[split] = {
                "train": [info.name for info in infos if info.view != test_view],
                "test": [info.name for info in infos if info.view == test_view],
            }
    return result


def _find_list(src: Path, name: str) -> dict[str, set[str]] | None:
    """Read an official split list: recordings after a line "Training videos" and after one "Validation videos"."""
    paths = [] if is_single(src) else scan(src, ".txt", lambda path: path.name.lower() == name)[0]
    if not paths:
        return None
    path = paths[0]
    by_part: dict[str, set[str]] = {"train": set(), "test": set()}
    part = None
    for line in read_bytes(path, MAX_LIST_BYTES).decode("utf-8", "replace").splitlines():
        start = line.strip().lower()
        if start.startswith("train"):
            part = "train"
        elif start.startswith(("valid", "test")):
            part = "test"
        recordings = _IN_LIST.findall(line)
        if recordings and part is None:
            raise DataError(f"{path}: recordings before a line 'Training videos' or 'Validation videos'")
        if recordings:
            by_part[part].update(recordings)
    if not by_part["train"] or not by_part["test"]:
        raise DataError(f"{path}: expected lists of training and of validation videos")
    return by_part


def read_recording(item: tuple[Path, Path | None], labelled: bool = True) -> list[Sequence | BrokenRecording]:
    """The labelled actions of one recording; a label that cannot be used does not spoil the others.

    Without ``labelled`` a label file tells only where the actions are; where there is none, the whole recording is one.

    Raises:
        BrokenRecording: the skeleton file as a whole cannot be read.
    """
    path, label_path = item
    if labelled and label_path is None:
        raise BrokenRecording(path.name, "no label file of this name")
    frames = parse_pkummd(read_bytes(path, MAX_TEXT_BYTES).removeprefix(BYTE_ORDER_MARK), path.name)  # [F, 2, V, 3]
    if label_path is None:
        return [_action(path, original_stem(path), frames, 0, len(frames))]
    sequences: list[Sequence | BrokenRecording] = []
    for number, line in enumerate(split_lines(read_bytes(label_path, MAX_TEXT_BYTES), label_path.name), start=1):
        if not line.strip():
            continue
        name = f"{original_stem(path)}.{number:03d}"
        try:
            label, start, stop, notes = _label(line, label_path, number, len(frames), labelled)
            sequence = _action(path, name, frames, start, stop)
        except BrokenRecording as error:
            error.name = name
            sequences.append(error)
            continue
        sequence.label, sequence.notes = label, notes
        if labelled:
            performer, camera = _NAME.fullmatch(original_stem(path)).groups()
            sequence.subject, sequence.view = int(performer) if performer else -1, VIEWS[camera]
        sequences.append(sequence)
    return sequences


def _action(path: Path, name: str, frames: np.ndarray, start: int, stop: int) -> Sequence:
    """Frames start to stop - 1 of a recording [F, 2, V, 3], without a label."""
    clip = frames[start:stop]
    for body in range(2):
        if absurd := find_absurd(clip[:, body], MAX_METRES):
            row, _, reason = absurd
            raise BrokenRecording(path.name, f"body {body}, {reason}", start + row + 1)
    index = np.arange(stop - start, dtype=np.int32)
    bodies = [Body(str(body), index, clip[:, body].astype(np.float32)) for body in range(2)]
    return Sequence(name, -1, stop - start, [body for body in bodies if body.joints.any()])


def _label(line: bytes, path: Path, number: int, frames: int, labelled: bool = True) -> tuple[int, int, int, list[str]]:
    """(label from 0, start, stop, notes) of one line of a label file; without ``labelled`` the label is -1."""
    file = f"{path.parent.name}/{path.name}"
    fields = line.split(b",")
    if len(fields) not in (3, 4):
        raise BrokenRecording(file, f"expected class,start,end,confidence, found {len(fields)} fields", number)
    action = whole_number(fields[0], "class", file, number, 1, CLASSES) if labelled else 0
    start = whole_number(fields[1], "start", file, number, 0, 2**31)
    stop = whole_number(fields[2], "end", file, number, 0, 2**31)
    if stop <= start or start >= frames:
        raise BrokenRecording(file, f"action in frames {start} to {stop} of a recording of {frames}", number)
    notes = [] if stop <= frames else [f"label ends at frame {stop}, the recording at {frames}: cut there"]
    return action - 1, start, min(stop, frames), notes
