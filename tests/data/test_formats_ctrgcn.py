import zipfile

import numpy as np
import pytest

from s2vfast.data.formats.ctrgcn import split_name
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.errors import DataError


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    contents = {}
    for part, count in (("train", 5), ("test", 3)):
        x = rng.uniform(0.1, 1, (count, 12, 2, 25, 3))
        x[:, 8:] = 0
        x[0, :, 1] = 0  # one body only
        x[1, 3:5, 0] = 0  # a gap
        x[2, 10, 1] = 0.5  # the second body is seen again after both vanished
        contents[f"x_{part}"] = x.reshape(count, 12, 150).astype(dtype)
        contents[f"y_{part}"] = np.eye(4)[rng.integers(0, 4, count)]
    return contents


def load(folder, data, name="NTU60_CS.npz", save=np.savez, **more):
    save(folder / name, **data)
    return import_dataset(folder / name, folder / "store", **more), Store.open(folder / "store")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_sequences_bodies_and_gaps(tmp_path, dtype, save):
    data = arrays(dtype)
    report, store = load(tmp_path, data, save=save)
    assert report.format == "ctrgcn"
    assert report.splits == {"xsub": {"train": 5, "test": 3}}
    assert store.names == [f"test_{i:06d}" for i in range(3)] + [f"train_{i:06d}" for i in range(5)]
    assert store.select("xsub", "train").tolist() == [3, 4, 5, 6, 7]
    assert store.total_frames[3:].tolist() == [8, 8, 11, 8, 8], "zeros at the end are no frames"
    assert store.labels[3:].tolist() == data["y_train"].argmax(axis=1).tolist()
    assert store.labels[:3].tolist() == data["y_test"].argmax(axis=1).tolist()
    assert store.classes == ["A001", "A002", "A003", "A004"]
    x = data["x_train"].reshape(5, 12, 2, 25, 3).transpose(0, 2, 1, 3, 4).astype(np.float32)
    for index in range(5):
        clip, present = store.sequence(3 + index)
        frames = clip.shape[1]
        order = [int(body) for body in store.tracks["body"][store.tracks["sequence"] == 3 + index]]
        np.testing.assert_array_equal(clip, x[index, order, :frames])
        np.testing.assert_array_equal(present, x[index, order, :frames].any(axis=(2, 3)))
    assert store.sequence(3)[0].shape[0] == 1
    assert not store.sequence(4)[1][:, 3:5].all()


def test_labels_may_be_numbers(tmp_path):
    data = arrays()
    numbers = {key: value.argmax(axis=1) if key[0] == "y" else value for key, value in data.items()}
    _, store = load(tmp_path, numbers)
    assert store.labels[:3].tolist() == numbers["y_test"].tolist()


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("NTU60_CS", "xsub"),
        ("NTU60_CV", "xview"),
        ("NTU120_CSub", "xsub"),
        ("NTU120_CSet", "xset"),
        ("mine", "default"),
    ],
)
def test_the_split_is_named_after_the_file(stem, split):
    assert split_name(stem) == split


def test_broken_sequences_are_skipped(tmp_path):
    data = arrays()
    data["x_train"][1, 2, 80] = np.inf
    data["x_test"][0, 1, 3] = 1e6
    data["y_train"][3] = 0
    data["x_train"][4] = 0
    report, store = load(tmp_path, data)
    assert store.names == ["test_000001", "test_000002", "train_000000", "train_000002"]
    assert [(entry["name"], entry["kind"]) for entry in report.dropped] == [
        ("test_000000", "broken"),
        ("train_000001", "broken"),
        ("train_000003", "broken"),
        ("train_000004", "empty"),
    ]
    reasons = [entry["reason"] for entry in report.dropped]
    assert reasons[0].startswith("body 0, frame 1, joint 1: x is 1e+06, absurd")
    assert reasons[1] == "body 1, frame 2, joint 1: z is inf, not a finite number"
    assert reasons[2] == "the label is not one-hot (exactly one 1, zeros elsewhere)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": np.zeros((3, 12, 75))}, "x_test: shape [3, 12, 75], expected [n, T, 150]"),
        ({"x_test": np.zeros((3, 12, 150), int)}, "x_test: expected floating-point numbers"),
        ({"x_test": np.zeros((3, 12, 150), order="F")}, "x_test: in Fortran order"),
        ({"x_test": np.array([{}])}, "x_test: shape [1], expected"),
        ({"y_test": np.array([{}, {}, {}])}, "y_test: object [3], expected one-hot rows or numbers"),
        ({"y_test": np.zeros((4, 4))}, "3 sequences in x_test but 4 labels"),
        ({"y_test": np.array([0.5, 1, 1])}, "y_test: expected whole numbers from 0"),
    ],
)
def test_unusable_files_are_one_clear_error(tmp_path, change, message):
    data = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    with pytest.raises(DataError) as caught:
        load(tmp_path, data)
    assert message in str(caught.value)
    assert "NTU60_CS.npz" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["NTU60_CS.npz"]


def test_a_pickle_inside_is_not_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with pytest.raises(DataError, match="y_train: object"):
        load(tmp_path, {**arrays(), "y_train": np.array([Runs()] * 5, dtype=object)})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("array", "shape"), [("x_train", (5, 99_999, 150)), ("y_train", (5, 9_999_999))])
def test_a_header_cannot_ask_for_more_than_there_is(tmp_path, array, shape):
    np.savez(tmp_path / "whole.npz", **arrays())
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        for name in whole.namelist():
            content = whole.read(name)
            if name == f"{array}.npy":
                old = {"x_train": b"(5, 12, 150)", "y_train": b"(5, 4)"}[array]
                new = repr(shape).encode()
                assert old in content
                content = content.replace(old, new).replace(b" " * (len(new) - len(old)) + b"\n", b"\n", 1)
            bad.writestr(name, content)
    with pytest.raises(DataError, match=r"bad.npz: .*(cut off|columns, expected)"):
        import_dataset(tmp_path / "bad.npz", tmp_path / "store", format="ctrgcn")
    assert not (tmp_path / "store").exists()


def test_a_cut_or_damaged_archive_is_named(tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", **arrays())
    data = bytearray((tmp_path / "whole.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cut.npz: damaged .File is not a zip file"):
        import_dataset(tmp_path / "cut.npz", tmp_path / "store", format="ctrgcn")
    for at in range(200, 20_000, 1999):
        (tmp_path / "bad.npz").write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        with pytest.raises(DataError, match="bad.npz"):
            import_dataset(tmp_path / "bad.npz", tmp_path / "store", format="ctrgcn")
        assert not (tmp_path / "store").exists()
