"""The subcommands of `s2vfast view`: their options, and what they call.

It imports nothing heavy, and no library of command lines: the parser is handed in.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _sequence_options(parser: Any) -> None:
    _add_sequence(parser)
    _add_out(parser, "view-sequence-NAME.html")


def _cloud_options(parser: Any) -> None:
    _add_sequence(parser)
    parser.add_argument("--skeletons", metavar="STORE", help="a store with the skeleton of a sequence of this name")
    _add_out(parser, "view-cloud-NAME.html")


def _mask_options(parser: Any) -> None:
    _add_sequence(parser)
    parser.add_argument("--config", metavar="NAME|FILE", help="a preset or YAML file that draws the masks")
    parser.add_argument("--run", help="or the run whose config does")
    parser.add_argument("--epoch", type=int, default=0, help="first epoch whose draw is shown")
    parser.add_argument("--draws", type=int, default=8, help="epochs that are shown")
    _add_out(parser, "view-mask-NAME.html")


def _attention_options(parser: Any) -> None:
    _add_run(parser)
    _add_sequence(parser)
    parser.add_argument("--block", type=int, help="layer whose attention is shown, 1 or more; without it the last")
    parser.add_argument("--head", type=int, help="whose, 1 or more; without it the mean over heads")
    parser.add_argument("--joint", help="name or number of the joint chosen first; without it one that moves")
    parser.add_argument("--segment", type=int, help="segment chosen first, 1 or more")
    _add_out(parser, "view-attention-NAME.html")


def _neighbours_options(parser: Any) -> None:
    _add_run(parser)
    _add_sequence(parser)
    parser.add_argument("--k", type=int, default=8, help="neighbours")
    parser.add_argument("--part", default="train", help="part of the split where they are looked for")
    _add_features(parser)
    _add_out(parser, "view-neighbours-NAME.html")


def _map_options(parser: Any) -> None:
    _add_run(parser)
    parser.add_argument("store", help="folder of a store of the run's layout")
    parser.add_argument("--method", choices=("tsne", "pca"), default="tsne", help="how two are made of many")
    parser.add_argument("--parts", default="train,test", help="parts of the split, the first drawn filled")
    parser.add_argument("--limit", type=int, default=2000, help="sequences at most; more are drawn from at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw and of t-SNE")
    _add_features(parser)
    _add_out(parser, "view-map.html")


def _curves_options(parser: Any) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--log", action="store_true", help="logarithmic axes in the PNG")
    _add_out(parser, "view-curves.html")


def _results_options(parser: Any) -> None:
    parser.add_argument("results", help="a file that evaluate --out wrote, or a folder with results.json")
    parser.add_argument(
        "--data", dest="store", metavar="STORE", help="the store measured; without it the one named there"
    )
    _add_out(parser, "view-results.html")


def _add_sequence(parser: Any) -> None:
    parser.add_argument("store", help="folder of a store")
    parser.add_argument("name", metavar="NAME|ID", help="a sequence's name or its number in the store")


def _add_run(parser: Any) -> None:
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--untrained", action="store_true", help="the same encoder with the weights it started from")


def _add_features(parser: Any) -> None:
    parser.add_argument("--split", help="a split of the store; without it the run's own")
    parser.add_argument("--pool", choices=("mean", "joint_time"), default="mean", help="tokens to vector")
    parser.add_argument(
        "--transform",
        choices=("none", "center", "standardize"),
        default="center",
        help="of features before they are compared",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def _add_out(parser: Any, name: str) -> None:
    parser.add_argument("--out", metavar="FILE.html", help=f"the page; without it {name}, here")
    parser.add_argument("--png", metavar="FILE.png", help="also a picture for papers")


def _sequence(options: Any) -> int:
    from s2vfast.view import sequence

    return _write(sequence, sequence.collect(options.store, options.name), options, "sequence")


def _cloud(options: Any) -> int:
    from s2vfast.view import cloud

    return _write(cloud, cloud.collect(options.store, options.name, options.skeletons), options, "cloud")


def _mask(options: Any) -> int:
    from s2vfast.view import mask

    content = mask.collect(
        options.store,
        options.name,
        config=options.config,
        run=options.run,
        epoch=options.epoch,
        epochs=options.draws,
    )
    return _write(mask, content, options, "mask")


def _attention(options: Any) -> int:
    from s2vfast.view import attention

    block, head, segment = (None if n is None else n - 1 for n in (options.block, options.head, options.segment))
    content = attention.collect(
        options.run,
        options.store,
        options.name,
        untrained=options.untrained,
        block=block,
        head=head,
        joint=options.joint,
        segment=segment,
        log=_log,
    )
    return _write(attention, content, options, "attention")


def _features(options: Any) -> dict[str, Any]:
    names = ("split", "pool", "transform", "untrained", "device")
    return {name: getattr(options, name) for name in names} | {"log": _log}


def _neighbours(options: Any) -> int:
    from s2vfast.view import neighbours

    content = neighbours.collect(
        options.run, options.store, options.name, k=options.k, part=options.part, **_features(options)
    )
    return _write(neighbours, content, options, "neighbours")


def _map(options: Any) -> int:
    from s2vfast.view import map as maps

    content = maps.collect(
        options.run,
        options.store,
        method=options.method,
        parts=tuple(part.strip() for part in options.parts.split(",") if part.strip()),
        limit=options.limit,
        seed=options.seed,
        **_features(options),
    )
    return _write(maps, content, options, "map")


def _curves(options: Any) -> int:
    from s2vfast.view import curves

    return _write(curves, curves.read_runs(options.runs), options, "curves", log=options.log)


def _results(options: Any) -> int:
    from s2vfast.view import results

    return _write(results, results.collect(options.results, options.store), options, "results")


def _write(module: Any, content: Any, options: Any, kind: str, **picture: Any) -> int:
    """Write the page and, where it is wanted, the picture, and say where they are."""
    # A sequence may have a name that is no file's.
    name = re.sub(r"[^\w.-]+", "_", str(options.name)) if "name" in options else ""
    out = options.out or f"view-{kind}{f'-{name}' if name else ''}.html"
    if options.png is not None and Path(options.png).resolve() == Path(out).resolve():
        from s2vfast.errors import ConfigError

        raise ConfigError(f"--png: {options.png} is the file of the page too")
    if options.png is not None:
        print(module.draw(content, options.png, **picture))
    print(module.write(content, out))
    return 0


def _log(line: str) -> None:
    print(line, file=sys.stderr)


COMMANDS: dict[str, tuple[str, Callable[[Any], int], Callable[[Any], None]]] = {
    "sequence": ("a sequence as a moving skeleton", _sequence, _sequence_options),
    "cloud": ("a recording of points, moving, with the skeleton in it", _cloud, _cloud_options),
    "mask": ("the masks drawn for a sequence, over its motion", _mask, _mask_options),
    "attention": (
        "similarity and attention of an encoder's tokens on a sequence",
        _attention,
        _attention_options,
    ),
    "neighbours": ("nearest neighbours of a sequence, as small animations", _neighbours, _neighbours_options),
    "map": ("a 2-D map of features, coloured by class", _map, _map_options),
    "results": ("confusion matrix and classes of an evaluation, and their sequences", _results, _results_options),
    "curves": ("training curves of one or several runs", _curves, _curves_options),
}
"""Name → what it does, what runs it (options to exit code), what gives a parser its options."""
