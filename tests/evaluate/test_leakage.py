"""What a run has learned from is not what it is measured on, and results say which is which."""

import json

import numpy as np
import pytest
import torch

import s2vfast.errors as errors
from s2vfast.data import Store, splits
from s2vfast.evaluate import features, finetune, finetune_config, leakage, protocols, runs, table
from s2vfast.train import checkpoint, rundir, trainer

RECIPE = finetune_config.load(changes={"epochs": 2.0, "batch": 6, "hidden": 8})
QUICK = {"recipe": RECIPE, "epochs": 2, "log": lambda line: None}


@pytest.fixture(scope="module")
def swapped(small, tmp_path_factory):
    """A store whose split "swapped" measures what "halves" learns from, and has nothing in common with "rest"."""

    def splits(names):
        return {
            "swapped": {"train": names[12:], "test": names[:12]},
            "rest": {"train": names[:6], "test": names[12:18]},
            "uneven": {"train": names[:15], "test": names[15:]},
        }

    return small.make_store(tmp_path_factory.mktemp("swapped") / "store", splits=splits)


@pytest.fixture
def run(small, swapped, tmp_path):
    small.make_run(tmp_path / "run", Store.open(swapped))
    return tmp_path / "run"


def ids_of(folder):
    return rundir.read(folder)["finetune"]["source"]["ids"]


@pytest.mark.parametrize("mode", ["finetune", "supervised"])
def test_the_training_part_alone_is_learned_from(run, swapped, tmp_path, mode, monkeypatch):
    given = []
    real = trainer.Trainer.__init__

    def init(self, config, store, *more, ids=None, **others):
        given.append(ids.copy())
        real(self, config, store, *more, ids=ids, **others)

    monkeypatch.setattr(trainer.Trainer, "__init__", init)
    protocols.evaluate(run, swapped, "uneven", mode, out=tmp_path / "tuned", **QUICK)
    train = Store.open(swapped).select("uneven", "train")
    np.testing.assert_array_equal(given[0], train)
    assert ids_of(tmp_path / "tuned") == finetune.digest_ids(train)


def test_retrieval_looks_for_test_sequences_in_the_training_part(run, swapped):
    store = Store.open(swapped)
    found = protocols.evaluate(run, swapped, "uneven", "retrieval", **QUICK)["test_to_train"]
    encoder, config, _ = features.load_encoder(run)
    ids = [store.select("uneven", part) for part in ("train", "test")]
    tables = [features.extract(encoder, config, store, chosen) for chosen in ids]
    labels = [torch.from_numpy(store.labels[chosen]) for chosen in ids]
    # By hand: the cosine orders 15 training sequences for each of 9 queries.
    unit = [torch.nn.functional.normalize(t, dim=1) for t in tables]
    order = (unit[1] @ unit[0].T).argsort(dim=1, descending=True)
    right = labels[0][order] == labels[1][:, None]
    assert right.shape == (9, 15)
    ranks = torch.arange(1, 16)
    precision = (right.cumsum(1) / ranks * right).sum(1) / right.sum(1)
    assert found["map"] == pytest.approx(100 * float(precision.mean()), rel=1e-5)


def test_a_fine_tuned_run_is_not_measured_on_what_it_learned(run, swapped, tmp_path):
    tuned = tmp_path / "tuned"
    protocols.evaluate(run, swapped, "halves", "finetune", out=tuned, **QUICK)
    for protocol in ("classify", "knn", "linear"):
        with pytest.raises(errors.DataError, match=r"fine-tuned on the labels of 12 sequence\(s\) of 'test' of split"):
            protocols.evaluate(tuned, swapped, "swapped", protocol, **QUICK)
    assert protocols.evaluate(tuned, swapped, "rest", "classify", **QUICK)["n_test"] == 6
    result = protocols.evaluate_all(tuned, swapped, "rest", ["knn"], **QUICK)
    assert table.text(result).startswith("fine-tuned run (finetune) of skeleton2vec")
    # A list of a quarter of the labels: three of twelve.
    found = protocols.evaluate(run, swapped, "halves", "semi", percents=(25,), lists=1, out=tmp_path / "semi", **QUICK)
    assert found["rows"]
    with pytest.raises(errors.DataError, match=r"labels of 3 sequence\(s\)"):
        protocols.evaluate(tmp_path / "semi/25-percent-0", swapped, "swapped", "classify", **QUICK)


def test_what_pretraining_has_seen_is_said(run, swapped):
    said = []
    how = {**QUICK, "log": said.append}
    found = protocols.evaluate(run, swapped, "swapped", "knn", **how)
    assert found["overlap"] == 12
    assert found["pretrained_on"]["split"] == "halves"
    assert "pretraining has seen 12 of the 12 sequences of 'test' of split 'swapped'" in said[0]
    said.clear()
    assert protocols.evaluate(run, swapped, "halves", "knn", **how)["overlap"] == 0
    assert protocols.evaluate(run, swapped, "swapped", "knn", untrained=True, **how)["overlap"] == 0
    assert not said


def test_nothing_is_known_of_other_stores(run, swapped, store):
    config, about = runs.read(run)
    assert leakage.labelled(config, about, store).size == 0
    assert leakage.unlabelled({**about["store"], "fingerprint": "other", "split": "halves"}, store).size == 0
    assert leakage.unlabelled(None, store).size == 0


def test_supervised_says_that_nothing_was_pretrained(run, swapped, tmp_path):
    recipe = finetune_config.load(changes={"epochs": 2.0, "batch": 6, "hidden": 8, "seed": 5})
    how = {**QUICK, "recipe": recipe}
    found = protocols.evaluate(run, swapped, "halves", "supervised", out=tmp_path / "one", **how)
    assert (found["step"], found["pretrained_on"], found["transfer"], found["overlap"]) == (0, None, False, 0)
    again = protocols.evaluate(tmp_path / "one", swapped, "halves", "knn", **how)
    assert (again["pretrained_on"], again["transfer"], again["overlap"]) == (None, False, 0)
    # The weights it began from are those of the recipe's seed.
    start, _, _ = features.load_encoder(tmp_path / "one", untrained=True)
    assert finetune.digest(start) == rundir.read(tmp_path / "one")["finetune"]["source"]["weights"]
    assert protocols.evaluate(tmp_path / "one", swapped, "halves", "knn", untrained=True, **how)["untrained"]


def test_what_a_fine_tuned_run_began_from_is_another_run(run, swapped, tmp_path):
    protocols.evaluate(run, swapped, "halves", "finetune", out=tmp_path / "tuned", **QUICK)
    with pytest.raises(errors.ConfigError, match="began from pretrained weights; name the run that these are of"):
        protocols.evaluate(tmp_path / "tuned", swapped, "halves", "knn", untrained=True, **QUICK)
    with pytest.raises(errors.ConfigError, match="classify measures a fine-tuned run as it is"):
        protocols.evaluate(run, swapped, "halves", "classify", untrained=True, **QUICK)


def test_what_cannot_be_done_is_said_before_anything_is(run, swapped, monkeypatch):
    monkeypatch.setattr(features, "extract", lambda *a, **k: pytest.fail("features were computed"))
    with pytest.raises(errors.CheckpointError, match="pretrained run, which has no classes"):
        protocols.evaluate_all(run, swapped, "halves", ["linear", "classify"], **QUICK)
    for options, message in [({"epochs": 0}, "epochs: 0"), ({"lr": -1.0}, "lr: -1.0"), ({"seed": 2**63}, "seed: 9223")]:
        with pytest.raises(errors.ConfigError, match=message):
            protocols.evaluate_all(run, swapped, "halves", ["knn", "linear"], **{**QUICK, **options})


def test_what_there_is_is_given_after_each_protocol(run, swapped):
    found = []
    last = protocols.evaluate_all(run, swapped, "halves", ["knn", "retrieval"], each=found.append, **QUICK)
    assert [list(one["results"]) for one in found] == [["knn"]]
    assert list(last["results"]) == ["knn", "retrieval"]
    assert json.dumps(found)


def test_a_finished_run_keeps_what_is_needed_of_it(run, swapped, tmp_path):
    """Its network alone: of a table's twenty runs, moments and older checkpoints would take most of the room."""
    recipe = finetune_config.load(changes={"epochs": 4.0, "batch": 6, "hidden": 8, "checkpoint_every": 2})
    how = {**QUICK, "recipe": recipe}
    first = protocols.evaluate(run, swapped, "halves", "finetune", out=tmp_path / "tuned", **how)
    (path,) = (tmp_path / "tuned/checkpoints").iterdir()
    assert "optimizer" not in checkpoint.load_latest(tmp_path / "tuned").tensors
    stamp = path.stat().st_mtime_ns
    again = protocols.evaluate(run, swapped, "halves", "finetune", out=tmp_path / "tuned", **how)
    assert again["top1"] == first["top1"]
    assert path.stat().st_mtime_ns == stamp


def test_a_split_that_a_user_made_is_remembered_by_what_is_in_it(small, tmp_path):
    """Another split under its name is none that a run goes on with, or that says what the run has seen."""
    store = small.make_store(tmp_path / "store")
    (split,) = splits.make(Store.open(store), "share", test="0.5", name="mine")
    splits.keep(store, [split])
    small.make_run(tmp_path / "run", Store.open(store), data__split="mine")
    about = rundir.read(tmp_path / "run")
    assert about["store"]["split_sha256"] == Store.open(store).split_digest("mine")
    result = protocols.evaluate(tmp_path / "run", store, "halves", "knn", **QUICK)
    assert result["overlap"] == len(np.intersect1d(split.train, Store.open(store).select("halves", "test")))
    protocols.evaluate(tmp_path / "run", store, None, "finetune", out=tmp_path / "tuned", **QUICK)
    rundir.check_store(tmp_path / "run", Store.open(store), store, exact=True)

    (other,) = splits.make(Store.open(store), "share", test="0.5", name="mine", seed=1)
    splits.keep(store, [other], overwrite=True)
    with pytest.raises(errors.CheckpointError, match="its split mine is not the one"):
        rundir.check_store(tmp_path / "run", Store.open(store), store, exact=True)
    for run in ("run", "tuned"):
        with pytest.raises(errors.DataError, match="'mine' is not the one that the run has learned from"):
            protocols.evaluate(tmp_path / run, store, "halves", "knn", **QUICK)
