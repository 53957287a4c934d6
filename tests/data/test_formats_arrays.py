"""Folders of arrays of any skeleton: what tells their axes and numbers, what has to be said, what is refused."""

import numpy as np
import pytest

from s2vfast.data.formats import detect_format
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.errors import DataError

from .pose_files import moving

BODY = moving(12, 25)
TWO = np.stack([moving(12, 25), moving(12, 25, seed=1, x=2.0)])


def stored(path, out, **options):
    assert detect_format(path) == "arrays"
    summary = import_dataset(path, out, **options)
    return summary, Store.open(out)


def joints_of(store, bodies=1):
    rows, counts = (table[0] for table in store.track_table(bodies))
    return [store.frames[row : row + count] for row, count in zip(rows, counts, strict=True)]


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (BODY, {}),
        (BODY.astype(np.float64), {}),
        (BODY[None], {}),
        (BODY[:, None], {}),
        (BODY.reshape(12, 75), {}),
        (np.asfortranarray(BODY), {}),
        (BODY.transpose(2, 0, 1), {"axes": "CTV"}),
        (BODY.transpose(2, 0, 1)[..., None], {"axes": "ctvm"}),
        (BODY[:5, None], {"axes": "TMVC"}),
    ],
    ids=lambda value: "x".join(map(str, value.shape)) if isinstance(value, np.ndarray) else "".join(value.values()),
)
def test_one_body_in_any_order(tmp_path, array, options):
    np.save(tmp_path / "a.npy", array)
    _, store = stored(tmp_path / "a.npy", tmp_path / "store", **options)
    assert (store.names, store.layout.name, store.unit) == (["a"], "kinect_v2", "m")
    np.testing.assert_array_equal(joints_of(store)[0], BODY.astype(np.float32)[: len(store.frames)])


def test_two_bodies_and_a_missing_joint(tmp_path):
    two = TWO.copy()
    two[1, :3] = np.nan
    two[0, 4, 7] = np.nan
    for name, array in (("m", two), ("t", two.swapaxes(0, 1))):
        np.save(tmp_path / f"{name}.npy", array)
        summary, store = stored(tmp_path / f"{name}.npy", tmp_path / f"store_{name}")
        lengths = sorted(map(len, joints_of(store, 2)))
        assert lengths == [9, 12]
        assert not joints_of(store, 2)[0][4, 7].any()
        order = "MTVC" if name == "m" else "TMVC"
        assert f"axes {order} taken: one has 8 or fewer, the other more" in summary.notes


@pytest.mark.parametrize("shape", [(8, 7, 25, 3), (12, 9, 25, 3)])
def test_axes_that_may_be_either_are_asked_for(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.ones(shape))
    with pytest.raises(DataError, match="which axis is bodies, which frames. Say --axes MTVC or TMVC"):
        import_dataset(tmp_path / "a.npy", tmp_path / "store")


def test_numbers_of_a_joint(tmp_path):
    pixels = np.concatenate([300 + 100 * moving(12, 17)[..., :2], np.full((12, 17, 1), 0.7)], axis=2)
    np.save(tmp_path / "a.npy", pixels)
    with pytest.raises(DataError, match="17 joints with 3 coordinates"):
        import_dataset(tmp_path / "a.npy", tmp_path / "store")
    with pytest.raises(DataError, match=r"is the third number a score\? It lies in 0 to 1; say --channels xys, or xyz"):
        import_dataset(tmp_path / "a.npy", tmp_path / "store", layout="coco17")
    np.save(tmp_path / "n.npy", pixels / [640, 480, 1])
    with pytest.raises(DataError, match=r"is the third number a score"):
        import_dataset(tmp_path / "n.npy", tmp_path / "store", layout="coco17")
    assert import_dataset(tmp_path / "n.npy", tmp_path / "xyz", layout="coco17", channels="xyz").sequences == 1
    _, store = stored(tmp_path / "a.npy", tmp_path / "xys", channels="xys")
    assert (store.layout.name, store.dimensions, store.unit) == ("coco17", 2, "px")
    np.testing.assert_array_equal(store.confidence, np.full((12, 17), 0.7, np.float16))
    np.save(tmp_path / "b.npy", np.concatenate([BODY, np.full((12, 25, 1), 0.5)], axis=2))
    _, store = stored(tmp_path / "b.npy", tmp_path / "xyzs")
    assert (store.dimensions, float(store.confidence[0, 0])) == (3, 0.5)


def test_npz_with_scores(tmp_path):
    scores = np.linspace(0, 1, 12 * 25).reshape(12, 25)
    np.savez(tmp_path / "a.npz", keypoints=BODY, scores=scores, fps=30)
    np.savez_compressed(tmp_path / "b.npz", whatever=BODY)
    np.savez(tmp_path / "c.npz", keypoints=BODY.transpose(2, 0, 1), scores=scores)
    _, store = stored(tmp_path / "a.npz", tmp_path / "one")
    np.testing.assert_array_equal(store.confidence, scores.astype(np.float16))
    _, store = stored(tmp_path / "b.npz", tmp_path / "two")
    assert store.confidence is None
    _, other = stored(tmp_path / "c.npz", tmp_path / "three", axes="CTV")
    np.testing.assert_array_equal(other.confidence, scores.astype(np.float16))
    np.savez(tmp_path / "d.npz", keypoints=BODY, data=BODY)
    with pytest.raises(DataError, match="holds keypoints, data: which is the recording. Save it as keypoints"):
        import_dataset(tmp_path / "d.npz", tmp_path / "store")
    np.savez(tmp_path / "d.npz", keypoints=BODY, scores=scores[:3])
    with pytest.raises(DataError, match=r"scores \[3, 25\], which do not fit \[12, 25, 3\]"):
        import_dataset(tmp_path / "d.npz", tmp_path / "store")


def lines(table, delimiter=",", header=None):
    text = "\n".join(delimiter.join(f"{x:.5f}" for x in line) for line in table) + "\n"
    return text if header is None else delimiter.join(header) + "\n" + text


def test_csv_with_and_without_headers(tmp_path):
    flat = BODY.reshape(12, 75)
    names = [f"joint{j}_{axis}" for j in range(25) for axis in "xyz"]
    by_axis = BODY.transpose(0, 2, 1).reshape(12, 75)
    timed = np.column_stack([np.arange(12), flat])
    files = {
        "a": lines(flat),
        "b": lines(flat, ";", names),
        "c": "\ufeff" + lines(timed, "\t", ["Frame", *names]),
        "d": lines(by_axis, ",", [f"{axis}{j}" for axis in "xyz" for j in range(25)]).replace("\n", "\r\n"),
        "e": lines(flat, " "),
    }
    (tmp_path / "src").mkdir()
    for name, text in files.items():
        (tmp_path / "src" / f"{name}.csv").write_text(text, encoding="utf-8", newline="")
    _, store = stored(tmp_path / "src", tmp_path / "store")
    assert store.names == sorted(files)
    for at in range(len(files)):
        np.testing.assert_array_equal(store.frames[12 * at : 12 * at + 12], BODY.astype(np.float32), err_msg=str(at))


def test_csv_with_gaps_is_read_as_missing(tmp_path):
    table = [[f"{x:.3f}" for x in frame] for frame in BODY.reshape(12, 75)]
    table[2][6:9] = ["", "", ""]
    table[3] = ["nan"] * 75
    (tmp_path / "a.csv").write_text("\n".join(map(",".join, table)))
    _, store = stored(tmp_path / "a.csv", tmp_path / "store")
    assert store.frame_index.tolist() == [0, 1, 2, *range(4, 12)]
    assert not store.frames[2, 2].any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table[2].pop(), "bad.csv:3: 74 numbers, the first line has 75"),
        (lambda table: table[1].__setitem__(3, "1_0"), "bad.csv:2: not a number: '1_0'"),
        (lambda table: table[1].__setitem__(3, "1e9"), "absurd"),
        (lambda table: [line.pop() for line in table], "bad.csv: 74 numbers a frame, expected 75: 25 joints of xyz"),
    ],
)
def test_csv_that_is_wrong_is_said_with_its_line(tmp_path, change, reason):
    table = [[f"{x:.3f}" for x in frame] for frame in BODY.reshape(12, 75)]
    (tmp_path / "src").mkdir()
    for name in ("a", "b", "bad"):
        if name == "bad":
            change(table)
        (tmp_path / "src" / f"{name}.csv").write_text("\n".join(map(",".join, table)))
    summary = import_dataset(tmp_path / "src", tmp_path / "store", layout="kinect_v2")
    assert summary.sequences == 2
    ((entry),) = summary.broken
    said = f"{entry['file']}{':' + str(entry['line']) if 'line' in entry else ''}: {entry['reason']}"
    assert reason in said


def test_a_folder_of_mixed_files_has_labels_by_folder_and_pattern(tmp_path):
    src = tmp_path / "src"
    for name, array in (("walk/p1_a", BODY), ("run/p2_b", TWO), ("run/p3_c", BODY.reshape(12, 75))):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(src / f"{name}.npy", array)
    (src / "run" / "p4_d.npy").write_bytes((src / "walk" / "p1_a.npy").read_bytes()[:-4])
    (src / "labels.csv").write_text("file,class\np1_a,x\n")
    summary, store = stored(src, tmp_path / "store")
    assert (store.names, store.classes) == (["run/p2_b", "run/p3_c", "walk/p1_a"], ["run", "walk"])
    assert summary.broken[0]["reason"] == "7,196 bytes or more for shape [12, 25, 3] of float64 (cut off?)"
    _, store = stored(src, tmp_path / "two", labels="{class}/p{subject}_*")
    assert (store.labels.tolist(), store.subjects.tolist()) == ([0, 0, 1], [2, 3, 1])


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (BODY, {"axes": "TVX"}, "--axes 'TVX': expected T, V, C and perhaps M"),
        (BODY, {"channels": "rgb"}, "--channels 'rgb': expected xy, xyz, xys or xyzs"),
        (BODY, {"layout": "coco17"}, r"array \[12, 25, 3\], expected T, V, C with V 17 and C 3 .xyz."),
        (BODY.reshape(12, 75)[:, :74], {}, "74 numbers a frame .no known layout has so many.; say --layout"),
        (BODY.transpose(0, 2, 1), {}, r"in the order TVC have 25 coordinates a joint, expected 2, 3 or 4; --axes"),
        (np.array([["a"]]), {}, "holds <U1, expected numbers"),
        (np.ones(7), {}, r"arrays \[7\], expected 2, 3 or 4 axes, TVC or MTVC"),
        (np.ones((2, 2, 2, 2)), {}, "which axis is bodies"),
    ],
)
def test_arrays_that_are_refused(tmp_path, array, options, message):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=message):
        import_dataset(tmp_path / "a.npy", tmp_path / "store", **options)


def test_formats_that_say_their_axes_take_none(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.ones((2, 3, 150)), y_train=[0, 1])
    with pytest.raises(DataError, match="--axes: format ctrgcn says itself how its numbers are laid out"):
        import_dataset(tmp_path / "a.npz", tmp_path / "store", axes="TVC")


def test_headers_ask_for_no_memory(tmp_path):
    (tmp_path / "a.npy").write_bytes(
        np.lib.format.magic(1, 0)
        + (118).to_bytes(2, "little")
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 25, 3)}".ljust(117)
        + b"\n"
    )
    with pytest.raises(DataError, match="300,000,000,000 bytes, 1,073,741,824 at most are read"):
        import_dataset(tmp_path / "a.npy", tmp_path / "store")


def test_a_name_in_a_file_does_not_break_the_line(tmp_path):
    np.savez(tmp_path / "a.npz", **{"one\nline": np.zeros((4, 17, 3)), "two\x1b[1m": np.zeros((4, 17, 3))})
    with pytest.raises(DataError, match=r"holds one\\nline, two\\x1b\[1m: which is the recording") as error:
        import_dataset(tmp_path / "a.npz", tmp_path / "store")
    assert "\n" not in str(error.value)
