"""Runs as evaluation reads them: config, description and weights; those of version 0.1 too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from s2vfast import errors
from s2vfast.config import Config
from s2vfast.data.layout import Layout
from s2vfast.data.point_layout import PointLayout, layout_from_dict
from s2vfast.evaluate import finetune_config
from s2vfast.train import checkpoint, rundir
from s2vfast.train.rundir import FINETUNE


@dataclass(frozen=True)
class Weights:
    """The newest intact checkpoint's parameters and buffers."""

    weights: dict[str, Tensor]
    step: int
    path: Path


def read(run_dir: str | Path) -> tuple[Config, dict[str, Any]]:
    """A run's config, and what run.json says."""
    config, about = rundir.read_config(run_dir), rundir.read(run_dir)
    if FINETUNE in about and not config.objective_class.needs_labels:  # of version 0.1, which had no such objective
        about[FINETUNE]["source"]["objective"] = config.objective.name
        config = finetune_config.run_config(config, finetune_config.from_dict(about[FINETUNE]["recipe"]))
    return config, about


def layout_of(about: dict[str, Any]) -> Layout | PointLayout:
    """The skeleton in a run.json, or that it was trained on points."""
    return layout_from_dict(about["layout"], "run.json: layout")


def load_weights(run_dir: str | Path, log: Callable[[str], object]) -> Weights:
    """The weights of a run's newest intact checkpoint.

    Args:
        run_dir: its folder.
        log: told of damaged checkpoints that were passed over.

    Raises:
        CheckpointError: no intact checkpoint.
    """
    saved = checkpoint.load_latest(run_dir, log=log, groups=("model",))
    rundir.check_beginning(run_dir, rundir.read_config(run_dir), saved.meta)
    if "model" not in saved.tensors:
        raise errors.CheckpointError(f"{saved.path}: holds no weights of a model")
    model = saved.tensors["model"]
    if all(name.startswith(("encoder.", "head.")) for name in model):  # fine-tuned by version 0.1
        model = {f"student.{name}": tensor for name, tensor in model.items()}
    return Weights(model, saved.step, saved.path)
