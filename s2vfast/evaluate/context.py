"""What is measured: a run's encoder on two parts of a store's split, its features computed once for all measures."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import s2vfast
import s2vfast.errors as errors
from s2vfast.config import Config
from s2vfast.data.store import Store
from s2vfast.evaluate import features, finetune, leakage, runs, whitening
from s2vfast.evaluate.arguments import POOLS, WHITEN
from s2vfast.evaluate.checks import check_choice, check_counts, open_store, whole_file
from s2vfast.networks import Network
from s2vfast.train import rundir
from s2vfast.train.distributed import Ranks
from s2vfast.train.feed import Recordings

Progress = Callable[[str, int, int], None]
Log = Callable[[str], object]
CACHE = "features"
"""Folder of a run that holds features."""


@dataclass
class EvalContext:
    """An encoder and the sequences it is measured on. Make one with `EvalContext.open`."""

    run: Path
    """The run's folder."""
    config: Config
    """Its config."""
    encoder: Network
    """On the CPU until features are asked for."""
    step: int
    """Its checkpoint; 0 where untrained."""
    untrained: bool
    """Whether these are the weights that the run started from."""
    store: Store
    """The sequences."""
    split: str
    """Named split of them."""
    parts: tuple[str, str]
    """Its part that is fitted, and its part that is measured."""
    ids: tuple[np.ndarray, np.ndarray]
    """int64 sequence numbers of both."""
    labels: tuple[Tensor, Tensor]
    """int64 classes of both, on the device."""
    device: torch.device
    """Where the encoder and the probes run."""
    pool: features.Pool = "mean"
    """How tokens become a vector."""
    layers: int = 1
    """Last layers of the encoder whose tokens are read."""
    clips: int = 64
    """Sequences that go through the encoder at a time."""
    windows: int = 1
    """Deterministic clips of a sequence; more than one are of a segment's frames each, at equal distances, and their
    features are averaged, or stand one after the other where ``pool`` is "segment"."""
    whiten: whitening.Whiten = "none"
    """Features in units of what differs between drawn clips of one "sequence" of the first part, or of one
    "performance", see `s2vfast.evaluate.whitening`."""
    seed: int = 0
    """Of drawn clips."""
    cache: bool = False
    """Whether features are kept under the run."""
    ranks: Ranks = field(default_factory=Ranks)
    """Processes that share the work."""
    progress: Progress | None = None
    """Called with (what, done, of)."""
    log: Log = print
    """Told of what is odd, a line each."""
    _features: dict[str, Tensor | None] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(
        cls,
        run_dir: str | Path,
        store_path: str | Path,
        split: str | None = None,
        *,
        train_part: str = "train",
        test_part: str = "test",
        untrained: bool = False,
        pool: features.Pool = "mean",
        layers: int = 1,
        clips: int = 64,
        windows: int = 1,
        whiten: whitening.Whiten = "none",
        device: str = "auto",
        ranks: Ranks | None = None,
        log: Log = print,
        **options: Any,
    ) -> EvalContext:
        """The encoder of a run (the teacher, or what was fine-tuned), and a store.

        Args:
            run_dir: a run's folder, pretrained or fine-tuned.
            store_path: a store of the run's layout; not necessarily the one it was pretrained on (transfer).
            split: named split of the store; None: the one of the run.
            train_part: part of the split that is fitted.
            test_part: part of the split that is measured.
            untrained: take the weights that the run started from.
            pool: how tokens become a vector, see `s2vfast.evaluate.features.pool_tracks`.
            layers: last layers that are read, see `s2vfast.evaluate.features.pool_clips`.
            clips: sequences that go through the encoder at a time.
            windows: deterministic clips of a sequence, see `EvalContext`; 1 but of point clouds.
            whiten: what features are divided by, see `EvalContext`; of one clip a sequence.
            device: auto, cpu, cuda or cuda:N.
            ranks: processes that share the work; None: this one alone.
            log: told of what is odd, a line each, by the first of them.
            options: further fields, as they are: seed, cache, progress.

        Raises:
            S2vfastError: a run, store, split or option that cannot be used.
        """
        check_choice("pool", pool, POOLS)
        check_choice("whiten", whiten, WHITEN)
        check_counts(clips=clips, windows=windows)
        if whiten != "none" and windows > 1:
            raise errors.ConfigError(f"--whiten {whiten}: --windows is {windows}; 1 is expected")
        parts, ranks = (train_part, test_part), ranks or Ranks()
        where = features.resolve_device(device, ranks)
        log = log if ranks.is_main else _silent
        encoder, config, step = features.load_encoder(run_dir, untrained=untrained, log=log)
        store, about = open_store(run_dir, store_path), rundir.read(run_dir)
        tuned = about.get(runs.FINETUNE)
        if untrained and rundir.INIT in about:
            raise errors.ConfigError(
                f"--untrained: {run_dir} began from the weights of {about[rundir.INIT]['source']}, which are trained"
            )
        if untrained and tuned and tuned["source"]["mode"] != "supervised":
            raise errors.ConfigError(
                f"--untrained: {run_dir} began from pretrained weights; name the run that these are of, "
                f"{tuned['source']['run']}"
            )
        features.check_pool(encoder, config, _pool_of_clips(pool, windows), layers)
        if windows > 1 and config.data.sampling != "window":
            raise errors.ConfigError(
                f"--windows: {windows}; the run's data.sampling is {config.data.sampling}, which makes one clip of a "
                f"sequence; window is expected"
            )
        split = split or config.data.split
        ids = _part_ids(store, split, *parts)
        if not untrained and (learned := len(np.intersect1d(leakage.labelled(config, about, store), ids[1]))):
            raise errors.DataError(
                f"{run_dir}: was {'fine-tuned' if tuned else 'trained'} on the labels of {learned} sequence(s) of "
                f"{parts[1]!r} of split {split!r}; an accuracy on sequences that were fitted says nothing, choose "
                f"another split, part or run"
            )
        labels = tuple(torch.from_numpy(store.labels[part_ids]).to(where) for part_ids in ids)
        context = cls(
            Path(run_dir), config, encoder, step, untrained, store, split, parts, ids, labels, where, pool, layers,
            clips, windows, whiten, **options, ranks=ranks, log=log,
        )  # fmt: skip
        if overlap := context.overlap:
            log(
                f"warning: pretraining has seen {overlap} of the {len(ids[1])} sequences of {parts[1]!r} of split "
                f"{split!r}, without their labels"
            )
        if missing := context.missing:
            log(
                f"warning: {len(missing)} class(es) of {parts[1]} are not in {parts[0]} and cannot be told: "
                f"{', '.join(missing)}"
            )
        return context

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.store.classes)

    @property
    def missing(self) -> list[str]:
        """Classes of the part that is measured which the other does not have."""
        fitted, measured = (set(labels.tolist()) for labels in self.labels)
        return [self.store.classes[label] for label in sorted(measured - fitted)]

    @functools.cached_property
    def _about(self) -> dict[str, Any]:
        """The run's run.json."""
        return runs.read(self.run)[1]

    @property
    def objective(self) -> str:
        """The run's objective; of a fine-tuned run, that of the run it began from."""
        if runs.FINETUNE in self._about:
            return self._about[runs.FINETUNE]["source"]["objective"]
        return self.config.objective.name

    @functools.cached_property
    def pretrained_on(self) -> dict[str, str] | None:
        """Path, fingerprint and split of the store that was pretrained on, or a published checkpoint; None: neither."""
        about = self._about
        if runs.FINETUNE in about:
            return about[runs.FINETUNE]["source"]["pretrained_on"]
        source = rundir.pretrained_on(about)
        if rundir.IMPORTED in about:
            return source
        seen = about.get(rundir.INIT, {}).get("seen")
        return source | {"split": self.config.data.split} | ({"seen": seen} if seen else {})

    @property
    def transfer(self) -> bool | None:
        """Whether the encoder was pretrained on another store; None of imported weights, of which nobody knows."""
        if self.pretrained_on is None:
            return False
        fingerprint = self.pretrained_on.get("fingerprint")
        return None if fingerprint is None else fingerprint != self.store.fingerprint

    @functools.cached_property
    def overlap(self) -> int:
        """How many sequences of the part that is measured pretraining has seen."""
        learned = None if self.untrained else self.pretrained_on
        return len(np.intersect1d(leakage.unlabelled(learned, self.store), self.ids[1]))

    def features(self, part: int, draw: int | None = None, what: str = "") -> Tensor:
        """float32 [n, F] of part 0 or 1, on the device; computed once. Several clips as `windows` says.

        Args:
            part: number of the part.
            draw: as of `s2vfast.evaluate.features.extract`.
            what: said of it while it is computed.
        """
        if draw is None and self.windows > 1:
            each = self.clip_features(part)
            return each.flatten(1) if self.pool == "segment" else each.mean(dim=1)
        whiten = self._whitening
        table = self._table(part, draw, (0, 1), what)
        return table if whiten is None else whiten(table)

    @functools.cached_property
    def _whitening(self) -> whitening.Whitening | None:
        if self.whiten == "none":
            return None
        groups, name = whitening.groups_of(self.store, self.ids[0], self.whiten), self.parts[0]
        drawn = (
            self._table(0, draw, (0, 1), f"features of {name}, draw {draw + 1} of {whitening.DRAWS}")
            for draw in range(whitening.DRAWS)
        )
        return whitening.fit(torch.stack([self._table(0, None, (0, 1), ""), *drawn]), groups)

    def clip_features(self, part: int) -> Tensor:
        """float32 [n, windows, F] of every deterministic clip of part 0 or 1, on the device; computed once."""
        name = self.parts[part]
        tables = [
            self._table(part, None, (number, self.windows), f"features of {name}, clip {number + 1} of {self.windows}")
            for number in range(self.windows)
        ]
        return torch.stack(tables, dim=1)

    def _table(self, part: int, draw: int | None, window: tuple[int, int], what: str) -> Tensor:
        """float32 [n, F] of one clip of each sequence; arguments as of `s2vfast.evaluate.features.extract`."""
        key = self._key(part, draw, window)
        cached = self._features
        if key not in cached:
            cached[key] = self._read(key) if self.cache else None
            if cached[key] is None:
                report, name = self.progress, what or f"features of {self.parts[part]}"
                table = features.extract(
                    self.encoder,
                    self._clip_config,
                    self.store,
                    self.ids[part],
                    pool=_pool_of_clips(self.pool, self.windows),
                    layers=self.layers,
                    draw=draw,
                    seed=self.seed,
                    window=window,
                    batch=self.clips,
                    device=self.device,
                    recordings=self._recordings,
                    ranks=self.ranks,
                    progress=None if report is None else lambda done, of: report(name, done, of),
                )
                if self.cache and self.ranks.is_main:
                    self._write(key, table)
                cached[key] = table.to(self.device)
        return cached[key]

    def describe(self) -> dict[str, Any]:
        """What every result says about where it is from."""
        about = self._about
        description = {
            "split": self.split,
            "untrained": self.untrained,
            "pool": self.pool,
            "windows": self.windows,
            "whiten": self.whiten,
            "layers": self.layers,
            "n_train": len(self.ids[0]),
            "n_test": len(self.ids[1]),
            "missing_classes": self.missing,
            "step": self.step,
            "parts": list(self.parts),
            "run": str(self.run),
            "pretrained_on": self.pretrained_on,
            "overlap": self.overlap,
            "transfer": self.transfer,
            "objective": self.objective,
            "store": str(self.store.path),
            "store_fingerprint": self.store.fingerprint,
            "device": str(self.device),
        }
        if runs.FINETUNE in about:
            description["finetuned"] = about[runs.FINETUNE]
            description["tuned_on"] = about["store"]
        return description

    @functools.cached_property
    def weights(self) -> str:
        """SHA-256 of the encoder's weights."""
        return finetune.digest(self.encoder)

    @functools.cached_property
    def _clip_config(self) -> Config:
        """The run's config; of several clips a sequence, with the frames of one segment."""
        if self.windows == 1:
            return self.config
        return replace(self.config, data=replace(self.config.data, frames=self.encoder.segment_frames))

    @functools.cached_property
    def _recordings(self) -> Recordings:
        return Recordings(self._clip_config, self.store, self.device)

    def _key(self, part: int, draw: int | None, window: tuple[int, int]) -> str:
        """SHA-256 of all that features depend on."""
        about = {
            "version": s2vfast.__version__,  # another one may make other clips
            "weights": self.weights,
            "clips": asdict(self._clip_config.data),
            "model": self.config.to_dict()["model"],
            "store": self.store.fingerprint,
            "ids": finetune.digest_ids(self.ids[part]),
            "pool": self.pool,
            "layers": self.layers,
            "draw": None if draw is None else [draw, self.seed],
            "window": window,
            "device": self.device.type,
        }
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _read(self, key: str) -> Tensor | None:
        path = self.run / CACHE / f"{key}.npz"
        table = None
        # A zip's checksums are compared when it is read: what is damaged is computed again.
        with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
            table = torch.from_numpy(file["features"])
        # All ranks or none, as the work is shared.
        missing = torch.tensor([float(table is None)])
        self.ranks.all_reduce(missing)
        return None if missing.item() else table.to(self.device)

    def _write(self, key: str, table: Tensor) -> None:
        folder = self.run / CACHE
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise errors.DataError(f"{folder}: cannot be made: {error.strerror or error}; leave --cache out") from error
        with whole_file(folder / f"{key}.npz", overwrite=True) as file:
            np.savez(file, features=table.numpy())


def _part_ids(store: Store, split: str, train_part: str, test_part: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the labelled sequences of both parts, neither of them empty, without a sequence in common."""
    ids = tuple(store.select(split, part) for part in (train_part, test_part))
    for part, part_ids in zip((train_part, test_part), ids, strict=True):
        if not len(part_ids):
            raise errors.DataError(f"{store.path}: part {part!r} of split {split!r} has no sequence")
    labelled = tuple(part_ids[store.labels[part_ids] >= 0] for part_ids in ids)
    for part, part_ids in zip((train_part, test_part), labelled, strict=True):
        if not len(part_ids):
            raise errors.DataError(
                f"{store.path}: no sequence of part {part!r} of split {split!r} has a label, and an accuracy needs "
                f"them; pretrain, embed, view and predict work without"
            )
    ids = labelled
    shared = len(np.intersect1d(*ids))
    if shared:
        raise errors.DataError(
            f"{store.path}: {shared} sequence(s) of split {split!r} are in {train_part!r} and in {test_part!r}; an "
            f"accuracy on sequences that were fitted says nothing, choose another split or part"
        )
    return ids


def _silent(line: str) -> None:
    """Rank 0 says it."""


def _pool_of_clips(pool: features.Pool, windows: int) -> features.Pool:
    """How each of several clips is read: of one segment, they are what "segment" puts in a row."""
    return "mean" if windows > 1 and pool == "segment" else pool
