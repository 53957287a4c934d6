"""The errors a user can mend. The command line prints them in one line, without a traceback."""


class S2vfastError(Exception):
    """Something the user can mend: the message names the file, line or field, what was expected and what to do."""

    reported_by_other_rank = False
    """Whether another process of the same run says it."""


class ConfigError(S2vfastError, ValueError):
    """A field of a config that is unknown or has an impossible value; the message starts with its path."""


class DataError(S2vfastError, ValueError):
    """A dataset, store or recording that cannot be used as it is."""


class CheckpointError(S2vfastError, RuntimeError):
    """A checkpoint or run folder that is missing, damaged or of another run."""


class TrainingError(S2vfastError, RuntimeError):
    """A run that cannot go on: non-finite numbers, no space left, a missing device."""


class ImplementationError(S2vfastError, RuntimeError):
    """A named implementation of an operation that cannot run here; the message lists every reason."""


class ShapeError(S2vfastError, ValueError):
    """An argument of an operation whose shape, dtype or device does not fit; the message names it."""
