"""The implementations that a run's steps take: from the run itself, from the cache, or measured now.

On a GPU a run is calibrated where ``train.impl`` leaves operations to ``auto``; on a CPU only by what `s2vfast tune`
has kept. A run holds its choice in ``calibration.json`` and goes on with it, so that a resumed run computes the same
bits.
``--train.impl torch``, or ``S2VFAST_CALIBRATE=0`` for all runs, turns it off. Rank 0 measures for all.

What measures is imported where something is to be measured or read: most runs on a CPU begin without it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from s2vfast import errors, files, ops
from s2vfast.calibrate import measurements
from s2vfast.calibrate.record import Choices, Recorder, Signature, from_json, text
from s2vfast.train import rundir

if TYPE_CHECKING:
    from s2vfast.calibrate import measure
    from s2vfast.train.trainer import Trainer

HOW_TO_TURN_IT_OFF = "--train.impl torch turns this off"

Table = dict[tuple[str, Signature], str]
"""Implementation by operation and signature."""


def applies(trainer: Trainer) -> bool:
    """Whether a trainer may be calibrated: torch.compile makes its own choices, and names are not overruled."""
    auto = ops.is_auto(trainer.config.train.impl) and trainer.mode != "compile"
    return auto and os.environ.get("S2VFAST_CALIBRATE") != "0"


def calibrate(trainer: Trainer, run_dir: Path, say: Callable[[str], None]) -> None:
    """Choose the implementations of a trainer's steps; all ranks call it before their first step.

    Args:
        trainer: takes the choice.
        run_dir: the run's folder, which keeps it.
        say: told, on rank 0, what there is to say.
    """
    ranks, device = trainer.ranks, trainer.device
    path = run_dir / rundir.CALIBRATION
    table = ranks.run_on_main_and_broadcast(lambda: _of_run(path, device, say))
    if table is None:
        measures = measures_by_itself(device)
        if not measures and not ranks.run_on_main_and_broadcast(lambda: _is_kept(device)):
            return
        recorder = record(trainer)
        table = ranks.run_on_main_and_broadcast(lambda: _measured(trainer, recorder, path, measures, say))
    if ranks.is_main:
        from s2vfast.calibrate import cache

        say(summary(table, cache.path(cache.environment(device))))
    trainer.feed.chooser = Choices(device.type, table)


def measures_by_itself(device: torch.device) -> bool:
    """Whether a run measures what is not kept; on a CPU only `s2vfast tune` does."""
    return device.type == "cuda"


def record(trainer: Trainer) -> Recorder:
    """What one step of a trainer calls, which is then as it was before."""
    recorder = Recorder(trainer.device.type)
    with trainer.restoring():
        trainer.feed.chooser = recorder
        try:
            trainer.step_without_data(trainer.feed.batch(trainer.step), eager=True)
        finally:
            trainer.feed.chooser = None
    trainer.step_fn.reset_nonfinite()
    return recorder


def choose(
    recorder: Recorder,
    device: torch.device,
    say: Callable[[str], None],
    *,
    capture: bool,
    measures: bool,
    again: bool = False,
    **limits: float,
) -> list[measure.Row]:
    """The rows of all recorded calls, from the cache or measured, and then said as a table.

    Args:
        recorder: the calls.
        device: where they run.
        say: told what there is to say.
        capture: whether they are going to be captured.
        measures: measure those that the cache lacks, and keep them.
        again: measure all of them.
        limits: of `s2vfast.calibrate.measure.run`.
    """
    from s2vfast.calibrate import cache, measure

    facts = cache.environment(device)
    rows, ignored = cache.read(facts)
    if ignored:
        say(ignored)
    measured = set() if again else {(row["op"], row["key"]) for row in rows}
    missing = [call for key, call in recorder.calls.items() if key not in measured]
    if missing and measures:
        count = len({call.op for call in missing})
        say(f"calibration: checking and timing the implementations of {count} operations on {facts['device']}")
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # candidates need memory too
        new, trouble = measure.run(missing, device, capture=capture, **limits)
        new_keys = {(row["op"], row["key"]) for row in new}
        rows = [row for row in rows if (row["op"], row["key"]) not in new_keys] + new
        for line in lines(new, measure.best(new, device.type)):
            say(line)
        left = {(call.op, call.key) for call in missing} - new_keys
        if trouble:
            say(f"warning: {trouble}")
        elif left:
            names = ", ".join(sorted({op for op, _ in left}))
            say(f"calibration: no time was left for {names}; the next run goes on with it")
        try:
            cache.write(facts, new)
        except errors.TrainingError as error:
            say(f"warning: calibration is not kept: {error}")
    return [row for row in rows if (row["op"], row["key"]) in recorder.calls]


def lines(rows: list[measure.Row], table: Table) -> list[str]:
    """A table of times: the implementation that is taken has a star; below, why others are out."""
    names = list(dict.fromkeys(row["impl"] for row in rows))
    result = [f"{'operation, ms':23} {'  '.join(f'{name:>10}' for name in names)}   sizes (*: taken)"]
    out: dict[tuple[str, str, str], None] = {}
    for op, key in dict.fromkeys((row["op"], row["key"]) for row in rows):
        cells = dict.fromkeys(names, "")
        for row in rows:
            if (row["op"], row["key"]) == (op, key):
                star = "*" if table.get((op, key)) == row["impl"] else ""
                cells[row["impl"]] = f"{row['ms']:.3g}{star}" if "ms" in row else "–"
                if "why" in row:
                    out[op, row["impl"], row["why"]] = None
        result.append(f"{op:23} {'  '.join(f'{cell:>10}' for cell in cells.values())}   {text(key)}")
    # What cannot run at all is no news: `s2vfast doctor` says why.
    news = [(op, impl, why) for op, impl, why in out if not why.startswith(_no_news(op, impl))]
    return result + [f"  {op}: {impl} is out: {why}" for op, impl, why in news]


def summary(table: Table, kept_in: Path) -> str:
    """One line: what was chosen, where it is kept, how to turn it off."""
    names: dict[str, dict[str, None]] = {}
    for (op, _), impl in table.items():
        names.setdefault(op, {})[impl] = None
    chosen_names = ", ".join(f"{op} {'/'.join(impls)}" for op, impls in sorted(names.items()))
    return f"implementations by calibration: {chosen_names or 'none'}; kept in {kept_in}; {HOW_TO_TURN_IT_OFF}"


def _no_news(op: str, impl: str) -> tuple[str, ...]:
    reasons = ops.operation(op).why_not(impl, "cpu") + ops.operation(op).why_not(impl, "cuda")
    return tuple(reasons) or ("\0",)


def _is_kept(device: torch.device) -> bool:
    if not measurements().is_dir():
        return False
    from s2vfast.calibrate import cache

    return cache.path(cache.environment(device)).is_file()


def _of_run(path: Path, device: torch.device, say: Callable[[str], None]) -> Table | None:
    """The choice that a run holds; None: it holds none for this device."""
    try:
        content = json.loads(path.read_text("utf-8"))
        from s2vfast.calibrate import cache

        table = {(op, from_json(key)): impl for op, key, impl in content["choices"]}
        if content["device"] == cache.device_name(device):
            return table
        say(f"{path}: of {content['device']}: implementations are chosen anew")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{path}: ignored: damaged ({type(error).__name__}: {error})")
    return None


def _measured(trainer: Trainer, recorder: Recorder, path: Path, measures: bool, say: Callable[[str], None]) -> Table:
    from s2vfast.calibrate import cache, measure

    device = trainer.device
    rows = choose(recorder, device, say, capture=trainer.captures, measures=measures)
    table = measure.best(rows, device.type)
    content: dict[str, Any] = {"device": cache.device_name(device)}
    content["choices"] = [[op, key, impl] for (op, key), impl in table.items()]
    with files.disk_errors(path, errors.TrainingError):
        files.write_json(path, content)
    return table
