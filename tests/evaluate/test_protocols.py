"""evaluate and embed from a run folder and a store to numbers and a file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import s2vfast.errors as errors
from s2vfast import presets
from s2vfast.data import Layout, Store, write_store
from s2vfast.data.formats import nwucla
from s2vfast.evaluate import features, linear, npz, protocols
from s2vfast.train import rundir


def _quiet(line):
    raise AssertionError(f"nothing to be said was expected: {line}")


def _halves(run_dir, store, pool="mean"):
    encoder, config, _ = features.load_encoder(run_dir)
    ids = [store.select("halves", part) for part in ("train", "test")]
    return [(features.extract(encoder, config, store, i, pool=pool).numpy(), store.labels[i]) for i in ids]


@pytest.mark.parametrize("protocol", ["linear", "knn"])
@pytest.mark.parametrize("pool", ["mean", "joint_time"])
def test_the_result(run, store_path, store, protocol, pool):
    result = protocols.evaluate(run[0], store_path, protocol=protocol, pool=pool, log=_quiet)
    assert json.loads(json.dumps(result)) == result
    expected = {
        "protocol": protocol,
        "pool": pool,
        "split": "halves",  # the run's
        "untrained": False,
        "n_train": 12,
        "n_test": 12,
        "step": 30,
        "missing_classes": [],
        "parts": ["train", "test"],
        "store_fingerprint": store.fingerprint,
        "features": 16 if pool == "mean" else 9 * 16,
    }
    assert {key: result[key] for key in expected} == expected
    assert list(result["per_class"]) == ["wave", "nod", "kick"]
    assert "top5" not in result  # of three classes
    assert np.mean(list(result["per_class"].values())) == pytest.approx(result["mean_class"])
    assert result["mean_class"] == pytest.approx(result["top1"])  # classes of equal size


def test_knn_is_sklearns(run, store_path, store):
    (train, train_labels), (test, test_labels) = _halves(run[0], store)
    scaler = StandardScaler().fit(train)
    for transform, move in [("none", lambda x: x), ("standardize", scaler.transform)]:
        reference = KNeighborsClassifier(1, metric="cosine").fit(move(train), train_labels)
        expected = 100.0 * reference.score(move(test), test_labels)
        result = protocols.evaluate(run[0], store_path, "halves", "knn", transform=transform, log=_quiet)
        assert result["top1"] == pytest.approx(expected)
        assert result["settings"] == {"k": 1, "transform": transform, "draws": 0, "seed": 0}


def test_linear_is_near_sklearns(run, store_path, store):
    (train, train_labels), (test, test_labels) = _halves(run[0], store, "joint_time")
    scaler = StandardScaler().fit(train)
    reference = LogisticRegression(max_iter=2000).fit(scaler.transform(train), train_labels)
    expected = 100.0 * reference.score(scaler.transform(test), test_labels)
    result = protocols.evaluate(run[0], store_path, pool="joint_time", log=_quiet)
    assert result["top1"] == pytest.approx(expected, abs=100 / 12 + 0.1)  # one of twelve sequences


def test_confusion_counts_the_test_part(run, store_path):
    result = protocols.evaluate(run[0], store_path, protocol="knn", confusion=True, log=_quiet)
    matrix = np.array(result["confusion"])
    assert matrix.sum(axis=1).tolist() == [4, 4, 4]
    assert 100.0 * matrix.trace() / 12 == pytest.approx(result["top1"])


def test_repeatable_and_by_seed(run, store_path, small, tmp_path):
    seeds = [0, 0, 1]
    results = [protocols.evaluate(run[0], store_path, seed=seed, epochs=1, log=_quiet) for seed in seeds]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    assert results[2]["settings"]["seed"] == 1


def test_untrained_differs_and_says_so(run, store_path):
    result = protocols.evaluate(run[0], store_path, protocol="knn", untrained=True, log=_quiet)
    assert result["untrained"] is True
    assert result["step"] == 0


def test_other_parts(run, small, tmp_path):
    path = small.make_store(
        tmp_path / "parts",
        splits=lambda names: {"three": {"train_few": names[:3], "val": names[3:9], "test": names[9:]}},
    )
    result = protocols.evaluate(run[0], path, "three", "knn", train_part="train_few", test_part="val", k=3, log=_quiet)
    assert (result["n_train"], result["n_test"], result["parts"]) == (3, 6, ["train_few", "val"])


def test_progress_names_what_is_done(run, store_path):
    seen = []
    protocols.evaluate(run[0], store_path, epochs=2, clips=8, progress=lambda *call: seen.append(call), log=_quiet)
    assert seen == [
        *(("features of train", 8, 12), ("features of train", 12, 12)),
        *(("features of test", 8, 12), ("features of test", 12, 12)),
        *(("linear probe", 1, 2), ("linear probe", 2, 2)),
    ]


def test_classes_missing_from_training_are_reported(run, small, tmp_path):
    # Labels are 0, 1, 2, 0, 1, 2, ...: without every third name, no "kick" to learn from.
    path = small.make_store(
        tmp_path / "gap",
        splits=lambda names: {"gap": {"train": [n for n in names[:12] if int(n[1:]) % 3 != 2], "test": names[12:]}},
    )
    for protocol in ("knn", "linear"):
        said = []
        result = protocols.evaluate(run[0], path, "gap", protocol, log=said.append)
        assert result["missing_classes"] == ["kick"]
        assert result["per_class"]["kick"] == 0.0
        assert len(said) == 1
        assert "kick" in said[0]


def test_splits_that_cannot_be_used(run, store_path, small, tmp_path):
    with pytest.raises(errors.DataError, match="no split 'xsub'.*halves"):
        protocols.evaluate(run[0], store_path, "xsub")
    with pytest.raises(errors.DataError, match="no part 'val'.*train, test"):
        protocols.evaluate(run[0], store_path, "halves", test_part="val")
    with pytest.raises(errors.DataError, match="24 sequence.*'all'.*fitted"):
        protocols.evaluate(run[0], store_path, "all")
    path = small.make_store(tmp_path / "one", splits=lambda names: {"one": {"train": names, "test": []}})
    with pytest.raises(errors.DataError, match="part 'test' of split 'one' has no sequence"):
        protocols.evaluate(run[0], path, "one")


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": "svm"},
        {"pool": "max"},
        {"transform": "pca"},
        {"k": 0},
        {"clips": 0},
        {"draws": -1},
        {"device": "tpu0"},
    ],
)
def test_impossible_options_name_themselves(run, store_path, options):
    with pytest.raises(errors.ConfigError, match=f"^{next(iter(options))}: "):
        protocols.evaluate(run[0], store_path, **options)


def test_a_store_of_another_layout_is_one_error(run, small, tmp_path):
    other = Layout.from_dict({**small.layout.to_dict(), "name": "puppet"})
    path = small.make_store(tmp_path / "puppets", layout=other)
    for call in (
        lambda: protocols.evaluate(run[0], path, "halves"),
        lambda: npz.embed(run[0], path, tmp_path / "f.npz"),
    ):
        with pytest.raises(errors.S2vfastError, match="puppet.*stick") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "f.npz").exists()


def test_embed_writes_all_sequences(run, store_path, store, tmp_path):
    said = npz.embed(run[0], store_path, tmp_path / "all.npz", "all", pool="joint_time", log=_quiet)
    with np.load(tmp_path / "all.npz", allow_pickle=False) as file:
        table = dict(file)
    assert sorted(table) == ["classes", "features", "labels", "names", "part"]
    assert table["names"].tolist() == store.names
    assert table["labels"].tolist() == store.labels.tolist()
    assert table["classes"].tolist() == ["wave", "nod", "kick"]
    assert set(table["part"]) == {""}
    encoder, config, _ = features.load_encoder(run[0])
    expected = features.extract(encoder, config, store, np.arange(24), pool="joint_time")
    assert table["features"].dtype == np.float32
    np.testing.assert_array_equal(table["features"], expected)
    assert (said["n"], said["features"], said["step"], said["pool"]) == (24, 144, 30, "joint_time")


@pytest.mark.parametrize("split", ["halves", None], ids=["named", "the run's own"])
def test_embed_writes_the_parts_of_a_split(run, store_path, store, tmp_path, split):
    npz.embed(run[0], store_path, tmp_path / "f.npz", split, log=_quiet)
    with np.load(tmp_path / "f.npz") as file:
        for part, expected in zip(("train", "test"), _halves(run[0], store), strict=True):
            rows = file["part"] == part
            np.testing.assert_allclose(file["features"][rows], expected[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(file["labels"][rows], expected[1])
            assert [store.names[i] for i in store.select("halves", part)] == file["names"][rows].tolist()
    with pytest.raises(errors.DataError, match="no split 'thirds'.*halves"):
        npz.embed(run[0], store_path, tmp_path / "g.npz", "thirds")
    assert os.listdir(tmp_path).count("g.npz") == 0


def test_embed_leaves_files_alone(run, store_path, tmp_path, monkeypatch):
    out = tmp_path / "f.npz"
    out.write_text("mine")
    with pytest.raises(errors.DataError, match="exists already; .*--overwrite"):
        npz.embed(run[0], store_path, out)

    # A failure half-way: what was there stays, and nothing else does.
    before = sorted(os.listdir(tmp_path))

    def no_space(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", no_space)
        with pytest.raises(errors.DataError, match="No space left"):
            npz.embed(run[0], store_path, out, overwrite=True)
    assert out.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == before

    npz.embed(run[0], store_path, out, overwrite=True, log=_quiet)
    assert len(np.load(out)["labels"]) == 24
    assert sorted(os.listdir(tmp_path)) == before


def test_embed_writes_no_npz_under_another_suffix(run, store_path, tmp_path):
    with pytest.raises(errors.ConfigError, match=r"--out .*f.txt: an .npz file is written"):
        npz.embed(run[0], store_path, tmp_path / "f.txt")


def test_embed_finds_out_first_that_it_cannot_write(run, store_path, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "extract", lambda *a, **k: pytest.fail("features were computed for nothing"))
    with pytest.raises(errors.DataError, match=r"nowhere/f.npz: cannot be written: No such file"):
        npz.embed(run[0], store_path, tmp_path / "nowhere" / "f.npz")


def test_draws_join_the_training_part(run, store_path, store):
    encoder, config, _ = features.load_encoder(run[0])
    (train, train_labels), (test, test_labels) = _halves(run[0], store)
    tables = [train] + [
        features.extract(encoder, config, store, store.select("halves", "train"), draw=i, seed=3) for i in range(2)
    ]
    reference = KNeighborsClassifier(1, metric="cosine").fit(np.concatenate(tables), np.tile(train_labels, 3))
    result = protocols.evaluate(run[0], store_path, protocol="knn", transform="none", draws=2, seed=3, log=_quiet)
    assert result["top1"] == pytest.approx(100.0 * reference.score(test, test_labels))
    assert result["n_train"] == 12  # sequences
    assert result["settings"]["draws"] == 2


def test_the_linear_probe_is_shown_the_draws_in_turn(run, store_path, monkeypatch):
    seen = []
    fit = linear.fit
    monkeypatch.setattr(linear, "fit", lambda x, *args, **options: (seen.append(x), fit(x, *args, **options))[1])
    protocols.evaluate(run[0], store_path, draws=2, epochs=3, log=_quiet)
    assert seen[0].shape == (3, 12, 16)
    assert not any(np.array_equal(seen[0][i], seen[0][j]) for i, j in [(0, 1), (0, 2), (1, 2)])


@pytest.mark.skipif("S2VFAST_DATA" not in os.environ, reason="S2VFAST_DATA (a folder with nw_ucla) is not set")
def test_protocols_on_real_features_agree_with_sklearn(tmp_path):
    """NW-UCLA, cross-view, an untrained encoder: kNN equal, the linear probe within 3 points."""
    source = nwucla.open_source(Path(os.environ["S2VFAST_DATA"]) / "nw_ucla", None)
    sequences = (s for item in source.items for s in source.read(item))
    options = {"layout": source.layout, "classes": source.classes, "splits": source.splits}
    path = write_store(tmp_path / "store", sequences, **options, source={}, dropped=[])
    store = Store.open(path)
    rundir.create(tmp_path / "run", presets.load("nwucla"), store)

    encoder, config, _ = features.load_encoder(tmp_path / "run", untrained=True)
    ids = [store.select("xview", part) for part in ("train", "test")]
    train, test = (features.extract(encoder, config, store, i).numpy() for i in ids)
    assert (train.shape[0], test.shape[0]) == (1020, 464)
    scaler = StandardScaler().fit(train)
    regression = LogisticRegression(max_iter=3000).fit(scaler.transform(train), store.labels[ids[0]])
    neighbours = KNeighborsClassifier(1, metric="cosine").fit(train, store.labels[ids[0]])
    call = {"run_dir": tmp_path / "run", "store_path": path, "split": "xview", "untrained": True, "log": _quiet}

    knn_result = protocols.evaluate(protocol="knn", transform="none", **call)
    assert knn_result["top1"] == pytest.approx(100.0 * neighbours.score(test, store.labels[ids[1]]))
    linear_result = protocols.evaluate(protocol="linear", **call)
    expected = 100.0 * regression.score(scaler.transform(test), store.labels[ids[1]])
    assert linear_result["top1"] == pytest.approx(expected, abs=3.0)
    assert linear_result["top1"] > 40.0  # of ten classes
    assert linear_result["top5"] > 85.0
