"""What browsers are told: one update after another, and what the last seconds held for a browser that comes late."""

from __future__ import annotations

import json
import secrets
import threading
from collections import deque
from typing import Any

SECONDS = 60.0
"""Of looks that a late browser gets, and that the page draws."""
_LOOKS, _BROKEN, _UPDATES = 20_000, 8, 256
"""Of which so many are kept at most."""


class Feed:
    """Updates for any number of readers, each at its own pace; a slow reader loses frames, never looks.

    An update is a JSON object: ``now`` (seconds since the stream began), ``state`` (what replaces what was before), and
    what was not there before: ``looks``, a list of [second, frame, [[class, probability], ...]], and ``broken``, a list
    of [line, reason]. With ``reset`` these are all that are kept, in place of those that a reader has.

    Args:
        seconds: see `SECONDS`.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._session = secrets.token_hex(8)
        self._changed = threading.Condition()
        self._looks: deque[list[Any]] = deque(maxlen=_LOOKS)
        self._broken: deque[list[Any]] = deque(maxlen=_BROKEN)
        self._updates: deque[str] = deque(maxlen=_UPDATES)
        self._number, self._now = 0, 0.0
        self._state: dict[str, Any] = {}
        self._readers = 0
        self.closed = False

    def publish(
        self,
        now: float,
        state: dict[str, Any],
        looks: list[list[Any]] | None = None,
        broken: list[list[Any]] | None = None,
    ) -> None:
        """Tell all readers.

        Args:
            now: seconds since the stream began.
            state: what it holds replaces what it held before.
            looks: new ones, see the class.
            broken: likewise.
        """
        with self._changed:
            self._now = now
            self._state |= state
            self._looks.extend(looks or [])
            self._broken.extend(broken or [])
            while self._looks and self._looks[0][0] < now - self.seconds:
                self._looks.popleft()
            self._number += 1
            self._updates.append(self._text({"state": state, "looks": looks or [], "broken": broken or []}))
            self._changed.notify_all()

    def read(self, number: int | None, timeout: float) -> tuple[int, list[str]]:
        """What is new to a reader.

        Args:
            number: what the last call gave; None at the first one.
            timeout: seconds to wait for something new.

        Returns:
            (number, updates as JSON); no updates where nothing is new.
        """
        with self._changed:
            if number is not None:
                self._changed.wait_for(lambda: self._number > number or self.closed, timeout)
                missed = self._number - number
                if missed <= len(self._updates):
                    return self._number, list(self._updates)[len(self._updates) - missed :]
            content = {"reset": True, "state": self._state, "looks": list(self._looks), "broken": list(self._broken)}
            return self._number, [self._text(content)]

    def _text(self, content: dict[str, Any]) -> str:
        return json.dumps({"session": self._session, "now": round(self._now, 3)} | content, separators=(",", ":"))

    def join(self) -> None:
        """Count a reader, until it calls `leave`."""
        with self._changed:
            self._readers += 1

    def leave(self) -> None:
        """A reader has gone."""
        with self._changed:
            self._readers -= 1
            self._changed.notify_all()

    def close(self, timeout: float = 1.0) -> None:
        """No more will come: readers end when they have read all. It waits so many seconds for them at most."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._readers, timeout)
