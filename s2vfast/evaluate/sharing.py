"""A run to give away: the network that is evaluated, with all that using it needs, in one file, and its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import s2vfast
import s2vfast.errors as errors
from s2vfast import files, presets
from s2vfast.data.point_layout import PointLayout
from s2vfast.evaluate import comparison, finetune, runs
from s2vfast.train import checkpoint, packed, rundir


def pack(
    run_dir: str | Path,
    out: str | Path,
    *,
    results: Sequence[str | Path] = (),
    everything: bool = False,
    overwrite: bool = False,
    log: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Write a run as one file, which `s2vfast.load`, predict, evaluate, embed, export and view take for the run.

    Args:
        run_dir: the run's folder.
        out: the file to write, ``NAME.safetensors``.
        results: of its evaluation, as of `s2vfast.evaluate.comparison.read`; the card shows them.
        everything: keep all that the checkpoint has; else of a run without classes the evaluated network alone.
        overwrite: replace a file that is there.
        log: told of damaged checkpoints that were passed over.

    Returns:
        ``out``, ``bytes``, ``tensors``, ``sha256``.

    Raises:
        ConfigError: a file that cannot have this name.
        CheckpointError: no run, or no intact checkpoint.
        DataError: the file is there already or cannot be written; results that are none.
    """
    out = Path(out)
    if out.suffix != packed.SUFFIX:
        raise errors.ConfigError(f"--out {out}: a FILE{packed.SUFFIX} is expected")
    if out.exists() and not overwrite:
        raise errors.DataError(f"{out}: is there already; name another file, or give --overwrite")
    config, about = runs.read(run_dir)
    saved = checkpoint.load_latest(run_dir, log=log, groups=("model",))
    rundir.check_beginning(run_dir, rundir.read_config(run_dir), saved.meta)
    tensors = runs.load_weights(run_dir, log).weights
    prefix = config.objective_class.checkpoint_prefix()
    if not everything and not finetune.has_classes(config):
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    content = packed.pack(
        tensors,
        packed.Packed(
            presets.dump(rundir.read_config(run_dir)),
            _without_paths(rundir.read(run_dir)),
            saved.step,
            saved.meta,
            card(run_dir, results),
            "",
        ),
    )
    with files.disk_errors(out, errors.DataError):
        files.write_bytes(out, content)
    return {"out": str(out), "bytes": len(content), "tensors": len(tensors), "sha256": packed.read(out).sha256}


def card(run_dir: str | Path, results: Sequence[str | Path] = ()) -> str:
    """What a model is, what it was made of, what it reaches and how to use it, as Markdown; of a packed run its own.

    Args:
        run_dir: a run's folder, or a packed run.
        results: as of `pack`.
    """
    if Path(run_dir).is_file():
        return packed.read(run_dir).card
    config, about = runs.read(run_dir)
    layout, classes = runs.layout_of(about), about["classes"] if finetune.has_classes(config) else []
    source = rundir.pretrained_on(_without_paths(about))
    fingerprint = f", fingerprint `{source['fingerprint'][:16]}`" if source.get("fingerprint") else ""
    where = source.get("path") or source.get("file") or "unknown"
    optim, train = config.optim, config.train
    if isinstance(layout, PointLayout):
        description = f"{config.data.frames} frames × {config.data.points} points × 3 coordinates, in metres"
        array = "lists of frames [n, 3]: any number of points, in the camera's axes"
    else:
        description = (
            f"{config.data.bodies} bodies × {config.data.frames} frames × {layout.num_joints} joints ({layout.name}) × "
            f"{config.channels} channels, in {about.get('unit') or 'an unknown unit'}"
        )
        array = f"each [frames, {layout.num_joints}, 3]: joints in the order of model.layout.joints"
    rows = {
        "network": f"{config.model.name}: " + _fields(_plain(config.model)),
        "objective": config.objective.name,
        "input": description,
        "classes": f"{len(classes)}: {', '.join(classes)}" if classes else "none: an encoder for features",
        "trained on": f"{where}, split {config.data.split}{fingerprint}",
        "training": f"{optim.name}, rate {optim.lr:g}, batch {train.batch}, seed {train.seed}",
        "last numbers": _last_line(Path(run_dir) / rundir.METRICS),
        "versions": ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()),
    }
    lines = [f"# {config.objective.name}, {config.model.name}, {layout.name}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in rows.items() if text]
    if results:
        table = comparison.compare([comparison.read(name) for name in results])
        lines += ["", "## Results", "", comparison.markdown(table).strip()]
    call = "predict(arrays)  # [(class, probability), …] each" if classes else "encode(arrays)  # float32 [n, features]"
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "import s2vfast",
        "",
        f'model = s2vfast.load("FILE{packed.SUFFIX}")',
        f"arrays = [...]  # {array}",
        f"model.{call}",
        "```",
        "",
        f"Made by s2vfast {s2vfast.__version__}. The recordings it was trained on have terms of their own.",
    ]
    return "\n".join(lines) + "\n"


def _plain(section: Any) -> dict[str, Any]:
    """Fields of a section that are numbers or names."""
    values = {name: getattr(section, name) for name in type(section).__dataclass_fields__}
    return {name: value for name, value in values.items() if isinstance(value, (int, str)) and value is not False}


def _fields(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _last_line(metrics: Path) -> str:
    """Step, epoch and loss at the end of metrics.jsonl; empty where there is none."""
    try:
        last = json.loads(metrics.read_text("utf-8").splitlines()[-1])
        return f"step {last['step']}, epoch {last['epoch']:.4g}, loss {last['loss']:.4g}"
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return ""


def _without_paths(value: Any) -> Any:
    """What run.json says, of each path the last name alone: nobody else's disk has them."""
    if isinstance(value, dict):
        return {name: _without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_paths(entry) for entry in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value
