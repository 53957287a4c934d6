"""From a run and a store to one feature vector a sequence: the run's encoder, frozen, and a pooling.

Published evaluation uses deterministic clips and the teacher's encoder (arXiv 2401.00921), or the one there is. Of a
fine-tuned run it is the encoder that was fine-tuned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

import s2vfast.errors as errors
from s2vfast import nn, objectives, ops
from s2vfast.data.clips import clip_spec
from s2vfast.train import checkpoint, rundir
from s2vfast.train.distributed import Ranks
from s2vfast.train.engine import pick_device

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.store import Store

Pool = Literal["mean", "joint", "joint_time"]
POOLS: tuple[str, ...] = ("mean", "joint", "joint_time")
_TUNED = "encoder."


def load_encoder(
    run_dir: str | Path, *, untrained: bool = False, log: Callable[[str], object] = print
) -> tuple[nn.Encoder, Config, int]:
    """The encoder that a run is evaluated by.

    Args:
        run_dir: a run's folder.
        untrained: take the weights that the run started from instead of those it reached.
        log: told of damaged checkpoints that were passed over.

    Returns:
        (encoder on the CPU in evaluation mode, the run's config, the step of the checkpoint; 0 where untrained or
        imported).

    Raises:
        CheckpointError: no run there, no intact checkpoint, or one of another network.
        ConfigError: the run's config is impossible.
    """
    config, about = rundir.read_config(run_dir), rundir.read(run_dir)
    encoder = nn.build_encoder(config, len(about["layout"]["joints"]))
    step = 0
    if not untrained:
        found = checkpoint.load_latest(run_dir, log=log, groups=("model",))
        step = found.step
        pretrained = objectives.objective_class(config.objective.name).evaluated()
        prefix = _TUNED if "finetune" in about else pretrained
        tensors = {
            name.removeprefix(prefix): tensor
            for name, tensor in found.tensors["model"].items()
            if name.startswith(prefix)
        }
        try:
            encoder.load_state_dict(tensors)
        except RuntimeError as error:
            raise errors.CheckpointError(
                f"{found.path}: its {prefix.rstrip('.')} is not the network of {run_dir}/{rundir.CONFIG}: "
                f"{' '.join(str(error).split())}"
            ) from error
    return encoder.eval().requires_grad_(False), config, step


def called(step: int, untrained: bool) -> str:
    """What to call the encoder of `load_encoder`; published weights that were imported have made no step here."""
    return "untrained encoder" if untrained else f"encoder of step {step}" if step else "imported encoder"


def resolve_device(name: str, ranks: Ranks | None = None) -> torch.device:
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N`` as a device that is there.

    Of several ranks each has a GPU of its own.

    Raises:
        ConfigError: no such device here.
    """
    try:
        return pick_device(name, ranks)
    except errors.ConfigError as error:
        # The same rule as training's, but the field is evaluation's own.
        raise errors.ConfigError(str(error).removeprefix("train.")) from None


def feature_width(config: Config, joints: int, pool: Pool) -> int:
    """F: numbers a sequence, for a skeleton of ``joints`` joints."""
    return config.model.dim * {"mean": 1, "joint": joints, "joint_time": joints + config.segments}[pool]


def pool_tracks(tokens: Tensor, joints: int, pool: Pool) -> Tensor:
    """One vector a track.

    Args:
        tokens: [N, L, D], token = segment * joints + joint.
        joints: V.
        pool: "mean" (published): over all tokens, [N, D]. "joint": each joint's mean over segments, [N, V * D].
            "joint_time": the same, then each segment's mean over joints, [N, (V + S) * D].
    """
    if pool == "mean":
        return tokens.mean(dim=1)
    grid = tokens.unflatten(1, (-1, joints))  # [N, S, V, D]
    if pool == "joint":
        return grid.mean(dim=1).flatten(1)
    return torch.cat([grid.mean(dim=1).flatten(1), grid.mean(dim=2).flatten(1)], dim=1)


class Clips:
    """Clips of a store's sequences, made where the encoder runs if the recordings fit there.

    Args:
        config: of the run, which says how clips are made.
        store: the sequences.
        device: where the clips are wanted.
    """

    def __init__(self, config: Config, store: Store, device: torch.device | str) -> None:
        self.device, self.bodies = torch.device(device), config.data.bodies
        self.spec = clip_spec(config.data, store.layout)
        row, count = map(torch.from_numpy, store.track_table(self.bodies))  # [Q, M]
        self.present = count > 0
        """bool [Q, M], on the CPU: which bodies a sequence has."""
        place = self.device
        if place.type == "cuda" and store.frames.nbytes > torch.cuda.mem_get_info(place)[0] // 2:
            place = torch.device("cpu")
        with warnings.catch_warnings():
            # The memory map is read-only and so are the clips made from it; torch warns of writing to it.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tables = torch.from_numpy(store.frames), torch.from_numpy(store.frame_index), row, count
        self._tables = [table.to(place) for table in tables]

    def make(self, ids: Tensor, *, epoch: int | None = None, seed: int = 0) -> Tensor:
        """[B * M, T, V, C] of sequences ``ids``: those of a training epoch, or (None) the deterministic ones."""
        there = ids.to(self._tables[0].device)
        clips = ops.clip_sample(
            *self._tables, there, self.spec, seed=seed, epoch=epoch or 0, training=epoch is not None
        )
        return clips.to(self.device)


def extract(
    encoder: nn.Encoder,
    config: Config,
    store: Store,
    ids: np.ndarray,
    *,
    pool: Pool = "mean",
    draw: int | None = None,
    seed: int = 0,
    batch: int = 64,
    device: torch.device | str = "cpu",
    clips: Clips | None = None,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of sequences, in the order of ``ids``.

    Bodies of a sequence are averaged, data.bodies of them, absent ones included: that is the published protocol, and
    it keeps what a body contributes independent of how many others there are. An absent body is an all-zero clip, for
    which the encoder's answer is always the same, so that it is computed once.

    Args:
        encoder: of `load_encoder`; it stays on ``device``.
        config: the run's config.
        store: sequences of the run's layout.
        ids: int64 [n].
        pool: see `pool_tracks`.
        draw: number of a random draw of the clips, as training makes them; None: the one deterministic clip.
        seed: of that draw.
        batch: sequences at a time.
        device: where the encoder runs.
        clips: where clips come from, if these have been read already.
        ranks: processes that each do some of the batches; all of them get the whole.
        progress: called with (sequences done, n) after each batch.

    Returns:
        float32 [n, F] on the CPU.

    Raises:
        DataError: the features of a sequence are not finite.
    """
    encoder.to(device)
    ranks, clips = ranks or Ranks(), clips or Clips(config, store, device)
    V, M = store.layout.num_joints, config.data.bodies
    result = torch.zeros(len(ids), feature_width(config, V, pool))
    with torch.no_grad():
        empty = torch.zeros(1, config.data.frames, V, config.channels, device=device)
        empty = pool_tracks(encoder(empty), V, pool)  # [1, F]
        for start in range(ranks.rank * batch, len(ids), ranks.world * batch):
            some = torch.from_numpy(ids[start : start + batch])
            tracks = clips.make(some, epoch=draw, seed=seed)  # [B * M, T, V, C]
            present = clips.present[some].flatten().to(device)  # [B * M]
            pooled = empty.repeat(len(tracks), 1)
            pooled[present] = pool_tracks(encoder(tracks[present]), V, pool)
            result[start : start + len(some)] = pooled.unflatten(0, (-1, M)).mean(dim=1)
            if progress is not None:
                progress(start + len(some), len(ids))
    ranks.sum(result)
    bad = (~result.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise errors.DataError(
            f"{store.path}: the encoder's features of sequence {store.names[ids[bad[0]]]} are not finite "
            f"({len(bad)} of {len(ids)} sequences); check the store with `s2vfast data check`, and the run's loss"
        )
    return result
