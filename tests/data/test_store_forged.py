"""Stores whose tables do not fit each other, with fresh hashes: refused before a number leads out of an array."""

import json
import shutil

import numpy as np
import pytest

from s2vfast.data.skeleton_store import FILES
from s2vfast.data.store import HEADER, Store, hash_file, header_bytes
from s2vfast.errors import DataError

from .stores import example


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    return example(tmp_path_factory.mktemp("stores") / "store")[0].path


def reseal(folder, changed):
    """Write a changed table and fresh hashes, as a damaged or malicious writer would."""
    name, content = changed
    if isinstance(content, dict):
        np.savez(folder / name, **content)
    else:
        np.save(folder / name, content)
    meta = json.loads((folder / HEADER).read_bytes())
    for file in FILES:
        meta["files"][file] = {"size": (folder / file).stat().st_size, "sha256": hash_file(folder / file)}
    (folder / HEADER).write_bytes(header_bytes(meta))


FORGED = [("row", 10**12), ("row", -1), ("row", 1), ("count", 0), ("count", -3), ("count", 2**31 - 1),
          ("sequence", 10**6), ("sequence", -1), ("slot", 7), ("slot", -1)]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), FORGED)
@pytest.mark.parametrize("which", [0, -1, slice(None)])
def test_tracks_that_do_not_fit_are_refused_at_once(tmp_path, small_store, field, value, which):
    folder = shutil.copytree(small_store, tmp_path / "forged")
    tracks = np.load(folder / "tracks.npy")
    tracks[field][which] = value
    if np.array_equal(tracks, np.load(folder / "tracks.npy")):
        pytest.skip("nothing changed")
    reseal(folder, ("tracks.npy", tracks))
    with pytest.raises(
        DataError, match=r"tracks\.npy: damaged \(ValueError: (sequences|slots|counts|rows) of tracks\)"
    ):
        Store.open(folder)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("label", 99, "a label that is no class"), ("label", -2, "a label"), ("total_frames", 1, "a track longer"),
     ("total_frames", 0, "a number of frames"), ("total_frames", 2**40, "a number of frames")],
)  # fmt: skip
def test_a_table_of_sequences_that_does_not_fit_is_refused(tmp_path, small_store, field, value, reason):
    folder = shutil.copytree(small_store, tmp_path / "forged")
    with np.load(folder / "sequences.npz") as table:
        columns = dict(table)
    columns[field][0] = value
    reseal(folder, ("sequences.npz", columns))
    with pytest.raises(DataError, match=rf"sequences\.npz: damaged \(ValueError: {reason}"):
        Store.open(folder)


@pytest.mark.parametrize("value", [-1, 0, 2**30])
def test_check_looks_at_frame_numbers(tmp_path, small_store, value):
    folder = shutil.copytree(small_store, tmp_path / "forged")
    index = np.load(folder / "frame_index.npy")
    index[int(Store.open(folder).tracks["count"][0]) - 1] = value
    reseal(folder, ("frame_index.npy", index))
    store = Store.open(folder)
    with pytest.raises(DataError, match=r"frame_index\.npy: damaged"):
        store.verify()
    if value:
        with pytest.raises(DataError, match="sequence 0: a frame number beyond its end"):
            store.sequence(0)


def test_check_looks_at_every_coordinate(tmp_path, small_store):
    folder = shutil.copytree(small_store, tmp_path / "forged")
    frames = np.load(folder / "frames.npy")
    frames[-1, -1, -1] = np.nan
    reseal(folder, ("frames.npy", frames))
    with pytest.raises(DataError, match=r"frames\.npy: damaged \(ValueError: a coordinate that is not finite"):
        Store.open(folder).verify()


@pytest.mark.parametrize("ids", [[-1], [10**6], [1, 0], [0, 0], [0.5], ["0"], 3, [True]])
def test_splits_name_sequences(tmp_path, small_store, ids):
    folder = shutil.copytree(small_store, tmp_path / "forged")
    (folder / "splits.json").write_text(json.dumps({"a": {"train": ids, "test": []}}))
    reseal(folder, ("frame_index.npy", np.load(folder / "frame_index.npy")))
    with pytest.raises(DataError, match=r"splits\.json: damaged"):
        Store.open(folder)


@pytest.mark.parametrize("name", ["counts", "dtype", "layout", "classes", "source", "dropped", "files"])
def test_a_header_that_lacks_something_is_damaged(tmp_path, small_store, name):
    folder = shutil.copytree(small_store, tmp_path / "forged")
    meta = json.loads((folder / HEADER).read_bytes())
    for value in (None, 7, [None]):
        (folder / HEADER).write_bytes(header_bytes(meta | {name: value}))
        with pytest.raises(DataError, match=r"store\.json"):
            Store.open(folder)


def test_a_header_nested_too_deeply_is_one_line(tmp_path):
    (tmp_path / HEADER).write_text("[" * 50_000)
    with pytest.raises(DataError, match=r"store\.json: damaged, not JSON \(nested too deeply\)"):
        Store.open(tmp_path)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, small_store, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(DataError, match=r"frames\.npy: cannot be read: Permission denied$"):
        Store.open(small_store)


@pytest.mark.parametrize(
    "content",
    [
        [1],
        {"mine": {}},
        {"mine": {"by": 3, "parts": {"train": None, "test": [0]}}},
        {"mine": {"by": "share", "parts": {"train": None, "test": None}}},
        {"mine": {"by": "share", "parts": {"train": None, "test": [0, 3]}}},
        {"mine": {"by": "share", "parts": {"train": [1, 1], "test": [0]}}},
        {"mine": {"by": "share", "parts": {"train": [True], "test": [0]}}},
        {"mine": {"by": "share", "parts": [0]}},
        {"xsub": {"by": "share", "parts": {"train": None, "test": [0]}}},
    ],
)
def test_splits_in_a_header_that_fit_nothing(small_store, tmp_path, content):
    shutil.copytree(small_store, tmp_path / "store")
    meta = json.loads((tmp_path / "store" / HEADER).read_bytes())
    (tmp_path / "store" / HEADER).write_bytes(header_bytes({**meta, "made_splits": content}))
    with pytest.raises(DataError, match="store.json: damaged") as caught:
        Store.open(tmp_path / "store")
    assert "\n" not in str(caught.value)
