"""What people bring is read, or refused by one line that says what to do: folders, pickles, labels."""

import collections
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from s2vfast.data.importer import import_dataset
from s2vfast.data.layout import get_layout
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


@pytest.mark.parametrize("labels", ["none", "file"])
def test_labels_that_are_given_replace_those_of_a_pickle(tmp_path, labels):
    """Also where there are fewer classes than the pickle's labels count."""
    items = [{**item, "label": 7 + at} for at, item in enumerate(annotations())]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"annotations": items, "split": {"train": ["r0"], "val": ["r1"]}}))
    (tmp_path / "l.csv").write_text("file,class\nr0,wave\nr2,wave\n")
    option = "none" if labels == "none" else tmp_path / "l.csv"
    report = import_dataset(tmp_path / "a.pkl", tmp_path / "store", labels=option)
    store = Store.open(tmp_path / "store")
    assert report.broken == []
    assert store.labels.tolist() == ([-1] * 3 if labels == "none" else [0, -1, 0])
    assert store.classes == ([] if labels == "none" else ["wave"])
    assert list(store.splits) == ["default"]


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
    assert notes[0] == "copies beside their originals left out (2): a (1).skel, a_copy.skel"
    assert notes[1] == "files of macOS left out (1): ._a.skel"


def numbers(view):
    rows = np.random.default_rng(view).uniform(0.1, 2, (9, 150))
    return "\n".join(" ".join(f"{x:.5f}" for x in row) for row in rows)


def test_every_text_format_walks_in_that_way(tmp_path):
    """PKU-MMD and NW-UCLA, behind a link that leads in a circle, with suffixes in capitals and copies."""
    src, other = tmp_path / "src", tmp_path / "other"
    for folder in (src / "pku", other):
        folder.mkdir(parents=True)
    (src / "pku" / "link").symlink_to(other)
    (other / "loop").symlink_to(src / "pku")
    (src / "pku" / "labels").mkdir()
    for view, letter in enumerate("LMR"):
        name = "0002-M (1).txt" if letter == "M" else f"0002-{letter}.TXT"
        (other / name).write_text(numbers(view))
        (src / "pku" / "labels" / f"0002-{letter}.txt").write_text("3,1,7,2\n")
    (other / "0002-L (1).txt").write_text(numbers(0))
    (other / "._0002-L.txt").write_text("")
    report = import_dataset(src / "pku", tmp_path / "pku")
    assert Store.open(tmp_path / "pku").names == ["0002-L.001", "0002-M.001", "0002-R.001"]
    assert report.notes[:2] == [
        "copies beside their originals left out (1): 0002-L (1).txt",
        "files of macOS left out (1): ._0002-L.txt",
    ]
    for name in ("a01_s01_e00_v01.JSON", "a01_s01_e00_v01_copy.json", "a01_s01_e00_v02 (1).json"):
        stem = name[:15]
        body = np.random.default_rng(0).uniform(0.1, 1, (3, 20, 3)).tolist()
        (src / name).write_text(json.dumps({"file_name": stem, "label": 1, "skeletons": body}))
    report = import_dataset(src, tmp_path / "ucla", format="nwucla")
    store = Store.open(tmp_path / "ucla")
    assert (store.labels.tolist(), store.views.tolist()) == ([0, 0], [1, 2])
    assert "copies beside their originals left out (1): a01_s01_e00_v01_copy.json" in report.notes


def test_the_script_of_the_docs_converts_trc(tmp_path):
    """OpenSim's markers: a header of five lines and an empty one, then frame, time and x y z, some of them missing."""
    lines = [
        "PathFileType\t4\t(X/Y/Z)\twalk.trc",
        "DataRate",
        "30",
        "Frame#\tTime\tHip\t\t\tNeck\t\t\tRHip\t\t\tRKnee\t\t",
    ]
    lines += ["\t\tX1\tY1\tZ1\tX2\tY2\tZ2\tX3\tY3\tZ3\tX4\tY4\tZ4", ""]
    lines += ["\t".join([f"{at}", "0.1", *("" if i == 7 else f"{i + at}.5" for i in range(12))]) for at in (1, 2)]
    (tmp_path / "walk.trc").write_text("\n".join(lines))
    page = (Path(__file__).parents[2] / "docs/containers.md").read_text("utf-8")
    (tmp_path / "trc.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    subprocess.run([sys.executable, "trc.py"], cwd=tmp_path, check=True)
    first = np.array([[1.5, 2.5, 3.5], [7.5, np.nan, 9.5], [10.5, 11.5, 12.5]])
    np.testing.assert_array_equal(np.load(tmp_path / "walk.npy"), [first, first + 1])


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
        ("z_ucla_raw", "of no known format; name one with --format: ntu, .* Looked for, also below it"),
    ],
)
def test_collected_inputs_that_ask(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        import_dataset(CASES / name, tmp_path / "store")


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected inputs are not on this machine")
@pytest.mark.parametrize(
    ("name", "options", "sequences", "splits"),
    [
        ("v_stgcn", {}, 12, {"default": {"train": 9, "test": 3}}),
        ("h_train.pkl", {}, 2, {}),
        ("h_val.pkl", {}, 1, {}),
        ("l_pku_overlap", {}, 15, {"xview": {"train": 10, "test": 5}}),
        ("t_h36m.pkl", {"layout": CASES / "layout_h36m17.json"}, 24, {"xsub": {"train": 18, "test": 6}}),
        ("x_body25.pkl", {"layout": "body25"}, 4, {"default": {"train": 2, "test": 2}}),
        ("u_labels_from_1_imbalanced.pkl", {}, 70, {"default": {"train": 46, "test": 24}}),
    ],
)
def test_collected_inputs_and_their_splits(tmp_path, name, options, sequences, splits):
    report = import_dataset(CASES / name, tmp_path / "store", **options)
    assert (report.sequences, report.splits, report.broken) == (sequences, splits, [])
    store = Store.open(tmp_path / "store")
    labels = store.labels.tolist()
    assert min(labels) == (1 if name.startswith("u_") else 7 if name.startswith("l_") else 0)


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected inputs are not on this machine")
@pytest.mark.parametrize(
    ("name", "names", "reasons"),
    [
        (
            "s_odd",
            ["008", "009", "010", "011", "014", "R002A008"],
            ["'0,054785 -0,414384 2,862292'", "no body in any frame", "no body in any frame"],
        ),
        (
            "z_ucla_flat",
            ["a01_s01_e00_v01", "a01_s01_e00_v02"],
            ["label 8, expected 7 for", "label 9, expected 10 for", "label '10', expected 10 for"],
        ),
    ],
)
def test_collected_folders_with_odd_files(tmp_path, name, names, reasons):
    """A byte order mark, suffixes in any case, flat joints and names with their suffix are read; the rest is said."""
    report = import_dataset(CASES / name, tmp_path / "store", exclude="none")
    store = Store.open(tmp_path / "store")
    assert all(any(each.upper().endswith(ending.upper()) for each in store.names) for ending in names)
    assert len(report.dropped) == len(reasons)
    for entry, reason in zip(report.dropped, reasons, strict=True):
        assert reason in entry["reason"]


BAD = {
    "deep.json": "of no known format",
    "deep.yaml": "of no known format",
    "n01_label_1e12.npz": "y_train: expected whole numbers from 0 to below 10,000",
    "n04_y_bomb_4GB.npz": "x_train: compressed by another method than deflate",
    "n05_lzma_damaged.npz": "x_train: compressed by another method than deflate",
    "n06_centraldir.npz": "damaged (Bad magic number for central directory)",
    "n06_ok.npz": "",
    "n11_dup_member.npz": "two arrays y_train",
    "ntu_dupbody": "",
    "ntu_esc": "a body's id has up to 20 digits",
    "ntu_underscore": "a body's id has up to 20 digits",
    "p01_walk_expand.pkl": "",
    "p01_walk_expand_big.pkl": "",
    "p02_label_repr.pkl": "label a list of 2, expected a whole number",
    "p02_label_repr_big.pkl": "label a list of 2, expected a whole number",
    "p02c_splitkey.pkl": "",
    "p03_label_deep.pkl": "label a list of 1, expected a whole number",
    "p04_total_frames_array.pkl": "total_frames an array [2] of int64, keypoint has 3",
    "p05_split_array.pkl": "'split': expected a dict of name: list of frame_dir",
    "p06_M_1e15_V0.pkl": "'keypoint' has shape [1000000000000000, 3, 0, 3]; 64 bodies",
    "p06b_T_1e11_V0.pkl": "'keypoint' has shape [1, 100000000000, 0, 3]; 64 bodies",
    "p10_escape.pkl": "",
    "p11_bool_total.pkl": "total_frames '3', keypoint has 3",
    "p13_dup.pkl": "a second recording of this name",
    "p14_split_unknown.pkl": "",
    "p20_object.pkl": "17 joints with 3 coordinates",
    "pku_dirnamed": "",
    "ucla": "label True, expected 1 for action a01",
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected inputs are not on this machine")
def test_every_collected_input_has_a_test():
    listed = {path.name for path in (CASES / "bad").iterdir()}
    assert listed - {"segv_store.py"} == set(BAD)  # test_store_forged.py makes that store


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected inputs are not on this machine")
@pytest.mark.parametrize("name", BAD)
def test_collected_attacks_are_one_line(tmp_path, name):
    try:
        report = import_dataset(CASES / "bad" / name, tmp_path / "store")
    except DataError as error:
        reason = str(error)
    else:
        reason = "".join(entry["reason"] for entry in report.broken)
    assert BAD[name] in reason if BAD[name] else reason == ""
    assert "\n" not in reason
    assert "\x1b" not in reason.replace("'\\x1b[2J", "")


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected inputs are not on this machine")
def test_a_collected_layout(tmp_path):
    """Joints by number alone; with it arrays of 33 joints are read."""
    layout = get_layout(CASES / "layout_mediapipe.json")
    assert (layout.num_joints, layout.root, layout.sides, layout.up) == (33, (23,), (11, 12), (0, -1, 0))
    np.save(tmp_path / "anna.npy", np.random.default_rng(0).normal(size=(8, 33, 3)).astype(np.float32))
    report = import_dataset(tmp_path / "anna.npy", tmp_path / "store", layout=CASES / "layout_mediapipe.json")
    assert (report.sequences, Store.open(tmp_path / "store").layout.name) == (1, "mediapipe")
