"""SIGTERM and SIGHUP as exceptions, so that a command that they stop removes what it has half written."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from s2vfast.train import torchrun

_AFTER_DESTRUCTOR = 0.01
"""Seconds after which a signal comes again that came in a destructor."""


class Signalled(BaseException):
    """A signal came: what was half-written is removed on the way out, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise. Training has a way of its own; torchrun's processes end at once."""

    def stop(number: int, frame: Any) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        raise Signalled(number)

    def unraisable(about: Any) -> None:
        # An exception goes no further than a destructor, where the signal came: it comes once more.
        if isinstance(about.exc_value, (Signalled, KeyboardInterrupt)):
            number = getattr(about.exc_value, "number", signal.SIGINT)
            if number != signal.SIGINT:
                signal.signal(number, stop)
            again = threading.Timer(_AFTER_DESTRUCTOR, os.kill, (os.getpid(), number))
            again.daemon = True
            lost.append((number, again))
            again.start()
        else:
            hook(about)

    hook = sys.unraisablehook
    before: dict[int, Any] = {}
    lost: list[tuple[int, threading.Timer]] = []
    if threading.current_thread() is threading.main_thread() and not torchrun.under_torchrun():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
        sys.unraisablehook = unraisable
    try:
        yield
        if waiting := [number for number, again in lost if again.is_alive()]:  # the block ended before they came
            raise KeyboardInterrupt if waiting[0] == signal.SIGINT else Signalled(waiting[0])
    finally:
        for _, again in lost:
            again.cancel()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
