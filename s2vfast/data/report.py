"""What `s2vfast data import`, `show`, `check` and `layouts` print."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2vfast.data.layout import ALIASES, LAYOUTS, get_layout
from s2vfast.data.limits import printable
from s2vfast.data.splits import describe
from s2vfast.data.store import HEADER, MADE_SPLITS, Store

if TYPE_CHECKING:
    from s2vfast.data.importer import ImportReport
    from s2vfast.data.memory import MemoryStore
    from s2vfast.data.point_store import PointStore
    from s2vfast.data.skeleton_store import SkeletonStore

LISTED = 10  # entries of a long list that are printed; the store has them all


def show(store: Store | str | Path) -> str:
    """What is in a store: sequences, lengths, bodies, classes, splits, what was dropped and why.

    Raises:
        DataError: a path without a readable store.
    """
    if not isinstance(store, Store):
        store = Store.open(store)
    source = store.meta["source"]
    size = sum(entry["size"] for entry in store.meta["files"].values())
    lines = [
        _line("store", f"{store.path}, identity {store.fingerprint[:16]}"),
        _line("source", ", ".join(str(source[key]) for key in ("format", "name") if key in source) or "not said"),
        *(_points(store, size) if store.kind == "points" else _skeletons(store, size)),
        _line("people", _people(store)),
    ]
    lines += [_line("tracks", phrase) for phrase in body_counts(source)]
    if oddities := _oddities(source):
        lines.append(_line("oddities", oddities))
    lines += [_line("note", note) for note in source.get("notes", ())]
    lines += ["", "splits"]
    width = max(12, *(len(split) + 1 for split in store.splits)) if store.splits else 12
    for split in store.splits:
        counts = describe(store, split)
        lost = store.meta["names_missing_from_splits"].get(split, {})
        counts += "".join(f"; {number:,} names of {part} are not in the store" for part, number in lost.items())
        lines.append(f"  {split:<{width}}{counts}{_made(store, split)}")
    lines.append(f"  {'all':<{width}}train {len(store):,}")
    lines += ["", f"classes ({len(store.classes)})"]
    counts = np.bincount(store.labels[store.labels >= 0], minlength=len(store.classes))
    width = max(map(len, store.classes), default=0)
    lines += [f"  {name:<{width}} {count:>7,}" for name, count in zip(store.classes, counts, strict=True)]
    if unlabelled := int((store.labels < 0).sum()):
        lines.append(f"  without a label: {unlabelled:,}")
    lines += ["", *_dropped(store.dropped)]
    if store.notes:
        total = sum(map(len, store.notes.values()))
        lines.append(f"left out of sequences that were kept: {total:,} times in {len(store.notes):,} sequences")
        lines += [f"  {name}: {'; '.join(notes)}" for name, notes in list(store.notes.items())[:LISTED]]
        lines += _more(len(store.notes))
    return "\n".join(map(printable, lines))


def _skeletons(store: SkeletonStore, size: int) -> list[str]:
    return [
        _line("skeleton", f"{store.layout.name}, {store.layout.num_joints} joints"),
        _line("sequences", f"{len(store):,}"),
        _line("rows", f"{store.rows:,} frames of bodies, {store.frames.dtype}, {size / 1e6:,.1f} MB in all"),
        _line("unit", f"{store.unit}, {store.dimensions} coordinates a joint{_confidence(store)}"),
        _line("length", _lengths(store.total_frames)),
        _line("bodies", _bodies(store)),
        _line("gaps", _gaps(store)),
    ]


def _points(store: PointStore, size: int) -> list[str]:
    counts = np.diff(store.frame_rows)
    low, median, high = (int(x) for x in np.percentile(counts, [0, 50, 100]))
    empty, source = int((counts == 0).sum()), store.meta["source"]
    lines = [
        _line("sequences", f"{len(store):,}"),
        _line("points", f"{store.rows:,} points, {store.points.dtype}, {size / 1e6:,.1f} MB in all"),
        _line("frames", f"{len(counts):,}, of {low:,} to {high:,} points, median {median:,}; {empty:,} without any"),
        _line("unit", "m; x to the right of the picture, y up, z away from the camera"),
        _line("length", _lengths(store.total_frames)),
    ]
    if isinstance(camera := source.get("camera"), dict):
        facts = {name: value for name, value in camera.items() if name not in ("name", "about")}
        lines.append(_line("camera", ", ".join([str(camera.get("name")), *(f"{n} {v}" for n, v in facts.items())])))
    most = source.get("points")
    if "unit" in source:
        least = f"; at most {most:,} points a frame are kept" if most else ""
        lines.append(_line("depth", f"{1000 * source['unit']:g} mm a raw unit{least}"))
    return lines


def layouts() -> str:
    """The known skeletons, one a line."""
    rows = [("layout", "joints", "coordinates", "also", "whose")]
    for name, skeleton in LAYOUTS.items():
        coordinates = " or ".join(map(str, skeleton.dimensions))
        rows.append(
            (
                name,
                str(skeleton.num_joints),
                coordinates,
                " ".join(alias for alias in ALIASES if ALIASES[alias] == name),
                skeleton.about,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def layout(name_or_path: str | Path) -> str:
    """One skeleton: what clips are centred, scaled and turned by, its body parts, and its joints as a tree.

    Raises:
        DataError: as of `s2vfast.data.layout.get_layout`.
    """
    skeleton = get_layout(name_or_path)

    def named(anchor: tuple[int, ...]) -> str:
        names = [skeleton.joints[joint] for joint in anchor]
        return names[0] if len(names) == 1 else f"mean of {' and '.join(names)}"

    lines = [
        _line("layout", ": ".join(filter(None, (skeleton.name, skeleton.about)))),
        _line("joints", str(skeleton.num_joints)),
        _line("root", named(skeleton.root)),
        _line("torso", " to ".join(map(named, skeleton.torso))),
        _line("sides", f"{skeleton.joints[skeleton.sides[0]]} left, {skeleton.joints[skeleton.sides[1]]} right"),
        _line("up", " ".join(f"{x:g}" for x in skeleton.up)),
        _line("bones", f"{len(skeleton.bones)} lines are drawn"),
        *(
            _line("part", f"{part}: {', '.join(skeleton.joints[j] for j in members)}")
            for part, members in skeleton.parts.items()
        ),
        "",
    ]

    children: dict[int, list[int]] = {}
    for joint, parent in enumerate(skeleton.parents):
        children.setdefault(parent, []).append(joint)
    stack = [(joint, 0) for joint in reversed(children[-1])]
    while stack:
        joint, depth = stack.pop()
        lines.append(f"{joint:>4} {'  ' * depth}{skeleton.joints[joint]}")
        stack += [(child, depth + 1) for child in reversed(children.get(joint, ()))]
    return "\n".join(map(printable, lines))


def check(path: str | Path) -> str:
    """Prove a store intact: every file against its SHA-256, and the tables against each other.

    Raises:
        DataError: names the file that is missing or differs.
    """
    store = Store.open(path)
    store.verify()
    size = sum(entry["size"] for entry in store.meta["files"].values())
    return (
        f"{store.path}: intact, {len(store.files) + 1} files, {size / 1e6:,.1f} MB, "
        f"{len(store):,} sequences, {store.rows:,} {store.rows_are}, identity {store.fingerprint[:16]} ({HEADER})"
    )


def imported(report: ImportReport) -> str:
    """What an import did: counts, splits, what was dropped and why."""
    lines = [
        f"imported {report.sequences:,} sequences, {report.rows:,} {report.rows_are}, {report.classes} classes "
        f"({report.format}) to {report.store}"
    ]
    for split, by_part in report.splits.items():
        lines.append(f"split {split}: " + ", ".join(f"{part} {count:,}" for part, count in by_part.items()))
    if report.unlabelled:
        lines.append(f"without a label: {report.unlabelled:,} sequences")
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"tracks: {phrase}" for phrase in body_counts({"bodies": report.bodies})]
    if report.bodies_dropped:
        lines.append(f"left out of sequences that were kept: {report.bodies_dropped:,} (see `s2vfast data show`)")
    return "\n".join(map(printable, lines + _dropped(report.dropped)))


def _line(name: str, text: str) -> str:
    return f"{name:<11}{text}"


def _lengths(frames: np.ndarray) -> str:
    low, p5, median, p95, high = (int(x) for x in np.percentile(frames, [0, 5, 50, 95, 100]))
    return f"{low} to {high} frames, median {median}, 5 % below {p5}, 5 % above {p95}"


def _bodies(store: Store) -> str:
    per_sequence = np.bincount(store.tracks["sequence"], minlength=len(store))
    counts = sorted(Counter(per_sequence.tolist()).items())
    return ", ".join(f"{bodies} in {number:,} sequences" for bodies, number in counts)


def _absent(store: Store | MemoryStore) -> tuple[np.ndarray, float]:
    """Frames of each sequence without its main body, int64 [Q], and their part of all frames."""
    _, count = store.track_table(1)
    absent = store.total_frames - count[:, 0]
    return absent, absent.sum() / max(int(store.total_frames.sum()), 1)


def _gaps(store: Store) -> str:
    absent, fraction = _absent(store)
    gaps = int((absent > 0).sum())
    if not gaps:
        return "none in main bodies"
    return f"main body absent in {int(absent.sum()):,} frames of {gaps:,} sequences, {fraction:.1%} of all frames"


def body_counts(source: dict[str, Any]) -> list[str]:
    """What `s2vfast.data.tracks` did at import, a phrase each; empty where it changed nothing."""
    counts = source.get("bodies") or {}
    phrases = []
    if joined := counts.get("joined"):
        phrases.append(f"joined in {joined:,} sequences, where one ended as another began")
    if reranked := counts.get("reranked"):
        phrases.append(f"re-ranked in {reranked:,} sequences: the main body is not the file's first")
    if ghosts := counts.get("ghosts"):
        phrases.append(f"{ghosts:,} dropped as no people, in {counts['ghost_sequences']:,} sequences")
    return phrases


def main_bodies(store: Store | MemoryStore, bodies: int) -> list[str]:
    """What a run on ``store`` with ``bodies`` bodies a sequence leaves out, a sentence each; empty where nothing."""
    _, fraction = _absent(store)
    sentences = []
    if fraction >= 0.05:
        sentences.append(f"the main body lacks {fraction:.1%} of the frames; clips are made of the others")
    more = store.tracks["slot"] >= bodies
    if more.any():
        sequences = len(np.unique(store.tracks["sequence"][more]))
        sentences.append(
            f"{int(more.sum()):,} bodies beyond data.bodies = {bodies} are left out, in {sequences:,} sequences"
        )
    return sentences


def _confidence(store: Store) -> str:
    return "" if store.confidence is None else f", with confidences (mean {store.confidence.mean(dtype=float):.2f})"


def _made(store: Store, split: str) -> str:
    """How a user made a split; empty for one that was imported."""
    origin = store.meta.get(MADE_SPLITS, {}).get(split)
    if origin is None:
        return ""
    facts = ", ".join(f"{name} {value}" for name, value in origin.items() if name not in ("by", "parts"))
    return f"; made by {origin['by']}: {facts}".replace("[", "").replace("]", "")


def _people(store: Store) -> str:
    columns = ((name, getattr(store, name)) for name in ("subjects", "views", "repetitions", "setups"))
    counts = [f"{len(np.unique(column[column >= 0]))} {name}" for name, column in columns if (column >= 0).any()]
    return ", ".join(counts) or "not known"


def _oddities(source: dict[str, Any]) -> str:
    phrases = []
    if zero := source.get("zero_joints"):
        phrases.append(f"{zero:,} joints at exactly (0, 0, 0)")
    if repeats := source.get("repeated_frames"):
        phrases.append(f"{repeats:,} frames equal to the one before")
    if unsure := source.get("unsure_joints"):
        phrases.append(f"{unsure:,} joints below the confidence asked for")
    return ", ".join(phrases)


def _dropped(entries: list[dict[str, Any]]) -> list[str]:
    if not entries:
        return ["dropped: nothing"]
    kinds = Counter(entry.get("kind") for entry in entries)
    excluded = f", {kinds['excluded']:,} named in a list" if kinds["excluded"] else ""
    lines = [f"dropped: {len(entries):,} sequences or files, {kinds['broken']:,} of them broken{excluded}"]
    listed = [entry for entry in entries if entry.get("kind") != "excluded"]
    for entry in listed[:LISTED]:
        location = entry.get("file", entry["name"])
        if "line" in entry:
            location = f"{location}:{entry['line']}"
        if entry["name"] not in location:
            location = f"{entry['name']} ({location})"
        lines.append(f"  {location}: {entry['reason']}")
    return lines + _more(len(listed))


def _more(number: int) -> list[str]:
    return [f"  and {number - LISTED:,} more"] if number > LISTED else []
