"""Which sequences of a store a run has learned from: accuracy on these says nothing, or less than it seems to."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2vfast.config import Config
from s2vfast.data.store import Store
from s2vfast.evaluate import runs, subsets

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
        return store.select(config.data.split, "train")
    source = about[runs.FINETUNE]["source"]
    if source["labels"] is None:
        return store.select(source["split"], source["part"])
    drawn = {name: source["labels"][name] for name in ("percent", "seed", "number")}
    return subsets.subset(store, source["split"], drawn.pop("percent"), part=source["part"], **drawn)


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
    return NONE if split is None else store.select(split, "train")
