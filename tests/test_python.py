"""docs/python.md runs as it stands, and a loop of one's own computes what the trainer computes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import s2vfast
from s2vfast import errors
from s2vfast.data.synth import generate
from s2vfast.train.loop import train

ROOT = Path(__file__).parents[1]
BLOCKS = dict(
    re.findall(r'```python title="([\w.]+)"\n(.*?)```', (ROOT / "docs/python.md").read_text("utf-8"), re.DOTALL)
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the store and the runs that the page names."""
    folder = tmp_path_factory.mktemp("python")
    generate(folder / "store", subjects=2, views=1, repetitions=1)
    changes = {"data": {"split": "xsub"}, "train": {"batch": 16, "steps": 1, "threads": 1}}
    train(s2vfast.Config.from_preset("demo", changes), folder / "store", folder / "runs/pretrained")
    tree = s2vfast.presets.with_names(s2vfast.presets.read("demo"), objective="classify")
    config = s2vfast.Config.from_dict(s2vfast.presets.merge(tree, changes))
    train(config, folder / "store", folder / "runs/tuned")
    return folder


@pytest.mark.parametrize(
    ("before", "environment", "waits"),
    [
        ("", {}, "1000 None"),
        ("", {"GOMP_SPINCOUNT": "7"}, "7 None"),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "None ACTIVE"),
        ("sys.modules['torch'] = None;", {}, "None None"),  # it has been read
    ],
)
def test_threads_wait_without_spinning_unless_somebody_says_how(before, environment, waits):
    names = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
    script = f"import os, sys; {before} import s2vfast; print(*map(os.environ.get, {names}))"
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", script], env=clean | environment, capture_output=True, text=True)
    assert done.stdout.strip() == waits, done.stderr


def run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(BLOCKS[name], name, "exec"), names)
    return names


@pytest.mark.parametrize("name", ["features.py", "operation.py"])
def test_the_page_runs(name, place, monkeypatch, capsys):
    names = run(name, place, monkeypatch)
    if name == "features.py":
        assert names["features"].shape == (2, names["model"].config.model.dim)
        assert capsys.readouterr().out.count("\n") == 2 + 50 // 5


def test_a_loop_of_ones_own_has_the_losses_and_the_teacher_of_the_trainer(place, monkeypatch):
    names = run("loop.py", place, monkeypatch)
    loop = BLOCKS["loop.py"].partition("for step in")
    assert len(loop[0].splitlines()) + len(loop[2].splitlines()) <= 26
    optim = {"lr": 1e-3, "lr_min": 1e-3, "warmup_epochs": 0, "decay": "all", "beta2": 0.95, "weight_decay": 0.05}
    changes = {"data": {"split": "xsub"}, "train": {"batch": 16, "steps": 4}, "optim": {**optim, "clip": 4.0}}
    trainer = s2vfast.Trainer(s2vfast.Config.from_preset("demo", changes), names["store"], torch.device("cpu"))
    np.testing.assert_allclose(names["losses"], [trainer.run_step().loss for _ in range(4)], rtol=1e-5)
    saved = torch.load(place / "encoder.pth", weights_only=True)
    for name, tensor in trainer.objective.teacher.state_dict().items():
        # AdamW divides by the root of the second moment: where a gradient is all rounding, so is its first step.
        torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=2e-6)


def test_an_average_follows():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = s2vfast.EMA(module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    module(torch.randn(8, 2))
    ema.update(0.75)
    for name, tensor in ema.average.state_dict().items():
        now = module.state_dict()[name]
        expected = 0.75 * before[name] + 0.25 * now if tensor.is_floating_point() else now
        torch.testing.assert_close(tensor, expected)
    assert ema.average.training is False
    assert not any(parameter.requires_grad for parameter in ema.average.parameters())
    message = r"EMA: 0.weight is of shape \[2, 2\] in the module and missing in its average"
    with pytest.raises(errors.ConfigError, match=message):
        s2vfast.EMA(module, nn.BatchNorm1d(2))


def test_a_preset_is_changed_by_fields():
    config = s2vfast.Config.from_preset("nwucla", {"train": {"batch": 7}})
    assert config.train.batch == 7
    assert config.model == s2vfast.presets.load("nwucla").model
    with pytest.raises(errors.ConfigError, match=r"train\.batch"):
        s2vfast.Config.from_preset("nwucla", {"train": {"batch": 0}})
