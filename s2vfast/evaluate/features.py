"""From a run and a store to one feature vector a sequence: the run's encoder, frozen, and a pooling.

Published evaluation uses deterministic clips and the teacher's encoder (arXiv 2401.00921), or the one there is. Of a
fine-tuned run it is the encoder that was fine-tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.evaluate import runs
from s2vfast.networks import Network, build_network
from s2vfast.objectives import Objective, build_objective
from s2vfast.train import rundir
from s2vfast.train.distributed import Ranks
from s2vfast.train.feed import Recordings
from s2vfast.train.trainer import pick_device

if TYPE_CHECKING:
    from s2vfast.config import Config
    from s2vfast.train.feed import AnyStore

Pool = Literal["mean", "joint", "segment", "joint_time", "statistics"]


def load_encoder(
    run_dir: str | Path, *, untrained: bool = False, log: Callable[[str], object] = print
) -> tuple[Network, Config, int]:
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
    config, about = runs.read(run_dir)
    encoder, step = build_network(config, runs.layout_of(about)), 0
    if not untrained:
        prefix = config.objective_class.checkpoint_prefix()
        saved = runs.load_weights(run_dir, log)
        step = saved.step
        tensors = {
            name.removeprefix(prefix): tensor for name, tensor in saved.weights.items() if name.startswith(prefix)
        }
        try:
            encoder.load_state_dict(tensors)
        except RuntimeError as error:
            raise errors.CheckpointError(
                f"{saved.path}: its {prefix.rstrip('.')} is not the network of {run_dir}/{rundir.CONFIG}: "
                f"{' '.join(str(error).split())}"
            ) from error
    return encoder.eval().requires_grad_(False), config, step


def load_objective(
    run_dir: str | Path, *, untrained: bool = False, log: Callable[[str], object] = print
) -> tuple[Objective, Config, int]:
    """The objective of a run with all that it keeps; arguments, results and errors as of `load_encoder`."""
    config, about = runs.read(run_dir)
    objective, step = build_objective(config, runs.layout_of(about), about["classes"]), 0
    if not untrained:
        saved = runs.load_weights(run_dir, log)
        step = saved.step
        try:
            objective.load_state_dict({name.removeprefix("student."): value for name, value in saved.weights.items()})
        except RuntimeError as error:
            raise errors.CheckpointError(
                f"{saved.path}: not of this network: {' '.join(str(error).split())}"
            ) from error
    return objective.eval().requires_grad_(False), config, step


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


def feature_width(encoder: Network, pool: Pool) -> int:
    """F of the last layer: numbers a sequence."""
    segments, joints = encoder.grid or (0, 0)
    vectors = {"mean": 1, "joint": joints, "segment": segments, "joint_time": joints + segments}
    return encoder.width * (vectors | {"statistics": 4 + 3 * joints + 2 * segments})[pool]


def check_pool(encoder: Network, config: Config, pool: Pool, layers: int = 1) -> None:
    """Raise `ConfigError` where clips have no joints and segments to pool by, or the network not so many layers."""
    name = type(encoder).__name__
    if config.data.sampling == "window" and pool != "mean":
        raise errors.ConfigError(
            f"--pool: {pool}; clips of a run whose data.sampling is window are one segment each; mean is expected, or "
            f"segment with several --windows"
        )
    if pool in ("joint", "segment", "joint_time") and encoder.grid is None:
        raise errors.ConfigError(
            f"--pool: {pool} needs tokens of joints and segments, which {name} does not have; give mean or statistics"
        )
    if not 1 <= layers <= encoder.depth:
        raise errors.ConfigError(f"--layers: {layers}; {name} has {encoder.depth}, 1 to {encoder.depth} is expected")


def pool_tracks(tokens: Tensor, encoder: Network, pool: Pool) -> Tensor:
    """One vector a track.

    Args:
        tokens: [N, L, D].
        encoder: whose tokens they are.
        pool: "mean" (published): over all tokens, [N, D]. "joint": each joint's mean over segments, [N, V * D].
            "segment": each segment's mean over joints, [N, S * D]. "joint_time": both, [N, (V + S) * D]. "statistics":
            of all tokens the mean, the maximum, the standard deviation and the share of positive values, [N, 4 * D];
            where there is a grid, then each joint's mean, maximum and standard deviation over segments, and each
            segment's mean and maximum over joints, [N, (4 + 3 * V + 2 * S) * D] in all.
    """
    if pool == "mean":
        return tokens.mean(dim=1)
    vectors = []
    if pool == "statistics":
        vectors += [tokens.mean(1), tokens.amax(1), tokens.std(1, correction=0), (tokens > 0).to(tokens.dtype).mean(1)]
    if encoder.grid is not None:
        grid = tokens.unflatten(1, encoder.grid)  # [N, S, V, D]
        if pool != "segment":
            vectors.append(grid.mean(1))
        if pool == "statistics":
            vectors += [grid.amax(1), grid.std(1, correction=0)]
        if pool != "joint":
            vectors.append(grid.mean(2))
        if pool == "statistics":
            vectors.append(grid.amax(2))
    return torch.cat([vector.flatten(1) for vector in vectors], dim=1)


def pool_clips(clips: Tensor, encoder: Network, pool: Pool, layers: int = 1) -> Tensor:
    """`pool_tracks` of the tokens of clips [N, T, V, C], [N, F]; of the layers below too, from the lowest on.

    Args:
        clips: of tracks.
        encoder: in evaluation mode.
        pool: as of `pool_tracks`.
        layers: how many of the last layers; below the last one tokens are what that layer hands on, without a norm.
    """
    if layers == 1:
        return pool_tracks(encoder(clips), encoder, pool)
    try:
        *below, last = encoder.hidden(clips, layers)
    except NotImplementedError as error:
        raise errors.ConfigError(f"--layers: {layers}; {error}") from error
    last = last if encoder.final_norm is None else encoder.final_norm(last)
    return torch.cat([pool_tracks(tokens, encoder, pool) for tokens in (*below, last)], dim=1)


def extract(
    encoder: Network,
    config: Config,
    store: AnyStore,
    ids: np.ndarray,
    *,
    pool: Pool = "mean",
    layers: int = 1,
    draw: int | None = None,
    seed: int = 0,
    window: tuple[int, int] = (0, 1),
    batch: int = 64,
    device: torch.device | str = "cpu",
    recordings: Recordings | None = None,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of sequences, in the order of ``ids``.

    Bodies of a sequence are averaged, data.bodies of them, absent ones included: that is the published protocol, and
    it keeps what a body contributes independent of how many others there are. An absent body is an all-zero clip, for
    which the answer of an encoder with independent tracks is always the same, so that it is computed once.

    Args:
        encoder: of `load_encoder`; it stays on ``device``.
        config: the run's config.
        store: sequences of the run's layout.
        ids: int64 [n].
        pool: see `pool_tracks`.
        layers: see `pool_clips`.
        draw: number of a random draw of the clips, as training makes them; None: the one deterministic clip.
        seed: of that draw.
        window: which of how many deterministic clips, as of `s2vfast.train.feed.Recordings.clips`.
        batch: sequences at a time.
        device: where the encoder runs.
        recordings: where clips come from, if these have been read already.
        ranks: processes that each do some of the batches; all of them get the whole.
        progress: called with (sequences done, n) after each batch.

    Returns:
        float32 [n, F] on the CPU.

    Raises:
        DataError: the features of a sequence are not finite.
    """
    if next(encoder.parameters()).device != torch.device(device):
        encoder.to(device)
    check_pool(encoder, config, pool, layers)
    ranks = ranks or Ranks()
    recordings = recordings or Recordings(config, store, torch.device(device))
    M = config.data.bodies
    with torch.no_grad():
        some_absent = encoder.independent_tracks and not bool(recordings.present[torch.from_numpy(ids)].all())
        width = feature_width(encoder, pool)
        if some_absent or layers > 1:  # a stream asks for one sequence at a time: no clip more than there is
            empty = torch.zeros(M, config.data.frames, recordings.joints, config.channels, device=device)
            empty = pool_clips(empty, encoder, pool, layers)[:1]  # [1, F]
            width = empty.shape[1]
        result = torch.zeros(len(ids), width)
        for start in range(ranks.rank * batch, len(ids), ranks.world_size * batch):
            batch_ids = torch.from_numpy(ids[start : start + batch])
            tracks = recordings.clips(batch_ids, epoch=draw, seed=seed, window=window).to(device)  # [B * M, T, V, C]
            if some_absent:
                present = recordings.present[batch_ids].flatten().to(device)  # [B * M]
                pooled = empty.repeat(len(tracks), 1)
                pooled[present] = pool_clips(tracks[present], encoder, pool, layers)
            else:
                pooled = pool_clips(tracks, encoder, pool, layers)
            result[start : start + len(batch_ids)] = pooled.unflatten(0, (-1, M)).mean(dim=1)
            if progress is not None:
                progress(start + len(batch_ids), len(ids))
    ranks.all_reduce(result)
    bad = (~result.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise errors.DataError(
            f"{store.path}: the encoder's features of sequence {store.names[ids[bad[0]]]} are not finite "
            f"({len(bad)} of {len(ids)} sequences); check the store with `s2vfast data check`, and the run's loss"
        )
    return result
