"""The lines of a stream with the time at which each came, read while the network is busy with those before."""

from __future__ import annotations

import contextlib
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import s2vfast.errors as errors
from s2vfast.evaluate.lines import AT_ONCE, lines_as_they_come

WAITING = 4096
"""Lines that wait for the network at most; then the one who writes waits."""
_PAUSE = 0.05
"""Seconds between two looks at a file that has not grown."""
_WAKE = 0.5
"""Seconds after which a wait looks up: a signal that came just before it, or to another thread, wakes nobody, and its
handler runs then."""
_END, _STOP = "end", "stop"

Line = tuple[float, str]
"""(when it came, by `time.monotonic`; the line)."""


class Followed:
    """A file that grows: at its end, reading waits for more. It begins anew where the file is cut or replaced.

    Args:
        path: the file; a named pipe is read until whoever writes to it has gone.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY)
        self._at = 0

    def read(self, size: int) -> bytes:
        """What has come, ``size`` bytes at most; b"" at the end of a pipe."""
        while True:
            if content := os.read(self._handle, size):
                self._at += len(content)
                return content
            if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                return b""
            time.sleep(_PAUSE)
            self._begin_anew()

    def _begin_anew(self) -> None:
        try:
            named, opened = os.stat(self.path), os.fstat(self._handle)
            if (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino):
                handle = os.open(self.path, os.O_RDONLY)
                os.close(self._handle)
                self._handle, self._at = handle, 0
        except FileNotFoundError:  # between a removal and a new file
            return
        if os.fstat(self._handle).st_size < self._at:
            self._at = os.lseek(self._handle, 0, os.SEEK_SET)


def reader_of(source: str) -> tuple[Callable[[int], bytes], str]:
    """(what gives the bytes of ``-`` or a file, what it is called).

    Raises:
        DataError: a file that cannot be opened.
    """
    if source == "-":
        handle = sys.stdin.fileno()
        return lambda size: os.read(handle, size), "standard input"
    try:
        if Path(source).is_dir():
            raise errors.DataError(f"{source}: a folder; expected a file that grows, or - for standard input")
        return Followed(Path(source)).read, source
    except OSError as error:
        raise errors.DataError(f"{source}: cannot be read: {error.strerror}") from error


class Arrivals:
    """Reads in a thread of its own. It ends by itself at the end of its source; else with the process.

    Args:
        read: gives the bytes, see `s2vfast.evaluate.lines.lines_as_they_come`.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        # A queue that a signal's handler may put into, which those with a capacity are not.
        self._queue: queue.SimpleQueue[Line | str | Exception] = queue.SimpleQueue()
        self._capacity = threading.Semaphore(WAITING)
        self.stopping = False
        threading.Thread(target=self._run, daemon=True, name="s2vfast live: lines").start()

    def _run(self) -> None:
        try:
            for lines in lines_as_they_come(self._read):
                now = time.monotonic()
                for line in lines:
                    self._capacity.acquire()
                    self._queue.put((now, line))
        except Exception as error:  # it is raised where lines are taken
            self._queue.put(error)
        else:
            self._queue.put(_END)

    @property
    def waiting(self) -> int:
        """Lines that have come and were not taken."""
        return self._queue.qsize()

    def stop(self) -> None:
        """Have `take` and `wait` return; a signal's handler may call it."""
        self.stopping = True
        self._queue.put(_STOP)

    def take(self) -> list[Line]:
        """The lines that wait, `AT_ONCE` at most; waits where there are none. [] at the end, or once `stop` was called.

        Raises:
            OSError: the source cannot be read any more.
        """
        lines: list[Line] = []
        while not self.stopping and len(lines) < AT_ONCE and not (lines and self._queue.empty()):
            entry = self._next()
            if isinstance(entry, tuple):
                self._capacity.release()
                lines.append(entry)
            elif lines:
                self._queue.put(entry)  # behind nothing else: an end is the last that is put
                break
            elif isinstance(entry, Exception):
                raise entry
            else:
                break
        return lines

    def left_over(self) -> list[Line]:
        """The lines that wait when `stop` was called."""
        lines = []
        while not self._queue.empty():
            entry = self._queue.get()
            if isinstance(entry, tuple):
                lines.append(entry)
        return lines

    def wait(self) -> None:
        """Until `stop` is called."""
        while not self.stopping:
            self._next()

    def _next(self) -> Line | str | Exception:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_WAKE)
