import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s2vfast.data.report import check, show
from s2vfast.data.skeleton_store import FILES
from s2vfast.data.store import HEADER, Body, Sequence, Store
from s2vfast.errors import DataError

from .stores import TINY, body, example, left_behind, write


def test_a_store_gives_back_what_was_written(tmp_path):
    store, sequences = example(tmp_path / "store")
    assert store.names == ["s0", "s1", "s2"]
    assert store.labels.tolist() == [0, 1, 1]
    assert store.labels.dtype == np.int64
    assert store.subjects.tolist() == [3, 4, 5]
    assert store.views.tolist() == [1, 2, 1]
    assert store.repetitions.tolist() == [-1, -1, 7]
    assert store.setups.tolist() == [-1, -1, 8]
    assert store.total_frames.tolist() == [6, 3, 9]
    assert store.classes == ["x", "y"]
    assert store.layout == replace(TINY, dimensions=(3,))
    assert store.max_bodies == 2
    assert store.notes == {"s1": ["body 9: dropped, a chair"]}
    assert store.tracks["body"].tolist() == ["1", "2", "1", "1"]
    assert isinstance(store.frames, np.memmap)
    assert store.frame_index.dtype == np.int32
    row, count = store.track_table(2)
    assert (row.dtype, count.dtype) == (np.int64, np.int32)
    assert row.tolist() == [[0, 4], [5, 0], [8, 0]]
    assert count.tolist() == [[4, 1], [3, 0], [1, 0]]
    assert store.track_table(1)[1].tolist() == [[4], [3], [1]]
    assert store.track_table(3)[1].tolist() == [[4, 1, 0], [3, 0, 0], [1, 0, 0]]
    clip, present = store.sequence(0)
    assert clip.shape == (2, 6, 2, 3)
    assert clip.dtype == np.float32
    assert present.tolist() == [[True, True, False, False, True, True], [False, False, True, False, False, False]]
    np.testing.assert_array_equal(clip[0, [0, 1, 4, 5]], sequences[0].bodies[0].joints)
    assert not clip[0, 2:4].any()


def test_split_parts_are_ascending_and_unknown_ones_are_listed(tmp_path):
    store, _ = example(tmp_path / "store")
    assert store.select("xsub", "train").tolist() == [0, 2]
    assert store.select("xsub", "test").dtype == np.int64
    assert store.select("all", "train").tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="no split 'xview'; this store has xsub, all"):
        store.select("xview", "train")
    with pytest.raises(DataError, match="no part 'val', only train, test"):
        store.select("xsub", "val")


def test_splits_may_be_made_from_what_was_kept(tmp_path):
    empty = Sequence("gone", 0, 2, [Body("1", np.arange(2), np.zeros((2, 2, 3)))])
    visible = Sequence("here", 1, 2, [body([0])], subject=2)
    store = write(
        tmp_path / "store",
        [empty, visible],
        splits=lambda infos: {"s": {"train": [i.name for i in infos if i.subject == 2], "test": ["gone", "never"]}},
    )
    assert store.select("s", "train").tolist() == [0]
    assert store.select("s", "test").tolist() == []
    assert store.meta["names_missing_from_splits"] == {"s": {"test": 2}}
    assert [entry["name"] for entry in store.dropped] == ["gone"]
    assert "no body in any frame" in store.dropped[0]["reason"]


def test_a_sequence_may_not_train_and_test(tmp_path):
    with pytest.raises(DataError, match="split s: a is in both train and test"):
        write(tmp_path / "store", [Sequence("a", 0, 1, [body([0])])], splits={"s": {"train": ["a"], "test": ["a"]}})
    assert left_behind(tmp_path) == []


def test_zero_frames_are_gaps_and_empty_bodies_are_left_out(tmp_path):
    joints = np.ones((4, 2, 3), np.float32)
    joints[1] = 0
    joints[2, 0] = 0  # one joint at zero does not make a gap
    nobody = Body("nobody", np.arange(4), np.zeros((4, 2, 3)))
    store = write(tmp_path / "store", [Sequence("a", 0, 10, [nobody, Body("7", np.array([2, 3, 5, 9]), joints)])])
    assert store.frame_index.tolist() == [2, 5, 9]
    assert store.tracks["slot"].tolist() == [0]
    assert store.tracks["body"].tolist() == ["7"]
    assert store.notes == {"a": ["body nobody: dropped, all its frames are zero"]}
    assert store.sequence(0)[1].nonzero()[1].tolist() == [2, 5, 9]


BODIES = st.lists(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.just(2), st.just(3)),
        elements=st.floats(-20, 20, width=32).map(np.float32),
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(BODIES, st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=5))
def test_round_trip(tmp_path_factory, recordings):
    out = tmp_path_factory.mktemp("round") / "store"
    sequences, dense = [], {}
    for number, (tracks, first, step) in enumerate(recordings):
        length = first + 6 * step
        bodies, clips = [], []
        for slot, joints in enumerate(tracks):
            at = first + step * np.arange(len(joints))
            bodies.append(Body(f"b{slot}", at, joints))
            clip = np.zeros((length, 2, 3), np.float32)
            clip[at] = joints
            if clip.any():
                clips.append(clip)
        sequences.append(Sequence(f"n{number}", number % 2, length, bodies))
        if clips:
            dense[f"n{number}"] = np.stack(clips)
    if not dense:
        with pytest.raises(DataError, match="no sequence to store"):
            write(out, sequences)
        return
    store = write(out, sequences)
    assert store.names == list(dense)
    for index, name in enumerate(store.names):
        clip, present = store.sequence(index)
        np.testing.assert_array_equal(clip, dense[name])
        np.testing.assert_array_equal(present, dense[name].any(axis=(2, 3)))
    store.verify()


def test_the_same_data_makes_the_same_bytes(tmp_path):
    first, _ = example(tmp_path / "one")
    second, _ = example(tmp_path / "elsewhere" / "two")
    assert first.fingerprint == second.fingerprint
    for name in (*FILES, HEADER):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


@pytest.mark.parametrize("name", [*FILES, HEADER])
def test_one_flipped_byte_is_found_wherever_it_is(tmp_path, name):
    store, _ = example(tmp_path / "store")
    path = store.path / name
    whole = path.read_bytes()
    for at in {*range(0, len(whole), max(1, len(whole) // 97)), len(whole) - 1}:
        for bit in (1, 0x80):
            broken = bytearray(whole)
            broken[at] ^= bit
            path.write_bytes(broken)
            with pytest.raises(DataError) as caught:
                check(store.path)
            assert str(path) in str(caught.value), f"byte {at}"
    path.write_bytes(whole)
    assert "intact" in check(store.path)


def test_damage_after_opening_is_found(tmp_path):
    store, _ = example(tmp_path / "store")
    names = []
    store.verify(names.append)
    assert names == list(FILES)
    header = store.path / HEADER
    header.write_bytes(header.read_bytes().replace(b'"x"', b'"z"'))
    with pytest.raises(DataError, match="store.json: changed since"):
        store.verify()


@pytest.mark.parametrize("name", FILES)
def test_missing_and_cut_files_are_named_on_opening(tmp_path, name):
    store, _ = example(tmp_path / "store")
    path = store.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"{name}: {len(whole) - 1} bytes, expected {len(whole)}"):
        Store.open(store.path)
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        Store.open(store.path)


def test_what_is_no_store_is_said_so(tmp_path):
    with pytest.raises(DataError, match="no store here .no store.json.; make one with"):
        Store.open(tmp_path)
    (tmp_path / HEADER).write_text("{}")
    with pytest.raises(DataError, match="not the header of a store"):
        Store.open(tmp_path)
    (tmp_path / HEADER).write_text('{"format": "s2vfast-store", "version": 99}')
    with pytest.raises(DataError, match="version 99, this program reads 1"):
        Store.open(tmp_path)


def test_opening_reads_no_frames(tmp_path):
    store, _ = example(tmp_path / "store")
    path = store.path / "frames.npy"
    size = path.stat().st_size
    head = path.read_bytes()[:128]
    path.write_bytes(head + bytes(size - 128))
    Store.open(store.path)  # other frames, same size and header: only verify looks at them
    with pytest.raises(DataError, match="frames.npy: damaged"):
        Store.open(store.path).verify()


def test_threads_and_processes_may_share_a_store(tmp_path):
    rng = np.random.default_rng(0)
    sequences = [Sequence(f"{i:03d}", 0, 20, [body(np.arange(20), seed=i)]) for i in range(50)]
    store = write(tmp_path / "store", sequences)
    order = rng.integers(0, 50, 2000).tolist()
    barrier = threading.Barrier(4)

    def read(ids):
        barrier.wait()
        return all(np.array_equal(store.sequence(i)[0][0], sequences[i].bodies[0].joints) for i in ids)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, [order[i::4] for i in range(4)]))
    again = pickle.loads(pickle.dumps(store))
    assert isinstance(again.frames, np.memmap)
    assert again.fingerprint == store.fingerprint


def test_show_says_what_is_in_a_store(tmp_path):
    store, _ = example(tmp_path / "store", dropped=[{"name": "S9", "reason": "12 joints", "kind": "broken", "line": 4}])
    text = show(store.path)
    for part in (
        "skeleton   tiny, 2 joints",
        "sequences  3",
        "rows       9 frames of bodies, float32",
        "length     3 to 9 frames, median 6",
        "bodies     1 in 2 sequences, 2 in 1 sequences",
        "main body absent in 10 frames of 2 sequences",
        "3 subjects, 2 views, 1 repetitions, 1 setups",
        "xsub        train 2 (2 classes), test 1 (1 classes)",
        "x       1",
        "y       2",
        "dropped: 1 sequences or files, 1 of them broken",
        "S9:4: 12 joints",
        "s1: body 9: dropped, a chair",
    ):
        assert part in text, part


def test_a_store_may_be_moved(tmp_path):
    store, _ = example(tmp_path / "store")
    shutil.move(store.path, tmp_path / "moved")
    assert Store.open(tmp_path / "moved").fingerprint == store.fingerprint
