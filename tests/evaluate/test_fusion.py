"""Runs of several streams: scores are added with weights."""

import pytest
import torch

import s2vfast.errors as errors
from s2vfast.evaluate import features, fusion, linear, protocols


@pytest.fixture
def runs(tmp_path, store, small):
    folders = [tmp_path / "joint", tmp_path / "motion"]
    for folder, stream in zip(folders, ("joint", "motion"), strict=True):
        small.make_run(folder, store, data__stream=stream)
    return folders


def test_scores_are_added(runs, store_path, store):
    total = 0.0
    ids, labels = [store.select("halves", part) for part in ("train", "test")], torch.from_numpy(store.labels.copy())
    for run, weight in zip(runs, (0.5, 2.0), strict=True):
        encoder, config, _ = features.load_encoder(run)
        train, test = (features.extract(encoder, config, store, part) for part in ids)
        total = total + weight * linear.fit(train, labels[ids[0]], classes=len(store.classes)).scores(test)
    result = fusion.evaluate_streams(runs, store_path, weights=[0.5, 2.0])
    assert result["top1"] == pytest.approx(100 * float((total.argmax(1) == labels[ids[1]]).float().mean()))
    for run, stream in zip(runs, result["streams"], strict=True):
        assert stream["run"] == str(run)
        assert stream["top1"] == protocols.evaluate(run, store_path, fast=False)["top1"]
    assert [stream["weight"] for stream in result["streams"]] == [0.5, 2.0]
    alone = fusion.evaluate_streams(runs, store_path, weights=[0.0, 1.0])
    assert alone["top1"] == result["streams"][1]["top1"]


def test_what_cannot_be_added_is_refused(runs, store_path):
    with pytest.raises(errors.ConfigError, match="protocol: 'knn' is not one of linear, classify"):
        fusion.evaluate_streams(runs, store_path, protocol="knn")
    with pytest.raises(errors.ConfigError, match="--stream_weights: 1 for 2 runs"):
        fusion.evaluate_streams(runs, store_path, weights=[1.0])
    with pytest.raises(errors.ConfigError, match="--streams: 1 run"):
        fusion.evaluate_streams(runs[:1], store_path)
