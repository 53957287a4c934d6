"""Small stores for tests."""

import numpy as np

from s2vfast.data.layout import Layout, get_layout
from s2vfast.data.store import Body, Sequence, Store
from s2vfast.data.store_writer import write_store

TINY = Layout("tiny", ("a", "b"), (-1, 0), 0, (0, 1), (0, 1))
V1 = get_layout("kinect_v1")


def body(frames, *, name="1", joints=2, seed=0):
    rng = np.random.default_rng(seed)
    return Body(name, np.asarray(frames, np.int32), rng.uniform(0.1, 1, (len(frames), joints, 3)).astype(np.float32))


def write(out, sequences, *, splits=None, classes=("x", "y"), dropped=(), **more):
    more.setdefault("layout", TINY)
    write_store(out, sequences, classes=list(classes), splits=splits or {}, source={}, dropped=list(dropped), **more)
    return Store.open(out)


def example(out, **more):
    sequences = [
        Sequence("s0", 0, 6, [body([0, 1, 4, 5]), body([2], name="2", seed=1)], subject=3, view=1),
        Sequence("s1", 1, 3, [body([0, 1, 2], seed=2)], subject=4, view=2, notes=["body 9: dropped, a chair"]),
        Sequence("s2", 1, 9, [body([8], seed=3)], subject=5, view=1, repetition=7, setup=8),
    ]
    splits = {"xsub": {"train": ["s2", "s0"], "test": ["s1"]}}
    return write(out, sequences, splits=splits, **more), sequences


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


def many():
    """More than a small disk holds."""
    for number in range(100):
        yield Sequence(f"{number:03d}", 0, 200, [body(np.arange(200), joints=20, seed=number)])
