"""Runs that version 0.1 made: their configs load, they go on to the same numbers, they are measured as they were."""

import json
import shutil
from pathlib import Path

import pytest

from s2vfast import presets
from s2vfast.data.synth import generate
from s2vfast.evaluate import protocols
from s2vfast.train import rundir
from s2vfast.train.loop import train

RUNS = Path(__file__).parent / "data" / "runs_0_1"


@pytest.fixture
def runs(tmp_path):
    """(folder of both runs, the store that they were made with)."""
    shutil.copytree(RUNS, tmp_path / "runs")
    generate(tmp_path / "store", subjects=2, views=1, repetitions=1)
    return tmp_path / "runs", tmp_path / "store"


def test_a_pretraining_goes_on_to_the_same_numbers(runs):
    folder, store = runs
    assert train(None, store, folder / "pretrained", resume=True).finished
    found = [json.loads(line) for line in (folder / "pretrained" / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (folder / "whole_metrics.jsonl").read_text().splitlines()]
    assert len(found) == len(expected) == 8
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-6), ours["step"]  # another processor rounds otherwise


def test_a_fine_tuned_run_is_measured_as_it_was(runs):
    folder, store = runs
    result = protocols.evaluate(folder / "finetuned", store, protocol="classify", device="cpu", log=lambda line: None)
    assert result["top1"] == pytest.approx(100 / 27)
    assert result["step"] == 4
    with pytest.raises(ValueError, match="was fine-tuned on the labels of 27"):
        protocols.evaluate(folder / "finetuned", store, train_part="test", test_part="train", device="cpu")


def test_configs_of_0_1_are_read():
    config = rundir.read_config(RUNS / "pretrained")
    assert (config.model.name, config.objective.name, config.objective.decoder_depth) == (
        "transformer",
        "skeleton2vec",
        1,
    )
    tree = presets.parse("model: {dim: 32, decoder_depth: 2}\nobjective: {name: mamp, top_k: 3}", "old")
    assert tree == {"model": {"dim": 32}, "objective": {"name": "mamp", "decoder_depth": 2}}
