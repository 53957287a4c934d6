"""Small runs with classes on MediaPipe's and RTMPose's skeletons, their lines, and a browser's side of a stream."""

import http.client
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import s2vfast
from s2vfast import presets
from s2vfast.config import Config
from s2vfast.data import Body, Sequence, Store, get_layout, write_store
from s2vfast.objectives import build_objective
from s2vfast.train import checkpoint, rundir

CLASSES = ["clap", "kick", "sit down"]
CONFIG = {
    "data": {"frames": 8, "bodies": 1, "split": "all"},
    "model": {"segment_frames": 4, "dim": 8, "heads": 2, "depth": 1, "layer_scale": 0.5},
    "objective": {"name": "classify", "hidden": 8},
    "train": {"seed": 3},
}


def person(frames, joints, seed=0, size=0.5):
    """[frames, joints, 3]: a body that moves a little, in metres about the origin."""
    rng = np.random.default_rng(seed)
    pose = rng.uniform(-size, size, (joints, 3))
    swing = rng.uniform(-0.1, 0.1, (joints, 3))
    pose[23:25], swing[23:25] = [[0.1, 0, 0], [-0.1, 0, 0]], 0  # hips, of MediaPipe's 33
    return pose + swing * np.sin(np.arange(frames) * 0.4)[:, None, None]


def make_run(folder, layout, unit="m", dimensions=3):
    V = get_layout(layout).num_joints
    sequences = []
    for number in range(6):
        joints = person(12, V, number).astype(np.float32)
        joints = (joints + 1) * 200 if unit == "px" else joints
        joints[..., dimensions:] = 0
        sequences.append(Sequence(f"s{number}", number % 3, 12, [Body("0", np.arange(12, dtype=np.int32), joints)]))
    names = [sequence.name for sequence in sequences]
    write_store(
        folder / "store",
        sequences,
        layout=get_layout(layout),
        classes=CLASSES,
        splits={"all": {"train": names}},
        source={},
        dropped=[],
        unit=unit,
        dimensions=dimensions,
    )
    store = Store.open(folder / "store")
    config = Config.from_dict(presets.merge(presets.with_names({}, objective="classify"), CONFIG))
    objective = build_objective(config, store.layout, store.classes)
    tensors = {f"student.{name}": 3 * tensor for name, tensor in objective.state_dict().items()}
    rundir.create(folder / "run", config, store).close()
    checkpoint.save(folder / "run", 1, {"model": tensors}, {}, keep=1)
    return folder / "run"


@pytest.fixture(scope="session")
def mediapipe_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("mediapipe"), "mediapipe33")


@pytest.fixture(scope="session")
def rtmpose_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("rtmpose"), "coco17", "px", 2)


@pytest.fixture
def load():
    """load(run) -> its `Model`, which says nothing."""
    return lambda run: s2vfast.load(run, log=lambda line: None)


@pytest.fixture(scope="session")
def people():
    """What lines are made of: ``person`` (see above) and ``landmarks(pose, visibility)``, MediaPipe's objects."""

    def landmarks(pose, visibility=0.9):
        return [
            {"x": x, "y": y, "z": z, "visibility": v}
            for (x, y, z), v in zip(pose.tolist(), np.broadcast_to(visibility, len(pose)).tolist(), strict=True)
        ]

    return SimpleNamespace(person=person, landmarks=landmarks, classes=CLASSES)


class Reader(threading.Thread):
    """Reads a feed as a browser does; ``until(test)`` waits for an update of which the test is true."""

    def __init__(self, url, headers=()):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=30)
        self.connection.request("GET", "/events", headers=dict(headers))
        self.response = self.connection.getresponse()
        self.updates, self.changed, self.ended = [], threading.Condition(), False
        self.start()

    def run(self):
        for line in self.response:
            if line.startswith(b"data: "):
                with self.changed:
                    self.updates.append(json.loads(line[6:]))
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def until(self, test):
        def first():
            return next((update for update in self.updates if test(update)), None)

        with self.changed:
            assert self.changed.wait_for(lambda: first() is not None or self.ended, 30)
            update = first()
        assert update is not None, self.updates
        return update

    def wait_for_end(self):
        with self.changed:
            assert self.changed.wait_for(lambda: self.ended, 30)

    def looks(self):
        return [look for update in self.updates for look in update["looks"]]

    def state(self):
        merged = {}
        for update in self.updates:
            merged |= update["state"]
        return merged


@pytest.fixture
def watch():
    """watch(url) -> a `Reader` of the stream there."""
    return Reader
