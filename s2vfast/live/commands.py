"""``s2vfast live``: its options, and what it calls. It imports nothing heavy; the parser is handed in."""

from __future__ import annotations

import sys
from typing import Any

NAME = "live"
TEXT = "show a stream of keypoints and its classes in the browser, by a fine-tuned run"
PORT = 8731


def add(parser: Any) -> None:
    """Give the command its options."""
    parser.add_argument("run", help="folder of a run that has classes, or a packed run")
    parser.add_argument(
        "source", metavar="-|FILE", help="standard input, or a file that grows: a frame a line, as of s2vfast predict"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--window", type=int, help="last frames that are looked at (default: as many as a clip has)")
    parser.add_argument("--step", type=int, default=1, help="frames from one look to the next")
    parser.add_argument("--smooth", type=float, default=0.0, help="share of the look before, in [0, 1)")
    parser.add_argument("--top", type=int, default=5, help="classes that the page lists and draws")
    parser.add_argument("--port", type=int, default=PORT, help=f"of 127.0.0.1 [{PORT}]; 0: any that is free")
    parser.add_argument("--record", metavar="FILE", help="keep the frames there, a line of JSON each; a new file")
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="print the address, open nothing")


def run(options: Any) -> int:
    """Show the stream until Ctrl-C: 0, whatever its lines were."""
    from s2vfast.live.session import show

    show(
        options.run,
        options.source,
        window=options.window,
        step=options.step,
        smooth=options.smooth,
        top=options.top,
        device=options.device,
        port=options.port,
        record=options.record,
        browser=options.browser,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return 0
