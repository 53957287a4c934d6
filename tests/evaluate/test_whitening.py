"""Whitening by clips of one recording: against the formula, what it is for, and what it refuses."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2vfast import errors
from s2vfast.evaluate import features, knn, protocols, whitening
from s2vfast.evaluate.context import EvalContext


def drawn(copies=4, n=60, F=6, seed=0):
    """Copies of rows that differ in their first feature most, and by pairs of rows in the second."""
    numbers = np.random.default_rng(seed)
    rows = numbers.normal(size=(n, F))
    noise = numbers.normal(size=(copies, n, F)) * np.array([30.0, *[0.1] * (F - 1)])
    return torch.from_numpy((rows + noise).astype(np.float32))


def test_it_is_the_covariance_within_groups():
    table, groups = drawn(), torch.arange(60) // 2
    whitened = whitening.fit(table, groups)(table[0]).double().numpy()
    rows = table.double().numpy().reshape(-1, 6)
    mean, deviation = rows.mean(0), rows.std(0)
    standard, group = (rows - mean) / deviation, np.tile(groups.numpy(), 4)
    within = sum(
        len(part) * np.cov(part.T, bias=True) for part in (standard[group == number] for number in range(30))
    ) / (len(rows) - 30)
    within += whitening.SHRINKAGE * np.trace(within) / 6 * np.eye(6)
    expected = (table[0].double().numpy() - mean) / deviation
    # Any root of the inverse has these products.
    np.testing.assert_allclose(
        whitened @ whitened.T, expected @ np.linalg.inv(within) @ expected.T, rtol=1e-3, atol=1e-3
    )


def test_what_differs_between_clips_of_a_recording_no_longer_decides():
    table = drawn(copies=5)
    whiten = whitening.fit(table[:4], torch.arange(60))
    labels = torch.arange(60)
    right = [
        float((knn.rank(fitted, labels, held, classes=60, transform="center")[:, 0] == labels).float().mean())
        for fitted, held in ((table[0], table[4]), (whiten(table[0]), whiten(table[4])))
    ]
    assert right[0] < 0.3
    assert right[1] > 0.95


def performances(**changes):
    columns = {"labels": [0, 0, 0, 1, 0], "subjects": [1, 1, 2, 1, 1], "repetitions": [0, 0, 0, 0, 1]}
    columns |= {"views": [1, 2, 1, 1, 1], "setups": [-1] * 5} | changes
    return SimpleNamespace(path="STORE", **{name: np.array(values) for name, values in columns.items()})


def test_performances_are_what_several_cameras_saw():
    ids = np.arange(5)
    assert whitening.groups_of(performances(), ids, "sequence").tolist() == [0, 1, 2, 3, 4]
    groups = whitening.groups_of(performances(), ids, "performance")
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": [1, 1, -1, 1, 1]}, "does not say subject, repetition and view"),
        ({"views": [1, 2, 1, -1, 1]}, "does not say subject, repetition and view"),
        ({"views": [1, 1, 1, 1, 1]}, "several sequences of one action, subject, repetition and view"),
        ({"repetitions": [0, 1, 0, 0, 2]}, "no performance that two cameras saw"),
    ],
)
def test_a_store_that_does_not_say_what_cameras_saw(changes, message):
    with pytest.raises(errors.DataError, match=f"STORE.* {message}.*; choose sequence"):
        whitening.groups_of(performances(**changes), np.arange(5), "performance")


@pytest.mark.parametrize(
    ("table", "groups", "message"),
    [
        (torch.randn(1, 5, 3), torch.arange(5), "5 groups of one clip each"),
        (torch.ones(2, 5, 3), torch.arange(5), "nothing differs within one"),
        (torch.zeros(2, 1, 8193), torch.zeros(1, dtype=torch.long), "8,193 features, and at most 8,192"),
    ],
)
def test_what_cannot_be_whitened(table, groups, message):
    with pytest.raises(errors.DataError, match=re.escape(message)):
        whitening.fit(table, groups)


def test_every_probe_reads_whitened_features(run, store_path, store):
    how = {"log": str, "device": "cpu", "whiten": "sequence"}
    context = EvalContext.open(run[0], store_path, **how)
    encoder, config, _ = features.load_encoder(run[0])
    fitted, held = store.select("halves", "train"), store.select("halves", "test")
    clips = [features.extract(encoder, config, store, fitted, draw=draw) for draw in (None, *range(whitening.DRAWS))]
    whiten = whitening.fit(torch.stack(clips), torch.arange(len(fitted)))
    torch.testing.assert_close(context.features(0), whiten(clips[0]))
    torch.testing.assert_close(context.features(0, 2), whiten(clips[3]))
    torch.testing.assert_close(context.features(1), whiten(features.extract(encoder, config, store, held)))
    result = protocols.evaluate(run[0], store_path, protocol="knn", **how)
    ranked = knn.rank(
        context.features(0), context.labels[0], context.features(1), classes=context.classes, transform="center"
    )
    assert result["top1"] == pytest.approx(100 * float((ranked[:, 0] == context.labels[1]).float().mean()))
    assert result["whiten"] == "sequence"
    with pytest.raises(errors.ConfigError, match="whiten: 'subject' is not one of none, sequence, performance"):
        EvalContext.open(run[0], store_path, whiten="subject")
    with pytest.raises(errors.ConfigError, match="--whiten sequence: --windows is 2; 1 is expected"):
        EvalContext.open(run[0], store_path, whiten="sequence", windows=2)
    with pytest.raises(errors.ConfigError, match="--whiten sequence: finetune reads no whitened features; linear, knn"):
        protocols.evaluate(run[0], store_path, protocol="finetune", **how)
