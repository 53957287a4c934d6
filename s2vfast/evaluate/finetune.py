"""Fine-tuned runs: their folder, how it is filled, and how to read one.

A fine-tuned run is a run of the objective ``classify`` (`s2vfast.objectives.classify`), trained by the one trainer; its
``run.json`` also says, under "finetune", by which recipe, from which weights and on which labels. A call with the same
settings goes on where the one before it stopped, to the same bytes, or finds it finished.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

import s2vfast.errors as errors
from s2vfast.evaluate import features, finetune_config, runs
from s2vfast.evaluate.finetune_config import FinetuneConfig
from s2vfast.objectives.classify import Supervised
from s2vfast.train import rundir
from s2vfast.train.distributed import Ranks
from s2vfast.train.loop import run_steps
from s2vfast.train.resume import RESUME_INEXACT, RESUME_SAFE

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.store import Store

_NOT_COMPARED = ("run", "objective", "pretrained_on")
"""Fields of a source that say where something is from, not what it is."""


class Stopped(Exception):
    """A signal stopped fine-tuning; what was done is saved, and the same call goes on."""

    def __init__(self, signum: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}, saved in {folder}; the same command goes on")
        self.signum = signum


@dataclass(frozen=True)
class Source:
    """What a fine-tuned run is made from."""

    mode: str
    """"finetune" or "supervised" (from the first weights)."""
    run: str
    """Folder of the pretrained run."""
    step: int
    """Its checkpoint."""
    weights: str
    """SHA-256 of the encoder's weights at the start."""
    pretrained_on: dict[str, str] | None
    """Path, fingerprint and split of the pretrained run's store, or the published checkpoint that was imported; None:
    from the first weights."""
    split: str
    """Split of the store."""
    part: str
    """Its part that is learned from."""
    ids: str
    """SHA-256 of the sequence numbers that are learned from."""
    objective: str
    """Objective of the pretrained run."""
    labels: dict[str, Any] | None = None
    """Of a list of labels: percent, seed and number; None: all of them."""


def origin(about: dict[str, Any]) -> dict[str, Any] | None:
    """What a run.json says that a run was fine-tuned from: objective, step, store, weights; None: it was not."""
    source = about.get(runs.FINETUNE, {}).get("source")
    if source is None or source["mode"] == "supervised":
        return None
    return {name: source[name] for name in ("objective", "step", "pretrained_on", "weights")}


def digest(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} ".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def digest_ids(ids: np.ndarray) -> str:
    """SHA-256 of sequence numbers."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()


def tune(
    out: str | Path,
    config: Config,
    store: Store,
    ids: np.ndarray,
    options: FinetuneConfig,
    source: Source,
    *,
    initial: Mapping[str, Tensor] | None = None,
    ranks: Ranks | None = None,
) -> float:
    """Fine-tune to the end, or until a signal.

    Args:
        out: the fine-tuned run's folder: empty, missing, or of the same settings.
        config: of `s2vfast.evaluate.finetune_config.run_config`.
        store: the sequences.
        ids: int64 [n], those that are learned from.
        options: the recipe.
        source: what ``initial`` and ``ids`` are.
        initial: the encoder's state to start from; None: its first weights.
        ranks: the processes that share the steps.

    Returns:
        Seconds that this call spent on steps, those of rank 0.

    Raises:
        Stopped: a signal; everything is saved.
        CheckpointError: the folder holds something else.
        DataError: fewer than two sequences.
        TrainingError: non-finite numbers, no space left.
    """
    out, ranks = Path(out), ranks or Ranks()
    if len(ids) < 2:
        raise errors.DataError(f"fine-tuning: {len(ids)} training sequence(s); its batch norm needs 2 or more")
    description = {runs.FINETUNE: {"recipe": options.to_dict(), "source": asdict(source)}}
    begin = ranks.run_on_main_and_broadcast(lambda: _begins(out, config, store, description))
    summary = run_steps(
        out,
        config,
        store,
        ranks,
        begin=begin,
        command="the same command",
        description=description,
        stream=sys.stderr,  # results go to standard output
        ids=ids,
        initial=initial,
    )
    if not summary.finished:
        raise Stopped(summary.signal or signal.SIGTERM, out)
    # The others wait until rank 0 has saved what all of them read next.
    return ranks.run_on_main_and_broadcast(lambda: summary.seconds)


def has_classes(config: Config) -> bool:
    """Whether a run of this config tells classes: its objective is a kind of `Supervised`."""
    return issubclass(config.objective_class, Supervised)


def require(run_dir: str | Path) -> dict[str, Any]:
    """What run.json says of a run that has classes; `CheckpointError` of any other."""
    config, about = runs.read(run_dir)
    if not has_classes(config):
        raise errors.CheckpointError(
            f"{run_dir}: a pretrained run, which has no classes; make one that has with "
            f"`s2vfast evaluate {run_dir} --protocol finetune --out DIR`"
        )
    return about


def load_classifier(
    run_dir: str | Path, log: Callable[[str], object] = print
) -> tuple[Supervised, Config, dict[str, Any]]:
    """The network of a run that has classes, on the CPU in evaluation mode, its config, and what run.json says.

    Raises:
        CheckpointError: no such run, or no intact checkpoint.
    """
    about = require(run_dir)
    model, config, step = features.load_objective(run_dir, log=log)
    return model, config, {**about, "step": step}


def _begins(out: Path, config: Config, store: Store, description: dict[str, Any]) -> bool:
    """Whether the run is to begin in this folder; `CheckpointError` where it holds one of other settings."""
    if not rundir.begun(out):
        rundir.check_free(out)
        return True
    own, about = runs.read(out)
    if runs.FINETUNE not in about:
        raise errors.CheckpointError(f"{out}: holds a pretrained run; name another folder with --out")
    before = _settings(own, about[runs.FINETUNE], about["store"]["fingerprint"])
    after = _settings(config, description[runs.FINETUNE], store.fingerprint)
    for name, value in after.items():
        if before.get(name) != value:
            raise errors.CheckpointError(
                f"{out}: holds a fine-tuned run with {name} = {before.get(name)!r}, not {value!r}; name another folder "
                f"with --out"
            )
    return False


def _settings(config: Config, description: dict[str, Any], store: str) -> dict[str, Any]:
    """All that the weights of a fine-tuned run depend on, by name."""
    settings = {**description["source"], "store": store}
    settings |= {f"finetune.{name}": value for name, value in description["recipe"].items()}
    for section in ("data", "model"):
        settings |= {f"{section}.{name}": value for name, value in config.to_dict()[section].items()}
    free = {*_NOT_COMPARED, *RESUME_SAFE, *RESUME_INEXACT, "data.split"}
    free |= {f"finetune.{name}" for name in finetune_config.FREE}
    return {name: value for name, value in settings.items() if name not in free}
