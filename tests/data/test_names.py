"""Lists of names: what comes with the package, what an import leaves out, and the numbers that gives."""

import itertools

import numpy as np
import pytest

from s2vfast.cli import main
from s2vfast.data import names, report
from s2vfast.data.formats import ntu
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.data.store_writer import SequenceInfo
from s2vfast.errors import DataError

from .ntu_files import IDS, frames_of, person, skeleton_text

MISSING = names.shipped_names("ntu_missing")


def info(name):
    fields = ntu.parse_name(name)
    return SequenceInfo(name, fields.action - 1, fields.performer, fields.camera, fields.replication, fields.setup, 1)


def whole_dataset(setups, performers, trains, pairs, first):
    """Names of all recordings: every performer of a setup does 60 actions twice before three cameras.

    Which performers a setup has is not written down anywhere; the listed recordings say some, and how many there are
    of each kind (performer that trains or not, even or odd setup) follows from the published totals.
    """
    listed = {(fields.setup, fields.performer) for fields in map(ntu.parse_name, MISSING) if fields.setup in setups}
    chosen = set(listed)
    for (even, train), count in pairs.items():
        kind = [pair for pair in itertools.product(setups, performers)
                if (pair[0] % 2 == 0) == even and (pair[1] in trains) == train]  # fmt: skip
        of_kind = len(chosen & set(kind))
        chosen |= set([pair for pair in kind if pair not in listed][: count - of_kind])
    for setup, performer in sorted(chosen):
        for camera, repetition, action in itertools.product((1, 2, 3), (1, 2), range(1, 61)):
            action += 60 * (setup >= first)
            yield f"S{setup:03d}C{camera:03d}P{performer:03d}R{repetition:03d}A{action:03d}"


@pytest.mark.parametrize(
    ("setups", "last", "trains", "pairs", "splits", "total", "published"),
    [
        (range(1, 18), 41, ntu.XSUB60_TRAIN, {(True, True): 56, (False, True): 56, (True, False): 23,
         (False, False): 23}, ntu.splits60, 56_578, {"xsub": (40_091, 16_487), "xview": (37_646, 18_932)}),
        (range(1, 33), 107, ntu.XSUB120_TRAIN, {(True, True): 84, (False, True): 92, (True, False): 68,
         (False, False): 74}, ntu.splits120, 113_945, {"xsub": (63_026, 50_919), "xset": (54_468, 59_477)}),
    ],
    ids=["ntu60", "ntu120"],
)  # fmt: skip
def test_the_official_list_gives_the_published_numbers(setups, last, trains, pairs, splits, total, published):
    everything = set(whole_dataset(setups, range(1, last), trains, pairs, 18))
    excluded = names.exclusion(None, "ntu_missing")
    remaining = [info(name) for name in sorted(everything) if names.key(name) not in excluded.names]
    assert len(remaining) == total
    for split, by_part in splits(remaining).items():
        assert tuple(len(by_part[part]) for part in ("train", "test")) == published[split]


def test_lists_of_the_package_are_whole():
    assert len(MISSING) == len(set(MISSING)) == 535
    assert all(ntu.parse_name(name) for name in MISSING)
    assert sum(ntu.parse_name(name).setup <= 17 for name in MISSING) == 302
    assert names.ntu_classes(60)[9] == "clapping"
    assert names.ntu_classes(120)[119] == "finger-guessing game (playing rock-paper-scissors)"
    assert names.ntu_classes(121)[0] == "A001"
    pku = names.shipped_names("pkummd_classes")
    assert (len(set(pku)), pku[0], pku[33], pku[50]) == (51, "bow", "standing up", "writing")


@pytest.fixture
def recordings(tmp_path):
    """Four recordings of NTU, two of them in the official list, one of these broken."""
    folder = tmp_path / "ntu"
    folder.mkdir()
    text = skeleton_text(frames_of((IDS[0], 0, person(8)), total=8))
    for name in ("S001C001P001R001A001", "S001C002P003R001A002", "S001C002P005R002A008"):
        (folder / f"{name}.skeleton").write_text(text)
    (folder / "S001C003P006R002A008.skeleton").write_text("nothing\n")
    return folder


def test_the_official_list_is_left_out_of_ntu(recordings, tmp_path):
    made = import_dataset(recordings, tmp_path / "store")
    assert made.sequences == 2
    assert [(entry["name"], entry["kind"], entry["reason"]) for entry in made.dropped] == [
        ("S001C002P005R002A008", "excluded", "named in ntu_missing"),
        ("S001C003P006R002A008", "excluded", "named in ntu_missing"),
    ]
    note = "2 of the 535 names of ntu_missing left out (--exclude none keeps them)"
    assert note in made.notes
    text = report.show(tmp_path / "store")
    assert note in text
    assert "dropped: 2 sequences or files, 0 of them broken, 2 named in a list" in text
    assert "drink water" in text
    everything = import_dataset(recordings, tmp_path / "everything", exclude="none")
    assert (everything.sequences, [entry["kind"] for entry in everything.dropped]) == (3, ["broken"])


def test_a_list_of_ones_own(recordings, tmp_path, capsys):
    listed = tmp_path / "bad.txt"
    listed.write_text("# bad takes\n\ns001c001p001r001a001.skeleton  # he laughs\nS001C009P001R001A001\n")
    assert main(["data", "import", str(recordings), "--exclude", str(listed), "--out", str(tmp_path / "store")]) == 0
    printed = capsys.readouterr().out
    assert "1 of the 2 names of bad.txt left out" in printed
    assert "1 names of bad.txt are not here: S001C009P001R001A001" in printed
    assert Store.open(tmp_path / "store").names == ["S001C002P003R001A002", "S001C002P005R002A008"]


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "neither a file nor one of ntu_missing, none"), (b"# all\n", "no name in it"),
                            (b"\xff\xfe\x00", "no UTF-8 text")]
)  # fmt: skip
def test_what_is_no_list_is_refused(recordings, tmp_path, content, reason):
    listed = tmp_path / "list.txt"
    if content is not None:
        listed.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        import_dataset(recordings, tmp_path / "store", exclude=listed)


def test_a_store_without_anyone_in_the_list_says_nothing(tmp_path):
    folder = tmp_path / "ntu"
    folder.mkdir()
    text = skeleton_text(frames_of((IDS[0], 0, person(8)), total=8))
    (folder / "S001C001P001R001A001.skeleton").write_text(text)
    assert not any("ntu_missing" in note for note in import_dataset(folder, tmp_path / "store").notes)
    assert np.array_equal(Store.open(tmp_path / "store").labels, [0])
