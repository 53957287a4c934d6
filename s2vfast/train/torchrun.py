"""What torchrun writes into the environment of a process."""

from __future__ import annotations

import os


def under_torchrun() -> bool:
    """Whether torchrun, or something that speaks as it does, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Whether this process is the one of a run that prints."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def restart_count() -> int:
    """How many times torchrun has started the ranks again, after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0)
