"""Models that come with the package: each is there, whole, small, and used by its name."""

import json
import shlex
import shutil

import numpy as np
import pytest

import s2vfast
from s2vfast import cli, models
from s2vfast.train import packed


def test_the_table_has_every_file():
    assert {file.stem for file in models.FOLDER.glob(f"*{packed.SUFFIX}")} == set(models.SHIPPED)


@pytest.mark.parametrize("name", models.SHIPPED)
def test_a_model_of_the_package_is_small_whole_and_says_how_it_was_made(name, capsys):
    assert models.path(name).stat().st_size < models.MOST_BYTES
    assert packed.read_tensors(models.path(name))  # its hash is right
    commands = models.SHIPPED[name].commands
    assert shlex.split(commands[-1])[-1] == f"s2vfast/models/{name}{packed.SUFFIX}"
    for command in commands:
        assert cli.parse(shlex.split(command)[1:]) is not None
    assert cli.main(["models", name]) == 0
    printed = capsys.readouterr().out
    assert "| network |" in printed
    assert printed.endswith("\n".join(("```bash", *commands, "```")) + "\n")


def test_models_are_listed(capsys):
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(models.SHIPPED)
    assert cli.main(["models", "walks"]) == 2
    assert "walks: no model of the package; nwucla-encoder" in capsys.readouterr().err


def test_a_model_is_used_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clip = np.random.default_rng(0).normal(size=(40, 20, 3))
    assert s2vfast.load("nwucla-encoder").encode([clip]).shape == (1, 64)
    (ranking,) = s2vfast.load("nwucla").predict([clip])
    np.save("clip.npy", clip)
    for words in ("predict nwucla clip.npy --json", "predict --model nwucla clip.npy --json"):
        assert cli.main(words.split()) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert [name for name, _ in json.loads(line)["top"]] == [name for name, _ in ranking]
    assert cli.main(["predict", "--model", "nwucla"]) == 2
    assert "needed: RUN, FILES" in capsys.readouterr().err


def test_a_run_of_the_same_name_is_taken_and_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    (tmp_path / "nwucla").mkdir()  # such as the recordings
    assert models.locate("nwucla", said.append) == models.path("nwucla")
    assert not said
    (tmp_path / "nwucla" / "run.json").write_text("{}")
    assert models.locate("nwucla", said.append) == "nwucla"
    assert said == ["nwucla: the run that lies here is taken, not the model of this name in the package"]
    shutil.copy(models.path("nwucla"), tmp_path / "nwucla-encoder")
    assert models.locate("nwucla-encoder", said.append) == "nwucla-encoder"
