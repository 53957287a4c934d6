import json
import os
from pathlib import Path

import numpy as np
import pytest

from s2vfast.data.formats import nwucla
from s2vfast.data.importer import import_dataset
from s2vfast.data.report import check, imported, show
from s2vfast.data.store import Store
from s2vfast.errors import DataError


def recording(folder, name="a08_s03_e01_v02", label=7, frames=6, change=None, text=None):
    rng = np.random.default_rng(len(name) + frames)
    data = {"file_name": name, "skeletons": rng.uniform(0.1, 3, (frames, 20, 3)).round(5).tolist(), "label": label}
    if change is not None:
        data = change(data) or data
    (folder / f"{name}.json").write_text(json.dumps(data) if text is None else text)
    return data


@pytest.fixture
def src(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    return folder


def test_recordings_and_splits(src, tmp_path):
    content = recording(src)
    for action, label in ((1, 1), (12, 10)):
        for view in (1, 2, 3):
            recording(src, f"a{action:02d}_s10_e00_v{view:02d}", label, frames=view)
    report = import_dataset(src, tmp_path / "store")
    assert report.format == "nwucla"
    assert report.splits == {
        "xview": {"train": 5, "test": 2},
        "view12": {"train": 2, "test": 3},
        "view21": {"train": 3, "test": 2},
    }
    store = Store.open(tmp_path / "store")
    assert store.layout.name == "kinect_v1"
    assert [store.classes[label] for label in sorted(set(store.labels))] == [nwucla.ACTIONS[a] for a in (1, 8, 12)]
    index = store.names.index("a08_s03_e01_v02")
    assert (store.subjects[index], store.views[index], store.repetitions[index], store.labels[index]) == (3, 2, 1, 6)
    np.testing.assert_array_equal(store.sequence(index)[0][0], np.array(content["skeletons"], np.float32))
    for split, views in {"xview": ((1, 2), 3), "view12": ((1,), 2), "view21": ((2,), 1)}.items():
        assert set(store.views[store.select(split, "train")]) == set(views[0])
        assert set(store.views[store.select(split, "test")]) == {views[1]}


def setting(at, value):
    def change(data):
        frame, joint, axis = at
        data["skeletons"][frame][joint][axis] = value

    return change


def dropping(path):
    def change(data):
        frame, *joint = path
        del (data["skeletons"][frame] if joint else data["skeletons"][frame][0])[0]

    return change


NAME = "a08_s03_e01_v02"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"change": setting((4, 3, 1), float("inf"))}, "body 1, frame 4, joint 3: y is inf, not a finite number"),
        ({"change": setting((4, 3, 1), float("-inf"))}, "body 1, frame 4, joint 3: y is -inf, not a finite"),
        ({"change": setting((4, 3, 1), 1e9)}, "body 1, frame 4, joint 3: y is 1e+09, absurd"),
        ({"change": setting((4, 3, 1), "x")}, "frame 4: expected 20 lists of 3 numbers"),
        ({"change": setting((4, 3, 1), None)}, "frame 4: expected 20 lists of 3 numbers"),
        ({"change": dropping((2, 0))}, "frame 2: 19, expected 20 lists of 3 numbers"),
        ({"change": dropping((2,))}, "frame 2: expected 20 lists of 3 numbers"),
        ({"label": 8}, "label 8, expected 7 for action a08"),
        ({"label": 0}, "label 0, expected 7"),
        ({"label": "7"}, "label '7', expected 7"),
        ({"change": lambda data: {"label": 7}}, "expected an object with file_name, skeletons and label"),
        ({"change": lambda data: {**data, "file_name": "a08_s03_e01_v01"}}, "file_name inside is 'a08_s03_e01_v01'"),
        ({"change": lambda data: {**data, "skeletons": 3}}, "skeletons: 3, expected a list of frames"),
        ({"text": '{"label": 7,\n "skeletons": [[}'}, "not JSON: Expecting value"),
        ({"text": ""}, "not JSON: Expecting value"),
        ({"text": "[" * 100_000}, "not JSON: "),
    ],
)
def test_broken_files_are_reported_skipped_and_counted_or_fatal(src, tmp_path, how, reason):
    recording(src, NAME, **{"label": 7, **how})
    recording(src, "a01_s01_e00_v01", 1)
    report = import_dataset(src, tmp_path / "store")
    assert report.sequences == 1
    assert len(report.broken) == 1
    entry = report.broken[0]
    assert entry["reason"].startswith(reason), entry["reason"]
    assert NAME in entry["file"]
    if how.get("text", "").count("\n"):
        assert entry["line"] == 2
        assert f"{NAME}.json:2: not JSON" in imported(report)
    assert reason in imported(report)
    assert reason in show(tmp_path / "store")
    with pytest.raises(DataError) as caught:
        import_dataset(src, tmp_path / "failing", on_error="fail")
    assert NAME in str(caught.value)
    assert reason in str(caught.value)
    assert not (tmp_path / "failing").exists()


def test_no_frames_is_dropped_and_unknown_actions_are_broken(src, tmp_path):
    recording(src, "a01_s01_e00_v01", 1)
    recording(src, "a01_s01_e00_v02", 1, change=lambda data: {**data, "skeletons": []})
    recording(src, "a07_s01_e00_v02", 7)
    report = import_dataset(src, tmp_path / "store")
    assert [(entry["name"], entry["kind"]) for entry in report.dropped] == [
        ("a01_s01_e00_v02", "empty"),
        ("a07_s01_e00_v02.json", "broken"),
    ]
    assert report.dropped[1]["reason"] == "label 7, expected none (no such action) for action a07"


def test_oddities_are_counted_and_said(src, tmp_path):
    def odd(data):
        data["skeletons"][3] = data["skeletons"][2]
        data["skeletons"][5][7] = [0, 0, 0]
        data["skeletons"][1] = [[0, 0, 0]] * 20

    recording(src, change=odd)
    import_dataset(src, tmp_path / "store")
    text = show(tmp_path / "store")
    assert "1 joints at exactly (0, 0, 0), 1 frames equal to the one before" in text
    assert "main body absent in 1 frames of 1 sequences" in text


@pytest.mark.skipif("S2VFAST_DATA" not in os.environ, reason="S2VFAST_DATA names no folder with nw_ucla")
def test_the_real_dataset(tmp_path):
    source = Path(os.environ["S2VFAST_DATA"]) / "nw_ucla"
    calls = []
    report = import_dataset(source, tmp_path / "store", progress=lambda done, total: calls.append((done, total)))
    assert (report.sequences, report.rows, report.classes) == (1484, 58534, 10)
    assert report.splits["xview"] == {"train": 1020, "test": 464}
    assert report.splits["view12"] == {"train": 516, "test": 504}
    assert report.dropped == []
    assert calls[-1] == (1484, 1484)
    store = Store.open(tmp_path / "store")
    assert "intact" in check(store.path)
    assert len(set(store.subjects)) == 10
    assert (store.total_frames.min(), np.median(store.total_frames), store.total_frames.max()) == (1, 31, 201)
    assert store.meta["source"]["zero_joints"] == 12
    assert store.meta["source"]["repeated_frames"] == 1
    for index in (0, 777, 1483):
        data = json.loads((source / f"{store.names[index]}.json").read_text())
        clip, present = store.sequence(index)
        assert present.all()
        np.testing.assert_array_equal(clip[0], np.array(data["skeletons"]).astype(np.float32))
        assert store.labels[index] == data["label"] - 1
    _, count = store.track_table(2)
    assert (count[:, 0] == store.total_frames).all()
    assert not count[:, 1].any()
