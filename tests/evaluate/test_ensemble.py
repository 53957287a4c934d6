"""Runs of several streams name classes together; weights never look at what is measured."""

import json

import pytest
import torch
import torch.nn.functional as F

from s2vfast import cli, errors
from s2vfast.data.synth import generate
from s2vfast.evaluate import features, linear, probe, protocols, ridge
from s2vfast.evaluate.ensemble import evaluate_ensemble, fitted_weights

TINY = "--data.frames 8 --data.bodies 2 --train.batch 4 --train.threads 1 --train.steps 2 --optim.lr 0.01".split()
NETWORKS = {
    "infogcn": ["--config", "ntu60_infogcn", "--model.base", "8", "--model.stages", "[1,1]"],
    "freqmixformer": ["--config", "ntu60_freqmixformer", "--model.base", "40", "--model.stages", "[1,1]"],
}
STREAMS = [("infogcn", "joint"), ("infogcn", "bone"), ("freqmixformer", "motion"), ("freqmixformer", "bone_motion")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store, and a run a stream."""
    path = tmp_path_factory.mktemp("ensemble")
    generate(path / "store", subjects=2, views=1, repetitions=1)
    for network, stream in STREAMS:
        words = ["pretrain", *NETWORKS[network], *TINY, "--data.stream", stream, "--train.device", "cpu"]
        if network == "freqmixformer":
            words += ["--data.train_steps", "[]", "--data.test_steps", "[]"]
        words += ["--model.k", "2" if stream == "bone" else "8", "--optim.warmup_epochs", "0"]
        assert cli.main([*words, "--data", str(path / "store"), "--out", str(path / stream)]) == 0
    return path


def of(folder, **options):
    return evaluate_ensemble([folder / stream for _, stream in STREAMS], folder / "store", log=str, **options)


def test_every_stream_is_measured_as_it_is_alone(folder):
    result = of(folder, weights=[1, 0, 0, 0])
    for (network, stream), one in zip(STREAMS, result["runs"], strict=True):
        alone = protocols.evaluate(folder / stream, folder / "store", None, "classify", log=str)
        assert (one["network"], one["stream"], one["top1"]) == (network, stream, alone["top1"])
    assert [one["k"] for one in result["runs"]] == [8, 2, 8, 8]
    assert result["top1"] == result["runs"][0]["top1"], "the others have no weight"
    assert {row["measure"] for row in result["table"]} >= {"infogcn, bone, k = 2", "ensemble"}


def test_the_command(folder, capsys, tmp_path):
    runs = [str(folder / stream) for _, stream in STREAMS]
    words = ["evaluate", "--weights", "0.6,0.6,0.4,0.4", "--json", "--out", str(tmp_path / "x.json")]
    assert cli.main([*words, "--ensemble", *runs]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["weights"] == [0.6, 0.6, 0.4, 0.4]
    assert json.loads((tmp_path / "x.json").read_text())["top1"] == printed["top1"]
    assert cli.main(["evaluate", runs[0], "--ensemble", runs[1]]) == 0
    assert "weights folds" in capsys.readouterr().out
    assert cli.main(["evaluate", runs[0], "--weights", "1"]) == 2
    assert "--weights: they are an ensemble's" in capsys.readouterr().err


def test_weights_do_not_look_at_what_is_measured(folder, monkeypatch):
    """One label for all of the part that is measured: the same weights."""
    before = of(folder)
    open_context = protocols.EvalContext.open.__func__

    def relabelled(cls, *args, **kwargs):
        context = open_context(cls, *args, **kwargs)
        context.labels = (context.labels[0], context.labels[1][:1].expand(len(context.labels[1])))
        return context

    monkeypatch.setattr(protocols.EvalContext, "open", classmethod(relabelled))
    after = of(folder)
    assert after["weights"] == before["weights"]
    assert 2 <= len(after["folds"]) <= 5


def test_the_better_run_gets_the_weight():
    labels = torch.arange(60) % 3
    good = F.log_softmax(4.0 * F.one_hot(labels, 3).double(), 1)
    bad = F.log_softmax(4.0 * F.one_hot((labels + 1) % 3, 3).double(), 1)
    weights, folds = fitted_weights(torch.stack([good, bad]), labels)
    assert weights[0] > 1.0
    assert weights[1] == 0.0
    assert [one["top1"] for one in folds] == [100.0] * 5
    assert fitted_weights(torch.stack([good, bad]), labels) == (weights, folds)


def test_what_cannot_be_added_is_refused(folder, tmp_path):
    generate(tmp_path / "store", subjects=3, views=1, repetitions=1)
    runs = [folder / "joint", folder / "bone"]
    with pytest.raises(errors.S2vfastError, match="was trained on the store"):
        evaluate_ensemble(runs, tmp_path / "store", log=str)
    with pytest.raises(errors.ConfigError, match="was trained on split 'xsub', not 'xview'"):
        evaluate_ensemble(runs, folder / "store", "xview", log=str)
    with pytest.raises(errors.ConfigError, match="--weights: 1,1,1; 2 numbers of 0 or more"):
        evaluate_ensemble(runs, folder / "store", weights=[1, 1, 1], log=str)
    with pytest.raises(errors.ConfigError, match="--ensemble: 1 run"):
        evaluate_ensemble(runs[:1], folder / "store", log=str)


def test_probes_are_added(tmp_path, store, store_path, small):
    """As published for joints, bones and motion: equal weights, unless others are given."""
    folders = [tmp_path / "joint", tmp_path / "motion"]
    for path, stream in zip(folders, ("joint", "motion"), strict=True):
        small.make_run(path, store, data__stream=stream)
    ids, labels = [store.select("halves", part) for part in ("train", "test")], torch.from_numpy(store.labels.copy())
    how = {"protocol": "linear", "log": str, "device": "cpu", "epochs": 3}
    tables = []
    for path in folders:
        encoder, config, _ = features.load_encoder(path)
        tables.append([features.extract(encoder, config, store, part) for part in ids])
    for weights, factors in ((None, (1.0, 1.0)), ([0.5, 2.0], (0.5, 2.0))):
        total = 0.0
        for (train, test), factor in zip(tables, factors, strict=True):
            fitted = linear.fit(train, labels[ids[0]], classes=len(store.classes), epochs=3)
            total = total + factor * F.log_softmax(fitted.scores(test).double(), dim=1)
        result = evaluate_ensemble(folders, store_path, weights=weights, **how)
        assert result["weights_from"] == ("given" if weights else "equal")
        assert result["top1"] == pytest.approx(100 * float((total.argmax(1) == labels[ids[1]]).float().mean()))
        alone = [protocols.evaluate(path, store_path, linear=("published",), **how)["top1"] for path in folders]
        assert [one["top1"] for one in result["runs"]] == alone
    for name, fit in (("probe", probe.fit), ("ridge", ridge.fit)):
        total = sum(
            F.log_softmax(fit(train, labels[ids[0]], classes=len(store.classes)).scores(test).double(), dim=1)
            for train, test in tables
        )
        result = evaluate_ensemble(folders, store_path, linear=(name,), **how)
        assert result["top1"] == pytest.approx(100 * float((total.argmax(1) == labels[ids[1]]).float().mean()))
    with pytest.raises(errors.ConfigError, match="protocol: 'knn' is not one of classify, linear"):
        evaluate_ensemble(folders, store_path, protocol="knn")
