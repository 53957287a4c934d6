"""Splits that a user makes of a store: what is in them, where they are used, and what is refused."""

import json

import numpy as np
import pytest

from s2vfast.cli import main
from s2vfast.data import report, splits
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Sequence, Store
from s2vfast.errors import ConfigError, DataError, S2vfastError

from .stores import body, example, left_behind, write

PEOPLE, ACTIONS = 5, ("sit", "stand", "wave")


def make_store(folder, *, order=1, labelled=True):
    """Five people, three actions, four times each; "wave" by person 4 alone, who is seen by camera 2 alone."""
    sequences = []
    for person in range(PEOPLE):
        for label in range(len(ACTIONS)):
            for time in range(4):
                if label < 2 or person == 4:
                    name = f"p{person}a{label}t{time}"
                    joints = [body(range(6), seed=len(sequences))]
                    view = 2 if person == 4 else 1
                    sequences.append(Sequence(name, label if labelled else -1, 6, joints, subject=person, view=view))
    halves = {"halves": {"train": [one.name for one in sequences[:20]], "test": [one.name for one in sequences[20:]]}}
    write(folder / "store", sequences[::order], classes=ACTIONS if labelled else (), splits=halves)
    return folder / "store"


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


def made(path, by, **arguments):
    return splits.make(Store.open(path), by, **arguments)


def names(path, ids):
    return {Store.open(path).names[number] for number in ids}


def test_one_subject_is_left_out_at_a_time(store, capsys):
    frames = (store / "frames.npy").read_bytes()
    before = Store.open(store)
    assert main(["data", "split", str(store), "--by", "subject"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "split subject-0: train 36 (3 classes), test 8 (2 classes)"
    assert "note: split subject-4: 1 classes of its test part have no sequence to learn from: wave" in lines
    after = Store.open(store)
    assert after.fingerprint == before.fingerprint, "the recordings are the same"
    assert (store / "frames.npy").read_bytes() == frames
    assert list(after.splits) == ["halves", *(f"subject-{person}" for person in range(PEOPLE))]
    for person in range(PEOPLE):
        assert set(after.subjects[after.select(f"subject-{person}", "test")]) == {person}
        assert person not in after.subjects[after.select(f"subject-{person}", "train")]
    after.verify()
    assert "  subject-3   train 36 (3 classes), test 8 (2 classes); made by subject: test 3" in report.show(store)
    assert left_behind(store) == sorted(["store.json", *after.files])


def test_folds_deal_everyone_out_once(store):
    folds = made(store, "subject", folds=2, seed=3)
    assert [fold.name for fold in folds] == ["subject-1of2", "subject-2of2"]
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.test for fold in folds])), np.arange(44))
    for fold in folds:
        subjects = Store.open(store).subjects
        assert not set(subjects[fold.train]) & set(subjects[fold.test])
    deals = {
        json.dumps([fold.origin["test"] for fold in made(store, "subject", folds=2, seed=seed)]) for seed in range(9)
    }
    assert len(deals) > 3, "the seed deals them out"


@pytest.mark.parametrize("test", ["0.25", "0.5", "0.01", "0.99"])
def test_a_share_is_of_every_class(store, test):
    (split,) = made(store, "share", test=test)
    labels = Store.open(store).labels
    for label, count in enumerate((20, 20, 4)):
        in_test = int((labels[split.test] == label).sum())
        assert in_test == min(max(int(float(test) * count + 0.5), 1), count - 1)
    assert len(split.train) + len(split.test) == 44


def test_a_share_depends_on_names_and_seed_alone(tmp_path, store):
    (tmp_path / "turned").mkdir()
    turned = make_store(tmp_path / "turned", order=-1)
    (one,), (same,), (other,) = (made(path, "share", test="0.25", seed=seed) for path, seed in
                                 ((store, 7), (turned, 7), (store, 8)))  # fmt: skip
    assert names(store, one.test) == names(turned, same.test)
    assert names(store, one.test) != names(store, other.test)
    assert (one.name, other.name) == ("share-25-seed-7", "share-25-seed-8")


def test_by_a_file_of_names(store, tmp_path, capsys):
    (tmp_path / "held out.txt").write_text("# the best ones\nP0A0T0.json\np1a1t2\nnobody\n")
    command = ["data", "split", str(store), "--by", "file", "--test", str(tmp_path / "held out.txt"), "--name", "best"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "split best: train 42 (3 classes), test 2 (2 classes)" in printed
    assert "note: split best: 1 names of held out.txt are not in the store: nobody" in printed
    assert names(store, Store.open(store).select("best", "test")) == {"p0a0t0", "p1a1t2"}
    (tmp_path / "few.txt").write_text("p2a0t0\np2a1t0\n")
    (few,) = made(store, "file", test=str(tmp_path / "held out.txt"), train=str(tmp_path / "few.txt"))
    splits.keep(store, [few])
    assert names(store, Store.open(store).select("held out", "train")) == {"p2a0t0", "p2a1t0"}


@pytest.mark.parametrize(
    ("by", "arguments", "kind", "reason"),
    [
        ("colour", {}, ConfigError, "--by: 'colour' is not one of subject"),
        ("share", {}, ConfigError, "--test: needed with --by share: a number in"),
        ("share", {"test": "1e999999999"}, ConfigError, "with --by share a number in"),
        ("share", {"test": "20"}, ConfigError, "with --by share a number in"),
        ("file", {}, ConfigError, "--test: needed with --by file"),
        ("file", {"test": "nowhere.txt"}, DataError, "nowhere.txt: cannot be read"),
        ("subject", {"test": "3,77"}, DataError, "has no subject 77; it has 0, 1, 2, 3, 4"),
        ("subject", {"test": "x"}, ConfigError, "numbers with commas"),
        ("subject", {"test": "0,1,2,3,4"}, DataError, "would have no sequence in its train part"),
        ("subject", {"folds": 6}, DataError, "--folds: 6; .* has 5 subjects"),
        ("subject", {"folds": 1}, ConfigError, "2 or more"),
        ("subject", {"folds": 2, "test": "1"}, ConfigError, "--folds: goes with"),
        ("view", {"train": "x"}, ConfigError, "--train: goes with"),
        ("setup", {}, DataError, "no sequence says its setup"),
        ("subject", {"test": "1", "name": 300 * "a"}, DataError, "split name"),
    ],
)
def test_what_cannot_be_made_is_refused(store, by, arguments, kind, reason):
    with pytest.raises(S2vfastError, match=reason) as caught:
        made(store, by, **arguments)
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value)


def test_lists_that_do_not_fit_are_refused(store, tmp_path):
    (tmp_path / "a.txt").write_text("p0a0t0\n")
    (tmp_path / "b.txt").write_text("nobody\n")
    with pytest.raises(DataError, match="p0a0t0 is in .*a.txt too"):
        made(store, "file", test=str(tmp_path / "a.txt"), train=str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="none of its 1 names is in"):
        made(store, "file", test=str(tmp_path / "b.txt"))


def test_a_name_is_used_once(store):
    for name in ("halves", "all"):
        with pytest.raises(DataError, match=f"has a split {name} already"):
            splits.keep(store, made(store, "view", test="2", name=name), overwrite=True)
    splits.keep(store, made(store, "share", test="0.25", name="mine"))
    raw = (store / "store.json").read_bytes()
    with pytest.raises(DataError, match="replace it with --overwrite"):
        splits.keep(store, made(store, "share", test="0.5", name="mine"))
    assert (store / "store.json").read_bytes() == raw
    splits.keep(store, made(store, "share", test="0.5", name="mine"), overwrite=True)
    assert len(Store.open(store).select("mine", "test")) == 22


def test_sequences_without_a_label_or_a_subject(tmp_path):
    store, _ = example(tmp_path / "store")
    unknown = write(tmp_path / "few", [Sequence(f"s{n}", -1, 6, [body(range(6), seed=n)], subject=min(n, 1) - 1)
                                       for n in range(4)], classes=())  # fmt: skip
    (split,) = made(unknown.path, "subject", test="0")
    assert split.notes == ["1 sequences that do not say their subject are in its training part"]
    splits.keep(unknown.path, [split])
    assert splits.describe(Store.open(unknown.path), "subject-test") == "train 1, test 3"
    assert len(made(store.path, "subject")) == 3


def test_a_store_can_be_imported_over_and_a_damaged_header_is_noticed(store, tmp_path):
    splits.keep(store, made(store, "view"))
    text = (store / "store.json").read_text()
    position = text.index("made_splits")
    (store / "store.json").write_text(text[:position] + text[position:].replace("0,", "1,", 1))
    with pytest.raises(DataError, match="damaged or edited"):
        Store.open(store)
    (store / ".tmp-store.json-elsewhere-1").write_text("{")  # of a killed `data split`
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a01_s01_e00_v01.json").write_text(
        json.dumps({"file_name": "a01_s01_e00_v01", "label": 1, "skeletons": np.ones((3, 20, 3)).tolist()})
    )
    import_dataset(tmp_path / "src", store, overwrite=True)
    assert not Store.open(store).meta.get("made_splits")
