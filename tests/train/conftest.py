"""A tiny store and an trainer without a network: every number of a step depends on all steps before it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2vfast.config import Config
from s2vfast.data.layout import get_layout
from s2vfast.data.store import Body, Sequence, Store
from s2vfast.data.store_writer import write_store
from s2vfast.objectives.skeleton2vec import COLLAPSED_VARIANCE
from s2vfast.train.trainer import Trainer


def write_tiny_store(path, layout="kinect_v2", sequences=12, seed=0):
    """Random walks of one or two bodies in two classes; split "xsub", two thirds of it for training."""
    rng = np.random.default_rng(seed)
    skeleton = get_layout(layout)
    made = []
    for number in range(sequences):
        frames = int(rng.integers(12, 30))
        bodies = [
            Body(
                f"body{slot}",
                np.arange(frames, dtype=np.int32),
                (rng.normal(size=(frames, skeleton.num_joints, 3)) * 0.05).cumsum(0).astype(np.float32) + 1 + slot,
            )
            for slot in range(1 + number % 2)
        ]
        made.append(Sequence(f"s{number:03d}", number % 2, frames, bodies, subject=number % 3))
    names = [sequence.name for sequence in made]
    split = {"train": names[: 2 * sequences // 3], "test": names[2 * sequences // 3 :]}
    write_store(
        path,
        made,
        layout=skeleton,
        classes=["still", "moving"],
        splits={"xsub": split},
        source={"format": "test"},
        dropped=[],
    )
    return path


def make_tiny_config(**train):
    """A config that the real trainer does in milliseconds a step on two sequences' worth of tokens."""
    tree = {
        "data": {"frames": 8, "velocity": 1.0, "rotate": [0.1, 0.1, 0.1]},
        "model": {"segment_frames": 4, "dim": 8, "heads": 2, "depth": 2, "layer_scale": 0.1},
        "mask": {"ratio": 0.8, "tube_len": 1},
        "objective": {"decoder_depth": 1, "top_k": 2, "ema_start": 0.9},
        "optim": {"warmup_epochs": 1.0},
        "train": {"steps": 12, "batch": 4, "threads": 1, "device": "cpu", "log_every": 2} | train,
        "checkpoint": {"every": 5, "keep": 2},
    }
    return Config.from_dict(tree)


class FakeTrainer:
    """Stands in for `s2vfast.train.trainer.Trainer` where only the loop around it is tested.

    ``before`` is called with the number of finished steps before each step.
    """

    def __init__(self, config, store, before=None, target_var=0.5):
        self.config, self.before, self.target_var = config, before, target_var
        self.total_steps, self.step, self.joints = config.train.steps, 0, store.layout.num_joints
        self.weight = torch.full((64,), float(config.train.seed), dtype=torch.float64)
        self.moment = torch.zeros(64, dtype=torch.float64)
        self.notes, self.stopping, self.objective = [], False, SimpleNamespace(warning=self._warning)

    def _warning(self, reported):
        return "the teacher has collapsed" if reported["target_var"] < COLLAPSED_VARIANCE else None

    def drain(self):
        return []

    def calibrate(self, run_dir, say):
        pass

    def close(self):
        pass

    def run_step(self):
        if self.before is not None:
            self.before(self.step)
        noise = np.random.default_rng((self.config.train.seed, self.step)).normal(size=64)
        self.moment = 0.9 * self.moment + torch.from_numpy(noise) + 0.1 * self.weight
        self.weight = self.weight - 0.01 * self.moment
        self.step += 1
        return SimpleNamespace(
            step=self.step,
            epoch=self.step / 2,
            loss=float(self.weight.square().mean()),
            lr=1e-3,
            ema_decay=0.99,
            grad_norm=float(self.moment.norm()),
            terms={},
            reported={"target_var": self.target_var, "pred_var": 0.1},
            clips=4,
            sample_ids=np.arange(4),
            stop=self.stopping,
        )

    def state(self):
        return {"model": {"weight": self.weight}, "optimizer": {"moment": self.moment}}

    def meta(self):
        return {"step": self.step}

    def load(self, state, meta):
        self.weight, self.moment, self.step = state["model"]["weight"], state["optimizer"]["moment"], meta["step"]


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory):
    """Path of a store with layout kinect_v2."""
    return write_tiny_store(tmp_path_factory.mktemp("store") / "v2")


@pytest.fixture(scope="session")
def other_store(tmp_path_factory):
    """Path of a store with layout kinect_v1."""
    return write_tiny_store(tmp_path_factory.mktemp("store") / "v1", layout="kinect_v1")


@pytest.fixture(scope="session")
def write_store_at():
    """`write_tiny_store`."""
    return write_tiny_store


@pytest.fixture(scope="session")
def tiny_config():
    """`make_tiny_config`."""
    return make_tiny_config


@pytest.fixture(scope="session")
def fake_trainer():
    """`FakeTrainer`."""
    return FakeTrainer


@pytest.fixture
def make(tiny_store, tiny_config):
    """make(**changes): an trainer on the tiny store; changes are section__field."""

    def trainer(**changes):
        config = tiny_config()
        for path, value in changes.items():
            section, name = path.split("__")
            setattr(getattr(config, section), name, value)
        return Trainer(config, Store.open(tiny_store))

    return trainer
