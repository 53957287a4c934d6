"""What fine-tuning is made of: one dataclass, its named recipes, and the YAML that a fine-tuned run keeps.

``s2vfast evaluate --help`` prints the texts under the fields; ``--finetune.FIELD VALUE`` overrides one of a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import s2vfast.errors as errors
from s2vfast import presets
from s2vfast.config import CheckpointConfig, Config, OptimConfig, TrainConfig
from s2vfast.config.fields import Section, check_section, option, section_from_tree, tree_of
from s2vfast.config.registry import OBJECTIVES


@dataclass
class FinetuneConfig(Section):
    """Fine-tuning of a whole encoder with the published head."""

    epochs: float = option(100.0, gt=0)
    """Length in passes over the labelled training sequences."""
    min_steps: int = option(0, ge=0)
    """Least length in steps; without it, a run on a few per cent of the labels ends before it has begun."""
    batch: int = option(48, ge=2)
    """Sequences a step, over all ranks; of fewer training sequences, all of them."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``adamw``, or ``sgd`` with momentum, as optim.name of pretraining."""
    lr: float = option(3e-4, gt=0)
    """Peak learning rate of the head and the final norm (published)."""
    schedule: Literal["cosine", "linear", "steps"] = "cosine"
    """After the warm-up, as optim.schedule of pretraining."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the rate is multiplied by gamma, ascending (steps)."""
    gamma: float = option(0.1, gt=0, le=1)
    """Factor at a milestone (steps)."""
    lr_min: float = option(1e-5, ge=0)
    """Learning rate at the end of the descent (cosine, linear)."""
    warmup_epochs: float = option(5.0, ge=0)
    """Epochs of linear warm-up."""
    layer_decay: float = option(0.8, gt=0, le=1)
    """Factor of the learning rate from a block to the one below it; the embedding is below the first (published)."""
    weight_decay: float = option(0.05, ge=0)
    """Decoupled weight decay on matrices; biases, norms, embeddings and LayerScale have none."""
    beta1: float = option(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = option(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = option(1e-8, gt=0)
    """Added to the root of the second moment."""
    momentum: float = option(0.9, ge=0, lt=1)
    """Factor of the velocity from a step to the next (sgd)."""
    clip: float = option(5.0, ge=0)
    """Largest global gradient norm; 0 leaves gradients as they are."""
    label_smoothing: float = option(0.1, ge=0, lt=1)
    """The fraction of the target that all classes get in equal parts: label smoothing (published)."""
    drop_path: float = option(0.3, ge=0, lt=1)
    """Stochastic depth: how often a branch of the last block is left out; linearly less below, never in the first
    block (published)."""
    dropout: float = option(0.3, ge=0, lt=1)
    """Share of the head's inputs that are dropped (published)."""
    head: Literal["mlp", "linear", "segments"] = "mlp"
    """As objective.head of classify: two maps (published), one of the mean over all tokens, or one of all segments."""
    hidden: int = option(2048, ge=1)
    """Width of the head between its two linear maps (mlp; published)."""
    frames: int | None = option(None, ge=1)
    """data.frames of the fine-tuned run, for networks that take clips of any length; null: those of pretraining."""
    sampling: Literal["bins", "crop", "window"] | None = None
    """data.sampling of the fine-tuned run; null: that of pretraining."""
    shift: float | None = option(None, ge=0)
    """data.shift of the fine-tuned run (point clouds); null: that of pretraining."""
    rotate: tuple[float, float, float] | None = None
    """data.rotate of the fine-tuned run, in radians; null: that of pretraining."""
    noise: bool = False
    """As objective.noise of classify: the network's own dropout, in place of drop_path."""
    frozen_norms: bool = False
    """As objective.frozen_norms of classify: the network stays in evaluation mode."""
    seed: int = option(1, ge=0, lt=2**63)
    """Seed of the head's first weights, order, clips and drops."""
    accumulate: int = option(1, ge=1)
    """Micro-batches that a rank does its sequences of a step in. More than one takes less memory; the head's batch norm
    then sees a micro-batch of all ranks at a time."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Operands of matrix products, as train.precision of pretraining."""
    log_every: int = option(10, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = option(200, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep: int = option(2, ge=1)
    """Checkpoints that stay; older ones are removed."""

    def validate(self) -> None:
        """Raise `ConfigError`, naming the field, unless every value is possible."""
        check_section(self, "finetune")
        if self.lr_min > self.lr:
            raise errors.ConfigError(f"finetune.lr_min: {self.lr_min} is above finetune.lr = {self.lr}")
        if bool(self.milestones) != (self.schedule == "steps"):
            raise errors.ConfigError(
                "finetune.milestones: epochs are expected where finetune.schedule is steps, and only there"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field."""
        return tree_of(self)


FREE = ("accumulate", "log_every", "checkpoint_every", "keep")
"""Fields that may change when a run goes on: they change a result in the last bits at most."""

# Of a linear head on all that a network gives, at one rate for all layers.
_PLAIN = {
    "schedule": "steps",
    "warmup_epochs": 0.0,
    "layer_decay": 1.0,
    "clip": 0.0,
    "label_smoothing": 0.0,
    "drop_path": 0.0,
    "dropout": 0.0,
    "head": "linear",
}
RECIPES: dict[str, dict[str, Any]] = {
    "published": {},
    "nwucla": {
        "epochs": 30.0,
        "min_steps": 200,
        "batch": 32,
        "lr": 2e-3,
        "warmup_epochs": 3.0,
        "drop_path": 0.1,
        "hidden": 256,
    },
    "convolutions": {
        "epochs": 15.0,
        "min_steps": 200,
        "batch": 32,
        "lr": 5e-4,
        "warmup_epochs": 3.0,
        "drop_path": 0.0,
        "dropout": 0.5,
        "hidden": 256,
        "rotate": (0.3, 1.2, 0.3),
    },
    "skeattnclr": {
        **_PLAIN,
        "epochs": 150.0,
        "batch": 128,
        "optimizer": "sgd",
        "lr": 0.005,
        "milestones": (60.0, 100.0),
        "weight_decay": 0.0,
        "frozen_norms": True,
    },
    "hitrs": {
        **_PLAIN,
        "epochs": 70.0,
        "batch": 128,
        "lr": 4e-4,
        "milestones": (30.0, 40.0, 50.0, 60.0),
        "gamma": 0.5,
        "weight_decay": 0.01,
        "noise": True,
    },
    "msr_finetune": {
        "epochs": 80.0,
        "batch": 8,
        "lr": 3e-3,
        "warmup_epochs": 2.0,
        "layer_decay": 1.0,
        "drop_path": 0.0,
        "dropout": 0.5,
        "head": "segments",
        "frames": 24,
        "sampling": "bins",
        "shift": 0.1,
    },
}
"""Recipes by name, as changes to the published one. ``nwucla``: small models on small data, minutes on two cores.
``convolutions``: the same of a network of that name, which has learned small data by heart sooner, on clips that are
turned more than in pretraining: a vertical y is expected.
``msr_finetune``: the same of point clouds, whose clips cover the whole recording.
``skeattnclr``, ``hitrs``: what their authors did. SkeAttnCLR's rate was from 0.003 to 0.05, by stream and number of
labels."""


def load(recipe: str | Path = "published", changes: dict[str, Any] | None = None) -> FinetuneConfig:
    """A recipe with single fields replaced, checked.

    Args:
        recipe: one of `RECIPES`, or a YAML file of fields.
        changes: values by field.

    Raises:
        ConfigError: no such recipe, an unknown field, or an impossible value.
    """
    text = str(recipe)
    if text in RECIPES:
        tree = dict(RECIPES[text])
    elif Path(text).is_file():
        try:
            tree = presets.parse(Path(text).read_text("utf-8"), text)
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ConfigError(f"{text}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    else:
        raise errors.ConfigError(f"--recipe {text}: neither a file nor one of {', '.join(RECIPES)}")
    return from_dict({**tree, **(changes or {})})


def from_dict(tree: dict[str, Any]) -> FinetuneConfig:
    """The config of plain values by field; unknown fields raise `ConfigError`."""
    config = section_from_tree(FinetuneConfig, tree, "finetune")
    config.validate()
    return config


def dump(config: FinetuneConfig) -> str:
    """The config as YAML that `load` reads back."""
    import yaml

    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def run_config(config: Config, options: FinetuneConfig, *, sequences: int | None = None, **data: Any) -> Config:
    """The config of the run that fine-tuning is: the objective ``classify`` on the network of another run.

    Args:
        config: of the run whose network it is, which says how clips are made.
        options: the recipe.
        sequences: how many are learned from; of fewer than a batch, all of them are one.
        data: fields of the data section that are others.
    """
    objective = OBJECTIVES.get("classify").Section
    of_recipe = {section: {leaf.name for leaf in fields(section)} for section in (objective, OptimConfig, TrainConfig)}
    values = {
        section: {name: value for name, value in options.to_dict().items() if name in names}
        for section, names in of_recipe.items()
    }
    if not config.network_class.branches:
        values[objective]["drop_path"] = 0.0
    if sequences is not None:
        values[TrainConfig]["batch"] = min(options.batch, sequences)
    data |= {"camera_pairs": 0.0}  # one view of a clip
    own = ("frames", "sampling", "shift", "rotate")
    data |= {name: value for name in own if (value := getattr(options, name)) is not None}
    if options.frames is not None and not config.network_class.any_frames:
        raise errors.ConfigError(
            f"finetune.frames: {options.frames}; model.name: {config.model.name} takes clips of the data.frames = "
            f"{config.data.frames} that it was built for alone, leave it out"
        )
    return replace(
        config,
        data=replace(config.data, **data),
        mask=None,
        objective=objective(**values[objective]),
        optim=OptimConfig(name=options.optimizer, **values[OptimConfig]),
        train=TrainConfig(**values[TrainConfig]),
        checkpoint=CheckpointConfig(every=options.checkpoint_every, keep=options.keep, final="weights"),
    )
