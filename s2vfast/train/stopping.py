"""Signals that let a step finish."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from s2vfast.train import torchrun


class Stop:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is noted in ``signum``; the second acts as ever.

    Args:
        patient: whether the others are noted too. One Ctrl-C comes twice under torchrun, from the terminal and from
            torchrun, which ends a process that does not end.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # Ignored signals (nohup) stay ignored.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        previous, self.signum = self.signum, number
        if self.patient:
            if previous is None and torchrun.is_main_process():
                os.write(2, b"\ns2vfast: stopping after this step\n")
            return
        self.__exit__()
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\ns2vfast: stopping after this step; once more stops at once\n")
