"""The subcommands of `s2vfast data`: their options, and what they call. It imports nothing heavy."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT_OPTIONS = ("axes", "channels", "camera", "points", "near", "far", "foreground")
"""Options of an import that some formats take: ``OPTIONS`` of `s2vfast.data.formats`."""


def _formats() -> str:
    """Names of the formats of recordings, without importing them."""
    package = Path(__file__).parent / "formats"
    helpers = {"base", "depth_files", "npy", "poses", "text"}
    names = [module.name for module in pkgutil.iter_modules([str(package)]) if module.name not in helpers]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _add_out(parser: Any) -> None:
    parser.add_argument("--out", required=True, metavar="STORE", help="folder of the store to make")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), help="on the disk; without it float32, of points float16"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing store")


def _add_import(parser: Any) -> None:
    parser.add_argument("src", help="a file or folder")
    parser.add_argument("--format", help=f"{_formats()}; without it detected")
    parser.add_argument("--layout", help="name or JSON file of the skeleton, for formats without one")
    parser.add_argument(
        "--on_error", "--on-error", choices=("skip", "fail"), default="skip", help="on a broken recording"
    )
    parser.add_argument("--workers", type=int, help="processes that read; without it chosen")
    parser.add_argument(
        "--unit", help="of the coordinates: m, mm, px or normalised; without it the format's, or guessed"
    )
    parser.add_argument(
        "--min_confidence",
        "--min-confidence",
        type=float,
        default=0.0,
        help="joints that the detector was less sure of count as not seen",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE|PATTERN",
        help="classes and people: a .csv or .json file, a pattern like '{class}_{subject}_*', folder, or none",
    )
    parser.add_argument("--axes", help="order of the axes of arrays: TVC, MTVC, TMVC; without it from their shapes")
    parser.add_argument("--channels", help="numbers of a joint in arrays: xy, xyz, xys or xyzs (s: a score)")
    parser.add_argument("--camera", metavar="NAME|FILE", help="of depth: kinect_v1, kinect_v2, f280 or a JSON file")
    parser.add_argument("--points", type=int, help="of depth: most points of a frame, 2048 without it; 0: all")
    parser.add_argument("--near", type=float, help="of depth: metres from which pixels count")
    parser.add_argument("--far", type=float, help="of depth: metres up to which they do")
    parser.add_argument("--foreground", help="of depth: all pixels with one, or what is moving before the background")
    parser.add_argument(
        "--exclude",
        metavar="FILE",
        help="names of sequences to leave out, one a line; ntu_missing: NTU RGB+D's official list, the default of its "
        "own files; none: nothing",
    )
    _add_out(parser)


def _add_synth(parser: Any) -> None:
    parser.add_argument("--subjects", type=int, default=10, help="people, 2 or more")
    parser.add_argument("--views", type=int, default=3, help="cameras, 1 to 3")
    parser.add_argument("--repetitions", type=int, default=3, help="times that everyone does every action")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same store")
    parser.add_argument("--depth", action="store_true", help="points that depth cameras see, in place of skeletons")
    parser.add_argument("--workers", type=int, default=0, help="processes beside this one")
    _add_out(parser)


def _add_layouts(parser: Any) -> None:
    parser.add_argument("layout", nargs="?", help="name or JSON file of one to print; without it all names are listed")


def _add_store(parser: Any) -> None:
    parser.add_argument("store", help="folder of a store")


def _add_split(parser: Any) -> None:
    _add_store(parser)
    parser.add_argument(
        "--by",
        required=True,
        help="subject, view, setup or repetition: a split for each value, which is the test (leave one out); share: "
        "a share of every class; file: names",
    )
    parser.add_argument(
        "--test", help="values of the test (3,7); with share a number in (0, 1); with file a FILE of names"
    )
    parser.add_argument("--train", metavar="FILE", help="with file: names; without it all that are not in the test")
    parser.add_argument("--folds", type=int, help="deal the subjects (views ...) out to so many splits")
    parser.add_argument("--name", help="of the split, or what the names of several begin with")
    parser.add_argument("--seed", type=int, default=0, help="of share and folds")
    parser.add_argument("--overwrite", action="store_true", help="replace splits that were made under these names")


def _import(options: Any) -> int:
    from s2vfast.data import report
    from s2vfast.data.importer import import_dataset
    from s2vfast.train.progress import Counter

    with Counter("reading") as counter:
        summary = import_dataset(
            options.src,
            options.out,
            format=options.format,
            layout=options.layout,
            on_error=options.on_error,
            workers=options.workers,
            dtype=options.dtype,
            unit=options.unit,
            min_confidence=options.min_confidence,
            labels=options.labels,
            exclude=options.exclude,
            overwrite=options.overwrite,
            progress=counter,
            **{name: getattr(options, name) for name in FORMAT_OPTIONS},
        )
    print(report.imported(summary))
    return 0


def _synth(options: Any) -> int:
    from s2vfast.data.synth import generate
    from s2vfast.train.progress import Counter

    with Counter("making sequences") as counter:
        store = generate(
            options.out,
            subjects=options.subjects,
            views=options.views,
            repetitions=options.repetitions,
            seed=options.seed,
            dtype=options.dtype,
            depth=options.depth,
            overwrite=options.overwrite,
            workers=options.workers,
            progress=counter,
        )
    what = "points" if options.depth else "frames"
    print(f"{options.out}: {len(store)} sequences, {store.rows} {what}, {len(store.classes)} classes")
    return 0


def _split(options: Any) -> int:
    from s2vfast.data import splits
    from s2vfast.data.limits import printable
    from s2vfast.data.store import Store

    arguments = {name: getattr(options, name) for name in ("test", "train", "folds", "name", "seed")}
    new_splits = splits.make(Store.open(options.store), options.by, **arguments)
    splits.keep(options.store, new_splits, options.overwrite)
    store = Store.open(options.store)
    for split in new_splits:
        print(printable(f"split {split.name}: {splits.describe(store, split.name)}"))
        for note in split.notes:
            print(printable(f"note: split {split.name}: {note}"))
    print(f"next: s2vfast pretrain --config own --data {options.store} --data.split {new_splits[0].name} --out RUN")
    return 0


def _check(options: Any) -> int:
    from s2vfast.data import report

    print(report.check(options.store))
    return 0


def _show(options: Any) -> int:
    from s2vfast.data import report

    print(report.show(options.store))
    return 0


def _layouts(options: Any) -> int:
    from s2vfast.data import report

    print(report.layouts() if options.layout is None else report.layout(options.layout))
    return 0


COMMANDS: dict[str, tuple[str, Callable[[Any], int], Callable[[Any], None]]] = {
    "import": ("make a store from a dataset's own files", _import, _add_import),
    "synth": ("make a store of synthetic people", _synth, _add_synth),
    "split": ("make splits of a store: by subject, by a share of every class, by names", _split, _add_split),
    "check": ("prove a store intact: compare every file with its hash", _check, _add_store),
    "show": ("print what is in a store", _show, _add_store),
    "layouts": ("list the known skeletons, or print one", _layouts, _add_layouts),
}
"""Name → what it does, what runs it (options to exit code), what gives a parser its options."""
