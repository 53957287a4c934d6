"""From a run and a store to one feature vector a sequence: the run's encoder, frozen, and a pooling.

Published evaluation uses deterministic clips and the teacher's encoder (arXiv 2401.00921), or the one there is.
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
from s2vfast.train.engine import pick_device

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.data.store import Store

Pool = Literal["mean", "joint_time"]
POOLS: tuple[str, ...] = ("mean", "joint_time")


def load_encoder(
    run_dir: str | Path, *, untrained: bool = False, log: Callable[[str], object] = print
) -> tuple[nn.Encoder, Config, int]:
    """The encoder that a run is evaluated by.

    Args:
        run_dir: a run's folder.
        untrained: take the weights that the run started from instead of those it reached.
        log: told of damaged checkpoints that were passed over.

    Returns:
        (encoder on the CPU in evaluation mode, the run's config, the step of the checkpoint; 0 where untrained).

    Raises:
        CheckpointError: no run there, no intact checkpoint, or one of another network.
        ConfigError: the run's config is impossible.
    """
    config = rundir.read_config(run_dir)
    encoder = nn.build_encoder(config, len(rundir.read(run_dir)["layout"]["joints"]))
    step = 0
    if not untrained:
        found = checkpoint.load_latest(run_dir, log=log, groups=("model",))
        step = found.step
        prefix = objectives.objective_class(config.objective.name).evaluated()
        evaluated = {
            name.removeprefix(prefix): tensor
            for name, tensor in found.tensors["model"].items()
            if name.startswith(prefix)
        }
        try:
            encoder.load_state_dict(evaluated)
        except RuntimeError as error:
            raise errors.CheckpointError(
                f"{found.path}: its {prefix.rstrip('.')} is not the network of {run_dir}/{rundir.CONFIG}: "
                f"{' '.join(str(error).split())}"
            ) from error
    return encoder.eval().requires_grad_(False), config, step


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N`` as a device that is there.

    Raises:
        ConfigError: no such device here.
    """
    try:
        return pick_device(name)
    except errors.ConfigError as error:
        # The same rule as training's, but the field is evaluation's own.
        raise errors.ConfigError(str(error).removeprefix("train.")) from None


def feature_width(config: Config, joints: int, pool: Pool) -> int:
    """F: numbers a sequence, for a skeleton of ``joints`` joints."""
    return config.model.dim * (1 if pool == "mean" else joints + config.segments)


def pool_tracks(tokens: Tensor, joints: int, pool: Pool) -> Tensor:
    """One vector a track.

    Args:
        tokens: [N, L, D], token = segment * joints + joint.
        joints: V.
        pool: "mean" (published): over all tokens, [N, D]. "joint_time": each joint's mean over segments, then each
            segment's mean over joints, [N, (V + S) * D].
    """
    if pool == "mean":
        return tokens.mean(dim=1)
    grid = tokens.unflatten(1, (-1, joints))  # [N, S, V, D]
    return torch.cat([grid.mean(dim=1).flatten(1), grid.mean(dim=2).flatten(1)], dim=1)


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
        progress: called with (sequences done, n) after each batch.

    Returns:
        float32 [n, F] on the CPU.

    Raises:
        DataError: the features of a sequence are not finite.
    """
    encoder.to(device)
    V, M = store.layout.num_joints, config.data.bodies
    spec = clip_spec(config.data, store.layout)
    with warnings.catch_warnings():
        # The memory map is read-only and so are the clips made from it; torch warns of writing to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        frames, frame_index = torch.from_numpy(store.frames), torch.from_numpy(store.frame_index)
    row, count = map(torch.from_numpy, store.track_table(M))  # [Q, M]
    result = torch.empty(len(ids), feature_width(config, V, pool))
    with torch.no_grad():
        empty = torch.zeros(1, config.data.frames, V, config.channels, device=device)
        empty = pool_tracks(encoder(empty), V, pool)  # [1, F]
        for start in range(0, len(ids), batch):
            some = torch.from_numpy(ids[start : start + batch])
            clips = ops.clip_sample(
                frames, frame_index, row, count, some, spec, seed=seed, epoch=draw or 0, training=draw is not None
            )  # [B * M, T, V, C]
            present = (count[some] > 0).flatten()  # [B * M]
            tracks = empty.repeat(len(clips), 1)
            tracks[present.to(device)] = pool_tracks(encoder(clips[present].to(device)), V, pool)
            result[start : start + len(some)] = tracks.unflatten(0, (-1, M)).mean(dim=1)
            if progress is not None:
                progress(start + len(some), len(ids))
    bad = (~result.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise errors.DataError(
            f"{store.path}: the encoder's features of sequence {store.names[ids[bad[0]]]} are not finite "
            f"({len(bad)} of {len(ids)} sequences); check the store with `s2vfast data check`, and the run's loss"
        )
    return result
