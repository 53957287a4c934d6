"""What `s2vfast embed` does: the features of a store's sequences as an npz file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors
from s2vfast.data.store import Store
from s2vfast.evaluate import features
from s2vfast.evaluate.arguments import POOLS
from s2vfast.evaluate.checks import check_choice, check_counts, open_store, whole_file
from s2vfast.evaluate.context import Log, Progress


def embed(
    run_dir: str | Path,
    store_path: str | Path,
    out: str | Path,
    split: str | None = None,
    *,
    pool: features.Pool = "mean",
    layers: int = 1,
    untrained: bool = False,
    clips: int = 64,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Write the features of a store's sequences to an npz file, which is there whole or not at all.

    Its arrays: ``features`` float32 [n, F], ``labels`` int64 [n], ``names`` [n], ``part`` [n] (the sequence's part of
    the split, empty text of ``all``) and ``classes`` (class names by label). No pickles: `numpy.load` as it is.

    Args:
        run_dir: a run's folder.
        store_path: a store of the run's layout.
        out: the file.
        split: named split, of which all parts are written; None: the run's own. ``all`` has every sequence, in no part.
        pool: as in `s2vfast.evaluate.context.EvalContext.open`; so are untrained, clips, device and log.
        layers: last layers that are read, see `s2vfast.evaluate.features.pool_clips`.
        untrained: the weights that the run started from.
        clips: sequences at a time.
        device: auto, cpu, cuda or cuda:N.
        overwrite: replace an existing file.
        progress: called with (what, done, of).
        log: told of what is odd.

    Returns:
        ``out``, ``n``, ``features`` (F), ``pool``, ``layers``, ``split``, ``untrained`` and ``step``.

    Raises:
        S2vfastError: a run, store, split or option that cannot be used, or a file that cannot be written.
    """
    check_choice("pool", pool, POOLS)
    check_counts(clips=clips)
    if Path(out).suffix != ".npz":
        raise errors.ConfigError(f"--out {out}: an .npz file is written; give a name that ends in .npz")
    where = features.resolve_device(device)
    encoder, config, step = features.load_encoder(run_dir, untrained=untrained, log=log)
    store = open_store(run_dir, store_path)
    split = split or config.data.split
    ids, part = _split_rows(store, split)
    report = None if progress is None else lambda done, of: progress("features", done, of)
    with whole_file(Path(out), overwrite) as file:
        table = features.extract(
            encoder, config, store, ids, pool=pool, layers=layers, batch=clips, device=where, progress=report
        )
        np.savez(
            file,
            features=table.numpy(),
            labels=store.labels[ids],
            names=np.array(store.names)[ids],
            part=part,
            classes=np.array(store.classes),
        )
    return {
        "out": str(out),
        "n": len(ids),
        "features": table.shape[1],
        "pool": pool,
        "layers": layers,
        "split": split,
        "untrained": untrained,
        "step": step,
    }


def _split_rows(store: Store, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Sequence numbers, and the part of each."""
    # select knows the split "all" of any store, and names the known ones where there is no such split.
    parts = store.splits[split] if split in store.splits else {"": store.select(split, "")}
    ids = np.concatenate(list(parts.values()))
    if not len(ids):
        raise errors.DataError(f"{store.path}: split {split!r} has no sequence")
    return ids, np.repeat(np.array(list(parts)), [len(part_ids) for part_ids in parts.values()])
