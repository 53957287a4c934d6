"""The pickle of pyskl and MMAction2, and the way in for any other dataset.

::

    {'split': {'xsub_train': [names], 'xsub_val': [names], ...},
     'annotations': [{'frame_dir': name, 'label': 3, 'total_frames': 90,
                      'keypoint': array [M, T, V, C], float16, float32 or float64}, ...],
     'classes': [names],     # may be left out
     'layout': {...}}        # may be left out: the fields of s2vfast.data.layout.Layout

C is 3 or 2 (z becomes 0). A joint of zeros or NaN was not seen; 'keypoint_score' [M, T, V], where there is one, is the
confidence. Frames in which no joint of a body was seen are gaps. The skeleton is the one that ``--layout`` names,
 else the pickle's own, else by V: 25 kinect_v2, 20 kinect_v1, 17 coco. Names like NTU's tell setup,
camera, performer and replication. Split lists ``X_train`` and ``X_val`` or ``X_test`` make train and test of split X;
without X the split is called "default", and a number at the end goes to the split (``train2``: split "default2"). Where
a split has both val and test, val stays a part of its own. The pickle is read by `s2vfast.data.safe_pickle`: it runs no
code and makes no array larger than itself.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.formats.ntu import parse_name
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.limits import FREE_EXPANSION, MAX_BODIES, MAX_CLASSES, MAX_FRAMES, MAX_JOINTS, MAX_SPLITS, describe
from s2vfast.data.safe_pickle import load_pickle
from s2vfast.data.store import Body, Sequence
from s2vfast.data.store_writer import Splits, check_text
from s2vfast.data.units import LIMITS, guess_unit
from s2vfast.errors import DataError

LAYOUT_BY_JOINTS = {layout.num_joints: layout for layout in LAYOUTS.values()}
MAX_NAMELESS = 1000  # annotations that are reported one by one
_PART = re.compile(r"(?:(?P<split>.+?)[_-])?(?P<part>train|val|test)(?P<fold>\d*)")


def detect(src: Path) -> bool:
    """A file named .pkl or .pickle."""
    return src.is_file() and src.suffix in (".pkl", ".pickle")


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """Load the pickle and look at its annotations.

    Raises:
        DataError: refused or damaged, not such a dictionary, or a skeleton that needs a layout.
    """
    if not src.is_file():
        raise DataError(f"{src}: expected one pickle file")
    data = load_pickle(src)
    if isinstance(data, list):
        data = {"annotations": data}
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise DataError(f"{src}: expected a dict with 'annotations', a list, and 'split'")
    annotations = data["annotations"]
    if not annotations:
        raise DataError(f"{src}: 'annotations' is empty")
    _check_annotations(annotations, src)
    first = next((a["keypoint"] for a in annotations if _has_array(a)), None)
    if first is None:
        raise DataError(f"{src}: no annotation has a 'keypoint' array [M, T, V, C] with C 2 or 3")
    notes: list[str] = []
    if layout is None and data.get("layout") is not None:
        layout = Layout.from_dict(data["layout"], where=f"{src}: layout")
    if layout is None:
        layout = LAYOUT_BY_JOINTS.get(first.shape[2])
        if layout is None:
            raise DataError(
                f"{src}: skeletons of {first.shape[2]} joints; give their layout with --layout FILE.json "
                "(name, joints, parents, root, torso, sides)"
            )
        notes.append(f"layout {layout.name} taken for {first.shape[2]} joints")
    sizes = (a["keypoint"] for a in annotations[:: max(1, len(annotations) // 100)] if _has_array(a))
    unit, unit_reason = guess_unit(sizes, first.shape[3])
    if first.shape[3] == 2:
        notes.append("2 coordinates a joint: z set to 0")
    splits, split_notes = _splits(data.get("split"), src) if labelled else ({}, [])
    return Source(
        layout=layout,
        classes=_classes(data.get("classes"), annotations, src) if labelled else [],
        items=sorted(annotations, key=_name),
        total=len(annotations),
        read=partial(read_annotation, file=src.name, channels=first.shape[3], labelled=labelled),
        splits=lambda infos: splits,
        parallel=False,
        limit=LIMITS[unit],
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
    label = annotation.get("label") if labelled else -1
    if labelled and not _is_label(label):
        raise BrokenRecording(file, f"label {describe(label)}, expected a whole number from 0", name=name)
    if not _has_array(annotation):
        raise BrokenRecording(file, "no 'keypoint' array [M, T, V, C] with C 2 or 3", name=name)
    keypoint = annotation["keypoint"]  # [M, T, V, C]
    if keypoint.shape[3] != channels:
        raise BrokenRecording(file, f"{keypoint.shape[3]} coordinates, the others have {channels}", name=name)
    frames = annotation.get("total_frames", keypoint.shape[1])
    if type(frames) is not int or frames != keypoint.shape[1]:
        raise BrokenRecording(file, f"total_frames {describe(frames)}, keypoint has {keypoint.shape[1]}", name=name)
    joints = np.zeros((*keypoint.shape[:3], 3), dtype=np.float64 if keypoint.itemsize == 8 else np.float32)
    joints[..., :channels] = keypoint
    score = annotation.get("keypoint_score")
    if score is not None and (not isinstance(score, np.ndarray) or score.shape != keypoint.shape[:3]):
        raise BrokenRecording(file, f"'keypoint_score': expected an array {list(keypoint.shape[:3])}", name=name)
    bodies = []
    for body, track in enumerate(joints):  # [T, V, 3]
        present = track.any(axis=(1, 2))
        if present.any():
            bodies.append(Body(str(body), np.flatnonzero(present).astype(np.int32), track[present]))
            if score is not None:
                bodies[-1].confidence = np.nan_to_num(score[body, present].astype(np.float32))
    fields = parse_name(name) if labelled else None
    sequence = Sequence(name, int(label), keypoint.shape[1], bodies)
    if fields is not None:
        sequence.subject, sequence.view = fields.performer, fields.camera
        sequence.repetition, sequence.setup = fields.replication, fields.setup
    return [sequence]


def _check_annotations(annotations: list[Any], src: Path) -> None:
    """Raise DataError unless they are what their file has bytes for: one object may stand in a pickle many times."""
    if (nameless := sum(not _name(annotation) for annotation in annotations)) > MAX_NAMELESS:
        raise DataError(f"{src}: {nameless:,} annotations are no dicts with a text 'frame_dir'")
    dicts = [id(annotation) for annotation in annotations if isinstance(annotation, dict)]
    if len(set(dicts)) != len(dicts):
        raise DataError(f"{src}: one annotation stands in 'annotations' more than once")
    size = sum(annotation["keypoint"].nbytes for annotation in annotations if _has_array(annotation))
    if size > src.stat().st_size + FREE_EXPANSION:
        raise DataError(f"{src}: its annotations share arrays: {size:,} bytes of keypoints in a smaller file")


def _name(annotation: Any) -> str:
    name = annotation.get("frame_dir") if isinstance(annotation, dict) else None
    return name if isinstance(name, str) else ""


def _has_array(annotation: Any) -> bool:
    array = annotation.get("keypoint") if isinstance(annotation, dict) else None
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype.kind != "f":
        return False
    bodies, frames, joints, channels = array.shape
    return bodies <= MAX_BODIES and frames <= MAX_FRAMES and 1 <= joints <= MAX_JOINTS and channels in (2, 3)


def _is_label(label: Any) -> bool:
    return isinstance(label, int) and not isinstance(label, bool) and 0 <= label < MAX_CLASSES


def _classes(value: Any, annotations: list[Any], src: Path) -> list[str]:
    labels = [a["label"] for a in annotations if isinstance(a, dict) and _is_label(a.get("label"))]
    count = max(labels, default=-1) + 1
    if value is not None:
        fits = isinstance(value, list) and count <= len(value) <= MAX_CLASSES
        if not fits or not all(isinstance(name, str) for name in value):
            raise DataError(f"{src}: 'classes': expected a list of {count} to {MAX_CLASSES:,} names")
        for name in value:
            check_text(f"{src}: class name", name)
        return value
    if any(parse_name(_name(annotation)) for annotation in annotations[:1]):
        return [f"A{label:03d}" for label in range(1, count + 1)]
    return [f"class {label}" for label in range(count)]


def _splits(value: Any, src: Path) -> tuple[Splits, list[str]]:
    if value is None:
        return {}, []
    if not isinstance(value, dict) or len(value) > MAX_SPLITS:
        raise DataError(f"{src}: 'split': expected a dict of name: list of frame_dir, {MAX_SPLITS} lists at most")
    splits: Splits = {}
    notes = []
    for key, names in value.items():
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{src}: 'split' {describe(key)}: expected a list of frame_dir")
        match = _PART.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            notes.append(f"split list {describe(key)} left out: its name does not end in train, val or test")
            continue
        check_text(f"{src}: split list", key)
        splits.setdefault((match["split"] or "default") + match["fold"], {})[match["part"]] = list(names)
    for by_part in splits.values():
        if "val" in by_part and "test" not in by_part:
            by_part["test"] = by_part.pop("val")
    return splits, notes
