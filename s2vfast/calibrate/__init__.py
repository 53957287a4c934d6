"""Which implementation of each operation is right and fastest on this machine, at the sizes of a run.

One training step is recorded (`record.Recorder`): what each operation was called with. `measure`, a process of its own,
compares every implementation with the reference at these sizes and times those that agree, each in a process of its
own with a time limit, so that one that crashes or hangs costs itself alone. `cache` keeps the results by device and
versions. `record.Choices` is what ``auto`` asks in the run that follows. `s2vfast.train.calibration` puts this
together for a trainer.
"""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """``$S2VFAST_CACHE``, or ``s2vfast`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if named := os.environ.get("S2VFAST_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s2vfast"


def measurements() -> Path:
    """The folder, which may not be there, of the files that `cache` keeps."""
    return folder() / "calibration"
