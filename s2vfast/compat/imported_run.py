"""The run that an import makes: the skeleton it is for, its folder, and its report."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2vfast import errors, files
from s2vfast.config import Config
from s2vfast.data.layout import Layout, get_layout, layout_of_shape
from s2vfast.data.store import Store
from s2vfast.train import checkpoint, rundir

REPORT = "import.json"
"""File of a run's folder that holds the report."""


@dataclass(frozen=True)
class NoStore:
    """Stands for a store where there is none: the skeleton, and classes where there are."""

    layout: Layout
    classes: list[str] = field(default_factory=list)
    path: None = None
    fingerprint: None = None


def home(
    path: str | Path, joints: int, source: str, store: str | Path | None, layout: str | Path | None
) -> Store | NoStore:
    """The store, or what stands for it, with the skeleton of the weights.

    Args:
        path: of the weights.
        joints: of the weights.
        source: the tensor that says so.
        store: a store, or None.
        layout: a name or a JSON file, or None: the built-in one of as many joints.
    """
    if store is not None and layout is not None:
        raise errors.ConfigError("--layout: the store given by --data has one; leave one of them out")
    if store is not None:
        where: Store | NoStore = Store.open(store)
        name = f"the store {store}"
    elif layout is not None:
        where = NoStore(get_layout(layout))
        name = f"--layout {layout}"
    else:
        return NoStore(layout_of_shape(joints, 3, f"{path}: {source}"))
    if where.layout.num_joints != joints:
        raise errors.CheckpointError(
            f"{path}: {source} is of {joints} joints; {name} has {where.layout.num_joints} "
            f"({where.layout.name}). Name one of that skeleton"
        )
    return where


def write_run(
    out: Path,
    config: Config,
    where: Store | NoStore,
    about: dict[str, Any],
    summary: dict[str, Any],
    weights: dict[str, Tensor],
) -> None:
    """Write a run; where that fails, nothing of it stays.

    Args:
        out: its folder, which is free.
        config: the run's.
        where: see `home`.
        about: what run.json says of the weights' file.
        summary: the report.
        weights: by the names of a run's checkpoint; floating-point ones become float32.
    """
    existed = out.exists()
    try:
        rundir.create(out, config, where, {rundir.IMPORTED: about}).close()
        files.write_json(out / REPORT, summary)
        model = {
            name: value.to(torch.float32) if value.is_floating_point() else value for name, value in weights.items()
        }
        checkpoint.save(out, 0, {"model": model}, {rundir.IMPORTED: about}, keep=1)
    except BaseException as error:
        # run.json would make half a run of what is left.
        for name in (rundir.RUN, rundir.CONFIG, rundir.LOCK, REPORT):
            files.remove(out / name)
        shutil.rmtree(checkpoint.folder(out), ignore_errors=True)
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        cause = error.__cause__ if isinstance(error, errors.TrainingError) else error
        if isinstance(cause, OSError):
            raise errors.TrainingError(
                f"{out}: cannot be written: {cause.strerror or cause}; nothing of it stays"
            ) from error
        raise
