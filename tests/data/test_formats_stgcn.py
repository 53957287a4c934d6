"""ST-GCN's [N, C, T, V, M] arrays beside their pickles of names and labels."""

import pickle
import resource

import numpy as np
import pytest

from s2vfast.data.formats import FORMATS, detect_format
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.errors import DataError


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 2, shape).astype(np.float32)


def pair(folder, part, data, names, labels, array="data_joint"):
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{part}_{array}.npy", data)
    (folder / f"{part}_label.pkl").write_bytes(pickle.dumps((names, labels)))


def ntu_pairs(folder, array="data_joint"):
    """Three to train and two to validate; of the first sequence the end is zero, and its second body."""
    train, val = numbers(3, 3, 12, 25, 2), numbers(2, 3, 12, 25, 2, seed=1)
    train[0, :, 9:], train[0, ..., 1] = 0, 0
    pair(folder, "train", train, [f"S001C001P00{i}R002A00{i}.skeleton" for i in (1, 2, 3)], [0, 1, 2], array)
    pair(folder, "val", val, np.array([f"S001C001P00{i}R002A003.skeleton" for i in (5, 6)]), np.array([2, 0]), array)
    return train, val


@pytest.mark.parametrize("array", ["data_joint", "data", "position"])
def test_two_pairs_are_a_split(tmp_path, array):
    train, val = ntu_pairs(tmp_path / "src", array)
    np.save(tmp_path / "src" / "train_data_bone.npy", train)
    assert detect_format(tmp_path / "src") == "stgcn"
    summary = import_dataset(tmp_path / "src", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.names[0] == "S001C001P001R002A001"
    assert (store.labels.tolist(), store.classes) == (
        [0, 1, 2, 2, 0],
        ["drink water", "eat meal/snack", "brushing teeth"],
    )
    assert (store.subjects.tolist(), store.layout.name, store.unit) == ([1, 2, 3, 5, 6], "kinect_v2", "m")
    assert {part: ids.tolist() for part, ids in store.splits["default"].items()} == {"train": [0, 1, 2], "test": [3, 4]}
    assert store.total_frames.tolist() == [9, 12, 12, 12, 12]
    row, count = (table[0, 0] for table in store.track_table(1))
    np.testing.assert_array_equal(store.frames[row : row + count], train[0, :, :9, :, 0].transpose(1, 2, 0))
    assert len(store.tracks) == 1 + 4 * 2
    assert any("1 arrays left out" in note for note in summary.notes)


def test_kinetics_arrays_hold_scores(tmp_path):
    data = numbers(2, 3, 12, 18, 1) / 2
    data[:, :2, :, 3] = 0.0  # a joint that was not seen
    pair(tmp_path / "src", "train", data, ["a", "b"], [0, 4])
    import_dataset(tmp_path / "src", tmp_path / "store", workers=0)
    store = Store.open(tmp_path / "store")
    assert (store.layout.name, store.dimensions, store.unit) == ("openpose18", 2, "normalised")
    assert (store.classes, store.labels.tolist()) == ([f"class {i}" for i in range(5)], [0, 4])
    np.testing.assert_array_equal(store.confidence[:12], data[0, 2, :, :, 0].astype(np.float16))
    assert not store.frames[:, 3].any()
    assert not store.frames[..., 2].any()


def test_scores_of_other_skeletons_are_asked_for(tmp_path):
    np.save(tmp_path / "train_data.npy", numbers(2, 3, 12, 17, 1) / 2)
    with pytest.raises(DataError, match="is the third number a score"):
        import_dataset(tmp_path / "train_data.npy", tmp_path / "store", layout="coco17")
    for channels, dimensions in (("xys", 2), ("xyz", 3)):
        import_dataset(tmp_path / "train_data.npy", tmp_path / channels, layout="coco17", channels=channels)
        store = Store.open(tmp_path / channels)
        assert (store.dimensions, store.confidence is None) == (dimensions, dimensions == 3)
    with pytest.raises(DataError, match="--channels 'xy': expected xyz or xys, s a score"):
        import_dataset(tmp_path / "train_data.npy", tmp_path / "store", layout="coco17", channels="xy")


def test_repetitions_that_fill_an_array_are_cut(tmp_path):
    data = numbers(2, 3, 40, 25, 1)
    data[0] = data[0, :, np.arange(40) % 13].transpose(1, 0, 2, 3)
    data[1, :, 5:] = data[1, :, 4:5]  # a still end is a recording's own
    pair(tmp_path / "src", "train", data, ["a", "b"], [0, 0])
    import_dataset(tmp_path / "src", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.total_frames.tolist() == [13, 40]
    assert store.notes == {"a": ["body 0: 27 frames left out that repeat its first 13"]}


def test_one_array_alone_and_names_in_both_parts(tmp_path):
    ntu_pairs(tmp_path / "src")
    single = import_dataset(tmp_path / "src" / "val_data_joint.npy", tmp_path / "one")
    assert (single.sequences, single.unlabelled, single.splits) == (2, 0, {})
    (tmp_path / "src" / "val_label.pkl").unlink()
    assert import_dataset(tmp_path / "src" / "val_data_joint.npy", tmp_path / "two").unlabelled == 2
    pair(tmp_path / "src", "val", numbers(1, 3, 12, 25, 2, seed=2), ["S001C001P001R002A001.skeleton"], [0])
    import_dataset(tmp_path / "src", tmp_path / "three")
    store = Store.open(tmp_path / "three")
    assert (store.names[0], store.names[-1]) == ("train/S001C001P001R002A001", "val/S001C001P001R002A001")
    assert store.subjects.tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((["a"], [0]), r"train_label\.pkl: expected \(names, labels\), two lists of 2, found 1 names and 1 labels"),
        ((["a", "b"], [0]), "found 2 names and 1 labels"),
        ((["a", "b"], [0, "x"]), r"label 1 is 'x', expected a whole number from 0, or -1"),
        ((["a", "b"], [0, True]), "label 1 is True"),
        ((["a", "b"], [0, 10**9]), "label 1 is 1000000000"),
        ((["a", 7], [0, 1]), "name 1 is 7, expected a text"),
        ({"a": 1}, "found a dict of 1"),
        ((7, [0, 1]), "found 7 and a list of 2"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, data, message):
    (tmp_path / "src").mkdir()
    np.save(tmp_path / "src" / "train_data_joint.npy", numbers(2, 3, 4, 25, 1))
    (tmp_path / "src" / "train_label.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(DataError, match=message):
        import_dataset(tmp_path / "src", tmp_path / "store")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            numbers(2, 4, 4, 25, 1),
            r"float32 \[2, 4, 4, 25, 1\], expected floating-point \[N, C, T, V, M\]",
        ),
        (np.ones((2, 3, 4, 25, 1), int), "int64 .2, 3, 4, 25, 1., expected floating-point"),
        (np.asfortranarray(numbers(2, 3, 4, 25, 2)), "in Fortran order; save np.ascontiguousarray of it"),
        (numbers(2, 3, 4, 25, 65), "1 to 64 bodies are read"),
        (numbers(2, 3, 4, 31, 1), "skeletons of 31 joints with 3 coordinates"),
        (numbers(2, 3, 0, 25, 1), "1 to 1,000,000 frames"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, data, message):
    np.save(tmp_path / "train_data.npy", data)
    with pytest.raises(DataError, match=message):
        import_dataset(tmp_path / "train_data.npy", tmp_path / "store")


def test_files_that_do_not_fit(tmp_path):
    ntu_pairs(tmp_path / "src")
    path = tmp_path / "src" / "train_data_joint.npy"
    good = path.read_bytes()
    for data in (good[:-1], good + b"\0"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"train_data_joint\.npy: 21,?\d* bytes for shape .*, expected 21,600"):
            import_dataset(tmp_path / "src", tmp_path / "store")
    path.write_bytes(good)
    np.save(tmp_path / "src" / "train_data.npy", numbers(1, 3, 4, 25, 1))
    with pytest.raises(DataError, match="a second array of part train"):
        import_dataset(tmp_path / "src", tmp_path / "store")
    ntu_pairs(tmp_path / "src" / "xview")
    (tmp_path / "src" / "train_data.npy").unlink()
    with pytest.raises(DataError, match=r"2 datasets, in \., xview; import one of these folders"):
        import_dataset(tmp_path / "src", tmp_path / "store")


def test_a_large_array_is_not_read_whole(tmp_path):
    """1 GB, most of it a hole in the file; 200 MB more memory than now may be asked for."""
    path = tmp_path / "train_data.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (6000, 3, 300, 25, 2))[0] = numbers(3, 300, 25, 2)
    with open("/proc/self/status") as status:
        data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data + 200 * 2**20, before[1]))
    try:
        source = FORMATS["stgcn"].open_source(path, None, labelled=False)
        items = iter(source.items)
        (first,) = source.read(next(items))
        (second,) = source.read(next(items))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert (len(first.bodies), first.total_frames, len(second.bodies), source.total) == (2, 300, 0, 6000)
