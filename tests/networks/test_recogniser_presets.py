"""The presets of recognisers on NW-UCLA: a stream or a mode begins to learn by the one option that names it."""

import json
import math

import pytest

from s2vfast import cli

# Batches of 4 and two steps; the store has no cross-view split. All else is the preset's.
FEW = "--train.steps 2 --train.batch 4 --train.log_every 1 --train.device cpu --data.split xsub".split()


@pytest.mark.parametrize("method", ["infogcn", "freqmixformer"])
@pytest.mark.parametrize("option", [("--data.stream", "bone_motion"), ("--model.k", "2")], ids=str)
def test_a_stream_begins_to_learn(store, tmp_path, method, option):
    words = ["pretrain", "--config", f"nwucla_{method}", *option, *FEW]
    assert cli.main([*words, "--data", str(store), "--out", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
