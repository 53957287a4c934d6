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
    """Sequence numbers whose labels a run has learned, or the weights that it began with: int64, ascending.

    Args:
        config: the run's.
        about: its run.json.
        store: whose sequences are asked about; of another one than the run's, none are known.

    Raises:
        DataError: it has another split under the name of the one that was learned from.
    """
    source = about.get(runs.FINETUNE, {}).get("source")
    before = about.get(rundir.INIT) if source is None else source["pretrained_on"]
    learned = [_part(entry, store) for entry in (before or {}).get("seen", ()) if entry["labels"]]
    if config.objective_class.needs_labels and about["store"]["fingerprint"] == store.fingerprint:
        if source is None:
            learned.append(_part(about["store"] | {"split": config.data.split}, store))
        else:
            learned.append(_tuned_on(source, store))
    return np.unique(np.concatenate([NONE, *learned]))


def unlabelled(pretrained_on: dict[str, Any] | None, store: Store) -> np.ndarray:
    """Sequence numbers that pretraining has seen, or the weights that it began with: int64, ascending.

    Args:
        pretrained_on: path, fingerprint and split of the store that was, or a published checkpoint, of which nobody
            knows (nor of a run whose split is not said); None: there was no pretraining.
        store: whose sequences are asked about.

    Raises:
        DataError: as of `labelled`.
    """
    entries = [] if pretrained_on is None else [pretrained_on, *pretrained_on.get("seen", ())]
    return np.unique(np.concatenate([NONE, *(_part(entry, store) for entry in entries)]))


def _part(entry: dict[str, Any], store: Store) -> np.ndarray:
    """Sequence numbers of what `s2vfast.train.rundir.learned_from` gives, as far as they are this store's."""
    split = entry.get("split")
    if entry.get("fingerprint") != store.fingerprint or split is None:
        return NONE
    if store.split_digest(split) != entry.get(rundir.SPLIT):
        raise _other_split(store, split)
    return store.select(split, entry.get("part", "train"))


def _tuned_on(source: dict[str, Any], store: Store) -> np.ndarray:
    """Sequence numbers that a fine-tuned run has learned from."""
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


def _other_split(store: Store, split: str) -> errors.DataError:
    return errors.DataError(
        f"{store.path}: its split {split!r} is not the one that the run has learned from, so that nobody can say which "
        f"sequences it has seen; make that again with `s2vfast data split`, or name the store that has it"
    )
