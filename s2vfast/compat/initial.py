"""Weights that a run starts from: those of another run, of a checkpoint of its, or of a published one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.compat.namings import NAMINGS
from s2vfast.compat.published_checkpoint import read_checkpoint
from s2vfast.compat.reader import read_file
from s2vfast.config import Config
from s2vfast.data.layout import Layout
from s2vfast.data.store import hash_file
from s2vfast.objectives import build_objective
from s2vfast.train import checkpoint, rundir

OWN_PREFIXES = ("teacher.", "student.encoder.", "encoder.", "")
"""What the names of an encoder begin with in a file of ours, the evaluated one first."""
CONTAINERS = ("model", "state_dict")
"""Where a file may hold its tensors, if not at the top."""
CLIP_FIELDS = ("frames", "center", "scale", "align", "test_steps", "stream", "velocity")
"""Fields of the data section that say what a network has been shown."""
NO_PART_OF_WEIGHTS = ("init_std",)
"""Fields of model sections that say how weights begin."""
_LISTED = 3


def read_initial(
    source: str | Path, config: Config, layout: Layout, classes: list[str]
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """The weights that a run's network starts from, by the weights of another.

    Args:
        source: folder of a run, whose evaluated encoder is taken; or a file of torch.save or safetensors that holds an
            encoder of this network or a published checkpoint (`s2vfast.compat.read_checkpoint`).
        config: of the run that begins.
        layout: of its store.
        classes: of its store.

    Returns:
        (the network's whole state: tensors of the source where it has them, else those that the run would have begun
        with; what run.json is to say of it; what there is to tell the user).

    Raises:
        CheckpointError: nothing there that can be read, a tensor of another size, or no tensor of this network.
    """
    own = build_objective(config, layout, classes).encoder.state_dict()
    if Path(source).is_dir():
        tensors, about, notes = _of_run(Path(source), config, layout)
    else:
        tensors, about, notes = _of_file(Path(source), own)
    fitting = _fitting(tensors, own, source)
    absent, unused = sorted(set(own) - set(fitting)), sorted(set(tensors) - set(fitting))
    about |= {"tensors": len(fitting), "absent": absent, "unused": unused}
    notes.insert(0, f"begins with {len(fitting)} of the network's {len(own)} tensors from {source}")
    if absent:
        notes.append(f"not in {source}, and as without it: {_names(absent)}")
    if unused:
        notes.append(f"not of this network, and left out: {_names(unused)}")
    return {**own, **fitting}, about, notes


def _of_run(run: Path, new: Config, layout: Layout) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    config, about = rundir.read_config(run), rundir.read(run)
    if config.model.name != new.model.name:
        raise errors.CheckpointError(
            f"--init {run}: its network is {config.model.name}, that of the new run is {new.model.name}"
        )
    notes: list[str] = []
    saved = checkpoint.load_latest(run, log=notes.append, groups=("model",))
    rundir.check_beginning(run, config, saved.meta)
    prefix = config.objective_class.checkpoint_prefix()
    tensors = _below(saved.tensors.get("model", {}), prefix)
    if differences := _differences(config, new):
        notes.append(f"warning: no weight shows it, but {run} was made with {', '.join(differences)}")
    if about["layout"]["name"] != layout.name:
        notes.append(f"warning: {run} has learned of skeletons {about['layout']['name']}, this store has {layout.name}")
    facts = {"source": str(run.resolve()), "step": saved.step, "objective": config.objective.name}
    return tensors, facts | {"seen": rundir.learned_from(run)}, notes


def _differences(config: Config, new: Config) -> list[str]:
    """Fields by which the network, or how clips are made for it, differs between two runs."""
    before, after = config.to_dict(), new.to_dict()
    fields = [("model", name) for name in before["model"] if name not in NO_PART_OF_WEIGHTS]
    fields += [("data", name) for name in CLIP_FIELDS]
    return [
        f"{section}.{name} {before[section][name]} (here {after[section].get(name)})"
        for section, name in fields
        if before[section][name] != after[section].get(name)
    ]


def _of_file(path: Path, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    form, tree = read_file(path)
    facts: dict[str, Any] = {"source": str(path.resolve()), "sha256": hash_file(path), "format": form, "seen": []}
    notes = [f"nobody knows which sequences {path} has learned from: no overlap with a test can be said"]
    holders = [tree, *(tree.get(name) for name in CONTAINERS)] if isinstance(tree, dict) else []
    for holder in [] if _is_published(tree) else holders:  # some published names are ours too, with other weights
        named = holder if isinstance(holder, Mapping) else {}
        for prefix in OWN_PREFIXES:
            tensors = {name: value for name, value in _below(named, prefix).items() if isinstance(value, Tensor)}
            if set(tensors) & set(own):
                return tensors, facts, notes
    published = read_checkpoint(path)
    return published.encoder, facts | {"published": published.naming.name, "role": published.role}, notes


def _is_published(tree: Any) -> bool:
    """Whether a file has parameters by a published naming."""
    marks = tuple(mark for naming in NAMINGS.values() for mark in naming.marks)
    waiting = [tree]
    while waiting:
        if isinstance(content := waiting.pop(), Mapping):
            if any(isinstance(name, str) and name.endswith(marks) for name in content):
                return True
            waiting.extend(content.values())
    return False


def _below(tensors: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if isinstance(name, str) and name.startswith(prefix)
    }


def _fitting(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Those tensors that the network has, in its dtypes."""
    shared = [name for name in own if name in tensors]
    if not shared:
        raise errors.CheckpointError(
            f"--init {source}: none of its {len(tensors)} tensors is of this network ({len(own)} tensors, such as "
            f"{next(iter(own))}); name a run or file of the same model.name"
        )
    for name in shared:
        if tensors[name].shape != own[name].shape:
            raise errors.CheckpointError(
                f"--init {source}: {name} is {list(tensors[name].shape)}, this network has {list(own[name].shape)}; "
                f"the sections data and model must be those that the weights were made with, and the skeleton too"
            )
        if not torch.isfinite(tensors[name]).all():
            raise errors.CheckpointError(f"--init {source}: {name} has numbers that are not finite")
    return {name: tensors[name].detach().to(own[name].dtype) for name in shared}


def _names(names: list[str]) -> str:
    return f"{', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''} ({len(names)})"
