"""A stream from its lines to the page: what is looked at, measured, kept and told."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import threading
import time
import webbrowser
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

import s2vfast.errors as errors
from s2vfast import files
from s2vfast.data.formats.lines import Frame, Reader
from s2vfast.data.tracks import Sighting, in_order
from s2vfast.evaluate.checks import check_counts
from s2vfast.evaluate.lines import Answer, LineStream
from s2vfast.evaluate.model import Model, Stream
from s2vfast.live.arrivals import Arrivals, Line, reader_of
from s2vfast.live.feed import SECONDS, Feed
from s2vfast.live.server import Server
from s2vfast.view import page, source
from s2vfast.view.map import COLOURS

_SMALLEST = 0.005
"""Probabilities below it are told to nobody: the page draws them as 0."""
_SAID = 10
"""Broken lines that the terminal is told of; the page counts all."""
_RECENT = 3.0
"""Seconds over which frames a second and the latency are measured."""
_DECIMALS = {"m": 4, "mm": 1, "px": 1}
"""Of coordinates for the page; of other units 5."""


class Record:
    """A new file of frames, a line of JSON each, which ``s2vfast predict RUN -`` and ``s2vfast live RUN`` read again.

    Args:
        path: of the file; None: nothing is kept.
        reader: of the stream's lines.

    Raises:
        DataError: the file is there already, or cannot be written.
    """

    def __init__(self, path: str | Path | None, reader: Reader) -> None:
        self.path, self.reader = None if path is None else Path(path), reader
        self.frames = 0
        """That were kept."""
        self._file: TextIO | None = None

    def __enter__(self) -> Record:
        if self.path is not None:
            if self.path.exists():
                raise errors.DataError(f"--record {self.path}: is there already; name a new file")
            with files.disk_errors(self.path, errors.DataError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("x", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, answers: list[Answer]) -> None:
        """Keep those that are frames; they are on the disk when it returns.

        Raises:
            DataError: the disk is full.
        """
        if self._file is None or self.path is None:
            return
        lines = [self.reader.as_json(answer.line, answer.frame) for answer in answers if answer.is_frame]
        with files.disk_errors(self.path, errors.DataError):
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()
        self.frames += len(lines)


class Session:
    """Answers lines and tells a feed.

    Args:
        stream: that names all classes.
        feed: what is told.
        record: a new file that keeps the frames; None: none does.
        log: told of broken lines.
    """

    def __init__(self, stream: Stream, feed: Feed, record: str | Path | None, log: Callable[[str], object]) -> None:
        self.lines, self.feed, self.log = LineStream(stream), feed, log
        self.model, self.record = stream.model, Record(record, self.lines.reader)
        self.frames = self.looks = self.broken = 0
        self.latencies: deque[tuple[float, float]] = deque(maxlen=10_000)
        """(when, milliseconds from the arrival of a frame to its classes)."""
        self.first = Counter[str]()
        """How often a class was the most probable."""
        self._numbers = {name: number for number, name in enumerate(self.model.classes or [])}
        self._began = time.monotonic()
        self._last = 0.0  # second of the newest lines
        self._counts: deque[tuple[float, int]] = deque()
        self._before: list[Sighting] = []
        self._decimals = _DECIMALS.get(self.model.unit or "", 5)

    @property
    def seconds(self) -> float:
        """Since the stream began."""
        return time.monotonic() - self._began

    def take(self, lines: list[Line], waiting: int) -> None:
        """Answer lines.

        Args:
            lines: as they came.
            waiting: how many more have come.
        """
        answers = self.lines.answer([line for _, line in lines])
        self.record.add(answers)
        done = time.monotonic()
        self._last = now = done - self._began
        looks, broken, newest = [], [], None
        for answer, (arrived, _) in zip(answers, lines, strict=True):
            if answer.is_frame:
                self.frames += 1
                newest = self._in_order(answer.frame)
            if answer.error:
                self.broken += 1
                broken.append([answer.number, answer.error])
                if self.broken <= _SAID:
                    more = "; more are counted, and shown on the page" if self.broken == _SAID else ""
                    self.log(f"skipped: line {answer.number}: {answer.error}{more}")
            elif answer.ranking is not None:
                self.looks += 1
                self.first[answer.ranking[0][0]] += 1
                self.latencies.append((now, 1000 * (done - arrived)))
                pairs = [[self._numbers[name], round(value, 4)] for name, value in answer.ranking if value >= _SMALLEST]
                looks.append([round(arrived - self._began, 3), answer.number, pairs])
        self._counts.append((now, self.frames))
        state = self._measured(now) | {"waiting": waiting}
        if newest is not None:
            state["bodies"] = self._coordinates(newest)
        self.feed.publish(now, state, looks, broken)

    def keep(self, lines: list[Line]) -> None:
        """Keep lines that came and are not looked at any more."""
        if self.record.path is None:
            return
        answers = []
        for _, line in lines:
            with contextlib.suppress(errors.DataError):
                answers.append(Answer(0, line, self.lines.reader.read(line)))
        self.record.add(answers)

    def end(self, reason: str) -> None:
        """Tell the page that nothing more comes."""
        self.feed.publish(self.seconds, {"ended": reason, "waiting": 0})

    def summary(self) -> str:
        """What the stream was, in a line."""
        parts = [f"{self.frames:,} frames in {self._last:.1f} s", f"{self.looks:,} looks"]
        if self.latencies:
            parts.append(f"latency {statistics.median(value for _, value in self.latencies):.1f} ms (median)")
        if self.first:
            parts.append("seen: " + ", ".join(f"{name} {n / self.looks:.0%}" for name, n in self.first.most_common(3)))
        parts.append(f"{self.broken:,} broken line{'' if self.broken == 1 else 's'}")
        if self.record.path is not None:
            parts.append(f"{self.record.frames:,} frames kept in {self.record.path}")
        return "; ".join(parts)

    def _measured(self, now: float) -> dict[str, Any]:
        """Frames a second and latency of the last seconds, and counts."""
        while len(self._counts) > 2 and self._counts[1][0] < now - _RECENT:
            self._counts.popleft()
        (since, before), recent = self._counts[0], [value for at, value in self.latencies if at >= now - _RECENT]
        counts = {"frames": self.frames, "looks": self.looks, "broken": self.broken}
        return counts | {
            "rate": round((self.frames - before) / (now - since), 1) if now - since > 0.5 else None,
            "latency": round(statistics.median(recent), 1) if recent else None,
        }

    def _in_order(self, frame: Frame) -> np.ndarray | list[Sighting]:
        """The bodies of a frame, people in an order that stays from one frame to the next."""
        if isinstance(frame, list):
            self._before = frame = in_order(self._before, frame)
        return [] if frame is None else frame

    def _coordinates(self, frame: np.ndarray | list[Sighting]) -> list[list[float]]:
        """For the page, x y z of all joints a body."""
        if not len(frame):
            return []
        joints = np.stack([person.joints for person in frame]) if isinstance(frame, list) else frame
        bodies = self.model.checked(joints, ("bodies",))
        return bodies.reshape(len(bodies), -1).round(self._decimals).tolist()


def render(stream: Stream, name: str, top: int, seconds: float = SECONDS) -> str:
    """The page of a stream, HTML.

    Args:
        stream: what is shown.
        name: of where the frames come from.
        top: classes that are listed and drawn.
        seconds: of time that is drawn.
    """
    model, window = stream.model, stream.window
    smooth = f", smoothed by {stream.smooth:g}" if stream.smooth else ""
    every = "every frame" if stream.step == 1 else f"every {stream.step} frames"
    data = {
        "classes": model.classes,
        "colours": COLOURS,
        "layout": source.layout_entry(model.layout, model.unit or ""),
        "planar": model.layout.planar,
        "top": top,
        "seconds": seconds,
        "source": name,
    }
    subtitle = f"{name}: the last {window} frames, looked at {every}{smooth}"
    return page.render("live", f"{model.run_dir.resolve().name}, live", subtitle, data)


def show(
    run_dir: str | Path,
    where: str,
    *,
    window: int | None = None,
    step: int = 1,
    smooth: float = 0.0,
    top: int = 5,
    device: str = "auto",
    port: int = 0,
    record: str | Path | None = None,
    browser: bool = True,
    log: Callable[[str], object] = print,
) -> Session:
    """Show a stream until Ctrl-C, after its end too.

    Args:
        run_dir: folder of a run that has classes.
        where: "-" for standard input, or a file that grows.
        window: frames that are looked at; None: as many as a clip has.
        step: frames from one look to the next.
        smooth: share of the probabilities that the look before has in these, in [0, 1).
        top: classes that the page lists and draws.
        device: auto, cpu, cuda or cuda:N.
        port: of 127.0.0.1; 0: any that is free.
        record: a new file that keeps the frames.
        browser: open the page, where there is a screen.
        log: told what the terminal says: the address, broken lines, the end, a summary.

    Returns:
        What was counted.

    Raises:
        CheckpointError: no run that has classes.
        ConfigError: an impossible number, a run on point clouds, a port that is taken.
        DataError: a source that cannot be read, a record that cannot be written.
    """
    check_counts(top=top)
    model = Model(run_dir, device, log)
    stream = model.stream(window, step, smooth, top=max(len(model.classes or []), 1))
    read, name = reader_of(where)
    feed = Feed()
    session = Session(stream, feed, record, log)
    with session.record:
        server = Server(render(stream, name, top), feed, port)
        try:
            arrivals = Arrivals(read)
            with _on_interrupt(arrivals.stop):
                log(f"{server.url} shows {name}; Ctrl-C ends it")
                if browser and _has_screen():
                    threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
                try:
                    while lines := arrivals.take():
                        session.take(lines, arrivals.waiting)
                except OSError as error:
                    raise errors.DataError(f"{name}: cannot be read: {error.strerror}") from error
                if not arrivals.stopping:
                    session.end("the input has ended")
                    log(f"{name} has ended; the page stays until Ctrl-C")
                    arrivals.wait()
            session.keep(arrivals.left_over())
            log(session.summary())
        finally:
            session.end("stopped")
            server.stop()
    return session


def _has_screen() -> bool:
    """Whether a browser that is opened has a window; else it would take the terminal."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


@contextlib.contextmanager
def _on_interrupt(stop: Callable[[], object]) -> Iterator[None]:
    """Within the block the first Ctrl-C calls ``stop``; the second one ends it at once."""

    def interrupted(number: int, frame: Any) -> None:
        signal.signal(number, signal.default_int_handler)
        stop()

    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread alone
        yield
        return
    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
