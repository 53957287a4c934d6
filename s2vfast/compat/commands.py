"""``s2vfast import-checkpoint``: its options, and what it calls. It imports nothing heavy; the parser is handed in."""

from __future__ import annotations

import json
from typing import Any

NAME = "import-checkpoint"
TEXT = "make a run of a published checkpoint of Skeleton2vec, MAMP, InfoGCN or FreqMixFormer"


def add(parser: Any) -> None:
    """Give the command its options."""
    parser.add_argument("file", metavar="FILE", help=".pth, .pt or .safetensors; nothing in it is run")
    parser.add_argument(
        "--from",
        dest="naming",
        choices=("auto", "skeleton2vec", "mamp", "infogcn", "freqmixformer"),
        default="auto",
        help="the method whose parameter names the file has",
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
        dest="role",
        choices=("auto", "teacher", "student"),
        default="auto",
        help="the encoder to evaluate; auto: the teacher of Skeleton2vec, where the file has one",
    )
    parser.add_argument("--heads", type=int, help="attention heads, if neither the file nor the config says how many")
    parser.add_argument(
        "--leave-out",
        dest="leave_out",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of tensors to skip, such as head.*",
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run to make")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(options: Any) -> int:
    """Make the run, and print what became of every tensor."""
    from s2vfast.compat import report
    from s2vfast.compat.importer import import_checkpoint

    summary = import_checkpoint(
        options.file,
        options.out,
        options.naming,
        config=options.config,
        store=options.store,
        layout=options.layout,
        role=options.role,
        heads=options.heads,
        leave_out=options.leave_out,
    )
    if options.json:
        print(json.dumps(summary))
        return 0
    print(report.text(summary))
    protocol = "classify" if "classes" in summary else "linear"
    print(f"next: s2vfast evaluate {options.out}{'' if options.store else ' --data STORE'} --protocol {protocol}")
    return 0
