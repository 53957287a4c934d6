"""Labels from files, patterns and folders, for recordings whose own files say nothing of classes."""

import json

import numpy as np
import pytest

from s2vfast.data.formats.base import Source
from s2vfast.data.labels import Labelling
from s2vfast.data.store import Sequence
from s2vfast.errors import DataError

from .stores import TINY

NAMES = ["walk/anna_01", "walk/ben_02", "run/anna_10"]


def labelled(said, names=NAMES, own=None):
    """(classes, sequences by name, splits, notes)."""
    source = Source(TINY, [], list, classes=["own"], names=None if own else names)
    labelling = Labelling(said, source)
    notes = []
    sequences = {s.name: s for s in labelling.apply([Sequence(name, 0, 1, []) for name in names], notes)}
    return source.classes, sequences, labelling.splits(), source.notes + notes


def test_folders_are_the_classes_where_all_lie_in_some():
    classes, sequences, splits, notes = labelled(None)
    assert classes == ["run", "walk"]
    assert [s.label for s in sequences.values()] == [1, 1, 0]
    assert splits == {}
    assert notes == ["classes are the folders of the recordings, 2 of them; --labels says otherwise"]
    for names in (["a", "b"], ["walk/a", "walk/b"], ["walk/a", "run/b", "c"]):
        classes, sequences, _, notes = labelled(None, names)
        assert classes == []
        assert {s.label for s in sequences.values()} == {-1}
        assert notes == ["no labels: --labels takes a file, a pattern of names, or folder"]


def test_folders_of_parts_are_a_split():
    classes, _, splits, _ = labelled(None, ["train/walk/a", "train/run/b", "val/walk/c"])
    assert classes == ["run", "walk"]
    assert splits == {"default": {"train": ["train/walk/a", "train/run/b"], "test": ["val/walk/c"]}}


def test_a_pattern_tells_classes_and_people():
    classes, sequences, _, notes = labelled("{class}/{subject}_{repetition}")
    assert classes == ["run", "walk"]
    assert [(s.label, s.subject, s.repetition, s.view) for s in sequences.values()] == [
        (1, 1, 1, -1),
        (1, 2, 2, -1),
        (0, 1, 10, -1),
    ]
    assert notes == ["subjects numbered by their names: anna is 1, ben is 2"]
    classes, sequences, _, notes = labelled("*_{class}", ["a_10", "b_9", "c"])
    assert classes == ["9", "10"]
    assert [s.label for s in sequences.values()] == [1, 0, -1]
    assert notes == ["--labels *_{class}: fits 1 names not: no label"]


def test_none_and_a_format_with_labels_of_its_own():
    assert labelled("none")[0] == []
    classes, sequences, _, _ = labelled(None, own=True)
    assert (classes, {s.label for s in sequences.values()}) == (["own"], {0})
    with pytest.raises(DataError, match="this format names its recordings itself"):
        labelled("folder", own=True)


CSV = "file;Label;subject;camera;note;part\nwalk/anna_01.json;walk;7;2;x;train\nben_02;2 hop;8;;;val\n\n"


def test_a_file_of_lines(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbf" + CSV.encode().replace(b"\n", b"\r\n"))
    for own in (False, True):
        classes, sequences, splits, notes = labelled(tmp_path / "l.csv", own=own)
        assert classes == ["2 hop", "walk"]
        assert [(s.label, s.subject, s.view) for s in sequences.values()] == [(1, 7, 2), (0, 8, -1), (-1, -1, -1)]
        assert splits == {"default": {"train": ["walk/anna_01"], "test": ["walk/ben_02"]}}
        assert notes == ["--labels says nothing of 1 recordings: no label"]


@pytest.mark.parametrize(
    "data",
    [
        {"walk/anna_01": "walk", "ben_02.npy": {"class": "walk", "subject": 3}, "x": None, "run\\anna_10.json": 5},
        [
            {"file": "walk/anna_01", "class": "walk"},
            {"name": "ben_02", "label": "walk", "subject": "3"},
            {"file": "x"},
            {"file": "anna_10", "class": 5},
        ],
    ],
)
def test_a_file_of_objects(tmp_path, data):
    (tmp_path / "l.json").write_text(json.dumps(data))
    classes, sequences, _, notes = labelled(tmp_path / "l.json")
    assert classes == ["5", "walk"]
    assert [(s.label, s.subject) for s in sequences.values()] == [(1, -1), (1, 3), (0, -1)]
    assert len(notes) == 1
    assert "1 entries are of no recording that was read" in notes[0]
    assert "(x)" in notes[0]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("l.csv", "name,what\na,b\n", r"l\.csv:1: expected a header with file and class"),
        ("l.csv", "file,class\nwalk/anna_01,b,c\n", r"l\.csv:2: 3 columns, the header has 2"),
        ("l.csv", "file,class\na,b\na.npy,c\n", r"l\.csv:3: 'a\.npy' stands twice"),
        ("l.csv", "file,class\nx,b\n", r"none of its 1 entries is a recording's; the first: .*l\.csv:2 \(x\)"),
        ("l.csv", "file,class,part\nwalk/anna_01,b,dev\n", r"l\.csv:2: part 'dev', expected train, val or test"),
        ("l.csv", "file,class\n", "no recording in it"),
        ("l.csv", "file,class\nx,\udce4\n", r"l\.csv:2: no UTF-8"),
        ("l.csv", f"file,class\nx,{'c' * 300}\n", r"l\.csv:2: class .*: 300 characters, 255 at most"),
        ("l.csv", f"file,class\nx,{'c' * 200_000}\n", "field larger than field limit"),
        ("l.json", "{", r"l\.json:1: not JSON"),
        ("l.json", '{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("l.json", "7", "expected an object of file: class"),
        ("l.json", '[{"class": "a"}]', "entry 0: file None, expected a text"),
        ("l.json", '{"a": true}', "class True, expected a text or a whole number"),
        ("l.json", '{"a": {"subject": 1.5}}', "subject 1.5, expected a text or a whole number"),
        ("l.txt", "", "expected a .csv or .json file, a pattern like"),
    ],
)
def test_files_that_are_wrong_are_refused_in_a_line(tmp_path, file, text, message):
    (tmp_path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as error:
        labelled(tmp_path / file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{clas}_*", "{clas} is none of class, subject"),
        ("{class}_{label}", "{label} stands twice"),
        ("{class}-*", "fits no name of the 3 recordings, as walk/anna_01"),
        ("{part}/*", "part 'walk', expected train, val or test"),
    ],
)
def test_patterns_that_are_wrong_are_refused(pattern, message):
    with pytest.raises(DataError, match=message):
        labelled(pattern)


def test_a_name_that_fits_two_recordings_needs_its_folder(tmp_path):
    (tmp_path / "l.csv").write_text("file,class\na,x\n")
    with pytest.raises(DataError, match=r"l\.csv:2 \(a\) is said of p/a and of q/a; write the folder to the name"):
        labelled(tmp_path / "l.csv", ["p/a", "q/a"])
    (tmp_path / "l.csv").write_text("file,class\np/a,x\nq/a,y\n")
    assert [s.label for s in labelled(tmp_path / "l.csv", ["p/a", "q/a"])[1].values()] == [0, 1]


def test_the_order_of_classes_is_the_same_everywhere():
    rng = np.random.default_rng(0)
    names = [f"{name}/x{i}" for i, name in enumerate(["01", "1", "a2", "a10", "A", "2", "é"])]
    orders = {tuple(labelled(None, [names[i] for i in rng.permutation(len(names))])[0]) for _ in range(5)}
    assert orders == {("01", "1", "2", "A", "a2", "a10", "é")}
