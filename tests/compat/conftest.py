"""A small store for the models of `published.py`."""

import numpy as np
import pytest

from s2vfast.data import Body, Layout, Sequence, write_store

LAYOUT = Layout("stick", ("hip", "neck", "head", "left", "right"), (-1, 0, 1, 1, 1), 0, (0, 1), (3, 4))


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A store of twelve sequences of two classes, halved."""
    rng = np.random.default_rng(0)
    sequences = [
        Sequence(f"s{i:02d}", i % 2, 15, [Body("1", np.arange(15, dtype=np.int32), _walk(rng, i % 2))])
        for i in range(12)
    ]
    names = [sequence.name for sequence in sequences]
    path = tmp_path_factory.mktemp("compat") / "store"
    splits = {"halves": {"train": names[:6], "test": names[6:]}}
    write_store(path, sequences, layout=LAYOUT, classes=["a", "b"], splits=splits, source={}, dropped=[])
    return path


def _walk(rng, label):
    walk = rng.normal(0, 0.05, (15, 5, 3)) + np.arange(1, 6)[None, :, None] * 0.2
    walk[:, 3 + label, 1] += np.sin(np.arange(15))
    return walk.astype(np.float32)
