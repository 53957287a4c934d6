"""What people bring is read, or refused by one line that says what to do: folders, pickles, labels."""

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from s2vfast.data.importer import import_dataset
from s2vfast.data.scan import scan
from s2vfast.data.store import Store
from s2vfast.errors import DataError

CASES = Path(os.environ.get("S2VFAST_DATA", "nowhere")).parent / "cases"


def annotations(**fields):
    numbers = np.random.default_rng(0).uniform(0.1, 2, (3, 1, 8, 25, 3)).astype(np.float32)
    return [{"frame_dir": f"r{i}", "label": i % 2, "keypoint": x, **fields} for i, x in enumerate(numbers)]


def load(path, data, out):
    path.write_bytes(pickle.dumps(data))
    return Store.open(import_dataset(path, out).store)


@pytest.mark.parametrize(
    "lists",
    [
        {"train": np.array(["r0", "r1"]), "val": np.array(["r2"])},
        {"train": {"r0", "r1"}, "val": frozenset(["r2"])},
        {"train": [np.str_("r0"), "r1"], "val": ("r2",)},
        collections.defaultdict(list, train=["r0", "r1"], val=["r2"]),
        collections.OrderedDict(train=["r0", "r1"], val=["r2"]),
    ],
    ids=["array", "set", "numpy_text", "defaultdict", "ordered"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_split_lists_of_any_container(tmp_path, lists, protocol):
    data = {"split": lists, "annotations": annotations()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(data, protocol))
    store = Store.open(import_dataset(tmp_path / "a.pkl", tmp_path / "store").store)
    assert {part: ids.tolist() for part, ids in store.splits["default"].items()} == {"train": [0, 1], "test": [2]}


def test_one_annotation_a_list_and_a_folder_of_lists(tmp_path):
    items = annotations()
    single = {"label": -1, "keypoint": items[0]["keypoint"].tolist()}
    store = load(tmp_path / "wave.pkl", single, tmp_path / "one")
    assert (store.names, store.labels.tolist()) == (["wave"], [-1])
    flat = [{**item, "frame_dir": "", "keypoint": item["keypoint"][0]} for item in items]  # [T, V, C]
    assert load(tmp_path / "wave.pkl", flat, tmp_path / "list").names == [f"wave_{i:06d}" for i in range(3)]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "h_train.pkl").write_bytes(pickle.dumps(items[:2]))
    (tmp_path / "parts" / "h_val.pkl").write_bytes(pickle.dumps(items[2:]))
    store = Store.open(import_dataset(tmp_path / "parts", tmp_path / "two").store)
    assert {part: ids.tolist() for part, ids in store.splits["default"].items()} == {"train": [0, 1], "test": [2]}


@pytest.mark.parametrize("shape", [(1, 8, 17, 3), (1, 8, 25, 2), (1, 8, 31, 3)])
def test_what_may_be_several_skeletons_is_asked_for(tmp_path, shape):
    item = {"frame_dir": "a", "label": 0, "keypoint": np.ones(shape, np.float32)}
    with pytest.raises(DataError, match=f"skeletons of {shape[2]} joints with {shape[3]} coordinates each.*--layout"):
        load(tmp_path / "a.pkl", [item], tmp_path / "store")


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        ([[1], [2], [0]], [1, 2, 0]),
        ([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], [1, 2, 0]),
        ([0, -1, 1], [0, -1, 1]),
    ],
)
def test_labels_of_two_dimensions(tmp_path, y, labels):
    x = np.random.default_rng(0).uniform(0.1, 2, (3, 8, 150)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.array(y), x_val=x, y_val=np.array(y))
    store = Store.open(import_dataset(tmp_path / "a.npz", tmp_path / "store").store)
    assert store.labels.tolist() == labels * 2
    assert sorted(store.splits["default"]) == ["test", "train"]


def test_rows_that_are_not_one_hot_are_broken(tmp_path):
    x = np.random.default_rng(0).uniform(0.1, 2, (4, 8, 150)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.array([[0, 1.0], [0, 0.5], [1, 1], [2, -1]]))
    report = import_dataset(tmp_path / "a.npz", tmp_path / "store")
    assert [entry["name"] for entry in report.broken] == ["train_000001", "train_000002", "train_000003"]


def test_links_copies_and_suffixes_of_a_folder(tmp_path):
    src, other = tmp_path / "src", tmp_path / "other"
    src.mkdir()
    other.mkdir()
    for path in (src / "a.SKEL", src / "a (1).skel", src / "a_copy.skel", src / "._a.skel", other / "b.skel"):
        path.write_text("")
    (src / "c (1).skel").write_text("")  # without an original it is the recording
    (src / "link").symlink_to(other)
    (other / "loop").symlink_to(src)
    paths, notes = scan(src, ".skel")
    assert [path.name for path in paths] == ["a.SKEL", "b.skel", "c (1).skel"]
    assert notes[0] == "2 copies beside their originals left out: a (1).skel, a_copy.skel"
    assert notes[1] == "1 files of macOS left out: ._a.skel"


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected inputs are not on this machine")
@pytest.mark.parametrize(
    ("name", "sequences", "unlabelled"),
    [
        *((f"a_unlabelled{name}", count, count) for name, count in ((".pkl", 4), ("_minus1.pkl", 4), ("_ntu", 4))),
        ("a_unlabelled_ctrgcn.npz", 3, 3),
        *((f"c_{name}.pkl", 1, 1) for name in ("single_anno", "list_anno", "only_keypoint", "crowd")),
        *((f"d_{name}.pkl", 3, 0) for name in ("ok", "split_set", "split_ndarray", "npstr", "defaultdict")),
        *((f"d_{name}.pkl", 3, 0) for name in ("label_0d", "label_npint", "keypoint_list", "keypoint_3d")),
        ("h_folder", 3, 0),
        ("r_copies", 2, 0),
        ("y_labels_column.npz", 12, 0),
        ("y_val_keys.npz", 12, 0),
    ],
)
def test_collected_inputs(tmp_path, name, sequences, unlabelled):
    report = import_dataset(CASES / name, tmp_path / "store")
    assert (report.sequences, report.unlabelled, report.broken) == (sequences, unlabelled, [])


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected inputs are not on this machine")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t_h36m.pkl", "17 joints with 3 coordinates"),
        ("x_body25.pkl", "25 joints with 2 coordinates"),
        ("d_keypoint_int.pkl", "25 joints with 2 coordinates"),
        ("d_label_text.pkl", "label 'wave', expected a whole number"),
    ],
)
def test_collected_inputs_that_ask(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        import_dataset(CASES / name, tmp_path / "store")
