"""What every format gives without labels and without names that tell them: read for a prediction, and imported."""

import json
import pickle

import numpy as np
import pytest

from s2vfast.data import report
from s2vfast.data.formats import FORMATS, detect_format
from s2vfast.data.importer import import_dataset
from s2vfast.data.read_task import read_checked
from s2vfast.data.store import Store
from s2vfast.errors import DataError
from s2vfast.evaluate import context

from .ntu_files import IDS, frames_of, person, skeleton_text
from .pose_files import as_dicts, world


def coordinates(*shape):
    return np.random.default_rng(0).uniform(0.1, 2, shape).round(5).astype(np.float32)


def ntu(folder):
    joints = person(20)
    (folder / "clip.skeleton").write_text(skeleton_text(frames_of((IDS[0], 0, joints), total=20)))
    return folder / "clip.skeleton", {"clip": joints}


def ntu_action(folder):
    path, expected = ntu(folder)
    return path.rename(folder / "S001C001P001R001A999.skeleton"), {"S001C001P001R001A999": expected["clip"]}


def nwucla(folder):
    joints = coordinates(7, 20, 3)
    (folder / "clip.json").write_text(json.dumps({"skeletons": joints.tolist(), "label": "wave"}))
    return folder / "clip.json", {"clip": joints}


def nwucla_folder(folder):
    nwucla(folder)[0].rename(folder / "a99_s01_e00_v01.json")
    joints = nwucla(folder)[1]["clip"]
    return folder, {"a99_s01_e00_v01": joints, "clip": joints}


def pyskl(folder):
    keypoint = coordinates(1, 7, 25, 3)
    names = ("S001C001P001R001A001", "clip")
    annotations = [{"frame_dir": name, "label": None, "keypoint": keypoint} for name in names]
    (folder / "a.pkl").write_bytes(pickle.dumps({"annotations": annotations}))
    return folder / "a.pkl", dict.fromkeys(names, keypoint[0])


def ctrgcn(folder):
    x = coordinates(2, 7, 150)
    x[..., 75:] = 0
    np.savez(folder / "a.npz", x_test=x)
    return folder / "a.npz", {f"test_{i:06d}": x[i, :, :75].reshape(7, 25, 3) for i in range(2)}


def stgcn(folder):
    data = coordinates(2, 3, 7, 25, 1)
    np.save(folder / "train_data.npy", data)
    return folder / "train_data.npy", {f"train_data_{i:06d}": data[i, ..., 0].transpose(1, 2, 0) for i in range(2)}


def arrays(folder):
    joints = coordinates(7, 25, 3)
    np.save(folder / "clip.npy", joints)
    return folder / "clip.npy", {"clip": joints}


def mediapipe(folder):
    joints = world(7)
    (folder / "clip.json").write_text(json.dumps([as_dicts(pose) for pose in joints]))
    return folder / "clip.json", {"clip": joints}


def rtmpose(folder):
    joints = coordinates(7, 17, 2)
    frames = [[{"keypoints": pose.tolist(), "scores": [1.0] * 17}] for pose in joints]
    (folder / "clip.json").write_text(json.dumps(frames))
    return folder / "clip.json", {"clip": np.pad(joints, ((0, 0), (0, 0), (0, 1)))}


def openpose(folder):
    joints = np.pad(coordinates(1, 25, 2), ((0, 0), (0, 0), (0, 1)))
    people = [{"pose_keypoints_2d": joints[0].reshape(-1).tolist()}]
    (folder / "clip_000000000007_keypoints.json").write_text(json.dumps({"people": people}))
    return folder / "clip_000000000007_keypoints.json", {"clip": joints}


def kinetics(folder):
    joints = coordinates(7, 18, 2)
    frames = [{"skeleton": [{"pose": pose.reshape(-1).tolist(), "score": [1.0] * 18}]} for pose in joints]
    (folder / "clip.json").write_text(json.dumps({"data": frames, "label": 7, "label_index": "x"}))
    return folder / "clip.json", {"clip": np.pad(joints, ((0, 0), (0, 0), (0, 1)))}


def pkummd_file(folder, name="0002-L"):
    joints = coordinates(9, 2, 25, 3)
    joints[:, 1] = 0
    lines = (" ".join(f"{x:.5f}" for x in frame.reshape(-1)) for frame in joints)
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder / f"{name}.txt", {name: joints[:, 0]}


def pkummd_folder(folder):
    joints = pkummd_file(folder)[1]["0002-L"]
    pkummd_file(folder, "0002-M")
    (folder / "label").mkdir()
    (folder / "label" / "0002-L.txt").write_text("0,2,6,1\n99,1,3,1\n")
    return folder, {"0002-L.001": joints[2:6], "0002-L.002": joints[1:3], "0002-M": joints}


@pytest.mark.parametrize(
    "make",
    [
        ntu,
        ntu_action,
        nwucla,
        nwucla_folder,
        pyskl,
        ctrgcn,
        pkummd_file,
        pkummd_folder,
        stgcn,
        arrays,
        mediapipe,
        rtmpose,
        openpose,
        kinetics,
    ],
    ids=lambda f: f.__name__,
)
def test_recordings_without_labels(tmp_path, make):
    (tmp_path / "src").mkdir()
    src, expected = make(tmp_path / "src")
    source = FORMATS[detect_format(src)].open_source(src, None, labelled=False)
    sequences = [sequence for item in source.items for sequence in read_checked(source, item)]
    assert [sequence.name for sequence in sequences] == list(expected)
    for sequence, joints in zip(sequences, expected.values(), strict=True):
        assert (sequence.label, sequence.subject, sequence.view, sequence.repetition, sequence.setup) == (-1,) * 5
        np.testing.assert_allclose(sequence.bodies[0].joints, joints, atol=1e-6)


def test_what_else_is_wrong_is_still_wrong(tmp_path):
    for change, reason in (
        ({"skeletons": 7}, "skeletons: 7, expected a list of frames"),
        ({"label": 1}, "expected an object with skeletons"),
        ({"skeletons": [[[1e9] * 3] * 20]}, "absurd"),
    ):
        (tmp_path / "clip.json").write_text(json.dumps(change))
        source = FORMATS["nwucla"].open_source(tmp_path / "clip.json", None, labelled=False)
        ((entry,),) = [read_checked(source, item) for item in source.items]
        assert reason in entry["reason"]
    with pytest.raises(DataError, match=r"no files named \*\.json below"):
        FORMATS["nwucla"].open_source(tmp_path / "nothing", None, labelled=False)
    np.savez(tmp_path / "a.npz", x=1)
    with pytest.raises(DataError, match="no array x_train"):
        FORMATS["ctrgcn"].open_source(tmp_path / "a.npz", None, labelled=False)


@pytest.mark.parametrize("make", [ntu, nwucla, pyskl, ctrgcn], ids=lambda f: f.__name__)
def test_recordings_without_labels_are_imported(tmp_path, make):
    (tmp_path / "src").mkdir()
    src, expected = make(tmp_path / "src")
    imported = import_dataset(src, tmp_path / "store")
    store = Store.open(imported.store)
    assert sorted(store.names) == sorted(expected)
    assert (store.labels == -1).all()
    assert imported.unlabelled == len(store)
    assert f"without a label: {len(store)} sequences" in report.imported(imported)
    assert f"without a label: {len(store)}" in report.show(imported.store)
    assert store.class_name(0) == "no label"


def test_an_accuracy_needs_labels_and_a_few_are_used(tmp_path):
    keypoint = coordinates(1, 7, 25, 3)
    labels = {"a": 0, "b": None, "c": -1, "d": np.int64(1), "e": np.array(1), "f": None}
    items = [{"frame_dir": name, "label": label, "keypoint": keypoint} for name, label in labels.items()]
    split = {"x_train": ["a", "b"], "x_test": ["c", "d", "e"], "y_train": ["a"], "y_test": ["f"]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"annotations": items, "split": split}))
    store = Store.open(import_dataset(tmp_path / "a.pkl", tmp_path / "store").store)
    assert store.labels.tolist() == [0, -1, -1, 1, 1, -1]
    train, test = context._part_ids(store, "x", "train", "test")
    assert (train.tolist(), test.tolist()) == ([0], [3, 4])
    with pytest.raises(DataError, match="no sequence of part 'test' of split 'y' has a label, and an accuracy needs"):
        context._part_ids(store, "y", "train", "test")
