"""Northwestern-UCLA Multiview Action 3D as JSON: one file a recording, ``{file_name, skeletons [T][20][3], label}``.

Names are aAA_sSS_eEE_vVV: action, performer, repetition, camera. Labels run from 1 to 10 in the order of the actions,
whose numbers have holes. Splits:

- ``xview``, the published cross-view protocol: cameras 1 and 2 train, camera 3 is the test.
- ``view12`` and ``view21``: camera 1 trains and camera 2 is the test, and the other way round. They touch the training
  views of xview only, so hyperparameters can be chosen on them.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2vfast.data.archive import is_single, read_bytes
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.formats.poses import kind_of
from s2vfast.data.formats.poses import rows as rows_of
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.limits import MAX_TEXT_BYTES, NotJson, describe, parse_json
from s2vfast.data.scan import original_stem, scan
from s2vfast.data.store import Body, Sequence
from s2vfast.data.store_writer import SequenceInfo, Splits
from s2vfast.errors import DataError

ACTIONS = {
    1: "pick up with one hand",
    2: "pick up with two hands",
    3: "drop trash",
    4: "walk around",
    5: "sit down",
    6: "stand up",
    8: "donning",
    9: "doffing",
    11: "throw",
    12: "carry",
}
"""Action number -> class name, in the order of the labels."""

JOINTS = 20
_NAME = re.compile(r"a(\d\d)_s(\d\d)_e(\d\d)_v(\d\d)")


def detect(src: Path) -> bool:
    """A folder with aAA_sSS_eEE_vVV.json files, one such file, or a .json file with ``"skeletons"`` near its start."""
    if is_single(src):
        return src.suffix.lower() == ".json" and (_is_named(src) or kind_of(src) == "nwucla")
    return bool(scan(src, ".json", _is_named, first=True)[0])


def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source:
    """All recordings below ``src``, in the order of their names. The layout is always kinect_v1."""
    files, notes = scan(src, ".json", _is_named if labelled else lambda path: True)
    if not files:
        raise DataError(f"{src}: no files named {'aAA_sSS_eEE_vVV' if labelled else '*'}.json below")
    return Source(
        layout=LAYOUTS["kinect_v1"],
        classes=list(ACTIONS.values()),
        items=files,
        read=partial(read_file, labelled=labelled),
        splits=splits,
        notes=notes,
        labelled=labelled,
    )


def _is_named(path: Path) -> bool:
    return _NAME.fullmatch(original_stem(path)) is not None


def splits(infos: list[SequenceInfo]) -> Splits:
    """xview, view12 and view21 as above."""
    by_view = {view: [info.name for info in infos if info.view == view] for view in (1, 2, 3)}
    return {
        "xview": {"train": by_view[1] + by_view[2], "test": by_view[3]},
        "view12": {"train": by_view[1], "test": by_view[2]},
        "view21": {"train": by_view[2], "test": by_view[1]},
    }


def read_file(path: Path, labelled: bool = True) -> list[Sequence | BrokenRecording]:
    """One recording; of one whose name is not aAA_sSS_eEE_vVV, and without ``labelled``, only the skeletons are read.

    Raises:
        BrokenRecording: not such a file, or a label that does not fit its name.
    """
    name = _NAME.fullmatch(original_stem(path))
    labelled = labelled and name is not None
    try:
        data = parse_json(read_bytes(path, MAX_TEXT_BYTES))
    except NotJson as error:
        raise BrokenRecording(path.name, f"not JSON: {error}", error.line) from None
    if not isinstance(data, dict) or not {"skeletons", *(["file_name", "label"] if labelled else [])} <= data.keys():
        expected = "file_name, skeletons and label" if labelled else "skeletons"
        raise BrokenRecording(path.name, f"expected an object with {expected}")
    labels = _labels(name, data, path) if labelled else {"label": -1}
    joints = _joints(data["skeletons"], path.name)
    body = Body("1", np.arange(len(joints), dtype=np.int32), joints)
    return [Sequence(name=path.stem, total_frames=len(joints), bodies=[body], **labels)]


def _labels(name: re.Match[str], data: dict[str, Any], path: Path) -> dict[str, int]:
    """What the name and the label say: label, subject, view and repetition."""
    action, performer, repetition, camera = map(int, name.groups())
    if data["file_name"] not in (path.stem, path.name, original_stem(path)):
        raise BrokenRecording(path.name, f"file_name inside is {describe(data['file_name'])}")
    label, actions = data["label"], list(ACTIONS)
    if type(label) is not int or not 1 <= label <= len(actions) or actions[label - 1] != action:
        expected = actions.index(action) + 1 if action in actions else "none (no such action)"
        raise BrokenRecording(path.name, f"label {describe(label)}, expected {expected} for action a{action:02d}")
    return {"label": label - 1, "subject": performer, "view": camera, "repetition": repetition}


def _joints(frames: Any, file: str) -> np.ndarray:
    """[T, 20, 3], the first frame that is something else being named."""
    if not isinstance(frames, list):
        raise BrokenRecording(file, f"skeletons: {describe(frames)}, expected a list of frames")
    rows = []
    for number, frame in enumerate(frames):
        if isinstance(frame, list) and len(frame) == 3 * JOINTS:  # flat: x y z of one joint after another
            frame = [frame[at : at + 3] for at in range(0, 3 * JOINTS, 3)]
        rows.append(rows_of(frame, (3,), JOINTS, f"frame {number}", file))
    return np.array(rows, dtype=np.float64).reshape(-1, JOINTS, 3)
