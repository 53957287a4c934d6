"""What one sees of a run while it goes: a bar on a terminal, plain lines anywhere else, TensorBoard on request."""

from __future__ import annotations

import collections
import math
import sys
import time
from pathlib import Path
from typing import IO, Any, Protocol

import s2vfast.errors as errors

QUIET_SECONDS = 5.0
"""Plain lines are at least this far apart; the first and the last are always printed."""
WINDOW = 50
"""Steps over which the rate is measured."""


class Result(Protocol):
    """What progress needs to know of a step."""

    epoch: float
    loss: float
    lr: float
    ema_decay: float | None
    terms: dict[str, float]
    clips: int


class Meter:
    """Clips a second and the time that is left, over the last `WINDOW` steps.

    Args:
        total: Steps of the whole run.
        clock: Seconds, monotonic.
    """

    def __init__(self, total: int, clock: Any = time.monotonic) -> None:
        self.total, self.clock = total, clock
        self._marks: collections.deque[tuple[float, int]] = collections.deque([(clock(), 0)], maxlen=WINDOW + 1)

    def add(self, clips: int) -> None:
        """Count a step of ``clips`` clips."""
        self._marks.append((self.clock(), self._marks[-1][1] + clips))

    @property
    def step_seconds(self) -> float:
        """Seconds a step; 0 before the first."""
        return (self._marks[-1][0] - self._marks[0][0]) / max(1, len(self._marks) - 1)

    @property
    def clips_per_second(self) -> float:
        """Clips a second; 0 before the first step."""
        seconds = self._marks[-1][0] - self._marks[0][0]
        return (self._marks[-1][1] - self._marks[0][1]) / seconds if seconds > 0 else 0.0

    def eta(self, step: int) -> float:
        """Seconds until the last step, ``step`` being finished."""
        return (self.total - step) * self.step_seconds


def duration(seconds: float) -> str:
    """``59 s``, ``1:05``, ``2:03:04``."""
    total = math.ceil(seconds)
    if total < 60:
        return f"{total} s"
    hours, remainder = divmod(total, 3600)
    return f"{hours}:{remainder // 60:02d}:{remainder % 60:02d}" if hours else f"{remainder // 60}:{remainder % 60:02d}"


def _details(result: Result) -> str:
    """What one kind of run alone has to say: the averages' decay, terms of the loss."""
    decay = [] if result.ema_decay is None else [f"EMA {result.ema_decay:.6f}"]
    return "  ".join([*decay, *(f"{name} {value:.3g}" for name, value in result.terms.items())])


class Plain:
    """One line now and then, for files and pipes.

    Args:
        meter: Rates.
        every: Steps between lines, where they are not closer than `QUIET_SECONDS`.
        stream: Where they go; standard output where None.
    """

    def __init__(self, meter: Meter, every: int, stream: IO[str] | None = None) -> None:
        self.meter, self.every, self.stream = meter, every, stream
        self._last = -math.inf

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def message(self, text: str) -> None:
        """Print a line of its own."""
        print(text, file=self.stream or sys.stdout, flush=True)

    def update(self, step: int, result: Result) -> None:
        """``step`` is finished."""
        now, last = self.meter.clock(), step == self.meter.total
        if last or ((step % self.every == 0 or self._last == -math.inf) and now - self._last >= QUIET_SECONDS):
            self._last = now
            self.message(
                f"step {step}/{self.meter.total}  epoch {result.epoch:.2f}  loss {result.loss:.4f}  "
                f"lr {result.lr:.2e}  {_details(result)}  {self.meter.clips_per_second:.0f} clips/s  "
                f"ETA {duration(self.meter.eta(step))}"
            )


class Bar:
    """A bar that redraws itself, for terminals.

    Args:
        meter: Rates.
        console: The `rich.console.Console` to draw on; standard output where None.
    """

    def __init__(self, meter: Meter, console: Any = None) -> None:
        import rich.progress as rp

        self.meter = meter
        column = rp.TextColumn
        self._bar = rp.Progress(
            column("step {task.completed:.0f}/{task.total:.0f}"),
            rp.BarColumn(bar_width=None),
            column("{task.fields[numbers]}"),
            console=console,
            refresh_per_second=4,
            expand=True,
        )
        self._task = self._bar.add_task("", total=meter.total, numbers="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def update(self, step: int, result: Result) -> None:
        """``step`` is finished."""
        numbers = (
            f"loss {result.loss:.4f}  lr {result.lr:.1e}  {_details(result)}  "
            f"{self.meter.clips_per_second:.0f} clips/s  ETA {duration(self.meter.eta(step))}"
        )
        self._bar.update(self._task, completed=step, numbers=numbers)


class Silent:
    """Says nothing: for all ranks but the first."""

    meter: Meter

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def message(self, text: str) -> None:
        """Rank 0 says it."""

    def update(self, step: int, result: Result) -> None:
        """Rank 0 shows it."""


def make(meter: Meter, every: int, stream: IO[str] | None = None) -> Plain | Bar:
    """A bar on a terminal, plain lines elsewhere; on standard output where ``stream`` is None."""
    if not (stream or sys.stdout).isatty():
        return Plain(meter, every, stream)
    import rich.console

    return Bar(meter, rich.console.Console(file=stream))


class TensorBoard:
    """Scalars for TensorBoard in ``RUN/tensorboard``.

    Args:
        run_dir: The run's folder.
        step: Finished steps; what an earlier process wrote beyond it is hidden.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: str | Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise errors.TrainingError(
                "--tensorboard: TensorBoard is not installed; pip install tensorboard, or leave the flag out"
            ) from error
        self._writer = SummaryWriter(str(Path(run_dir) / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, values: dict[str, float]) -> None:
        """Add the numbers of one step; ``values`` has it as "step"."""
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(name, value, values["step"])

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Counter:
    """Progress of work that is counted in items: a bar on a terminal, a line now and then elsewhere, to standard error.

    Use it as a context manager and call it with (done, total) or (what, done, total).

    Args:
        what: Said before the numbers.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._last = time.monotonic()

    def __enter__(self) -> Counter:
        if sys.stderr.isatty():
            import rich.console
            import rich.progress as rp

            columns = [rp.TextColumn("{task.description}"), rp.BarColumn(), rp.MofNCompleteColumn()]
            self._bar = rp.Progress(*columns, console=rich.console.Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, *at: Any) -> None:
        """(done, total) or (what, done, total)."""
        what, done, total = at if len(at) == 3 else (self.what, *at)
        if self._bar is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total)
            self._bar.update(self._tasks[what], completed=done, total=total)
        elif time.monotonic() - self._last >= QUIET_SECONDS:
            self._last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)
