"""A run as one file is the run: the same features, classes and results; what is damaged is refused."""

import json
import struct

import numpy as np
import pytest
import torch

import s2vfast
from s2vfast import cli, errors
from s2vfast.data.synth import generate
from s2vfast.evaluate import sharing
from s2vfast.train import packed
from s2vfast.train.loop import train

QUICK = {"data": {"split": "xsub"}, "train": {"batch": 16, "steps": 1, "threads": 1}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store, a pretrained run, one that has classes, and both packed."""
    folder = tmp_path_factory.mktemp("sharing")
    generate(folder / "store", subjects=2, views=1, repetitions=1)
    train(s2vfast.Config.from_preset("demo", QUICK), folder / "store", folder / "run")
    tree = s2vfast.presets.with_names(s2vfast.presets.read("demo"), objective="classify")
    train(s2vfast.Config.from_dict(s2vfast.presets.merge(tree, QUICK)), folder / "store", folder / "tuned")
    for name in ("run", "tuned"):
        assert cli.main(["pack", str(folder / name), "--out", str(folder / f"{name}.safetensors")]) == 0
    return folder


def test_a_packed_run_has_the_features_and_classes_of_the_run(place):
    arrays = [np.random.default_rng(0).normal(size=(30, 25, 3))]
    for name in ("run", "tuned"):
        whole, one = s2vfast.load(place / name), s2vfast.load(place / f"{name}.safetensors")
        np.testing.assert_array_equal(whole.encode(arrays), one.encode(arrays))
    assert one.predict(arrays) == whole.predict(arrays)
    assert (one.classes, one.unit, one.layout) == (whole.classes, whole.unit, whole.layout)


def test_commands_take_a_packed_run(place, tmp_path, capsys):
    results = {}
    for name in ("run", "run.safetensors"):
        words = f"evaluate {place / name} --data {place}/store --split xsub --protocol knn --json"
        assert cli.main(words.split()) == 0
        results[name] = json.loads(capsys.readouterr().out.splitlines()[-1])
    for content in results.values():
        content.pop("seconds")
        content.pop("run")
        content["pretrained_on"].pop("path")
    assert results["run"] == results["run.safetensors"]
    (place / "results.json").write_text(json.dumps(results["run"] | {"run": "x"}))
    words = f"evaluate {place}/run.safetensors --data {place}/store --split xsub --protocol finetune"
    assert cli.main(words.split()) == 2
    assert "run.safetensors is a file, under which no run can be made" in capsys.readouterr().err
    settings = "--train.steps 1 --train.batch 16 --data.split xsub"
    words = f"pretrain --config demo --data {place}/store --init {place}/run.safetensors --out {tmp_path}/r {settings}"
    assert cli.main(words.split()) == 0


def test_the_network_alone_is_packed_unless_everything_is_asked_for(place, tmp_path):
    assert set(packed.read_tensors(place / "run.safetensors")) == {
        name for name in packed.read_tensors(place / "run.safetensors") if name.startswith("teacher.")
    }
    sharing.pack(place / "run", tmp_path / "all.safetensors", everything=True)
    names = set(packed.read_tensors(tmp_path / "all.safetensors"))
    assert {name.partition(".")[0] for name in names} == {"teacher", "student"}
    again = tmp_path / "again.safetensors"
    sharing.pack(place / "run", again)
    assert again.read_bytes() == (place / "run.safetensors").read_bytes()


def test_no_path_of_this_machine_is_in_it(place):
    content = (place / "tuned.safetensors").read_bytes()
    assert str(place).encode() not in content
    assert packed.read(place / "tuned.safetensors").about["store"]["path"] == "store"


def test_the_card_says_what_it_is(place, capsys):
    assert cli.main(["pack", str(place / "tuned.safetensors"), "--card"]) == 0
    card = capsys.readouterr().out
    assert "| objective | classify |" in card
    assert "| classes | 27: wave, raise hand" in card
    assert "| last numbers | step 1, epoch" in card
    (code,) = card.split("```")[1::2]
    assert "model.predict(arrays)" in code
    assert cli.main(["pack", str(place / "run"), "--card", "--results", f"ours={place / 'results.json'}"]) == 0
    assert "| ours |" in capsys.readouterr().out


def damaged(content, kind):
    if kind == "one bit":
        return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    if kind == "config":
        return content.replace(b"heads", b"hEads", 1)
    if kind == "short":
        return content[:-100]
    if kind == "nothing":
        return b""
    if kind == "huge header":
        return struct.pack("<Q", 2**60) + content[8:]
    return json.dumps({"a": 1}).encode()


@pytest.mark.parametrize("kind", ["one bit", "config", "short", "nothing", "huge header", "another file"])
def test_what_is_damaged_is_refused(kind, place, tmp_path):
    file = tmp_path / "file.safetensors"
    file.write_bytes(damaged((place / "run.safetensors").read_bytes(), kind))
    message = "damaged: its SHA-256|holds no run; the folder of a run is expected|of another version|no such field"
    with pytest.raises(errors.S2vfastError, match=message):
        s2vfast.load(file)


def test_a_file_of_other_weights_is_no_run(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(errors.CheckpointError, match="holds no run; the folder of a run is expected, or a file that"):
        s2vfast.load(tmp_path / "weights.pth")


def test_what_cannot_be_packed(place, tmp_path, capsys):
    file = tmp_path / "a.safetensors"
    file.write_text("mine")
    for words, code, message in (
        (f"{place}/run --out {file}", 1, "is there already; name another file, or give --overwrite"),
        (f"{place}/run --out {tmp_path}/a.zip", 2, "a FILE.safetensors is expected"),
        (f"{place}/run", 2, "--out: needed, the FILE.safetensors to write"),
        (f"{place}/nowhere --out {tmp_path}/b.safetensors", 1, "no run here"),
    ):
        assert cli.main(["pack", *words.split()]) == code
        assert message in capsys.readouterr().err
    assert file.read_text() == "mine"
