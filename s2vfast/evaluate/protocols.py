"""What `s2vfast evaluate` and `s2vfast embed` do: features of a split's parts, a protocol, a dictionary of results."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

import s2vfast.errors as errors
from s2vfast.data.store import Store
from s2vfast.evaluate import features, knn, linear, metrics
from s2vfast.train import rundir

Protocol = Literal["linear", "knn"]
PROTOCOLS: tuple[str, ...] = ("linear", "knn")
Progress = Callable[[str, int, int], None]
Log = Callable[[str], object]


def evaluate(
    run_dir: str | Path,
    store_path: str | Path,
    split: str | None = None,
    protocol: Protocol = "linear",
    *,
    pool: features.Pool = "mean",
    untrained: bool = False,
    k: int = 1,
    transform: knn.Transform = knn.DEFAULT_TRANSFORM,
    epochs: int = 100,
    lr: float = 0.1,
    batch: int = 128,
    weight_decay: float = 0.0,
    seed: int = 0,
    draws: int = 0,
    train_part: str = "train",
    test_part: str = "test",
    clips: int = 64,
    device: str = "auto",
    confusion: bool = False,
    progress: Progress | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Evaluate a run's teacher encoder: fit on one part of a split, measure on the other.

    Args:
        run_dir: a run's folder.
        store_path: a store of the run's layout; not necessarily the one it was pretrained on.
        split: named split of the store; None: the one of the run.
        protocol: "linear" (see `s2vfast.evaluate.linear`) or "knn" (see `s2vfast.evaluate.knn`).
        pool: how tokens become a vector, see `s2vfast.evaluate.features.pool_tracks`.
        untrained: evaluate the weights that the run started from.
        k: neighbours of "knn".
        transform: of features before "knn".
        epochs: of "linear"; so are lr, batch, weight_decay and seed.
        lr: first learning rate.
        batch: rows a step.
        weight_decay: L2 penalty.
        seed: of first weights, order and draws.
        draws: features of this many randomly drawn clips of every training sequence, as pretraining makes them, on top
            of the deterministic one. "linear" shows one of them an epoch, in turn; "knn" has them all as neighbours.
        train_part: part of the split that is fitted.
        test_part: part of the split that is measured.
        clips: sequences that go through the encoder at a time.
        device: auto, cpu, cuda or cuda:N.
        confusion: add the confusion matrix, rows are true classes.
        progress: called with (what, done, of).
        log: told of what is odd, a line each.

    Returns:
        Plain values for JSON. ``top1`` and ``top5`` in per cent (of fewer than five classes, ``top5`` counts all),
        ``n_train``, ``n_test``, ``protocol``, ``pool``, ``split``, ``untrained``, ``step`` of the checkpoint,
        ``per_class`` (class name to per cent; None without test sample), ``missing_classes`` (in the test part but
        not in the training part), ``settings`` and where everything came from.

    Raises:
        S2vfastError: a run, store, split or option that cannot be used.
    """
    _check_choice("protocol", protocol, PROTOCOLS)
    _check_choice("pool", pool, features.POOLS)
    _check_choice("transform", transform, knn.TRANSFORMS)
    _check_counts(k=k, clips=clips)
    if draws < 0:
        raise errors.ConfigError(f"draws: {draws}; 0 or more is expected")
    began = time.perf_counter()
    where = features.resolve_device(device)
    encoder, config, step = features.load_encoder(run_dir, untrained=untrained, log=log)
    store = _open_store(run_dir, store_path)
    split = split or config.data.split
    ids = _parts(store, split, train_part, test_part)

    def table(part: str, what: str, draw: int | None = None) -> Tensor:
        report = None if progress is None else lambda done, of: progress(what, done, of)
        return features.extract(
            encoder,
            config,
            store,
            ids[part],
            pool=pool,
            draw=draw,
            seed=seed,
            batch=clips,
            device=where,
            progress=report,
        ).to(where)

    train = [table(train_part, f"features of {train_part}")]
    train += [table(train_part, f"features of {train_part}, draw {i + 1} of {draws}", i) for i in range(draws)]
    train = torch.stack(train)  # [1 + draws, n, F]
    test = table(test_part, f"features of {test_part}")  # [m, F]
    train_labels, test_labels = (torch.from_numpy(store.labels[chosen]).to(where) for chosen in ids.values())
    missing = sorted(set(test_labels.tolist()) - set(train_labels.tolist()))
    if missing:
        log(
            f"warning: {len(missing)} class(es) of {test_part} are not in {train_part} and cannot be told: "
            f"{', '.join(store.classes[c] for c in missing)}"
        )

    classes = len(store.classes)
    if protocol == "knn":
        settings: dict[str, Any] = {"k": k, "transform": transform}
        neighbours, owners = train.flatten(0, 1), train_labels.repeat(1 + draws)
        ranked = knn.rank(neighbours, owners, test, classes=classes, **settings)
    else:
        settings = {"epochs": epochs, "lr": lr, "batch": batch, "weight_decay": weight_decay}
        report = None if progress is None else lambda done, of: progress("linear probe", done, of)
        probe = linear.fit(train, train_labels, classes=classes, **settings, seed=seed, progress=report)
        ranked = metrics.rank_scores(probe.scores(test))

    matrix = metrics.confusion_matrix(ranked[:, 0], test_labels, classes)
    result = {
        "protocol": protocol,
        "pool": pool,
        "split": split,
        "untrained": untrained,
        "top1": metrics.top_k(ranked, test_labels, 1),
        "top5": metrics.top_k(ranked, test_labels, 5),
        "n_train": len(train_labels),
        "n_test": len(test_labels),
        "per_class": dict(zip(store.classes, metrics.per_class_accuracy(matrix), strict=True)),
        "missing_classes": [store.classes[c] for c in missing],
        "features": test.shape[1],
        "step": step,
        "settings": settings | {"draws": draws, "seed": seed},
        "parts": [train_part, test_part],
        "run": str(run_dir),
        "store": str(store_path),
        "store_fingerprint": store.fingerprint,
        "device": str(where),
        "seconds": round(time.perf_counter() - began, 2),
    }
    if confusion:
        result["confusion"] = matrix.tolist()
    return result


def embed(
    run_dir: str | Path,
    store_path: str | Path,
    out: str | Path,
    split: str | None = None,
    *,
    pool: features.Pool = "mean",
    untrained: bool = False,
    clips: int = 64,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Write the features of a store's sequences to an npz file, which is there whole or not at all.

    Its arrays: ``features`` float32 [n, F], ``labels`` int64 [n], ``names`` [n], ``part`` [n] (the sequence's part of
    the split, empty text without a split) and ``classes`` (class names by label). No pickles: `numpy.load` as it is.

    Args:
        run_dir: a run's folder.
        store_path: a store of the run's layout.
        out: the file.
        split: named split, of which all parts are written; None: every sequence of the store.
        pool: as in `evaluate`; so are untrained, clips, device, progress and log.
        untrained: the weights that the run started from.
        clips: sequences at a time.
        device: auto, cpu, cuda or cuda:N.
        overwrite: replace an existing file.
        progress: called with (what, done, of).
        log: told of what is odd.

    Returns:
        ``out``, ``n``, ``features`` (F), ``pool``, ``split``, ``untrained`` and ``step``.

    Raises:
        S2vfastError: a run, store, split or option that cannot be used, or a file that cannot be written.
    """
    _check_choice("pool", pool, features.POOLS)
    _check_counts(clips=clips)
    where = features.resolve_device(device)
    encoder, config, step = features.load_encoder(run_dir, untrained=untrained, log=log)
    store = _open_store(run_dir, store_path)
    ids, part = _split_rows(store, split)
    report = None if progress is None else lambda done, of: progress("features", done, of)
    with _whole_file(Path(out), overwrite) as file:
        table = features.extract(encoder, config, store, ids, pool=pool, batch=clips, device=where, progress=report)
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
        "split": split,
        "untrained": untrained,
        "step": step,
    }


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise errors.ConfigError(f"{name}: {value!r} is not one of {', '.join(known)}")


def _check_counts(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise errors.ConfigError(f"{name}: {value}; 1 or more is expected")


def _open_store(run_dir: str | Path, store_path: str | Path) -> Store:
    store = Store.open(store_path)
    rundir.check_store(run_dir, store, store_path, exact=False)
    return store


def _parts(store: Store, split: str, train_part: str, test_part: str) -> dict[str, np.ndarray]:
    """Sequence numbers of both parts, neither of them empty, without a sequence in common."""
    ids = {part: store.select(split, part) for part in (train_part, test_part)}
    for part, chosen in ids.items():
        if not len(chosen):
            raise errors.DataError(f"{store.path}: part {part!r} of split {split!r} has no sequence")
    shared = len(np.intersect1d(ids[train_part], ids[test_part]))
    if shared:
        raise errors.DataError(
            f"{store.path}: {shared} sequence(s) of split {split!r} are in {train_part!r} and in {test_part!r}; an "
            f"accuracy on sequences that were fitted says nothing, choose another split or part"
        )
    return ids


def _split_rows(store: Store, split: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Sequence numbers, and the part of each."""
    if split is None:
        return np.arange(len(store.names), dtype=np.int64), np.full(len(store.names), "")
    # select knows the split "all" of any store, and names the known ones where there is no such split.
    parts = store.splits[split] if split in store.splits else {"": store.select(split, "")}
    ids = np.concatenate(list(parts.values()))
    if not len(ids):
        raise errors.DataError(f"{store.path}: split {split!r} has no sequence")
    return ids, np.repeat(np.array(list(parts)), [len(chosen) for chosen in parts.values()])


@contextlib.contextmanager
def _whole_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write to that takes the name ``path`` when the block ends, and vanishes if it fails.

    It is opened before the block, so that a place that cannot be written to is found out before the work.
    """
    if path.exists() and not overwrite:
        raise errors.DataError(f"{path}: exists already; name another file or allow overwriting")
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise errors.DataError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise
