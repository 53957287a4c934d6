"""Formats that datasets come in. One module each, with two functions.

To add a format, write ``formats/<name>.py`` with::

    def detect(src: Path) -> bool: ...
        # Is src (a file or a folder) of this format? Look at names and first lines only.

    def open_source(src: Path, layout: Layout | None, labelled: bool = True) -> Source: ...
        # List the recordings and say how to read one, as `base.Source` describes. `layout` is what the user asked
        # for; a format with a skeleton of its own leaves it aside. Without `labelled`, which is how `s2vfast predict`
        # reads, neither labels nor names need to be there. Raise DataError if src as a whole is unusable.

``OPTIONS``, a tuple, names what ``open_source`` takes beside that, by keyword: "axes" and "channels" of arrays, those
of `s2vfast.data.depth.DEPTH_OPTIONS` of depth. Add the module to `FORMATS`, or from outside of the package by
`register_format`. Its ``read`` returns `Sequence` objects: bodies with the main one first, each with the frame numbers
it was seen in, gaps left as gaps, and a note for everything that was dropped. A format of depth has the layout
`s2vfast.data.point_layout.PointLayout` and returns `s2vfast.data.point_store.PointSequence` objects. Everything else is
done for it: the importer runs ``read`` in parallel, refuses NaN, Inf and absurd coordinates, counts, reports, and
writes the store. A recording that cannot be read raises ``BrokenRecording(file, reason, line)``.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from s2vfast.data.depth import DEPTH_OPTIONS
from s2vfast.data.formats import (
    alphapose,
    arrays,
    ctrgcn,
    depth,
    kinetics,
    mediapipe,
    msr_action3d,
    ntu,
    ntu_depth,
    nwucla,
    openpose,
    pkummd,
    pyskl,
    rtmpose,
    stgcn,
)
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.errors import DataError

FORMATS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(ntu, pyskl, ctrgcn, nwucla, pkummd, stgcn, kinetics, mediapipe, rtmpose, alphapose, openpose, arrays),
        *(msr_action3d, ntu_depth, depth),
    )
}
"""Modules by the name that ``--format`` takes."""
BUILT_IN = tuple(FORMATS)
"""Names of the formats of the package. Those that are added are asked first: they know their files better."""

__all__ = ["FORMATS", "BrokenRecording", "Source", "detect_format", "register_format"]


def register_format(name: str, module: ModuleType) -> None:
    """Add a format from outside of the package; a name that was added before is replaced.

    Args:
        name: what ``--format`` takes.
        module: with the two functions above. What it reads in other processes must be importable there: a file that
            ``--plugin`` names gives ``Source(parallel=False)``.
    """
    for function in ("detect", "open_source"):
        if not callable(getattr(module, function, None)):
            raise TypeError(f"register_format({name!r}): {module.__name__} has no function {function}")
    FORMATS[name] = module


def format_options(format: str, **options: Any) -> dict[str, Any]:
    """The options that were given, of those that a format may take.

    Raises:
        DataError: the format does not take one of these.
    """
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in getattr(FORMATS[format], "OPTIONS", ()):
            reason = "reads no depth" if name in DEPTH_OPTIONS else "says itself how its numbers are laid out"
            raise DataError(f"--{name}: format {format} {reason}")
    return options


def detect_format(src: Path) -> str:
    """The name of the one format that recognises ``src``.

    Raises:
        DataError: nothing there, no format or more than one recognises it.
    """
    if isinstance(src, Path) and not src.exists():
        raise DataError(f"{src}: no such file or folder")
    added = [name for name in FORMATS if name not in BUILT_IN]
    matches = [name for name in added if FORMATS[name].detect(src)]
    matches = matches or [name for name in BUILT_IN if FORMATS[name].detect(src)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise DataError(f"{src}: may be {' or '.join(matches)}; name one with --format: {', '.join(FORMATS)}")
    raise DataError(
        f"{src}: of no known format; name one with --format: {', '.join(FORMATS)}. Looked for, also below it and in a "
        ".zip: .skeleton (ntu), .pkl (pyskl), .npz with x_train (ctrgcn), aAA_sSS_eEE_vVV.json (nwucla), 0002-L.txt "
        "(pkummd), train_data_joint.npy with train_label.pkl (stgcn), .json of Kinetics-skeleton, MediaPipe, RTMPose "
        "or AlphaPose, CLIP_000000000012_keypoints.json (openpose), .npy, .npz or .csv of numbers (arrays), "
        "aAA_sSS_eEE_sdepth.mat or .bin (msr_action3d), SsssCcccPpppRrrrAaaa/MDepth-00000001.png (ntu_depth), "
        "folders of .png (depth)"
    )
