"""A profile says where the time goes and leaves nothing behind."""

import json

import pytest
import torch

from s2vfast.data.store import Store
from s2vfast.train import profile
from s2vfast.train.loop import train
from s2vfast.train.trainer import Trainer


def test_leaves_the_run_as_it_was(tmp_path, tiny_store, tiny_config):
    train(tiny_config(log_every=1), tiny_store, tmp_path / "plain")
    train(tiny_config(log_every=1), tiny_store, tmp_path / "profiled", profile=3)
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("plain", "profiled")]
    assert lines[0] == lines[1]
    found = json.loads((tmp_path / "profiled" / "profile" / "summary.json").read_text())
    assert set(found["host_ms"]) == {*profile.STAGES, "other"}
    assert all(found["host_ms"][name] > 0 for name in profile.STAGES)
    trace = json.loads((tmp_path / "profiled" / "profile" / "trace.json").read_text())
    assert any(event.get("name") == "s2vfast: forward" for event in trace["traceEvents"])
    assert "of the bare step's throughput" in (tmp_path / "profiled" / "profile" / "table.txt").read_text()


def test_a_run_near_its_end_can_be_profiled(tmp_path, tiny_store, tiny_config):
    trainer = Trainer(tiny_config(), Store.open(tiny_store))
    for _ in range(trainer.total_steps - 1):
        trainer.run_step()
    before = {name: tensor.clone() for group in trainer.state().values() for name, tensor in group.items()}
    profile.run_profile(trainer, tmp_path, 2, writes=False)
    assert trainer.step == trainer.total_steps - 1
    after = {name: tensor for group in trainer.state().values() for name, tensor in group.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not list(tmp_path.iterdir())


def test_kernels_that_overlap_are_counted_once():
    assert profile._union([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == pytest.approx(4.0)
