"""Which sequences of a store a run has learned from: accuracy on these says nothing, or less than it seems to."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2vfast import errors
from s2vfast.config import Config
from s2vfast.data.store import Store
from s2vfast.evaluate import finetune, runs, subsets
from s2vfast.train import rundir

NONE = np.empty(0, np.int64)


def labelled(config: Config, about: dict[str, Any], store: Store) -> np.ndarray:
    """Sequence numbers whose labels a run has learned: int64, ascending.

    Args:
        config: the run's.
        about: its run.json.
        store: whose sequences are asked about; of another one than the run's, none are known.
    """
    if not config.objective_class.needs_labels or about["store"]["fingerprint"] != store.fingerprint:
        return NONE
    if runs.FINETUNE not in about:
        return _training_part(store, config.data.split, about["store"].get(rundir.SPLIT))
    source = about[runs.FINETUNE]["source"]
    ids = NONE
    if source["split"] in store.splits or source["split"] == "all":
        ids = store.select(source["split"], source["part"])
        ids = ids[store.labels[ids] >= 0]
        if source["labels"] is not None:
            drawn = {name: source["labels"][name] for name in ("percent", "seed", "number")}
            ids = subsets.subset(store, source["split"], drawn.pop("percent"), part=source["part"], **drawn)
    if finetune.digest_ids(ids) != source["ids"]:
        raise _other_split(store, source["split"])
    return ids


def unlabelled(pretrained_on: dict[str, str] | None, store: Store) -> np.ndarray:
    """Sequence numbers that pretraining has seen.

    Args:
        pretrained_on: path, fingerprint and split of the store that was, or a published checkpoint, of which nobody
            knows (nor of a run whose split is not said); None: there was no pretraining.
        store: whose sequences are asked about.
    """
    if pretrained_on is None or pretrained_on.get("fingerprint") != store.fingerprint:
        return NONE
    split = pretrained_on.get("split")
    return NONE if split is None else _training_part(store, split, pretrained_on.get(rundir.SPLIT))


def _training_part(store: Store, split: str, digest: str | None) -> np.ndarray:
    """Sequence numbers of the training part of a split as a run knew it."""
    if store.split_digest(split) != digest:
        raise _other_split(store, split)
    return store.select(split, "train")


def _other_split(store: Store, split: str) -> errors.DataError:
    return errors.DataError(
        f"{store.path}: its split {split!r} is not the one that the run has learned from, so that nobody can say which "
        f"sequences it has seen; make that again with `s2vfast data split`, or name the store that has it"
    )
