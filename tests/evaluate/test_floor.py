"""The floor: ridge regression against scikit-learn, random convolutions against loops, and the protocol."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from s2vfast import cli
from s2vfast.data.importer import import_dataset
from s2vfast.evaluate import floor, protocols, ridge, table
from s2vfast.evaluate.context import EvalContext

QUICK = {"device": "cpu", "log": lambda line: None}


def blobs(n, features, copies=1, classes=3, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, features, generator=numbers)
    x = centres[labels] * 0.5 + torch.randn(copies, n, features, generator=numbers) * torch.linspace(0.1, 9, features)
    return x + 3, labels


@pytest.mark.parametrize(("n", "features", "copies"), [(60, 7, 1), (20, 50, 1), (30, 40, 4), (30, 200, 4)])
def test_ridge_is_scikit_learns(n, features, copies):
    """With more rows and with more features; its folds too, by fitting each by hand."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = blobs(n, features, copies)
    rows, targets = x.flatten(0, 1).double(), labels.repeat(copies)
    mean, deviation = rows.mean(0), rows.std(0, unbiased=False)

    def oracle(chosen, penalty):
        fitted = chosen.repeat(copies)
        alpha = penalty * int(fitted.sum())
        standardised = ((rows - mean) / deviation)[fitted].numpy()
        return linear_model.RidgeClassifier(alpha=alpha).fit(standardised, targets[fitted].numpy())

    def decide(model, features):
        return model.decision_function(((features.double() - mean) / deviation).numpy())

    everything = torch.ones(n, dtype=torch.bool)
    single = ridge.fit(x, labels, classes=3, penalties=[0.3])
    expected = decide(oracle(everything, 0.3), x[0])
    np.testing.assert_allclose(single.scores(x[0]).numpy(), expected, atol=2e-4)
    assert single.validation is None

    fold = ridge.fold_numbers(labels)
    right = dict.fromkeys(ridge.PENALTIES, 0)
    for number in range(ridge.FOLDS):
        held = fold == number
        for penalty in right:
            guess = decide(oracle(~held, penalty), x[0][held]).argmax(1)
            right[penalty] += int((torch.from_numpy(guess) == labels[held]).sum())
    chosen = ridge.fit(x, labels, classes=3)
    assert chosen.validation == pytest.approx(100 * max(right.values()) / n)
    assert chosen.penalty == max(penalty for penalty, count in right.items() if count == max(right.values()))


def test_folds_have_some_of_every_class():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 7)
    fold = ridge.fold_numbers(labels)
    for label in range(3):
        counts = fold[labels == label].bincount(minlength=ridge.FOLDS)
        assert counts.max() - counts.min() <= 1
        assert counts.min() >= 1


def test_kernels_are_rockets():
    kernels = floor.draw_kernels(3000, channels=20, frames=64, seed=1)
    assert sum(len(group.bias) for group in kernels) == 3000
    dilations, lengths, padded = [], [], 0
    for group in kernels:
        K, _, length = group.weight.shape
        assert (length - 1) * group.dilation <= 63
        assert group.padding in (0, (length - 1) * group.dilation // 2)
        assert group.weight.sum(-1).abs().max() < 1e-5
        assert group.bias.abs().max() < 1
        counts = (group.weight != 0).any(-1).sum(-1)
        assert counts.min() >= 1
        assert counts.max() <= length
        lengths += [length] * K
        dilations += [group.dilation] * K
        padded += K * (group.padding > 0)
    assert np.bincount(lengths)[[7, 9, 11]] == pytest.approx([1000] * 3, abs=110)
    assert padded == pytest.approx(1500, abs=110)
    assert np.mean(np.array(dilations) == 1) == pytest.approx(
        np.mean([1 / math.log2(63 / (length - 1)) for length in (7, 9, 11)]), abs=0.04
    )
    assert len(floor.draw_kernels(5, channels=2, frames=4, seed=0)) > 0  # clips shorter than any kernel


def test_features_are_those_of_loops():
    x = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(0))
    for group in floor.draw_kernels(12, channels=6, frames=20, seed=2):
        features = group(x).numpy()
        K, _, length = group.weight.shape
        padded = np.pad(x.numpy(), ((0, 0), (0, 0), (group.padding, group.padding)))
        for kernel in range(K):
            for row in range(3):
                values = [
                    sum(
                        float(group.weight[kernel, place, tap]) * padded[row, channel, start + tap * group.dilation]
                        for place, channel in enumerate(group.channels[kernel].tolist())
                        for tap in range(length)
                    )
                    + float(group.bias[kernel])
                    for start in range(padded.shape[2] - (length - 1) * group.dilation)
                ]
                assert features[row, kernel] == pytest.approx(np.mean(np.array(values) > 0), abs=1e-6)
                assert features[row, K + kernel] == pytest.approx(max(values), rel=1e-4, abs=1e-5)


def test_the_protocol(run, store_path, capsys):
    result = protocols.evaluate(run[0], store_path, protocol="floor", repeats=2, confusion=True, **QUICK)
    assert [(row["features"], row["classifier"], row["copies"]) for row in result["rows"]] == [
        ("random convolutions", "ridge", 0),
        ("random convolutions", "ridge", floor.COPIES),
        ("coordinates", "ridge", 0),
        ("random convolutions", "1-NN", 0),
        ("coordinates", "1-NN", 0),
    ]
    assert result["made_by"] == max(result["rows"][:2], key=lambda row: row["validation"])
    assert result["top1"] == result["made_by"]["top1"]
    assert np.sum(result["confusion"]) == 2 * result["n_test"]
    alone = protocols.evaluate(run[0], store_path, protocol="floor", seed=1, **QUICK)
    assert alone["rows"][0]["top1"] == result["rows"][0]["top1_each"][1]
    single = protocols.evaluate(run[0], store_path, protocol="floor", seed=1, floor_draws=0, **QUICK)
    assert single["rows"] == [row for row in alone["rows"] if not row["copies"]]
    assert single["top1"] == single["rows"][0]["top1"]
    lines = [row["measure"] for row in table.rows({"floor": result})]
    assert lines[0] == "floor: random convolutions, ridge"
    assert f"floor: random convolutions, ridge, {floor.COPIES} drawn copies" in lines


def test_it_depends_on_neither_network_nor_test_labels(run, store_path):
    context = EvalContext.open(run[0], store_path, **QUICK)
    data = replace(context.config.data, frames=4, velocity=2.0, confidence=True, center="none", align="none")
    other = replace(context, config=replace(context.config, data=data))
    expected = floor.measure(context)
    assert floor.measure(other) == expected
    labels = (context.labels[0], context.labels[1].roll(1))
    shuffled = floor.measure(replace(context, labels=labels))
    assert [row.get("validation") for row in shuffled["rows"]] == [row.get("validation") for row in expected["rows"]]
    assert expected["rows"] != floor.measure(context, [1])["rows"]


@pytest.mark.slow
def test_real_recordings(real_data, tmp_path):
    """Of NW-UCLA: 91 with drawn clips and 87 without; coordinates about 70."""
    import_dataset(real_data / "nw_ucla", tmp_path / "store")
    words = ["pretrain", "--config", "nwucla", "--data", str(tmp_path / "store"), "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--train.steps", "1", "--train.batch", "2", "--optim.warmup_epochs", "0"]) == 0
    result = protocols.evaluate(tmp_path / "run", tmp_path / "store", protocol="floor", **QUICK)
    top1 = [row["top1"] for row in result["rows"]]
    assert top1[0] == pytest.approx(87, abs=2)
    assert top1[1] == pytest.approx(91.5, abs=2)
    assert result["top1"] == top1[1]
    assert top1[2] == pytest.approx(70, abs=8)
