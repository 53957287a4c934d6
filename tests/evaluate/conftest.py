"""A small store and a small run to evaluate."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2vfast import presets
from s2vfast.config import Config
from s2vfast.data import Body, Layout, Sequence, Store, write_store
from s2vfast.networks import build_network
from s2vfast.train import checkpoint, rundir

JOINTS, CLASSES, SEQUENCES = 5, 3, 24
LAYOUT = Layout(
    name="stick",
    joints=("hip", "neck", "head", "left", "right"),
    parents=(-1, 0, 1, 1, 1),
    root=0,
    torso=(0, 1),
    sides=(3, 4),
)
CONFIG = {
    "data": {"frames": 12, "bodies": 2, "split": "halves"},
    "model": {"segment_frames": 3, "dim": 16, "heads": 2, "depth": 2, "layer_scale": 0.5},
    "mask": {"ratio": 0.6, "tube_len": 2},
    "objective": {"decoder_depth": 1, "top_k": 2},
    "train": {"seed": 7, "steps": 1, "batch": 4},
}


def config(objective="skeleton2vec", **changes):
    tree = presets.with_names({section: dict(fields) for section, fields in CONFIG.items()}, objective=objective)
    for path, value in changes.items():
        section, _, name = path.partition("__")
        tree.setdefault(section, {})[name] = value
    return Config.from_dict(tree)


def sequence(number, label, bodies=1, length=15):
    """Every class swings another joint; a second body, where there is one, misses some frames."""
    rng = np.random.default_rng(number)
    pose = rng.normal(0, 0.02, (length, JOINTS, 3)) + np.arange(1, JOINTS + 1)[None, :, None] * 0.2
    pose[:, 2 + label, 1] += np.sin(np.arange(length) * 0.8 + rng.uniform(0, 6))
    members = []
    for body in range(bodies):
        seen = np.arange(length) if body == 0 else np.delete(np.arange(length), slice(4, 8))
        members.append(Body(f"b{body}", seen.astype(np.int32), (pose[seen] + 0.5 * body).astype(np.float32)))
    return Sequence(name=f"s{number:03d}", label=label, total_frames=length, bodies=members)


def make_store(path, layout=LAYOUT, splits=None):
    sequences = [sequence(i, i % CLASSES, bodies=1 + (i % 4 == 0), length=9 + i % 7) for i in range(SEQUENCES)]
    names = [s.name for s in sequences]
    halves = {"train": names[: SEQUENCES // 2], "test": names[SEQUENCES // 2 :]}
    return write_store(
        path,
        sequences,
        layout=layout,
        classes=["wave", "nod", "kick"],
        splits={"halves": halves, **(splits(names) if splits else {})},
        source={"made": "by a test"},
        dropped=[],
    )


def make_run(path, store, **changes):
    """A run folder with one checkpoint, of step 30; returns (config, teacher)."""
    made = config(**changes)
    teacher = build_network(made, LAYOUT)
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    student = {f"student.encoder.{name}": torch.zeros_like(tensor) for name, tensor in teacher.state_dict().items()}
    tensors = {f"teacher.{name}": tensor for name, tensor in teacher.state_dict().items()}
    rundir.create(path, made, store)
    checkpoint.save(path, 30, {"model": student | tensors, "optimizer": {"step": torch.tensor(30)}}, {}, keep=2)
    return made, teacher.eval()


@pytest.fixture(scope="session")
def small():
    """What the fixtures below are made with, for tests that need another store or run."""
    return SimpleNamespace(
        joints=JOINTS, classes=CLASSES, sequences=SEQUENCES, layout=LAYOUT, make_store=make_store, make_run=make_run
    )


@pytest.fixture
def store_path(tmp_path):
    return make_store(tmp_path / "store")


@pytest.fixture
def store(store_path):
    return Store.open(store_path)


@pytest.fixture
def run(tmp_path, store):
    """(folder, config, teacher) of a run on ``store``."""
    return tmp_path / "run", *make_run(tmp_path / "run", store)
