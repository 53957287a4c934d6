"""Import a dataset into a store: list, read in parallel, check, write in order, count."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2vfast.data.archive import only_member
from s2vfast.data.formats import FORMATS, array_options, detect_format
from s2vfast.data.formats.base import BrokenRecording, Read, Source, find_absurd
from s2vfast.data.labels import Labelling
from s2vfast.data.layout import Layout, get_layout
from s2vfast.data.limits import MAX_REASON, NotRead
from s2vfast.data.names import Exclusion, example, exclusion, key, stem
from s2vfast.data.store import Body, Sequence, Store
from s2vfast.data.store_writer import SequenceInfo, Splits, check_sequence, write_store
from s2vfast.data.tracks import BodyCounts, arrange
from s2vfast.data.units import check_unit
from s2vfast.errors import DataError

CHUNK = 16  # recordings a task: small files cost more to hand over than to read
MIN_FILES_FOR_WORKERS = 1024  # below that, starting processes takes longer than it saves


@dataclass
class ImportReport:
    """What an import did."""

    store: Path
    format: str
    sequences: int
    rows: int
    classes: int
    splits: dict[str, dict[str, int]]
    """split -> part -> sequences."""
    dropped: list[dict[str, Any]]
    """name, reason, kind (broken, empty or excluded), and file and line where known; in the order of the store."""
    unlabelled: int = 0
    """Sequences without a label."""
    notes: list[str] = field(default_factory=list)
    """What was converted or left out for the whole dataset."""
    bodies: dict[str, int] = field(default_factory=dict)
    """Counts of `s2vfast.data.tracks.BodyCounts` that are not 0."""
    bodies_dropped: int = 0
    """Notes on single sequences, most of them bodies left out."""

    @property
    def broken(self) -> list[dict[str, Any]]:
        """The recordings that could not be read."""
        return [entry for entry in self.dropped if entry["kind"] == "broken"]


@dataclass
class _Tally:
    """Oddities that are kept but said."""

    zero_joints: int = 0
    repeated_frames: int = 0
    unsure_joints: int = 0
    bodies: BodyCounts = field(default_factory=BodyCounts)

    def add(self, other: _Tally) -> None:
        self.zero_joints += other.zero_joints
        self.repeated_frames += other.repeated_frames
        self.unsure_joints += other.unsure_joints
        self.bodies.add(other.bodies)


Result = tuple["list[Sequence | dict[str, Any]]", _Tally]


def import_dataset(
    src: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    layout: str | Path | Layout | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    workers: int | None = None,
    dtype: str = "float32",
    unit: str | None = None,
    min_confidence: float = 0.0,
    labels: str | Path | None = None,
    axes: str | None = None,
    channels: str | None = None,
    exclude: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Read the dataset at ``src`` and write a store at ``out``.

    The store's bytes do not depend on the number of workers, on the order in which a folder lists its files, or on
    where ``src`` lies; its name is kept.

    Args:
        src: a file or a folder.
        out: the store's folder; see `write_store`.
        format: a name in `FORMATS`; None: detected.
        layout: name or JSON file of the skeleton, for formats that have none of their own.
        on_error: ``skip`` leaves a broken recording out and reports it, ``fail`` stops at the first.
        workers: processes that read; 0 reads in this one, None chooses by the number of files and cores.
        dtype: of coordinates on disk, "float32" or "float16".
        unit: m, mm, px or normalised; None: the format's, or guessed by the size of bodies, with a note that says why.
        min_confidence: joints that the detector was less sure of were not seen.
        labels: what recordings show and who they are of: a file, a pattern of names, ``folder`` or ``none``, see
            `s2vfast.data.labels`. None: the format's own, or the folders, where a format has none.
        axes: order of the axes of arrays, as TMVC, for the format arrays; None: from their shapes.
        channels: of a joint in arrays: xy, xyz, xys or xyzs, s a score; None: xy, xyz or xyzs by their number.
        exclude: sequences to leave out: a file of names, one a line, a list of `s2vfast.data.names`, or "none"; None:
            the format's own list.
        overwrite: replace an existing store.
        progress: called with (items done, items) now and then.

    Raises:
        DataError: nothing usable at ``src``, ``out`` cannot be written, or a broken recording with ``fail``.
    """
    path = Path(src)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if format is not None and format not in FORMATS:
        raise DataError(f"format {format!r}: unknown, expected one of {', '.join(FORMATS)}")
    if on_error not in ("skip", "fail"):
        raise DataError(f"on_error {on_error!r}: expected skip or fail")
    if os.path.lexists(out) and not overwrite:  # said before the work, not after it
        raise DataError(f"{out}: exists already; choose another place or allow overwriting (--overwrite)")
    src = only_member(path)
    name = format if format is not None else detect_format(src)
    layout = layout if layout is None or isinstance(layout, Layout) else get_layout(layout)
    source = FORMATS[name].open_source(src, layout, **array_options(name, axes=axes, channels=channels))
    if layout is not None and layout != source.layout:
        raise DataError(f"{src}: format {name} has layout {source.layout.name}, not {layout.name}")
    if source.layout_reason:
        source.notes.insert(0, f"layout {source.layout.name} taken for {source.layout_reason}")
    if unit is not None:
        check_unit(unit, source.dimensions)
        if not source.unit_reason and unit != source.unit:
            raise DataError(f"{src}: --unit {unit}: format {name} is in {source.unit}")
        source.unit = unit
    elif source.unit_reason:
        source.notes.append(f"unit {source.unit} taken: {source.unit_reason}; --unit says it")
    labelling = Labelling(labels, source)

    excluded = exclusion(exclude, source.exclude)
    dropped: list[dict[str, Any]] = []
    about: dict[str, Any] = {"format": name, "name": path.resolve().name, "notes": list(source.notes)}
    if min_confidence > 0.0:
        about["min_confidence"] = min_confidence

    def make_splits(infos: list[SequenceInfo]) -> Splits:
        about["notes"] += _empty_classes(source.classes, infos)
        return _whole_splits(source.splits(infos) | labelling.splits(), infos, about["notes"])

    write_store(
        out,
        labelling.apply(
            _collect(source, workers, on_error, dropped, about, progress, min_confidence, excluded), about["notes"]
        ),
        layout=source.layout,
        classes=source.classes,
        splits=make_splits,
        source=about,
        dropped=dropped,
        dtype=dtype,
        unit=source.unit,
        dimensions=source.dimensions,
        overwrite=overwrite,
    )
    store = Store.open(out)
    return ImportReport(
        store=Path(out),
        format=name,
        sequences=len(store),
        rows=len(store.frames),
        classes=len(store.classes),
        splits={split: {part: len(ids) for part, ids in by_part.items()} for split, by_part in store.splits.items()},
        dropped=store.dropped,
        unlabelled=int((store.labels < 0).sum()),
        notes=list(about["notes"]),
        bodies=dict(about.get("bodies", {})),
        bodies_dropped=sum(map(len, store.notes.values())),
    )


def read_checked(source: Source, item: Any, min_confidence: float = 0.0) -> list[Sequence | dict[str, Any]]:
    """The recordings of one item of a source, each a sequence that a store may hold, or why it is none.

    The latter is a dictionary with name, reason, kind, and file and line where known. Of a source that was opened
    without labels, a sequence's label is not looked at. Joints that the detector was less sure of than
    ``min_confidence`` were not seen.
    """
    classes = len(source.classes) if source.labelled else None
    return _Task(source.read, source.layout, classes, source.limit, min_confidence)([(item, None)])[0]


def _collect(
    source: Source,
    workers: int | None,
    on_error: str,
    dropped: list[dict[str, Any]],
    about: dict[str, Any],
    progress: Callable[[int, int], None] | None,
    min_confidence: float,
    excluded: Exclusion | None,
) -> Iterator[Sequence]:
    """The good sequences, in order; the others go to ``dropped``, counts to ``about``."""
    classes = len(source.classes) if source.labelled else None
    task = _Task(source.read, source.layout, classes, source.limit, min_confidence)
    if excluded is not None:
        task.exclude, task.exclude_reason = frozenset(excluded.names), excluded.reason
    names: set[str] = set()
    total = _Tally()
    done = 0
    for size, (items, tally) in _run(task, source, workers):
        total.add(tally)
        for entry in items:
            if isinstance(entry, Sequence) and entry.name in names:
                entry = _entry(BrokenRecording(entry.name, "a second recording of this name"))
            if isinstance(entry, Sequence):
                names.add(entry.name)
                yield entry
            elif on_error == "fail" and entry["kind"] == "broken":
                raise DataError(entry["message"])
            else:
                if excluded is not None and entry["kind"] == "excluded":
                    excluded.met.add(key(entry["name"]))
                dropped.append({key: value for key, value in entry.items() if key != "message"})
        done += size
        if progress is not None:
            progress(done, source.total)
    about["zero_joints"], about["repeated_frames"] = total.zero_joints, total.repeated_frames
    if excluded is not None:
        about["notes"] += excluded.notes()
    if total.unsure_joints:
        about["unsure_joints"] = total.unsure_joints
    if bodies := {key: value for key, value in asdict(total.bodies).items() if value}:
        about["bodies"] = bodies


def _run(task: _Task, source: Source, workers: int | None) -> Iterator[tuple[int, Result]]:
    """Apply ``task`` to chunks of items, in their order whoever is faster; yields (items in the chunk, result)."""
    items = zip(source.items, itertools.repeat(None) if source.names is None else source.names, strict=False)
    chunks = iter(lambda: list(itertools.islice(items, CHUNK)), [])
    if workers is None:
        workers = _cores() if source.total >= MIN_FILES_FOR_WORKERS else 0
    if workers <= 0 or not source.parallel:
        for chunk in chunks:
            yield len(chunk), task(chunk)
        return
    # spawn: a fork of a process that has threads (torch has) may hang.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        pending: deque[tuple[int, Future[Result]]] = deque()
        for chunk in chunks:
            pending.append((len(chunk), pool.submit(task, chunk)))
            if len(pending) > 4 * workers:  # bounds what is in memory
                size, future = pending.popleft()
                yield size, future.result()
        while pending:
            size, future = pending.popleft()
            yield size, future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a reading process died (killed for memory, or started from a script without an "
            'if __name__ == "__main__" guard); import with workers=0'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """A worker ends with the process that started it, also where that was killed; Ctrl-C is for that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Task:
    """Reads and checks a chunk of items, here or in another process."""

    read: Read
    layout: Layout
    classes: int | None
    limit: float
    min_confidence: float = 0.0
    exclude: frozenset[str] = frozenset()
    exclude_reason: str = ""

    def __call__(self, chunk: list[tuple[Any, str | None]]) -> Result:
        """Of items and the names of their recordings, where these are known without reading."""
        out: list[Sequence | dict[str, Any]] = []
        tally = _Tally()
        for item, name in chunk:
            try:
                recordings = self.read(item)
            except BrokenRecording as error:
                recordings = [error]
            except NotRead as error:
                recordings = [BrokenRecording(Path(str(error.path)).name, error.reason)]
            except OSError as error:
                file = Path(error.filename or str(item)).name
                recordings = [BrokenRecording(file, f"cannot be read: {error.strerror or error}")]
            for entry in recordings:
                if isinstance(entry, BrokenRecording) and name is not None:
                    entry.name = name
                out.append(self.check(entry, tally))
        return out, tally

    def check(self, entry: Sequence | BrokenRecording, tally: _Tally) -> Sequence | dict[str, Any]:
        if self.exclude and key(entry.name) in self.exclude:  # even where it cannot be read
            return {"name": stem(entry.name), "reason": self.exclude_reason, "kind": "excluded"}
        if isinstance(entry, BrokenRecording):
            return _entry(entry)
        for body in entry.bodies:
            where = f"body {body.body_id}"
            self.blank(body, tally)
            if body.joints.ndim == 3 and (absurd := find_absurd(body.joints, self.limit)):
                row, _, reason = absurd
                return _entry(BrokenRecording(entry.name, f"{where}, frame {body.frame_index[row]}, {reason}"))
        try:
            check_sequence(entry, self.layout, self.classes)
        except DataError as error:
            reason = str(error).removeprefix(entry.name).lstrip(":, ")
            return _entry(BrokenRecording(entry.name, reason))
        entry.bodies, counts = arrange(entry.bodies, self.layout, entry.total_frames, entry.notes)
        tally.bodies.add(counts)
        if not any(body.joints.any() for body in entry.bodies):
            reason = "; ".join(["no body in any frame", *entry.notes])
            return {"name": entry.name, "reason": reason, "kind": "empty"}
        for body in entry.bodies:
            present = body.joints[body.joints.any(axis=(1, 2))]  # [n, V, 3]
            tally.zero_joints += int((~present.any(axis=2)).sum())
            tally.repeated_frames += int((present[1:] == present[:-1]).all(axis=(1, 2)).sum())
            body.joints = body.joints.astype(np.float32, copy=False)
        return entry

    def blank(self, body: Body, tally: _Tally) -> None:
        """A joint with a NaN, and one that the detector was not sure of, becomes zeros: it was not seen.

        A confidence that is no number is none: 0.
        """
        missing = np.isnan(body.joints).any(axis=-1)  # [n, V]
        if body.confidence is not None:
            body.confidence = np.nan_to_num(body.confidence)
        if self.min_confidence > 0.0 and body.confidence is not None and body.confidence.shape == missing.shape:
            unsure = body.confidence < self.min_confidence
            tally.unsure_joints += int((unsure & body.joints.any(axis=-1)).sum())
            missing |= unsure
        if missing.any():
            body.joints = np.where(missing[..., None], 0.0, body.joints)


def _entry(error: BrokenRecording) -> dict[str, Any]:
    texts = {"name": error.name, "reason": error.reason, "file": error.file, "message": str(error)}
    # Half a character of a name, which may be what is wrong with it, can be printed as \udXXX only.
    printed = {key: text[:MAX_REASON].encode("utf-8", "backslashreplace").decode() for key, text in texts.items()}
    entry: dict[str, Any] = dict(printed)
    entry["kind"] = "broken"
    if error.line is not None:
        entry["line"] = error.line
    return entry


def _empty_classes(classes: list[str], infos: list[SequenceInfo]) -> list[str]:
    """A note on classes without a recording, of recordings some of which have labels."""
    labels = {info.label for info in infos} - {-1}
    empty = [name for label, name in enumerate(classes) if label not in labels]
    if not labels or not empty:
        return []
    hint = f"; labels begin at {min(labels)}" if empty[0] == "class 0" else ""
    return [f"{len(empty):,} of {len(classes):,} classes have no recording: {example(empty)}{hint}"]


def _whole_splits(splits: Splits, infos: list[SequenceInfo], notes: list[str]) -> Splits:
    """Leave out splits that this data does not fill, with a note."""
    names = {info.name for info in infos}
    complete: Splits = {}
    for split, by_part in splits.items():
        empty = [part for part in ("train", "test") if not names.intersection(by_part.get(part, ()))]
        if empty:
            notes.append(f"split {split} left out: nothing in its {' and '.join(empty)} part")
        else:
            complete[split] = by_part
    return complete
