"""Every protocol on the small run: what it measures, the table, the cache, other stores, ranks."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

import s2vfast.errors as errors
from s2vfast.data import Store
from s2vfast.evaluate import (
    features,
    finetune,
    finetune_config,
    linear,
    measures,
    metrics,
    probe,
    protocols,
    ridge,
    subsets,
    table,
)
from s2vfast.evaluate.context import EvalContext
from s2vfast.train import checkpoint, distributed, rundir
from s2vfast.train.distributed import Ranks
from s2vfast.train.feed import Recordings

RECIPE = finetune_config.load(changes={"epochs": 2.0, "batch": 6, "hidden": 8})
QUICK = {"recipe": RECIPE, "epochs": 2, "log": lambda line: None}


def test_linear_and_knn_report_both_kinds(run, store_path, store):
    result = protocols.evaluate(run[0], store_path, confusion=True, **QUICK)
    encoder, config, _ = features.load_encoder(run[0])
    tables = [features.extract(encoder, config, store, store.select("halves", part)) for part in ("train", "test")]
    labels = [torch.from_numpy(store.labels[store.select("halves", part)]) for part in ("train", "test")]
    fitted = probe.fit(tables[0], labels[0], classes=3)
    expected = metrics.top_k(metrics.rank_scores(fitted.scores(tables[1])), labels[1], 1)
    assert result["probe"]["top1"] == pytest.approx(expected)
    assert result["probe"]["penalty"] == fitted.penalty
    assert np.sum(result["probe"]["confusion"]) == 12
    result = protocols.evaluate(run[0], store_path, protocol="knn", k=4, **QUICK)
    one = protocols.evaluate(run[0], store_path, protocol="knn", **QUICK)
    assert result["by_k"] == {**one["by_k"], "4": {"top1": result["top1"], "mean_class": result["mean_class"]}}
    assert one["by_k"] == {"1": {"top1": one["top1"], "mean_class": one["mean_class"]}}


def test_ridge_regression_is_fitted_to_drawn_copies_and_may_average_over_clips(run, store_path, store):
    result = protocols.evaluate(run[0], store_path, pool="statistics", layers=2, draws=2, test_draws=3, **QUICK)
    encoder, config, _ = features.load_encoder(run[0])

    def table(part, draw=None):
        ids = store.select("halves", part)
        return features.extract(encoder, config, store, ids, pool="statistics", layers=2, draw=draw)

    labels = [torch.from_numpy(store.labels[store.select("halves", part)]) for part in ("train", "test")]
    fitted = ridge.fit(torch.stack([table("train", draw) for draw in (None, 0, 1)]), labels[0], classes=3)
    scores = torch.stack([fitted.scores(table("test", draw)) for draw in (None, 0, 1, 2)])
    for part, expected in ((result["ridge"], scores[0]), (result["averaged"]["ridge"], scores.mean(0))):
        assert part["top1"] == pytest.approx(metrics.top_k(metrics.rank_scores(expected), labels[1], 1))
        assert "confusion" not in part
    assert result["ridge"]["copies"] == 2
    assert result["averaged"]["ridge"]["clips"] == 4


def test_ridge_regression_of_too_many_unknowns_is_left_out(run, store_path, monkeypatch):
    monkeypatch.setattr(ridge, "LARGEST", 11)
    lines = []
    assert "ridge" not in protocols.evaluate(run[0], store_path, **(QUICK | {"log": lines.append}))
    (line,) = lines
    assert line.startswith("--linear ridge: no ridge regression: a system of 12 unknowns; 11 are solved for at most")


def test_linear_measures_what_is_asked_for_alone(run, store_path, monkeypatch):
    everything = protocols.evaluate(run[0], store_path, **QUICK)
    for module in (linear, probe):
        monkeypatch.setattr(module, "fit", lambda *a, **k: pytest.fail("this was not asked for"))
    result = protocols.evaluate(run[0], store_path, linear=["ridge"], **QUICK)
    assert result["ridge"] == everything["ridge"]
    assert {"top1", "probe"}.isdisjoint(result)
    rows = table.rows({"linear": result})
    assert rows == [row for row in table.rows({"linear": everything}) if row["measure"] == "linear probe (ridge)"] != []
    with pytest.raises(
        errors.ConfigError, match="test_draws: 1; scores of ridge .* linear is published, probe without"
    ):
        protocols.evaluate(run[0], store_path, linear=["published", "probe"], test_draws=1, **QUICK)
    monkeypatch.setattr(ridge, "LARGEST", 11)
    with pytest.raises(errors.ConfigError, match="--linear ridge: no ridge regression: a system of 12 unknowns"):
        protocols.evaluate(run[0], store_path, linear=["ridge"], **QUICK)


def test_repeats_are_mean_and_deviation(run, store_path):
    each = [protocols.evaluate(run[0], store_path, seed=seed, **QUICK) for seed in (3, 4, 5)]
    found = protocols.evaluate(run[0], store_path, seed=3, repeats=3, confusion=True, **QUICK)
    values = [one["top1"] for one in each]
    assert found["top1_each"] == values
    assert found["top1"] == pytest.approx(np.mean(values))
    assert found["top1_std"] == pytest.approx(np.std(values, ddof=1))
    assert np.sum(found["confusion"]) == 36
    for name in ("wave", "nod", "kick"):
        assert found["per_class"][name] == pytest.approx(np.mean([one["per_class"][name] for one in each]))


@pytest.mark.parametrize("mode", ["finetune", "supervised"])
def test_fine_tuned_runs_are_measured(run, store_path, store, tmp_path, mode):
    out = tmp_path / "tuned"
    result = protocols.evaluate(run[0], store_path, protocol=mode, out=out, confusion=True, **QUICK)
    model, config, about = finetune.load_classifier(out)
    ids = store.select("halves", "test")
    clips = Recordings(config, store, torch.device("cpu")).clips(torch.from_numpy(ids))
    with torch.no_grad():
        logits = model(clips.unflatten(0, (-1, 2)))
    assert result["top1"] == pytest.approx(100 * (logits.argmax(1).numpy() == store.labels[ids]).mean())
    assert np.sum(result["confusion"]) == 12
    assert result["folders"] == [str(out)]
    assert about["finetune"]["source"]["mode"] == mode
    start = run[2] if mode == "finetune" else features.load_encoder(run[0], untrained=True)[0]
    if mode == "finetune":
        assert about["finetune"]["source"]["weights"] == finetune.digest(start)
        assert result["settings"]["recipe"]["layer_decay"] == 0.8
    else:
        assert about["finetune"]["source"]["weights"] != finetune.digest(run[2])
        assert result["settings"]["recipe"]["layer_decay"] == 1.0
    # What was made is measured as it is, by whoever has it.
    again = protocols.evaluate(out, store_path, protocol="classify", **QUICK)
    assert again["top1"] == result["top1"]
    about = protocols.evaluate(out, store_path, protocol="knn", **QUICK)["pretrained_on"]
    assert (about and about["path"]) == (str(store_path) if mode == "finetune" else None)
    with pytest.raises(errors.CheckpointError, match="pretrained run, which has no classes"):
        protocols.evaluate(run[0], store_path, protocol="classify", **QUICK)


def test_supervised_starts_from_weights_of_its_seed(run, store_path):
    result = protocols.evaluate(run[0], store_path, protocol="supervised", repeats=2, **QUICK)
    weights = {rundir.read(folder)["finetune"]["source"]["weights"] for folder in result["folders"]}
    assert len(weights) == 2
    assert len(result["top1_each"]) == 2


def test_semi_measures_lists(run, store_path, store):
    options = {"percents": (25, 50), "lists": 2, "seed": 4}
    result = protocols.evaluate(run[0], store_path, protocol="semi", **options, **QUICK)
    rows = {(row["percent"], row["measure"]): row for row in result["rows"]}
    assert set(rows) == {(p, m) for p in (25, 50) for m in ("linear", "probe", "knn", "finetune")}
    assert rows[25, "knn"]["n_train"] == 3  # a quarter of four, of each of three classes
    assert rows[50, "knn"]["n_train"] == 6
    context = EvalContext.open(run[0], store_path, device="cpu", seed=4)
    for (percent, measure), row in rows.items():
        assert len(row["top1_each"]) == 2
        assert row["top1"] == pytest.approx(np.mean(row["top1_each"]))
        assert row["top1_std"] == pytest.approx(np.std(row["top1_each"], ddof=1))
        if measure == "knn":
            for number, value in enumerate(row["top1_each"]):
                ids = subsets.subset(store, "halves", percent, seed=4, number=number)
                chosen = np.searchsorted(context.ids[0], ids)
                given = (context.features(0)[chosen], context.labels[0][chosen], context.features(1), context.labels[1])
                found = measures.neighbours(*given, context, k=1, transform="center")
                assert found["top1"] == pytest.approx(value)
    sources = [rundir.read(path)["finetune"]["source"] for path in sorted((run[0] / "finetuned").iterdir())]
    assert sorted((s["labels"]["percent"], s["labels"]["number"]) for s in sources) == [
        (25, 0), (25, 1), (50, 0), (50, 1)
    ]  # fmt: skip
    assert len({s["ids"] for s in sources}) == 4


def test_all_is_one_table(run, store_path, tmp_path, monkeypatch):
    calls = []
    extract = features.extract
    monkeypatch.setattr(features, "extract", lambda *a, **k: (calls.append(k.get("pool")), extract(*a, **k))[1])
    options = {"percents": (50,), "lists": 2, "k": 3, "out": tmp_path / "all"}
    result = protocols.evaluate_all(run[0], store_path, **options, **QUICK)
    assert json.loads(json.dumps(result)) == result
    assert list(result["results"]) == list(protocols.PROTOCOLS)
    assert calls.count("mean") == 2  # once a part, for all measures
    rows = {(row["measure"], row["labels"], row["metric"]): row for row in result["table"]}
    assert rows["1-NN", 100, "top-1"]["value"] == result["results"]["knn"]["by_k"]["1"]["top1"]
    assert rows["3-NN", 100, "top-1"]["value"] == result["results"]["knn"]["top1"]
    expected = result["results"]["linear"]["probe"]["mean_class"]
    assert rows["linear probe (L-BFGS)", 100, "mean class"]["value"] == expected
    assert rows["fine-tuned, 2 lists", 50, "top-1"]["of"] == 2
    assert rows["fine-tuned, 2 lists", 50, "top-1"]["std"] is not None
    assert rows["supervised from scratch", 100, "top-1"]["std"] is None
    assert rows["retrieval, test to test", 100, "mAP"]["value"] == result["results"]["retrieval"]["test_to_test"]["map"]
    for protocol in ("linear", "knn", "finetune", "supervised"):
        assert np.sum(result["results"][protocol]["confusion"]) == 12
    text = table.text(result)
    assert "fine-tuned" in text
    assert "±" in text
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["finetune", "semi", "supervised"]


def test_fine_tuning_leaves_the_encoder_alone(run, store_path):
    """What comes after it is measured on the pretrained one, and a second seed starts where the first did."""
    alone = protocols.evaluate(run[0], store_path, protocol="retrieval", **QUICK)
    after = protocols.evaluate_all(run[0], store_path, protocols=("finetune", "retrieval"), repeats=2, **QUICK)
    assert after["results"]["retrieval"]["test_to_train"] == alone["test_to_train"]
    folders = after["results"]["finetune"]["folders"]
    weights = {rundir.read(folder)["finetune"]["source"]["weights"] for folder in folders}
    assert weights == {finetune.digest(run[2])}
    (seed,) = (seed for seed in after["results"]["finetune"]["seeds"] if seed == 2)
    lone = protocols.evaluate(
        run[0], store_path, protocol="finetune", out=run[0] / "lone", **{**QUICK, "recipe": replace(RECIPE, seed=seed)}
    )
    assert lone["top1"] == after["results"]["finetune"]["top1_each"][1]
    mine, theirs = (checkpoint.load_latest(path).tensors["model"] for path in (run[0] / "lone", folders[1]))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_cache_is_used_and_mended(run, store_path, monkeypatch):
    options = {"protocol": "knn", "cache": True, **QUICK}
    first = protocols.evaluate(run[0], store_path, **options)
    files = sorted((run[0] / "features").iterdir())
    assert len(files) == 2
    with monkeypatch.context() as patch:
        patch.setattr(features, "extract", lambda *a, **k: pytest.fail("features were computed again"))
        second = protocols.evaluate(run[0], store_path, **options)
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
        with pytest.raises(pytest.fail.Exception):  # other features have another name
            protocols.evaluate(run[0], store_path, pool="joint_time", **options)
        with pytest.raises(pytest.fail.Exception):
            protocols.evaluate(run[0], store_path, untrained=True, **options)
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
    assert protocols.evaluate(run[0], store_path, **options)["top1"] == first["top1"]
    assert files[0].read_bytes() != bytes(content)


def test_another_store_is_a_transfer(run, small, tmp_path, store_path):
    other = small.make_store(tmp_path / "other", splits=lambda names: {"few": {"train": names[:9], "test": names[9:]}})
    for protocol in ("linear", "finetune"):
        result = protocols.evaluate(run[0], other, "few", protocol, **QUICK)
        assert result["transfer"] is True
        assert result["pretrained_on"]["path"] == str(store_path)
        assert result["store"] == str(other)
        assert result["n_train"] == 9
    # What was fine-tuned has the split and the store that it was tuned on.
    tuned = result["folders"][0]
    again = protocols.evaluate(tuned, other, None, "classify", **QUICK)
    assert (again["split"], again["top1"]) == ("few", result["top1"])
    assert protocols.evaluate(run[0], store_path, protocol="knn", **QUICK)["transfer"] is False
    assert "pretrained on" in table.text(protocols.evaluate_all(run[0], other, "few", ["knn"], **QUICK))


def test_options_that_cannot_be(run, store_path):
    for options, message in [
        ({"repeats": 0}, "repeats: 0"),
        ({"lists": 0}, "lists: 0"),
        ({"semi": ["svm"]}, "semi: 'svm'"),
        ({"percents": (0,)}, "percents: 0"),
    ]:
        with pytest.raises(errors.ConfigError, match=message):
            protocols.evaluate(run[0], store_path, protocol="semi", **options)


def _rank(rank, world, folder, run_dir, store_path):
    torch.set_num_threads(1)
    distributed.make_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    options = {"ranks": Ranks(rank, world, rank), "device": "cpu", "clips": 5, "cache": True, "out": folder / "two"}
    options |= {"percents": (50,), "lists": 2, **QUICK}
    found = protocols.evaluate_all(run_dir, store_path, **options)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    encoder, config, _ = features.load_encoder(run_dir)
    table = features.extract(encoder, config, Store.open(store_path), np.arange(13), batch=3, ranks=options["ranks"])
    np.save(folder / f"rank{rank}.npy", table)
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_find_what_one_finds(run, store_path, tmp_path):
    shutil.copytree(run[0], tmp_path / "copy")
    torch.multiprocessing.spawn(_rank, (2, tmp_path, tmp_path / "copy", store_path), nprocs=2)
    options = {"percents": (50,), "lists": 2, "clips": 5, "out": tmp_path / "one", **QUICK}
    one = protocols.evaluate_all(run[0], store_path, **options)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["table"] == ranks[1]["table"]
    encoder, config, _ = features.load_encoder(run[0])
    expected = features.extract(encoder, config, Store.open(store_path), np.arange(13), batch=3)
    for rank in (0, 1):
        np.testing.assert_allclose(np.load(tmp_path / f"rank{rank}.npy"), expected, rtol=1e-5, atol=1e-6)
    assert len(one["table"]) == len(ranks[0]["table"])
    for mine, theirs in zip(one["table"], ranks[0]["table"], strict=True):
        assert mine["measure"] == theirs["measure"]
        # One of twelve sequences may lie on the border of two classes.
        assert mine["value"] == pytest.approx(theirs["value"], abs=100 / 12 + 0.1)
    lists = [
        [rundir.read(path)["finetune"]["source"]["ids"] for path in sorted((tmp_path / name / "semi").iterdir())]
        for name in ("one", "two")
    ]
    assert lists[0] == lists[1]  # the same labels at any number of ranks


def test_lists_of_a_store(store_path, store):
    found = subsets.table(store, "halves", (25, 50), seed=1, lists=3)
    assert list(found["lists"]) == ["25", "50"]
    for names in found["lists"]["50"]:
        assert sorted(store.labels[store.names.index(name)] for name in names) == [0, 0, 1, 1, 2, 2]
    assert found == subsets.table(Store.open(store_path), "halves", (25, 50), seed=1, lists=3)
    assert found["sha256"] != subsets.table(store, "halves", (25, 50), seed=2, lists=3)["sha256"]


def test_sequences_without_a_label_are_in_no_list(store):
    labels = store.labels.copy()
    labels[::3] = -1
    partly = SimpleNamespace(select=store.select, names=store.names, labels=labels)
    ids = subsets.subset(partly, "halves", 100)
    assert ids.tolist() == [i for i in store.select("halves", "train").tolist() if labels[i] >= 0]
