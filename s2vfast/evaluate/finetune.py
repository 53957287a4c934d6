"""Fine-tuned runs: their folder, the loop that fills it, and how to read one.

The folder is one of a run as pretraining makes them (``config.yaml``, ``run.json``, ``metrics.jsonl``,
``checkpoints/``); ``run.json`` also says, under "finetune", by which recipe, from which weights and on which labels. A
call with the same settings goes on where the one before it stopped, to the same bytes, or finds it finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import s2vfast.errors as errors
from s2vfast import nn
from s2vfast.evaluate import classifier, finetune_config
from s2vfast.evaluate.finetune_config import FinetuneConfig
from s2vfast.evaluate.tuner import Tuner
from s2vfast.train import checkpoint, progress, rundir, torchrun
from s2vfast.train.distributed import Ranks
from s2vfast.train.stopping import Stop

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.store import Store
    from s2vfast.nn import Encoder

KEY = "finetune"
"""What run.json calls it."""
_MENTIONED = ("run", "pretrained_on")
"""Fields of a source that say where something lay, not what it was."""


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
    labels: dict[str, Any] | None = None
    """Of a list of labels: percent, seed and number; None: all of them."""


def digest(encoder: Encoder) -> str:
    """SHA-256 of an encoder's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def digest_ids(ids: np.ndarray) -> str:
    """SHA-256 of sequence numbers."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes()).hexdigest()


def tune(
    out: str | Path,
    encoder: Encoder,
    config: Config,
    store: Store,
    ids: np.ndarray,
    options: FinetuneConfig,
    source: Source,
    *,
    device: torch.device | str = "cpu",
    ranks: Ranks | None = None,
    log: Callable[[str], object] = print,
) -> float:
    """Fine-tune to the end, or until a signal.

    Args:
        out: the fine-tuned run's folder: empty, missing, or of the same settings.
        encoder: where it starts from; it is changed.
        config: the pretrained run's.
        store: the sequences.
        ids: int64 [n], those that are learned from.
        options: the recipe.
        source: what ``encoder`` and ``ids`` are.
        device: where it runs.
        ranks: the processes that share the steps.
        log: told of what is odd.

    Returns:
        Seconds that this call spent on steps.

    Raises:
        Stopped: a signal; everything is saved.
        CheckpointError: the folder holds something else.
        TrainingError: non-finite numbers, no space left.
    """
    out, ranks = Path(out), ranks or Ranks()
    tuner = ranks.each(
        lambda: Tuner(encoder, config, options, store, torch.from_numpy(ids), torch.device(device), ranks)
    )
    with contextlib.ExitStack() as stack:
        ranks.tell(lambda: _claim(out, config, store, options, source, stack))
        found = ranks.each(lambda: _newest(out, log if ranks.first else _silent))
        if found is not None and found.step >= tuner.total_steps:
            return 0.0
        if found is not None:
            tuner.load(found.tensors, found.step)
        return _run(out, tuner, found.meta["metrics_bytes"] if found is not None else 0, stack, log)


def require(run_dir: str | Path) -> dict[str, Any]:
    """What run.json says of a fine-tuned run; `CheckpointError` of any other."""
    about = rundir.read(run_dir)
    if KEY not in about:
        raise errors.CheckpointError(
            f"{run_dir}: a pretrained run, which has no classes; make one that has with "
            f"`s2vfast evaluate {run_dir} --protocol finetune --out DIR`"
        )
    return about


def load_classifier(
    run_dir: str | Path, log: Callable[[str], object] = print
) -> tuple[classifier.Classifier, Config, dict[str, Any]]:
    """A fine-tuned run's network, on the CPU in evaluation mode, its config, and what run.json says.

    Raises:
        CheckpointError: no such run, or no intact checkpoint.
    """
    config, about = rundir.read_config(run_dir), require(run_dir)
    found = checkpoint.load_latest(run_dir, log=log, groups=("model",))
    joints, options = len(about["layout"]["joints"]), finetune_config.from_dict(about[KEY]["recipe"])
    head = classifier.Head(joints * config.model.dim, options.hidden, len(about["classes"]))
    model = classifier.Classifier(nn.build_encoder(config, joints), head, joints)
    try:
        model.load_state_dict(found.tensors["model"])
    except RuntimeError as error:
        raise errors.CheckpointError(f"{found.path}: not of this network: {' '.join(str(error).split())}") from error
    return model.eval().requires_grad_(False), config, {**about, "step": found.step}


def _claim(
    out: Path, config: Config, store: Store, options: FinetuneConfig, source: Source, stack: contextlib.ExitStack
) -> None:
    """Make the folder, or make sure that it is of the same settings; keep others out of it."""
    wanted = {"recipe": options.to_dict(), "source": asdict(source)}
    if not rundir.begun(out):
        rundir.check_free(out)
        # Its own split, which need not be one of the store that was pretrained on, and the seed of its first weights.
        own = replace(config, data=replace(config.data, split=source.split))
        if source.mode == "supervised":
            own = replace(own, train=replace(own.train, seed=options.seed))
        rundir.create(out, own, store, {KEY: wanted})
    about = rundir.read(out)
    if KEY not in about:
        raise errors.CheckpointError(f"{out}: holds a pretrained run; name another folder with --out")
    there = {**about[KEY]["source"], **{f"finetune.{k}": v for k, v in about[KEY]["recipe"].items()}}
    asked = {**wanted["source"], **{f"finetune.{k}": v for k, v in wanted["recipe"].items()}}
    there["store"], asked["store"] = about["store"]["fingerprint"], store.fingerprint
    for values, of in ((there, rundir.read_config(out).to_dict()), (asked, config.to_dict())):
        values |= {f"{section}.{name}": value for section in ("data", "model") for name, value in of[section].items()}
    free = {
        *_MENTIONED,
        "data.split",
        "data.workers",
        "data.resident",
        *(f"finetune.{name}" for name in finetune_config.FREE),
    }
    for name, value in asked.items():
        if name not in free and there.get(name) != value:
            raise errors.CheckpointError(
                f"{out}: holds a fine-tuned run with {name} = {there.get(name)!r}, not {value!r}; name another folder "
                f"with --out"
            )
    stack.enter_context(rundir.lock(out))
    checkpoint.clean(out)


def _newest(out: Path, log: Callable[[str], object]) -> checkpoint.Checkpoint | None:
    return checkpoint.load_latest(out, log=log) if checkpoint.steps(out) else None


def _silent(line: str) -> None:
    """Rank 0 says it."""


def _run(out: Path, tuner: Tuner, size: int, stack: contextlib.ExitStack, log: Callable[[str], object]) -> float:
    """Steps until the end or a signal; seconds that they took."""
    ranks, options, total = tuner.ranks, tuner.options, tuner.total_steps
    stop = stack.enter_context(Stop(patient=torchrun.launched()))
    metrics = None
    if ranks.first:
        for moved in checkpoint.set_aside(out, after=tuner.step):
            log(f"{moved}: what is left of a damaged checkpoint; it may be removed")
        # A kill may have come between a save and the removal of what it made superfluous.
        checkpoint.prune(out, tuner.step, options.keep)
        metrics = rundir.JsonLines(out / rundir.METRICS, size)
        stack.callback(metrics.close)
    meter = progress.Meter(total)
    # Results go to standard output, and what is under way beside them.
    shown = progress.make(meter, options.log_every, sys.stderr) if ranks.first else progress.Silent()
    saved, stopped, began = tuner.step, False, time.monotonic()

    def take() -> None:
        nonlocal stopped
        for result in tuner.drain():
            meter.add(result.clips)
            stopped = stopped or result.stop
            step = result.step
            if metrics is not None and (step == 1 or step == total or step % options.log_every == 0):
                values = asdict(result)
                metrics.write(**{name: values[name] for name in ("step", "epoch", "loss", "top1", "lr", "grad_norm")})
            shown.update(step, result)

    def save() -> None:
        nonlocal saved
        take()
        if saved != tuner.step and metrics is not None:
            state, keep = tuner.state(), options.keep
            if tuner.step == total:  # nothing goes on from here, and a table of a paper has some twenty of these
                state, keep = {"model": state["model"]}, 1
            checkpoint.save(out, tuner.step, state, {"metrics_bytes": metrics.sync()}, keep)
        saved = tuner.step

    with shown:
        while tuner.step < total and not stopped:
            if stop.signum:
                if ranks.world == 1:
                    break
                tuner.stopping = True  # together with the others, once all have heard of it
            tuner.run_step()
            if tuner.due:
                take()
            if tuner.step % options.checkpoint_every == 0:
                save()
        # What one rank reads next, another must have written.
        ranks.tell(save)
        if not ranks.first:
            save()
    if tuner.step < total:
        raise Stopped(stop.signum or signal.SIGTERM, out)
    return time.monotonic() - began
