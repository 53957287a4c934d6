"""The pickle of pyskl and MMAction2, and the way in for any other dataset.

::

    {'split': {'xsub_train': [names], 'xsub_val': [names], ...},
     'annotations': [{'frame_dir': name, 'label': 3, 'total_frames': 90,
                      'keypoint': array [M, T, V, C], float16, float32 or float64}, ...],
     'classes': [names],     # may be left out
     'layout': {...}}        # may be left out: the fields of s2vfast.data.layout.Layout

C is 3 or 2 (z becomes 0). A joint of zeros or NaN was not seen; 'keypoint_score' [M, T, V], where there is one, is the
confidence. Frames in which no joint of a body was seen are gaps. The skeleton is the one that ``--layout`` names, else
the pickle's own, else the one known layout of that V and C; where there are several or none, it has to be named. A list
of annotations, one annotation, and a folder with one list a part (``train.pkl``, ``val.pkl``) are read too. An
annotation without a label, or with -1, has none. Names like NTU's tell setup, camera, performer and replication. Split
lists ``X_train`` and ``X_val`` or ``X_test`` make train and test of split X; without X the split is called "default",
and a number at the end goes to the split (``train2``: split "default2"). Where a split has both val and test, val stays
a part of its own. The pickle is read by `s2vfast.data.safe_pickle`: it runs no code and makes no array larger than
itself.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.archive import AnyPath, file_size, is_single
from s2vfast.data.formats.base import BrokenRecording, Source, parts_of
from s2vfast.data.formats.ntu import add_name, parse_name
from s2vfast.data.formats.poses import bodies_of
from s2vfast.data.layout import Layout, layout_of_shape
from s2vfast.data.limits import FREE_EXPANSION, MAX_BODIES, MAX_CLASSES, MAX_FRAMES, MAX_JOINTS, MAX_SPLITS, describe
from s2vfast.data.names import ntu_classes
from s2vfast.data.safe_pickle import load_pickle
from s2vfast.data.scan import only_folder, scan
from s2vfast.data.store import Sequence
from s2vfast.data.store_writer import Splits, check_text
from s2vfast.data.units import guess_unit
from s2vfast.errors import DataError

SUFFIXES = (".pkl", ".pickle")
MAX_NAMELESS = 1000  # annotations that are reported one by one
_PART = re.compile(r"(?:(?P<split>.+?)[_-])?(?P<part>train|val|test)(?P<fold>\d*)")


def detect(src: Path) -> bool:
    """A file named .pkl or .pickle, or a folder that holds such files, named after their parts, and no arrays."""
    if is_single(src):
        return src.suffix.lower() in SUFFIXES
    return bool(_part_files(src)) and not scan(src, ".npy", first=True)[0]


def _part_files(src: AnyPath) -> dict[str, AnyPath]:
    """Split list -> pickle, of a folder of pickles named like train.pkl, ntu_val.pkl or xsub_test.pkl."""
    paths = [path for path in scan(src, SUFFIXES)[0] if _PART.fullmatch(path.stem)]
    only_folder(paths, src)
    return {path.stem: path for path in paths}


def _load_folder(src: Path) -> dict[str, Any]:
    """The lists of a folder's pickles as one dataset, with a split by file."""
    annotations, lists = [], {}
    for key, path in _part_files(src).items():
        data = load_pickle(path)
        if not isinstance(data, list):
            raise DataError(f"{path}: expected a list of annotations, as every pickle of a folder is one part")
        _name_all(data, path.stem)
        annotations += data
        # One split whatever the files are called: h_train and h_val, or train and val.
        lists[_PART.fullmatch(key)["part"]] = [_name(annotation) for annotation in data]
    if not annotations:
        raise DataError(f"{src}: no pickles named like train.pkl and val.pkl")
    return {"annotations": annotations, "split": lists}


def _name_all(annotations: list[Any], stem: str) -> None:
    """Name the annotations without a frame_dir after their file and their number."""
    for number, annotation in enumerate(annotations):
        if isinstance(annotation, dict) and not annotation.get("frame_dir"):
            annotation["frame_dir"] = stem if len(annotations) == 1 else f"{stem}_{number:06d}"


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """Load the pickle and look at its annotations.

    Raises:
        DataError: refused or damaged, not such a dictionary, or a skeleton that needs a layout.
    """
    data = load_pickle(src) if is_single(src) else _load_folder(src)
    if isinstance(data, dict) and "keypoint" in data:  # one annotation, as demo scripts write it
        data = [data]
    if isinstance(data, list):
        data = {"annotations": data}
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise DataError(f"{src}: expected a dict with 'annotations', a list, and 'split'")
    annotations = data["annotations"]
    if not annotations:
        raise DataError(f"{src}: 'annotations' is empty")
    _name_all(annotations, src.stem)
    _check_annotations(annotations, src)
    keypoints = (_keypoint(annotation) for annotation in annotations)
    first = next((keypoint for keypoint in keypoints if isinstance(keypoint, np.ndarray)), None)
    if first is None:
        raise DataError(f"{src}: no annotation can be used; the first: {_keypoint(annotations[0])}")
    notes: list[str] = []
    layout_reason = ""
    if layout is None and data.get("layout") is not None:
        layout = Layout.from_dict(data["layout"], where=f"{src}: layout")
    if layout is None:
        layout = layout_of_shape(*first.shape[2:], where=str(src))
        layout_reason = f"{first.shape[2]} joints with {first.shape[3]} coordinates"
    sampled = map(_keypoint, annotations[:: max(1, len(annotations) // 100)])
    unit, unit_reason = guess_unit((array for array in sampled if isinstance(array, np.ndarray)), first.shape[3])
    if first.shape[3] == 2:
        notes.append("2 coordinates a joint: z set to 0")
    splits, split_notes = _splits(data.get("split"), src) if labelled else ({}, [])
    return Source(
        layout=layout,
        layout_reason=layout_reason,
        classes=_classes(data.get("classes"), annotations, src) if labelled else [],
        items=sorted(annotations, key=_name),
        read=partial(read_annotation, file=src.name, channels=first.shape[3], labelled=labelled),
        splits=lambda infos: splits,
        parallel=False,
        unit=unit,
        unit_reason=unit_reason,
        dimensions=first.shape[3],
        notes=notes + split_notes,
        labelled=labelled,
    )


def read_annotation(
    annotation: Any, file: str, channels: int, labelled: bool = True
) -> list[Sequence | BrokenRecording]:
    """One annotation as a sequence; its bodies keep their order.

    Raises:
        BrokenRecording: a field is missing or does not fit.
    """
    name = _name(annotation)
    if not name:
        raise BrokenRecording(file, "an annotation without 'frame_dir'")
    label = _label(annotation) if labelled else -1
    if label is None:
        reason = f"label {describe(annotation['label'])}, expected a whole number from 0, or none"
        raise BrokenRecording(file, reason, name=name)
    keypoint = _keypoint(annotation)  # [M, T, V, C]
    if isinstance(keypoint, str):
        raise BrokenRecording(file, keypoint, name=name)
    if keypoint.shape[3] != channels:
        raise BrokenRecording(file, f"{keypoint.shape[3]} coordinates, the others have {channels}", name=name)
    frames = annotation.get("total_frames", keypoint.shape[1])
    if type(frames) is not int or frames != keypoint.shape[1]:
        raise BrokenRecording(file, f"total_frames {describe(frames)}, keypoint has {keypoint.shape[1]}", name=name)
    joints = np.zeros((*keypoint.shape[:3], 3), dtype=np.float64 if keypoint.itemsize == 8 else np.float32)
    joints[..., :channels] = keypoint
    score = annotation.get("keypoint_score")
    if isinstance(score, np.ndarray) and score.ndim == 2:  # of one body, as its coordinates
        score = score[None]
    notes = []
    if score is not None and (not isinstance(score, np.ndarray) or score.shape != keypoint.shape[:3]):
        score, expected = None, f"an array {list(keypoint.shape[:3])} is expected"
        notes.append(f"'keypoint_score' left out, confidence is not known: {expected}")
    sequence = Sequence(name, label, keypoint.shape[1], bodies_of(joints, score), notes=notes)
    if labelled:
        add_name(sequence, name)
    return [sequence]


def _check_annotations(annotations: list[Any], src: Path) -> None:
    """Raise DataError unless they are what their file has bytes for: one object may stand in a pickle many times."""
    if (nameless := sum(not _name(annotation) for annotation in annotations)) > MAX_NAMELESS:
        raise DataError(f"{src}: {nameless:,} annotations are no dicts with a text 'frame_dir'")
    dicts = [id(annotation) for annotation in annotations if isinstance(annotation, dict)]
    if len(set(dicts)) != len(dicts):
        raise DataError(f"{src}: one annotation stands in 'annotations' more than once")
    keypoints = (annotation.get("keypoint") for annotation in annotations if isinstance(annotation, dict))
    size = sum(keypoint.nbytes for keypoint in keypoints if isinstance(keypoint, np.ndarray))
    paths = [src] if is_single(src) else _part_files(src).values()
    if size > sum(file_size(path) for path in paths) + FREE_EXPANSION:
        raise DataError(f"{src}: its annotations share arrays: {size:,} bytes of keypoints in a smaller file")


def _name(annotation: Any) -> str:
    name = annotation.get("frame_dir") if isinstance(annotation, dict) else None
    return name if isinstance(name, str) else ""


def _keypoint(annotation: Any) -> np.ndarray | str:
    """The coordinates [M, T, V, C] of an annotation, or why there are none. [T, V, C] is one body."""
    if not isinstance(annotation, dict) or "keypoint" not in annotation:
        return "no 'keypoint', expected an array [M, T, V, C] with C 2 or 3"
    try:
        array = np.asarray(annotation["keypoint"])
    except ValueError:
        return "'keypoint' is a list whose rows differ in length, expected an array [M, T, V, C]"
    if array.dtype.kind not in "fiu":
        return f"'keypoint' holds {array.dtype}, expected numbers"
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[3] not in (2, 3):
        return f"'keypoint' has shape {list(array.shape)}, expected [M, T, V, C] with C 2 or 3"
    bodies, frames, joints, _ = array.shape
    if bodies > MAX_BODIES or frames > MAX_FRAMES or not 1 <= joints <= MAX_JOINTS:
        limits = f"{MAX_BODIES:,} bodies, {MAX_FRAMES:,} frames and {MAX_JOINTS:,} joints"
        return f"'keypoint' has shape {list(array.shape)}; {limits} are read at most"
    return array


def _label(annotation: Any) -> int | None:
    """The label, -1 where there is none, None where it is something else."""
    label = annotation.get("label") if isinstance(annotation, dict) else None
    if isinstance(label, np.ndarray) and label.size == 1 and label.dtype.kind in "iu":
        label = int(label.reshape(()))
    if label is None:
        return -1
    return label if isinstance(label, int) and not isinstance(label, bool) and -1 <= label < MAX_CLASSES else None


def _classes(value: Any, annotations: list[Any], src: Path) -> list[str]:
    labels = (_label(annotation) for annotation in annotations)
    count = max((label for label in labels if label is not None), default=-1) + 1
    if value is not None:
        fits = isinstance(value, list) and count <= len(value) <= MAX_CLASSES
        if not fits or not all(isinstance(name, str) for name in value):
            raise DataError(f"{src}: 'classes': expected a list of {count} to {MAX_CLASSES:,} names")
        for name in value:
            check_text(f"{src}: class name", name)
        return value
    if any(parse_name(_name(annotation)) for annotation in annotations[:1]):
        return ntu_classes(count)
    return [f"class {label}" for label in range(count)]


def _splits(value: Any, src: Path) -> tuple[Splits, list[str]]:
    if value is None:
        return {}, []
    if not isinstance(value, dict) or len(value) > MAX_SPLITS:
        raise DataError(f"{src}: 'split': expected a dict of name: list of frame_dir, {MAX_SPLITS} lists at most")
    splits: Splits = {}
    notes = []
    for key, names in value.items():
        if isinstance(names, np.ndarray) and names.ndim == 1:
            names = names.tolist()
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{src}: 'split' {describe(key)}: expected a list of frame_dir")
        match = _PART.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            notes.append(f"split list {describe(key)} left out: its name does not end in train, val or test")
            continue
        check_text(f"{src}: split list", key)
        splits.setdefault((match["split"] or "default") + match["fold"], {})[match["part"]] = list(names)
    return {split: parts_of(by_part) for split, by_part in splits.items()}, notes
