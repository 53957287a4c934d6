"""``s2vfast demo``: from nothing to a pretrained encoder and a statement of what it learned, in minutes on a laptop.

Synthetic sequences, pretraining with the preset ``demo``, then one readout of three kinds of features: those that no
network is needed for (the floor), the network's before it was trained, and after. Whatever an earlier call finished is
kept.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import s2vfast.errors as errors
from s2vfast import files, presets
from s2vfast.config import Config
from s2vfast.train import checkpoint, rundir
from s2vfast.train.progress import duration

STORE, RUN, RESULTS, PICTURE = "store", "run", "results.json", "loss.png"
READOUT = {"protocol": "linear", "linear": ("ridge",), "pool": "statistics"}
FEATURES: dict[str, dict[str, Any]] = {
    "floor: random convolutions": {"protocol": "floor", "floor_draws": 0},
    "the network, untrained": {"untrained": True, **READOUT},
    "the network, pretrained": READOUT,
}
"""What ridge regression reads, of one clip a sequence and of a network in all its layers: what the last screen calls
it, and how it is evaluated."""


def demo(
    out: str | Path = "runs/demo",
    *,
    fresh: bool = False,
    config: Config | None = None,
    synth: dict[str, Any] | None = None,
    log: Callable[[str], Any] = print,
) -> int | None:
    """Do what is not done yet, and print the last screen.

    Args:
        out: Folder for everything the demo makes.
        fresh: Throw away what an earlier demo made there.
        config: Another config than the preset ``demo``.
        synth: Keywords for `s2vfast.data.synth.generate`.
        log: Called with each line.

    Returns:
        The signal that stopped the training; None where the demo came to its end.

    Raises:
        S2vfastError: A step failed; what was finished before it is kept.
    """
    folder = Path(out)
    config = config or presets.load("demo")
    if fresh or _outdated(folder, config, log):
        _clear(folder)
    results = _read_results(folder)
    if results is None:
        _generate(folder, synth or {}, log)
        if (stopped := _train(folder, config, log)) is not None:
            return stopped
        results = _evaluate(folder, log)
    log(screen(folder, results))
    return None


def screen(folder: Path, results: dict[str, Any]) -> str:
    """The last screen: what was learned, where the files are, what to try next."""
    from s2vfast.view import curves

    metrics = curves.read_metrics(folder / RUN / rundir.METRICS)
    if not (folder / PICTURE).is_file():
        curves.loss_curve(folder / RUN / rundir.METRICS, folder / PICTURE, title=f"s2vfast demo: {folder / RUN}")
    loss = metrics["loss"]
    width = max(map(len, FEATURES))
    lines = [
        "",
        f"Ridge regression learns {results['classes']} actions from {results['n_train']} labelled synthetic sequences "
        f"and names those of",
        f"{results['n_test']} sequences of other people (top-1 accuracy in per cent; guessing gives "
        f"{100 / results['classes']:.1f}). It reads:",
        "",
        f"  {'':{width}}  accuracy  seconds",
    ]
    for name in FEATURES:
        measured = results["measured"][name]
        lines.append(f"  {name:{width}}  {measured['top1']:8.1f}  {measured['seconds']:7.0f}")
    lines += [
        "",
        "The first line, the floor, needs no learning; what the last has above the second is what the network learned "
        "from the",
        "same sequences without their labels.",
        "",
        f"  loss  {curves.sparkline(loss)}",
        f"        {loss[0]:.3f} at step {int(metrics['step'][0])}, {loss[-1]:.3f} at step {int(metrics['step'][-1])}",
        "",
        f"  pretraining took     {duration(results['seconds'])} ({results['clips_per_second']:.0f} clips/s)",
        f"  loss curve           {folder / PICTURE}",
        f"  sequences            {folder / STORE}",
        f"  config, numbers      {folder / RUN / rundir.CONFIG}, {folder / RUN / rundir.METRICS}",
        f"  weights              {results['weights']}",
        "",
        "What to try next" + ("" if shutil.which("s2vfast") else " (after: . .venv/bin/activate)") + ":",
        f"  s2vfast data show {folder / STORE}",
        f"  s2vfast evaluate {folder / RUN} --split xview --protocol knn",
        f"  s2vfast pretrain --config demo --data {folder / STORE} --out runs/mine --mask.ratio 0.7",
        "Real recordings:",
        "  s2vfast data import PATH/TO/NW-UCLA --out data/nwucla",
        "  s2vfast pretrain --config nwucla --data data/nwucla --out runs/nwucla",
        "  s2vfast data import PATH/TO/nturgb+d_skeletons --out data/ntu60",
        "  s2vfast pretrain --config ntu60 --data data/ntu60 --out runs/ntu60",
    ]
    return "\n".join(lines)


def _outdated(folder: Path, config: Config, log: Callable[[str], Any]) -> bool:
    """Whether a run is there that was made with other settings, by an older version perhaps."""
    if not rundir.begun(folder / RUN):
        return False
    with contextlib.suppress(errors.CheckpointError):  # of a version with other fields
        if rundir.read_config(folder / RUN) == config:
            return False
    log(f"{folder}: made with other settings than this version's preset; it is made anew")
    return True


def _clear(folder: Path) -> None:
    # Only what a demo makes, by name: someone may keep other files beside it.
    for name in (RUN, STORE):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in (RESULTS, PICTURE):
        (folder / name).unlink(missing_ok=True)


def _read_results(folder: Path) -> dict[str, Any] | None:
    try:
        results = json.loads((folder / RESULTS).read_text("utf-8"))
        if isinstance(results, dict) and set(results.get("measured", ())) == set(FEATURES):
            return results
        return None  # an older version measured other things
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise errors.DataError(f"{folder / RESULTS}: cannot be read: {error}; --fresh makes the demo anew") from error


def _generate(folder: Path, synth: dict[str, Any], log: Callable[[str], Any]) -> None:
    if (folder / STORE).exists():
        return
    from s2vfast.data.synth import generate

    log(f"1/3  synthetic sequences into {folder / STORE}")
    generate(folder / STORE, **synth)


def _train(folder: Path, config: Config, log: Callable[[str], Any]) -> int | None:
    from s2vfast.train.loop import train

    log(f"2/3  pretraining without labels into {folder / RUN}")
    summary = train(config, folder / STORE, folder / RUN, resume=rundir.begun(folder / RUN))
    if summary.signal is not None:
        log("or with: s2vfast demo" + ("" if folder == Path("runs/demo") else f" --out {folder}"))
    return summary.signal


def _evaluate(folder: Path, log: Callable[[str], Any]) -> dict[str, Any]:
    from s2vfast.data.store import Store
    from s2vfast.evaluate.features import load_encoder
    from s2vfast.evaluate.protocols import evaluate

    log("3/3  the floor, and the network untrained and pretrained, by one readout")
    layers = load_encoder(folder / RUN, log=log)[0].depth
    measured: dict[str, Any] = {}
    for name, options in FEATURES.items():
        result = evaluate(folder / RUN, folder / STORE, layers=layers, log=log, **options)
        top1 = result.get("ridge", result)["top1"]
        measured[name] = {"top1": top1, "seconds": result["seconds"]}
        log(f"     {name:27}  {top1:5.1f}")
    latest = checkpoint.folder(folder / RUN) / f"step-{checkpoint.steps(folder / RUN)[-1]:08d}"
    results = {
        "measured": measured,
        "n_train": result["n_train"],
        "n_test": result["n_test"],
        "classes": len(Store.open(folder / STORE).classes),
        "weights": str(latest / "model.safetensors"),
        **_rates(folder / RUN),
    }
    with files.disk_errors(folder / RESULTS, errors.TrainingError):
        files.write_json(folder / RESULTS, results)
    return results


def _rates(run: Path) -> dict[str, float]:
    """Time spent on steps, over all processes that worked on the run, and the mean rate in that time."""
    lines = (run / rundir.THROUGHPUT).read_text("utf-8").splitlines()
    last = {row["process"]: row for row in map(json.loads, lines)}  # of each process
    seconds = sum(row["seconds"] for row in last.values())
    clips = sum(row["clips"] for row in last.values())
    return {"seconds": round(seconds, 3), "clips_per_second": round(clips / seconds, 1)}
