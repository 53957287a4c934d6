"""What fine-tuning is made of: one dataclass, its named recipes, and the YAML that a fine-tuned run keeps.

``s2vfast evaluate --help`` prints the texts under the fields; ``--finetune.FIELD VALUE`` overrides one of a recipe.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import s2vfast.errors as errors
from s2vfast import presets


@dataclass
class FinetuneConfig:
    """Fine-tuning of a whole encoder with the published head."""

    epochs: float = 100.0
    """Length in passes over the labelled training sequences."""
    min_steps: int = 0
    """Least length in steps; without it, a run on a few per cent of the labels ends before it has begun."""
    batch: int = 48
    """Sequences a step, over all ranks; of fewer training sequences, all of them."""
    lr: float = 3e-4
    """Peak learning rate of the head and the final norm (published)."""
    lr_min: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up."""
    layer_decay: float = 0.8
    """Factor of the learning rate from a block to the one below it; the embedding is below the first (published)."""
    weight_decay: float = 0.05
    """Decoupled weight decay on matrices; biases, norms, embeddings and LayerScale have none."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    clip: float = 5.0
    """Largest global gradient norm; 0 leaves gradients as they are."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes (published)."""
    drop_path: float = 0.3
    """Stochastic depth: how often a branch of the last block is left out; linearly less below, never in the first
    block (published)."""
    dropout: float = 0.3
    """Share of the head's inputs that are dropped (published)."""
    hidden: int = 2048
    """Width of the head between its two linear maps (published)."""
    seed: int = 1
    """Seed of the head's first weights, order, clips and drops."""
    accumulate: int = 1
    """Parts that a rank's share of a step goes through the encoder in. More than one takes less memory and a second
    forward pass; the numbers are the same."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Operands of matrix products, as train.precision of pretraining."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 200
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints that stay; older ones are removed."""

    def validate(self) -> None:
        """Raise `ConfigError`, naming the field, unless every value is possible."""
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), hints[field.name])
        for names, good, expected in _RULES:
            for name in names.split():
                if not good(getattr(self, name)):
                    raise errors.ConfigError(f"finetune.{name}: {getattr(self, name)}; {expected} is expected")
        if self.lr_min > self.lr:
            raise errors.ConfigError(f"finetune.lr_min: {self.lr_min} is above finetune.lr = {self.lr}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field."""
        return dataclasses.asdict(self)


FREE = ("accumulate", "log_every", "checkpoint_every", "keep")
"""Fields that may change when a run goes on: they change a result in the last bits at most."""

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
}
"""Recipes by name, as changes to the published one. ``nwucla``: small models on small data, minutes on two cores."""

_RULES: tuple[tuple[str, Any, str], ...] = (
    ("hidden accumulate log_every checkpoint_every keep", lambda v: v >= 1, "1 or more"),
    ("batch", lambda v: v >= 2, "2 or more, for the batch norm,"),
    ("epochs lr eps", lambda v: v > 0, "a positive number"),
    ("min_steps lr_min warmup_epochs weight_decay clip", lambda v: v >= 0, "0 or more"),
    ("seed", lambda v: 0 <= v < 2**63, "a number from 0 to 2**63 - 1"),
    ("layer_decay", lambda v: 0 < v <= 1, "a number in (0, 1]"),
    ("label_smoothing drop_path dropout beta1 beta2", lambda v: 0 <= v < 1, "a number in [0, 1)"),
)


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
    refuse_unknown(tree)
    config = FinetuneConfig(**tree)
    config.validate()
    return config


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise `ConfigError` for the first name that is no field."""
    known = [field.name for field in dataclasses.fields(FinetuneConfig)]
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean finetune.{close[0]}?" if close else f"known: {', '.join(known)}"
            raise errors.ConfigError(f"finetune.{name}: no such field; {hint}")


def dump(config: FinetuneConfig) -> str:
    """The config as YAML that `load` reads back."""
    import yaml

    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def _check_type(name: str, value: Any, hint: Any) -> None:
    if typing.get_origin(hint) is Literal:
        good, expected = value in typing.get_args(hint), f"one of {', '.join(typing.get_args(hint))}"
    elif hint is int:
        good, expected = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        good, expected = number and math.isfinite(value), "a finite number"
    if not good:
        raise errors.ConfigError(f"finetune.{name}: {value!r}; {expected} is expected")
