"""Frames that come as lines of text to classes, by a run that has classes; `s2vfast.data.formats.lines` says how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import s2vfast.errors as errors
from s2vfast.data.formats.lines import Frame, Reader
from s2vfast.evaluate.model import NOT_FINITE, Ranking, Stream

AT_ONCE = 32
"""Frames that are looked at together, where so many have come."""
_BYTES = 2**16
"""That are asked for at once."""


def lines_as_they_come(read: Callable[[int], bytes]) -> Iterator[list[str]]:
    """Lines of a pipe, a terminal or a file: at first one, then always all that have come meanwhile, `AT_ONCE` at most.

    Bytes that are no text of UTF-8 are replaced, so that what is wrong with a line stays in it.

    Args:
        read: gives what has come, so many bytes at most; waits where nothing has; b"" at the end.
    """
    begun = b""
    while arrived := read(_BYTES):
        *lines, begun = (begun + arrived).split(b"\n")
        for start in range(0, len(lines), AT_ONCE):
            yield [line.decode(errors="replace") for line in lines[start : start + AT_ONCE]]
    if begun:
        yield [begun.decode(errors="replace")]


@dataclass(frozen=True)
class Answer:
    """What became of a line."""

    number: int
    """Of the line, from 1."""
    line: str
    frame: Frame = None
    ranking: Ranking | None = None
    """Classes, where it was time to look and a body was there."""
    error: str = ""
    """Why it is no frame; or why there are no classes."""
    is_frame: bool = True
    """False: it was left out."""


class LineStream:
    """A `Stream` whose frames are lines.

    Args:
        stream: what takes the frames.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream, self.reader = stream, Reader(stream.model.layout, stream.model.unit)
        self.lines = 0
        """That have come."""

    def answer(self, lines: Sequence[str]) -> list[Answer]:
        """What becomes of some lines; those that are looked at go through the network together."""
        windows: list[tuple[Answer, Any]] = []
        for line in lines:
            self.lines += 1
            try:
                frame = self.reader.read(line)
                windows.append((Answer(self.lines, line, frame), self.stream.take(frame)))
            except errors.DataError as error:
                windows.append((Answer(self.lines, line, error=str(error), is_frame=False), None))
        rankings = iter(self.stream.rank([window for _, window in windows if window is not None]))
        answers = []
        for answer, window in windows:
            if window is not None:
                ranking = next(rankings)
                answer = replace(answer, ranking=ranking, error=NOT_FINITE if ranking is None else "")
            answers.append(answer)
        return answers


def predict_lines(stream: Stream, batches: Iterable[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Classes of frames that come as lines of text.

    Args:
        stream: what takes the frames.
        batches: lists of lines, each answered before the next is asked for. See `lines_as_they_come`.

    Yields:
        ``file`` ("-"), ``frame`` (its number from 1) and ``top``, see `s2vfast.evaluate.predict.predict`; or ``file``
        and ``error`` for a line that is no frame, which is left out.
    """
    line_stream = LineStream(stream)
    for lines in batches:
        for answer in line_stream.answer(lines):
            if answer.error:
                yield {"file": "-", "error": f"standard input:{answer.number}: {answer.error}"}
            elif answer.ranking is not None:
                yield {"file": "-", "frame": answer.number, "top": [list(pair) for pair in answer.ranking]}
