"""``s2vfast import-checkpoint``: its options, and what it calls. It imports nothing heavy; the parser is handed in."""

from __future__ import annotations

import json
from typing import Any

NAME = "import-checkpoint"
TEXT = "make a run of a published checkpoint of Skeleton2vec or MAMP"


def add(parser: Any) -> None:
    """Give the command its options."""
    parser.add_argument("file", metavar="FILE", help=".pth, .pt or .safetensors; nothing in it is run")
    parser.add_argument(
        "--from",
        dest="naming",
        choices=("auto", "skeleton2vec", "mamp"),
        default="auto",
        help="whose names the parameters have",
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help="a preset or YAML file that the weights must fit; without it the published one, with their sizes",
    )
    parser.add_argument("--data", dest="store", metavar="STORE", help="a store that the run is for")
    parser.add_argument("--layout", metavar="NAME|FILE", help="the skeleton, without a store; without it by its joints")
    parser.add_argument(
        "--part",
        choices=("auto", "teacher", "student"),
        default="auto",
        help="what is evaluated; auto: of Skeleton2vec the teacher, if there",
    )
    parser.add_argument("--heads", type=int, help="attention heads, where neither file nor config says it")
    parser.add_argument(
        "--leave-out",
        dest="leave_out",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what is not to be taken, as in head.*",
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run to make")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(options: Any) -> int:
    """Make the run, and say what became of every tensor."""
    from s2vfast.compat import report
    from s2vfast.compat.importer import import_checkpoint

    told = import_checkpoint(
        options.file,
        options.out,
        options.naming,
        config=options.config,
        store=options.store,
        layout=options.layout,
        part=options.part,
        heads=options.heads,
        leave_out=options.leave_out,
    )
    if options.json:
        print(json.dumps(told))
        return 0
    print(report.text(told))
    print(f"next: s2vfast evaluate {options.out}{'' if options.store else ' --data STORE'} --protocol linear")
    return 0
