import numpy as np
import pytest

from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.errors import DataError

FRAMES = 40


def skeleton(seed, second_from=20):
    rng = np.random.default_rng(seed)
    frames = rng.uniform(0.1, 2, (FRAMES, 2, 25, 3)).round(6)
    frames[:second_from, 1] = 0
    return frames


def write(folder, name, frames, labels, newline="\n"):
    for kind in ("skeleton", "label"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    lines = [" ".join(f"{x:.6f}" for x in frame.reshape(-1)) for frame in frames]
    (folder / "skeleton" / f"{name}.txt").write_bytes((newline.join(lines) + newline).encode())
    (folder / "label" / f"{name}.txt").write_bytes((newline.join(labels) + newline).encode())


@pytest.fixture
def src(tmp_path):
    folder = tmp_path / "src"
    for seed, name in enumerate(["0002-L", "0002-M", "0002-R", "0007-L", "0007-M"]):
        write(folder, name, skeleton(seed), ["3,2,12,2", "51,15,33,1"], newline="\r\n" if seed % 2 else "\n")
    return folder


def load(src, tmp_path, **more):
    return import_dataset(src, tmp_path / "store", **more), Store.open(tmp_path / "store")


def test_one_sequence_a_labelled_action(src, tmp_path):
    report, store = load(src, tmp_path)
    assert report.format == "pkummd"
    assert report.sequences == 10
    assert store.names[:3] == ["0002-L.001", "0002-L.002", "0002-M.001"]
    assert store.labels[:2].tolist() == [2, 50]
    assert len(store.classes) == 51
    assert store.views.tolist() == [1, 1, 2, 2, 3, 3, 1, 1, 2, 2]
    assert store.total_frames[:2].tolist() == [10, 18]
    for index, frames in ((0, slice(2, 12)), (1, slice(15, 33))):
        expected = skeleton(0)[frames].transpose(1, 0, 2, 3).astype(np.float32)
        clip, present = store.sequence(index)
        np.testing.assert_array_equal(clip, expected[: len(clip)])
        np.testing.assert_array_equal(present, expected[: len(clip)].any(axis=(2, 3)))
    assert store.track_table(2)[1][:2].tolist() == [[10, 0], [18, 13]]


def test_xview_from_the_names_trains_on_middle_and_right(src, tmp_path):
    report, store = load(src, tmp_path)
    assert report.splits == {"xview": {"train": 6, "test": 4}}
    assert set(store.views[store.select("xview", "test")]) == {1}
    assert "no cross-view.txt: split xview made from the names, cameras M and R train, L is the test" in report.notes
    assert "no cross-subject.txt: no split xsub" in report.notes


def test_official_lists_are_used(src, tmp_path):
    (src / "split").mkdir()
    lists = "Training videos:\n0002-L, 0002-M, \n0002-R\n\nValidataion videos:\n0007-L, 0007-M, 0009-R\n"
    (src / "split" / "cross-subject.txt").write_text(lists)
    (src / "split" / "cross-view.txt").write_text("Training videos:\r\n0002-L\r\nTest videos:\r\n0007-M\r\n")
    report, store = load(src, tmp_path)
    assert report.splits == {"xsub": {"train": 6, "test": 4}, "xview": {"train": 2, "test": 2}}
    assert {store.names[i].split("-")[0] for i in store.select("xsub", "train")} == {"0002"}
    assert {store.names[i].split(".")[0] for i in store.select("xview", "test")} == {"0007-M"}
    assert [note.partition(":")[0] for note in report.notes] == ["49 of 51 classes have no recording"]
    (src / "split" / "cross-view.txt").write_text("0002-L\n")
    with pytest.raises(DataError, match="cross-view.txt: recordings before a line"):
        import_dataset(src, tmp_path / "again")
    (src / "split" / "cross-view.txt").write_text("Training videos:\n0002-L\n")
    with pytest.raises(DataError, match="cross-view.txt: expected lists of training and of validation"):
        import_dataset(src, tmp_path / "again")


def test_names_of_part_2_tell_the_performer(tmp_path):
    for name in ("A01N01-L", "A12N03-M"):
        write(tmp_path / "src", name, skeleton(0), ["1,0,9,1"])
    _, store = load(tmp_path / "src", tmp_path)
    assert store.subjects.tolist() == [1, 12]


def test_an_absent_first_body_leaves_the_second_as_main(tmp_path):
    frames = skeleton(0, second_from=0)
    frames[:, 0] = 0
    write(tmp_path / "src", "0002-L", frames, ["1,0,9,1"])
    _, store = load(tmp_path / "src", tmp_path)
    np.testing.assert_array_equal(store.sequence(0)[0][0], frames[:9, 1].astype(np.float32))


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("52,0,9,1", "class: 52, expected 1 to 51"),
        ("0,0,9,1", "class: 0, expected 1 to 51"),
        ("x,0,9,1", "class: expected a whole number, found 'x'"),
        ("1,9,9,1", "action in frames 9 to 9 of a recording of 40"),
        ("1,40,50,1", "action in frames 40 to 50 of a recording of 40"),
        ("1,-2,5,1", "start: -2, expected 0 to"),
        ("1;0;9", "expected class,start,end,confidence, found 1 fields"),
    ],
)
def test_a_bad_label_costs_one_action(src, tmp_path, label, reason):
    (src / "label" / "0002-L.txt").write_text(f"3,2,12,2\n{label}\n\n4,1,9,1\n")
    report, store = load(src, tmp_path)
    assert store.names[:2] == ["0002-L.001", "0002-L.004"]
    (entry,) = report.broken
    assert (entry["name"], entry["file"], entry["line"]) == ("0002-L.002", "label/0002-L.txt", 2)
    assert entry["reason"].startswith(reason)


def test_a_label_that_ends_late_is_cut_with_a_note(src, tmp_path):
    (src / "label" / "0002-L.txt").write_text("3,30,45,2\n")
    _, store = load(src, tmp_path)
    assert store.total_frames[0] == 10
    assert store.notes["0002-L.001"] == ["label ends at frame 45, the recording at 40: cut there"]


@pytest.mark.parametrize(
    ("value", "reason"), [("nan", "z is nan, not a finite"), ("inf", "z is inf"), ("99", "z is 99, absurd")]
)
def test_bad_numbers_cost_the_action_they_are_in(src, tmp_path, value, reason):
    path = src / "skeleton" / "0002-L.txt"
    lines = path.read_text().splitlines()
    numbers = lines[20].split()
    numbers[75 + 5 * 3 + 2] = value
    lines[20] = " ".join(numbers)
    path.write_text("\n".join(lines))
    report, store = load(src, tmp_path)
    assert store.names[:2] == ["0002-L.001", "0002-M.001"]
    (entry,) = report.broken
    assert (entry["name"], entry["file"], entry["line"]) == ("0002-L.002", "0002-L.txt", 21)
    assert f"body 1, joint 5: {reason}" in entry["reason"]


def replace(at, new):
    def change(lines):
        lines[at - 1] = new(lines[at - 1])
        return lines

    return change


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        (replace(5, lambda line: line.rsplit(" ", 1)[0]), 5, "expected 150 numbers, found 149"),
        (replace(5, lambda line: ""), 5, "expected 150 numbers, found 0"),
        (replace(7, lambda line: "zwei " + line.split(" ", 1)[1]), 7, "not a number"),
    ],
)
def test_a_broken_recording_is_named_with_its_line(src, tmp_path, change, line, reason):
    path = src / "skeleton" / "0002-M.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())))
    report, store = load(src, tmp_path)
    assert report.sequences == 8
    assert not any(name.startswith("0002-M") for name in store.names)
    (entry,) = report.broken
    assert (entry["file"], entry["line"]) == ("0002-M.txt", line)
    assert reason in entry["reason"]


def test_missing_and_empty_labels(src, tmp_path):
    (src / "label" / "0002-R.txt").unlink()
    (src / "label" / "0007-M.txt").write_text("")
    report, store = load(src, tmp_path)
    assert [(entry["file"], entry["reason"]) for entry in report.broken] == [
        ("0002-R.txt", "no label file of this name")
    ]
    assert store.names == ["0002-L.001", "0002-L.002", "0002-M.001", "0002-M.002", "0007-L.001", "0007-L.002"]
