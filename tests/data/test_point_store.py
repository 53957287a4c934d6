"""The store of point clouds: what is written is read, what does not fit is refused, both kinds are one house."""

import json
import pickle
import shutil

import numpy as np
import pytest

from s2vfast.data.layout import LAYOUTS
from s2vfast.data.memory import memory_store
from s2vfast.data.point_layout import PointLayout, layout_from_dict
from s2vfast.data.point_store import PointStore
from s2vfast.data.report import check, show
from s2vfast.data.splits import keep, make
from s2vfast.data.store import HEADER, Store, hash_file, header_bytes
from s2vfast.data.store_writer import write_store
from s2vfast.errors import ConfigError, DataError

from . import stores
from .depth_pictures import sequence

SEQUENCES = [
    sequence("a", (3, 0, 2), 0, label=1, subject=3, notes=["left out: a chair"]),
    sequence("b", (0, 0, 4), 1, subject=4, repetition=2),
]
SPLITS = {"half": {"train": ["b"], "test": ["a"]}}


def write(out, sequences=SEQUENCES, splits=SPLITS, **options):
    options = {"classes": ["x", "y"], "source": {}, "dropped": []} | options
    write_store(out, sequences, layout=PointLayout(), splits=splits, **options)
    return Store.open(out)


def test_what_is_written_is_read(tmp_path):
    store = write(tmp_path / "store")
    assert type(store) is PointStore
    assert (store.kind, store.layout, store.unit, len(store), store.rows) == ("points", PointLayout(), "m", 2, 9)
    assert store.names == ["a", "b"]
    assert (store.labels.tolist(), store.subjects.tolist(), store.repetitions.tolist()) == ([1, 0], [3, 4], [-1, 2])
    assert store.points.dtype == np.float16
    assert store.frame_rows.tolist() == [0, 3, 3, 5, 5, 5, 9]
    assert store.first_frame.tolist() == [0, 3, 6]
    assert store.notes == {"a": ["left out: a chair"]}
    assert store.select("half", "test").tolist() == [0]
    for number, recording in enumerate(SEQUENCES):
        cloud = store.cloud(number)
        assert [len(frame) for frame in cloud] == recording.counts.tolist()
        # Half precision within 2 m of the centre.
        np.testing.assert_allclose(np.concatenate(cloud), recording.points, atol=1e-3)
    # The median of the first frame that has points.
    np.testing.assert_allclose(store.centres[0], np.median(SEQUENCES[0].points[:3], 0))
    np.testing.assert_allclose(store.centres[1], np.median(SEQUENCES[1].points, 0))
    assert pickle.loads(pickle.dumps(store)).fingerprint == store.fingerprint
    store.verify()
    with pytest.raises(DataError, match="sequence 2 of 2"):
        store.cloud(2)


def test_float32_and_the_same_bytes_again(tmp_path):
    store = write(tmp_path / "store", dtype="float32")
    np.testing.assert_allclose(np.concatenate(store.cloud(0)), SEQUENCES[0].points, atol=1e-6)
    assert write(tmp_path / "again", dtype="float32").fingerprint == store.fingerprint


def test_the_commands_say_what_is_in_it(tmp_path):
    store = write(tmp_path / "store", source={"camera": {"name": "kinect_v1", "fx": 286.0}, "unit": 0.001, "points": 9})
    text = show(store.path)
    assert "9 points, float16" in text
    assert "6, of 0 to 4 points, median 1; 3 without any" in text
    assert "kinect_v1, fx 286.0" in text
    assert "1 mm a raw unit; at most 9 points a frame" in text
    assert "2 sequences, 9 points, identity" in check(store.path)
    keep(store.path, make(store, "subject", test="4", name="mine"))
    again = Store.open(store.path)
    assert again.select("mine", "test").tolist() == [1]
    assert again.fingerprint == store.fingerprint
    assert again.split_digest("mine") is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((4, 3), np.float32)}, "a: points of shape [4, 3], expected [5, 3] by its counts"),
        ({"counts": np.array([3, 2])}, "a: counts: expected a number of points for each of 3 frames"),
        ({"counts": np.array([3, -1, 3])}, "a: counts"),
        ({"points": np.array([[0, 0, 2]] * 4 + [[0, 0, np.nan]])}, "a: frame 2: a point at (0, 0, nan) m"),
        ({"points": np.array([[0, 0, 30]] + [[0, 0, 2]] * 4)}, "a: frame 0: a point at (0, 0, 30) m; within 20 m"),
        ({"label": 2}, "a: label 2"),
        ({"name": ""}, "expected a non-empty text"),
    ],
)
def test_what_no_store_may_hold(tmp_path, change, message):
    recording = sequence("a")
    for name, value in change.items():
        setattr(recording, name, value)
    with pytest.raises(DataError) as caught:
        write(tmp_path / "store", [SEQUENCES[1], recording])
    assert message in str(caught.value)
    assert stores.left_behind(tmp_path) == []


def test_a_recording_without_points_is_dropped(tmp_path):
    store = write(tmp_path / "store", [*SEQUENCES, sequence("empty", (0, 0))])
    assert [(entry["name"], entry["reason"]) for entry in store.dropped] == [("empty", "no point in any frame")]
    with pytest.raises(DataError, match="no sequence to store; the first dropped: empty: no point in any frame"):
        write(tmp_path / "none", [sequence("empty", (0, 0))])


def test_a_store_of_points_replaces_one_of_skeletons_and_nothing_else(tmp_path):
    stores.example(tmp_path / "store")
    assert write(tmp_path / "store", overwrite=True).kind == "points"
    assert stores.example(tmp_path / "store", overwrite=True)[0].kind == "skeletons"
    write(tmp_path / "other")
    (tmp_path / "other" / "thesis.txt").write_text("!")
    with pytest.raises(DataError, match="is not a store"):
        write(tmp_path / "other", overwrite=True)


def forge(path, change):
    meta = json.loads((path / HEADER).read_bytes())
    change(meta)
    for name in meta["files"]:
        meta["files"][name] = {"size": (path / name).stat().st_size, "sha256": hash_file(path / name)}
    (path / HEADER).write_bytes(header_bytes({k: v for k, v in meta.items() if k != "header_sha256"}))


def forged_rows(path, rows):
    np.save(path / "frame_rows.npy", np.array(rows, np.int64))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: forge(path, lambda meta: meta.update(kind="meshes")), "store.json: damaged"),
        (lambda path: forge(path, lambda meta: meta.update(version=1)), "version 1 is none of a store of points"),
        (lambda path: forge(path, lambda meta: meta.update(unit="mm")), "points are in metres"),
        (lambda path: forge(path, lambda meta: meta["layout"].update(joints=["a"])), "not the layout of point clouds"),
        (lambda path: forge(path, lambda meta: meta["counts"].update(points=8)), "points.npy"),
        (lambda path: forged_rows(path, [0, 3, 3, 5, 5, 4, 9]), "frame_rows.npy: damaged (ValueError: rows of frames"),
        (lambda path: forged_rows(path, [0, 3, 3, 5, 5, 5, 900]), "frame_rows.npy"),
        (lambda path: forged_rows(path, [0, 3, 3, 9, 9, 9, 9]), "a sequence without a point"),
        (lambda path: (path / "points.npy").write_bytes(b""), "points.npy"),
        (lambda path: (path / "frame_rows.npy").unlink(), "frame_rows.npy: missing"),
    ],
)
def test_a_store_that_is_forged_or_damaged(tmp_path, damage, message):
    path = write(tmp_path / "store").path
    damage(path)
    if (path / "frame_rows.npy").exists():
        forge(path, lambda meta: None)
    with pytest.raises(DataError) as caught:
        Store.open(path)
    assert message in str(caught.value)


def test_a_point_that_is_not_finite_shows_when_it_is_checked(tmp_path):
    path = write(tmp_path / "store").path
    points = np.load(path / "points.npy")
    points[4, 1] = np.nan
    np.save(path / "points.npy", points)
    forge(path, lambda meta: None)
    with pytest.raises(DataError, match="points.npy: damaged"):
        Store.open(path).verify()
    shutil.copy(path / "frame_rows.npy", path / "points.npy")
    with pytest.raises(DataError, match="expected"):
        Store.open(path)


def test_what_asks_for_joints_is_told_that_there_are_none(tmp_path):
    store = write(tmp_path / "store")
    for name in ("frames", "tracks", "track_table", "sequence"):
        with pytest.raises(DataError, match="store: a store of point clouds; this works on stores of skeletons alone"):
            getattr(store, name)
    for name in ("num_joints", "parents", "root"):
        with pytest.raises(ConfigError, match="point clouds have no joints"):
            getattr(store.layout, name)
    assert not hasattr(store, "colour")
    assert not hasattr(store.layout, "colour")


def test_the_layout_of_points(tmp_path):
    layout = PointLayout()
    assert layout_from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    assert pickle.loads(pickle.dumps(layout)) == layout
    coco = LAYOUTS["coco17"]
    assert layout_from_dict(coco.to_dict()) == coco
    assert layout.same_joints(PointLayout())
    assert not layout.same_joints(coco)


def test_recordings_in_memory_are_those_of_a_store(tmp_path):
    store, memory = write(tmp_path / "store"), memory_store(SEQUENCES, PointLayout())
    for name in ("points", "frame_rows", "first_frame", "centres", "total_frames"):
        np.testing.assert_array_equal(getattr(memory, name), getattr(store, name))
    assert (memory.names, len(memory)) == (store.names, 2)
    with pytest.raises(DataError, match="gone: no point in any frame"):
        memory_store([sequence("gone", (0, 0))], PointLayout())
