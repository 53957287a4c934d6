"""Raw files to classes, by a run that has classes.

Reading, checks and clips are those of an import and an evaluation. What a file says of classes is not looked at:
neither labels nor names that tell them need to be there. `s2vfast.evaluate.lines` does it with frames as they come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors
from s2vfast.data.archive import only_member
from s2vfast.data.formats import FORMATS, detect_format, format_options
from s2vfast.data.formats.base import Source
from s2vfast.data.layout import Layout, UnknownLayout, get_layout
from s2vfast.data.read_task import read_checked
from s2vfast.data.store import Recording
from s2vfast.data.store import Sequence as Skeletons
from s2vfast.evaluate.checks import check_counts
from s2vfast.evaluate.model import Model, check_smooth, refuse_points, smoothed

_AT_ONCE = 256
"""Sequences that are read before they go through the network."""


def predict(
    run_dir: str | Path,
    files: Sequence[str | Path],
    *,
    format: str | None = None,
    layout: str | Path | None = None,
    top: int = 5,
    window: int | None = None,
    step: int = 1,
    smooth: float = 0.0,
    device: str = "auto",
    log: Callable[[str], object] = print,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """The most probable classes of every sequence in some files, in their order.

    Args:
        run_dir: folder of a run that has classes.
        files: raw files of one of the known formats.
        format: a name in `s2vfast.data.formats.FORMATS`; None: detected for each file.
        layout: name or JSON file of the skeleton, for formats that have none of their own; None: the run's.
        top: classes a sequence.
        window: frames of a window that slides over each sequence; None: the whole sequence at once.
        step: frames from one window to the next.
        smooth: share of the probabilities that the window before has in these, in [0, 1).
        device: auto, cpu, cuda or cuda:N.
        log: told of what is odd.
        options: what the format takes beside that, as of `s2vfast.data.importer.import_dataset`: axes and channels of
            arrays, the camera of depth.

    Yields:
        ``file``, ``sequence`` (its name, where a file holds several) and ``top``, a list of [class, probability], the
        most probable first; with a window also ``frames``, its first and the one after its last. Or ``file`` and
        ``error`` for what cannot be read, or is not finite in the network. They come as the files are read, so many at
        a time that memory holds them.

    Raises:
        CheckpointError: no run that has classes.
        ConfigError: an impossible option.
    """
    check_counts(top=top, step=step, **({} if window is None else {"window": window}))
    check_smooth(smooth)
    if format is not None and format not in FORMATS:
        raise errors.ConfigError(f"--format: {format!r} is not one of {', '.join(FORMATS)}")
    model = Model(run_dir, device, log)
    model.probabilities_of([])
    if window is not None:
        refuse_points(model, "windows of them (--window)")
    source_layout = None if layout is None else get_layout(layout)

    def predictions(waiting: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        recordings = [entry["recording"] for entry in waiting if "recording" in entry]
        probabilities = iter(model.probabilities_of(recordings, strict=False))
        before = None
        for entry in waiting:
            if "recording" in entry:
                recording = entry.pop("recording")
                values = next(probabilities)
                if entry.pop("first", True):
                    before = None
                before = values = smoothed(values, before, smooth)
                entry["sequence"] = recording.name if entry.pop("several") else None
                entry["top"] = [list(pair) for pair in model.ranked(values, top)]
                if not values.isfinite().all():
                    name = "" if entry["sequence"] is None else f" {entry['sequence']}:"
                    reason = (
                        f"the network's numbers of it are not finite; check its coordinates, and the loss of {run_dir}"
                    )
                    entry = {"file": entry["file"], "error": f"{entry['file']}:{name} {reason}"}
            yield entry

    waiting: list[dict[str, Any]] = []
    for file in files:
        for entry in _read(Path(file), format, source_layout, model, options, log):
            # The windows of a sequence stay together, as each is smoothed by the one before it.
            waiting += _windows(entry, window, step) if window and "recording" in entry else [entry]
            if len(waiting) >= _AT_ONCE:
                yield from predictions(waiting)
                waiting = []
    yield from predictions(waiting)


def _windows(entry: dict[str, Any], window: int, step: int) -> Iterator[dict[str, Any]]:
    """An entry's recording in windows, the last one at its end; those without a body are left out."""
    recording: Skeletons = entry["recording"]
    last = max(recording.total_frames - window, 0)
    starts = list(range(0, last + 1, step))
    if starts[-1] != last:
        starts.append(last)
    first = True
    for start in starts:
        stop = min(start + window, recording.total_frames)
        bodies = []
        for body in recording.bodies:
            low, high = np.searchsorted(body.frame_index, [start, stop])
            if np.asarray(body.joints[low:high]).any():
                at = body.frame_index[low:high] - start
                sure = None if body.confidence is None else body.confidence[low:high]
                bodies.append(replace(body, frame_index=at, joints=body.joints[low:high], confidence=sure))
        if bodies:
            part = replace(recording, total_frames=stop - start, bodies=bodies)
            yield entry | {"recording": part, "frames": [start, stop], "first": first}
            first = False


def _take_unit(source: Source, path: Path, model: Model, log: Callable[[str], object]) -> None:
    """Coordinates that look like another unit than the run's, by a guess, are in the run's; what matters is said."""
    if model.unit in (None, source.unit):
        return
    if model.config.data.scale != "torso":
        reason = f" ({source.unit_reason})" if source.unit_reason else ""
        log(f"{path}: its unit is {source.unit}{reason}, the run was trained on {model.unit}")
    if source.unit_reason:
        source.unit = model.unit


def _open(path: Path, format: str | None, layout: Layout | None, skeleton: Layout, options: dict[str, Any]) -> Source:
    """What a file holds, without labels. Where nothing names its layout it is ``skeleton``, the run's."""
    src = only_member(path)
    name = format or detect_format(src)
    open_source = partial(FORMATS[name].open_source, labelled=False, **format_options(name, **options))
    try:
        source: Source = open_source(src, layout)
    except UnknownLayout:
        return open_source(src, skeleton)
    if source.layout_reason and source.layout.num_joints == skeleton.num_joints:
        return open_source(src, skeleton)
    return source


def _read(
    path: Path,
    format: str | None,
    layout: Layout | None,
    model: Model,
    options: dict[str, Any],
    log: Callable[[str], object],
) -> Iterator[dict[str, Any]]:
    """The recordings of a file one by one, and what is wrong with it."""
    skeleton = model.layout
    try:
        source = _open(path, format, layout, skeleton, options)
        if not source.layout.same_joints(skeleton):
            raise errors.DataError(
                f"{path}: its layout is {source.layout.name}; the run was made with {skeleton.name} "
                f"({skeleton.num_joints} joints)"
            )
        if source.dimensions not in skeleton.dimensions:
            raise errors.DataError(
                f"{path}: its joints have {source.dimensions} coordinates, those of the run {skeleton.dimensions[0]}"
            )
        _take_unit(source, path, model, log)
        entries = (entry for item in source.items for entry in read_checked(source, item, model.min_confidence))
        first = list(itertools.islice(entries, 2))
        if not first:
            yield {"file": str(path), "error": f"{path}: no recording in it"}
        for entry in itertools.chain(first, entries):
            if isinstance(entry, Recording):
                if model.config.data.confidence and any(body.confidence is None for body in entry.bodies):
                    raise errors.DataError(f"{path}: has no confidences of joints, and the run takes them")
                yield {"file": str(path), "recording": entry, "several": len(first) > 1}
            else:
                where = f":{entry['line']}" if "line" in entry else ""
                name = f" {entry['name']}:" if len(first) > 1 else ""
                yield {"file": str(path), "error": f"{path}{where}:{name} {entry['reason']}"}
    except (errors.DataError, OSError) as error:
        text = str(error) if isinstance(error, errors.DataError) else f"{path}: {error.strerror or error}"
        yield {"file": str(path), "error": text}
