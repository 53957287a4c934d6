"""A run that begins with the weights of another run, of a file of ours, of a published checkpoint."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from s2vfast import errors, presets
from s2vfast.compat.initial import read_initial
from s2vfast.config import Config
from s2vfast.data.store import Store
from s2vfast.evaluate import features, leakage
from s2vfast.train import checkpoint, rundir
from s2vfast.train.loop import train

from ..skeletons import chain
from .published import config as published_config
from .published import mae, model, released, write


def pretrain(cli, place, out, more=""):
    return cli(f"pretrain --config {place}/tiny.yaml --data {place}/store --out {out} {more}")


def tiny(place, **sections):
    return Config.from_dict(presets.merge(presets.read(place / "tiny.yaml"), sections))


def encoder(run, step=None):
    tensors = checkpoint.load_latest(run, groups=("model",)).tensors["model"]
    return {name.removeprefix("teacher."): value for name, value in tensors.items() if name.startswith("teacher.")}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_begins_with_anothers_weights(place, tmp_path, cli):
    code, out, _ = pretrain(cli, place, tmp_path / "more", f"--init {place}/run --train.seed 5 --checkpoint.keep 9")
    assert code == 0
    assert any(line.startswith("begins with ") and f"tensors from {place}/run" in line for line in out)
    tensors = safetensors.torch.load_file(tmp_path / "more/checkpoints/step-00000000/model.safetensors")
    start = {name.removeprefix("student.encoder."): value for name, value in tensors.items()
             if name.startswith("student.encoder.")}  # fmt: skip
    assert equal(start, encoder(place / "run")), "the evaluated encoder, in the student and in the teacher"
    assert equal({name: tensors[f"teacher.{name}"] for name in start}, start)
    about = rundir.read(tmp_path / "more")["init"]
    assert (about["source"], about["step"], about["absent"], about["unused"]) == (str(place / "run"), 8, [], [])
    assert [(entry["split"], entry["part"], entry["labels"]) for entry in about["seen"]] == [("xsub", "train", False)]


def test_going_on_reads_nothing_again(place, tmp_path, cli):
    shutil.copytree(place / "run", tmp_path / "source")
    assert pretrain(cli, place, tmp_path / "once", f"--init {tmp_path}/source --checkpoint.keep 9")[0] == 0
    shutil.copytree(tmp_path / "once", tmp_path / "killed")
    for step in (3, 6, 8):  # killed before its first step was saved
        shutil.rmtree(tmp_path / f"killed/checkpoints/step-{step:08d}")
    shutil.rmtree(tmp_path / "source")
    code, out, _ = cli(f"pretrain --resume --out {tmp_path}/killed --init nowhere")
    assert code == 0
    assert "--init nowhere is left aside" in out[0]
    names = ["metrics.jsonl", *(f"checkpoints/step-0000000{step}/model.safetensors" for step in (0, 3, 8))]
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "once" / name).read_bytes(), name


def test_stopped_before_its_weights_were_saved(place, tmp_path, cli):
    assert pretrain(cli, place, tmp_path / "run", f"--init {place}/run")[0] == 0
    shutil.rmtree(tmp_path / "run/checkpoints")
    code, _, err = cli(f"pretrain --resume --out {tmp_path}/run")
    assert code == 1
    assert "was stopped before it had saved the weights" in err[-1]


def test_files_of_ours_and_of_others(place, tmp_path):
    layout, config = Store.open(place / "store").layout, tiny(place)
    expected = encoder(place / "run")
    whole = max((place / "run/checkpoints").glob("step-*/model.safetensors"))
    torch.save({"state_dict": expected, "epoch": 3}, tmp_path / "encoder.pth")
    for path in (whole, tmp_path / "encoder.pth"):
        state, about, notes = read_initial(path, config, layout, [])
        assert equal(state, expected)
        assert len(about["sha256"]) == 64
        assert "nobody knows which sequences" in notes[1]
    for naming, wrap in (("skeleton2vec", released), ("mamp", mae)):
        made = model(naming)
        path = write(tmp_path / f"{naming}.pth", wrap(made))
        state, about, _ = read_initial(path, published_config(naming), chain(5), [])
        source = made.teacher if naming == "skeleton2vec" else made.encoder
        assert equal(state, source.state_dict())
        assert about["published"] == naming


def test_part_of_a_network_is_said(place, tmp_path):
    layout, config = Store.open(place / "store").layout, tiny(place)
    expected = encoder(place / "run")
    lost, *kept = expected
    safetensors.torch.save_file({name: expected[name] for name in kept} | {"extra": torch.ones(2)}, tmp_path / "some")
    state, about, notes = read_initial(tmp_path / "some", config, layout, [])
    assert (about["absent"], about["unused"], about["tensors"]) == ([lost], ["extra"], len(kept))
    assert all(torch.equal(state[name], expected[name]) for name in kept)
    assert not torch.equal(state[lost], expected[lost]) or not expected[lost].any()
    assert any(line.startswith("not in ") and lost in line for line in notes)
    assert any(line.startswith("not of this network, and left out: extra") for line in notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"dim": 16}}, r"is \[.*8.*\], this network has \[.*16.*\]; the sections data and model"),
        ({"model": {"name": "stgcn"}}, "its network is transformer, that of the new run is stgcn"),
    ],
)
def test_another_network_is_refused(place, changes, reason):
    tree = presets.read(place / "tiny.yaml")
    if "name" in changes["model"]:
        tree = presets.with_names(tree, model="stgcn", objective="classify")
        tree = presets.merge(tree, {"objective": {"drop_path": 0.0}})
    else:
        tree = presets.merge(tree, changes)
    store = Store.open(place / "store")
    with pytest.raises(errors.CheckpointError, match=reason):
        read_initial(place / "run", Config.from_dict(tree), store.layout, store.classes)


def test_what_no_weight_shows_is_said(place):
    config = tiny(place, model={"heads": 1}, data={"center": "frame"})
    _, _, notes = read_initial(place / "run", config, Store.open(place / "store").layout, [])
    assert any("model.heads 2 (here 1), data.center first (here frame)" in line for line in notes)


def test_what_cannot_be_read_is_one_line_and_makes_no_run(place, tmp_path, cli):
    (tmp_path / "text.pth").write_text("weights")
    for source in ("text.pth", "nowhere", "."):
        code, _, err = pretrain(cli, place, tmp_path / "run", f"--init {tmp_path / source}")
        assert code == 1, source
        assert len(err) == 1
        assert not (tmp_path / "run").exists()


def test_labels_that_the_weights_have_learned_are_no_test(place, tmp_path, cli):
    """Features of a run that began with a supervised network know the labels of that one."""
    store = Store.open(place / "store")
    assert pretrain(cli, place, tmp_path / "classes", "--objective classify --objective.drop_path 0")[0] == 0
    more = f"--init {tmp_path}/classes --data.split all"
    assert pretrain(cli, place, tmp_path / "run", more)[0] == 0
    config, about = rundir.read_config(tmp_path / "run"), rundir.read(tmp_path / "run")
    np.testing.assert_array_equal(leakage.labelled(config, about, store), store.select("xsub", "train"))
    code, _, err = cli(f"evaluate {tmp_path}/run --split xsub --train_part test --test_part train")
    assert code == 1
    assert "was trained on the labels of" in err[-1]
    code, _, err = cli(f"evaluate {tmp_path}/run --split xsub --untrained")
    assert code == 2
    assert "began from the weights of" in err[-1]
    code, out, _ = cli(f"evaluate {tmp_path}/run --split xsub --protocol knn --json")
    assert code == 0
    assert json.loads(out[-1])["overlap"] == len(store.select("xsub", "test"))
    assert features.load_encoder(tmp_path / "run")[2] == 8


def test_from_python(place, tmp_path):
    calls = []

    def init(config, layout, classes):
        calls.append(layout.name)
        return read_initial(place / "run", config, layout, classes)

    assert train(tiny(place), place / "store", tmp_path / "run", init=init).finished
    assert train(None, None, tmp_path / "run", resume=True, init=init).finished
    assert len(calls) == 1
