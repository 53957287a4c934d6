import json
import pickle

import numpy as np
import pytest

from s2vfast.data.importer import import_dataset
from s2vfast.data.report import imported, show
from s2vfast.data.store import Store
from s2vfast.errors import DataError


def annotation(name="S001C002P003R002A013", label=12, shape=(2, 10, 25, 3), dtype=np.float16, **more):
    rng = np.random.default_rng(len(name))
    keypoint = rng.uniform(0.1, 2, shape).astype(dtype)
    return {"frame_dir": name, "label": label, "total_frames": shape[1], "keypoint": keypoint, **more}


def load(folder, data, **more):
    path = folder / "data.pkl"
    path.write_bytes(pickle.dumps(data))
    return import_dataset(path, folder / "store", **more), Store.open(folder / "store")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ntu_in_three_dimensions(tmp_path, dtype):
    one, two = annotation(dtype=dtype), annotation("S002C001P007R001A001", 0, (1, 7, 25, 3), dtype)
    one["keypoint"][0, 4:6] = 0  # a gap
    one["keypoint"][1, 7:] = 0
    two["img_shape"], two["original_shape"] = (1080, 1920), (1080, 1920)
    split = {"xsub_train": [one["frame_dir"]], "xsub_val": [two["frame_dir"], "S001C001P001R001A001"]}
    report, store = load(tmp_path, {"split": split, "annotations": [two, one]})
    assert report.format == "pyskl"
    assert report.splits == {"xsub": {"train": 1, "test": 1}}
    assert store.meta["names_missing_from_splits"] == {"xsub": {"test": 1}}
    assert store.names == [one["frame_dir"], two["frame_dir"]], "sorted by name"
    assert (store.subjects.tolist(), store.views.tolist()) == ([3, 7], [2, 1])
    assert (store.repetitions.tolist(), store.setups.tolist()) == ([2, 1], [1, 2])
    assert store.labels.tolist() == [12, 0]
    assert (len(store.classes), store.classes[12]) == (13, "tear up paper")
    assert store.layout.name == "kinect_v2"
    clip, present = store.sequence(0)
    np.testing.assert_array_equal(clip, one["keypoint"].astype(np.float32))
    assert present.sum(axis=1).tolist() == [8, 7]
    assert store.frame_index[:8].tolist() == [0, 1, 2, 3, 6, 7, 8, 9]


def test_two_coordinates_get_a_zero_and_a_word(tmp_path):
    item = annotation("clip", 0, (1, 5, 17, 2))
    item["keypoint"] *= 500  # pixels
    item["keypoint_score"] = np.ones((1, 5, 17), np.float16)
    report, store = load(tmp_path, {"annotations": [item]})
    assert store.layout.name == "coco17"
    assert "2 coordinates a joint: z set to 0" in report.notes
    assert "layout coco17 taken for 17 joints with 2 coordinates" in report.notes
    assert "2 coordinates a joint: z set to 0" in imported(report)
    np.testing.assert_array_equal(store.sequence(0)[0][..., :2], item["keypoint"].astype(np.float32))
    assert not store.frames[..., 2].any()
    assert store.classes == ["class 0"]
    assert store.subjects.tolist() == [-1]


HAND = {"joints": ["wrist", "thumb", "finger"], "parents": [-1, 0, 0], "root": 0, "torso": [0, 2], "sides": [1, 2]}


def test_any_skeleton_with_a_layout(tmp_path):
    data = {"annotations": [annotation("a", 1, (1, 5, 3, 3))], "classes": ["rest", "wave", "point"]}
    with pytest.raises(DataError, match="skeletons of 3 joints with 3 coordinates each, which the file does not name"):
        load(tmp_path, data)
    (tmp_path / "hand.json").write_text(json.dumps({"name": "hand", **HAND}))
    report, store = load(tmp_path, data, layout=tmp_path / "hand.json")
    assert store.layout.name == "hand"
    assert store.classes == ["rest", "wave", "point"]
    assert report.classes == 3
    inside = load(tmp_path, {**data, "layout": {"name": "inside", **HAND}}, overwrite=True)[1]
    assert inside.layout.name == "inside"
    with pytest.raises(DataError, match="data.pkl: layout: missing field"):
        load(tmp_path, {**data, "layout": {"name": "x"}}, overwrite=True)


@pytest.mark.parametrize(
    ("keys", "splits"),
    [
        (["xset_train", "xset_val"], {"xset": ["train", "test"]}),
        (["train", "test"], {"default": ["train", "test"]}),
        (["train", "val", "test"], {"default": ["train", "val", "test"]}),
        (["train1", "test1", "train2", "test2"], {"default1": ["train", "test"], "default2": ["train", "test"]}),
        (["x-sub_train", "x-sub_test"], {"x-sub": ["train", "test"]}),
    ],
)
def test_names_of_split_lists(tmp_path, keys, splits):
    names = [f"n{number}" for number in range(3)]
    lists = {key: [names[["train", "val", "test"].index(key.split("_")[-1].strip("12"))]] for key in keys}
    annotations = [annotation(name, 0) for name in names]
    _, store = load(tmp_path, {"split": lists, "annotations": annotations})
    assert {split: sorted(parts) for split, parts in store.splits.items()} == {
        split: sorted(parts) for split, parts in splits.items()
    }
    for key, part_names in lists.items():
        part = key.split("_")[-1].strip("12")
        fold = key[-1] if key[-1] in "12" else ""
        split = (key.rpartition("_")[0] or "default") + fold
        if part == "val" and "val" not in store.splits[split]:
            part = "test"
        assert [store.names[i] for i in store.select(split, part)] == part_names


def test_split_lists_of_other_names_are_said(tmp_path):
    report, _ = load(tmp_path, {"split": {"part7": ["a"]}, "annotations": [annotation("a", 0)]})
    assert "split list 'part7' left out: its name does not end in train, val or test" in report.notes


def with_value(value, dtype=np.float32):
    item = annotation("bad", 0, dtype=dtype)
    item["keypoint"][1, 3, 7, 2] = value
    return item


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (with_value(np.inf), "body 1, frame 3, joint 7: z is inf, not a finite number"),
        (with_value(np.inf, np.float16), "body 1, frame 3, joint 7: z is inf, not a finite number"),
        (with_value(1e300, np.float64), "body 1, frame 3, joint 7: z is 1e+300, absurd"),
        (with_value(-21), "body 1, frame 3, joint 7: z is -21, absurd (more than 20 from"),
        (annotation("bad", -2), "label -2, expected a whole number from 0"),
        (annotation("bad", 1.5), "label 1.5, expected a whole number from 0"),
        (annotation("bad", True), "label True, expected"),
        (annotation("bad", 0, (2, 10, 20, 3)), "body 0: joints of shape [10, 20, 3], expected [frames, 25, 3]"),
        (annotation("bad", 0, (2, 10, 25, 2)), "2 coordinates, the others have 3"),
        (
            annotation("bad", 0, (2, 10, 25, 4)),
            "'keypoint' has shape [2, 10, 25, 4], expected [M, T, V, C] with C 2 or 3",
        ),
        (annotation("bad", 0, dtype=bool), "'keypoint' holds bool, expected numbers"),
        (annotation("bad", 0, total_frames=9), "total_frames 9, keypoint has 10"),
        ({"frame_dir": "bad", "label": 0}, "no 'keypoint', expected an array"),
        ({"label": 0}, "no 'keypoint', expected an array"),
        ("text", "an annotation without 'frame_dir'"),
    ],
)
def test_broken_annotations_are_skipped_and_counted_or_fatal(tmp_path, item, reason):
    data = {"annotations": [annotation("a", 0), item, annotation("z", 0)]}
    report, store = load(tmp_path, data)
    assert store.names == ["a", "z"]
    assert [entry["reason"][: len(reason)] for entry in report.broken] == [reason]
    with pytest.raises(DataError) as caught:
        load(tmp_path, data, on_error="fail", overwrite=True)
    assert reason in str(caught.value)
    assert Store.open(tmp_path / "store").names == ["a", "z"], "the old store is still there"


def test_two_of_one_name_and_empty_ones(tmp_path):
    empty = annotation("e", 0)
    empty["keypoint"][:] = 0
    report, store = load(tmp_path, {"annotations": [annotation("a", 0), annotation("a", 1), empty]})
    assert store.names == ["a"]
    assert store.labels.tolist() == [0]
    assert [(entry["name"], entry["kind"], entry["reason"]) for entry in report.dropped] == [
        ("a", "broken", "a second recording of this name"),
        ("e", "empty", "no body in any frame"),
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "expected a dict with 'annotations'"),
        ({"annotations": []}, "'annotations' is empty"),
        ({"annotations": [{"frame_dir": "a"}]}, "no annotation can be used; the first: no 'keypoint'"),
        ({"annotations": [annotation("a", 0)], "split": [1]}, "'split': expected a dict"),
        ({"annotations": [annotation("a", 0)], "split": {"x_train": "a"}}, "'split' 'x_train': expected a list"),
        ({"annotations": [annotation("a", 5)], "classes": ["b"]}, "'classes': expected a list of 6 to 10,000 names"),
        (
            {"annotations": [annotation("a", 0)], "classes": ["b\udfff"]},
            "data.pkl: class name 'b\\udfff': not a text, it holds half a character",
        ),
        (
            {"annotations": [annotation("a", 0)], "split": {"\ud800_train": ["a"]}},
            "data.pkl: split list '\\ud800_train': not a text, it holds half a character",
        ),
        ({"annotations": [annotation("a", -5)]}, "no sequence to store; the first dropped: a: label -5"),
    ],
)
def test_pickles_that_are_something_else(tmp_path, data, message):
    with pytest.raises(DataError) as caught:
        load(tmp_path, data)
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data.pkl"]


def test_half_a_character_in_a_name_is_refused(tmp_path):
    report, store = load(tmp_path, {"annotations": [annotation("a", 0), annotation("clip\ud800", 0)]})
    assert store.names == ["a"]
    ((name, reason),) = [(entry["name"], entry["reason"]) for entry in report.broken]
    assert (name, "half a character" in reason) == ("clip\\ud800", True)
    assert store.dropped == report.dropped
    (imported(report) + show(store)).encode()
    with pytest.raises(DataError, match="half a character") as caught:
        load(tmp_path, {"annotations": [annotation("clip\ud800", 0)]}, on_error="fail", overwrite=True)
    assert str(caught.value).isascii()
    assert "clip\\ud800" in str(caught.value)


def test_a_list_of_annotations_will_do(tmp_path):
    _, store = load(tmp_path, [annotation("b", 0), annotation("a", 0)])
    assert store.names == ["a", "b"]
