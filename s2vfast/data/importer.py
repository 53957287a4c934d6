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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from s2vfast.data.archive import only_member
from s2vfast.data.formats import FORMATS, detect_format, format_options
from s2vfast.data.formats.base import BrokenRecording, Source
from s2vfast.data.labels import Labelling
from s2vfast.data.layout import Layout, get_layout
from s2vfast.data.names import Exclusion, example, exclusion, key
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.read_task import ReadTask, Result, Tally, broken_entry
from s2vfast.data.store import Recording, Store
from s2vfast.data.store_writer import SequenceInfo, Splits, write_store
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
    rows_are: str
    """What is counted: as of `s2vfast.data.store.Store.rows_are`."""
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


def import_dataset(
    src: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    layout: str | Path | Layout | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    workers: int | None = None,
    dtype: str | None = None,
    unit: str | None = None,
    min_confidence: float = 0.0,
    labels: str | Path | None = None,
    exclude: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
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
        dtype: of coordinates on disk, "float32" or "float16"; None: float32 of skeletons, float16 of points.
        unit: m, mm, px or normalised; None: the format's, or guessed by the size of bodies, with a note that says why.
        min_confidence: joints that the detector was less sure of were not seen.
        labels: what recordings show and who they are of: a file, a pattern of names, ``folder`` or ``none``, see
            `s2vfast.data.labels`. None: the format's own, or the folders, where a format has none.
        exclude: sequences to leave out: a file of names, one a line, a list of `s2vfast.data.names`, or "none"; None:
            the format's own list.
        overwrite: replace an existing store.
        progress: called with (items done, items) now and then.
        options: what the format takes beside that (`s2vfast.data.formats.OPTIONS`); those that are None count as left
            out.

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
    source = FORMATS[name].open_source(src, layout, **format_options(name, **options))
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
    if min_confidence > 0.0 and source.layout.kind == PointLayout.kind:
        raise DataError(f"--min_confidence: format {name} is of depth, which has no confidences of joints")
    labelling = Labelling(labels, source)

    excluded = exclusion(exclude, source.exclude)
    dropped: list[dict[str, Any]] = []
    about: dict[str, Any] = {"format": name, "name": path.resolve().name, **source.facts, "notes": list(source.notes)}
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
        rows=store.rows,
        rows_are=store.rows_are,
        classes=len(store.classes),
        splits={split: {part: len(ids) for part, ids in by_part.items()} for split, by_part in store.splits.items()},
        dropped=store.dropped,
        unlabelled=int((store.labels < 0).sum()),
        notes=list(about["notes"]),
        bodies=dict(about.get("bodies", {})),
        bodies_dropped=sum(map(len, store.notes.values())),
    )


def _collect(
    source: Source,
    workers: int | None,
    on_error: str,
    dropped: list[dict[str, Any]],
    about: dict[str, Any],
    progress: Callable[[int, int], None] | None,
    min_confidence: float,
    excluded: Exclusion | None,
) -> Iterator[Recording]:
    """The good sequences, in order; the others go to ``dropped``, counts to ``about``."""
    task = ReadTask.of(source, min_confidence)
    if excluded is not None:
        task.exclude, task.exclude_reason = frozenset(excluded.names), excluded.reason
    names: set[str] = set()
    total = Tally()
    done = 0
    for size, (items, tally) in _run(task, source, workers):
        total.add(tally)
        for entry in items:
            if isinstance(entry, Recording) and entry.name in names:
                entry = broken_entry(BrokenRecording(entry.name, "a second recording of this name"))
            if isinstance(entry, Recording):
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
    if excluded is not None:
        about["notes"] += excluded.notes()
    about.update(total.facts(source.layout))


def _run(task: ReadTask, source: Source, workers: int | None) -> Iterator[tuple[int, Result]]:
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
