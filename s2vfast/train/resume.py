"""What of a config may change when a run goes on."""

from __future__ import annotations

import s2vfast.errors as errors
from s2vfast.config import Config

RESUME_SAFE = ("data.workers", "train.log_every", "checkpoint.every", "checkpoint.keep")
"""Fields that may change when a run goes on: they change no weight."""
RESUME_INEXACT = ("data.resident", "train.device", "train.impl", "train.mode", "train.accumulate", "train.threads")
"""Fields that may change too, but then sums are rounded in another order."""


def agreed_config(own: Config, new_config: Config | None) -> tuple[Config, list[str]]:
    """The config to go on with, and what to say about it.

    Args:
        own: what the run began with.
        new_config: what it is to go on with; None: the same.

    Raises:
        ConfigError: a field that cannot change.
    """
    if new_config is None:
        return own, []
    notes = []
    before, after = own.to_dict(), new_config.to_dict()
    for section in dict.fromkeys((*before, *after)):
        for name in dict.fromkeys((*before.get(section, {}), *after.get(section, {}))):
            path = f"{section}.{name}"
            value, new = (tree.get(section, {}).get(name) for tree in (before, after))
            if new == value or path in RESUME_SAFE:
                continue
            if path not in RESUME_INEXACT:
                raise errors.ConfigError(
                    f"{path}: {new!r} asked, but the run began with {value!r}, and --resume goes on with what a run "
                    f"began with (only {', '.join(RESUME_SAFE + RESUME_INEXACT)} may change); leave it out or begin "
                    f"another run"
                )
            note = f"warning: {path}: {value} so far, {new} from here on; results may differ in the last bits"
            if path == "train.device" and new_config.train.precision == "auto":
                note += ", and more between a CPU and a GPU: train.precision auto is bfloat16 there"
            if path == "train.accumulate":
                note += ", and more where there is batch norm: its statistics are those of a micro-batch"
            notes.append(note)
    return new_config, notes
