"""Methods from one command to the next: pretraining, a kill, ranks, evaluation, export, pictures."""

import json

import pytest

from s2vfast import presets
from s2vfast.config import Config
from s2vfast.data.store import Store
from s2vfast.data.synth import generate
from s2vfast.train.trainer import Trainer

from .calls import call, check_same_run, metrics, pretrain, pretrain_on_ranks, pretrain_with_a_kill, weights

STEPS = 6
COMMON = (
    f"--train.steps {STEPS} --optim.lr 0.005 --train.batch 8 --data.bodies 2 --optim.warmup_epochs 0 "
    "--checkpoint.every 2 --train.log_every 1 --train.threads 1 --train.device cpu"
)
METHODS = {
    "skeattnclr": "--config nwucla_skeattnclr --model.channels [8,8,16] --model.strides [1,2,2] --model.dropout 0.5 "
    # A bias before a batch norm has no gradient but rounding, of which Adam would make whole steps.
    "--data.frames 16 --objective.queue 16 --objective.dim 8 --objective.hidden 16 --optim.name sgd",
    "vicreg": "--config nwucla_vicreg --data.camera_pairs 0 --model.kernels 8 --model.dim 8 --objective.expander [8,8] "
    "--data.frames 16 --optim.name sgd --checkpoint.keep 3",
    "hitrs": "--config nwucla_hitrs --model.width 4 --model.depth 1 --model.heads 2 --model.head_width 4 "
    "--model.dropout 0.2",
}
PUBLISHED = ("skeattnclr", "hitrs")
"""Methods of skeletons with presets of the papers' settings, and with attention to draw."""
STATE = {
    "skeattnclr": {"student.queue_z", "student.oldest", "key_encoder.norm.running_mean", "key_projector.fc1.weight"},
    "vicreg": {"student.encoder.norm.running_mean", "student.encoder.kernels.3.weight", "student.expander.0.weight"},
    "hitrs": {"student.encoder.clip_token", "student.pose_head.weight", "student.future_head.weight"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods") / "store"
    generate(folder, subjects=2, views=1, repetitions=1)
    return folder


def options(method, store, out):
    return f"{METHODS[method]} {COMMON} --data {store} --data.split xsub --out {out}"


@pytest.fixture(scope="module", params=METHODS)
def trained(request, store):
    out = store.parent / request.param
    pretrain(options(request.param, store, out))
    return request.param, out


def test_state_is_saved(trained):
    method, out = trained
    assert STATE[method] <= weights(out).keys()
    assert len(metrics(out)) == STEPS


def test_a_killed_run_ends_at_the_same_bytes(trained, store):
    method, out = trained
    killed = out.with_name(f"{method}-killed")
    pretrain_with_a_kill(options(method, store, killed), killed)
    check_same_run(out, killed)


def test_two_ranks_are_one(trained, store):
    method, out = trained
    ranks = out.with_name(f"{method}-ranks")
    pretrain_on_ranks(options(method, store, ranks), 2)
    for one, two in zip(metrics(out), metrics(ranks), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    one, two = weights(out), weights(ranks)
    assert max(float((one[name].double() - two[name].double()).abs().max()) for name in one) < 1e-3


def test_it_is_evaluated_and_exported(trained, capsys, tmp_path):
    _, out = trained
    words = "--epochs 2 --lists 1 --percents 50 --finetune.epochs 1 --finetune.hidden 8 --device cpu --json".split()
    results = json.loads(call(capsys, "evaluate", out, "--protocol", "all", *words).splitlines()[-1])["results"]
    assert set(results) == {"floor", "linear", "knn", "retrieval", "finetune", "supervised", "semi"}
    call(capsys, "export", out, "--to", "onnx", "--out", tmp_path / "network.onnx")
    assert (tmp_path / "network.onnx").stat().st_size > 0


def test_it_is_drawn(trained, store, capsys, tmp_path):
    method, out = trained
    pictures = {"map": ["--method", "pca", "--device", "cpu"]} | ({"attention": ["0"]} if method in PUBLISHED else {})
    for view, which in pictures.items():
        page, picture = tmp_path / f"{view}.html", tmp_path / f"{view}.png"
        call(capsys, "view", view, out, store, *which, "--out", page, "--png", picture)
        assert page.stat().st_size > 0
        assert picture.stat().st_size > 0


@pytest.mark.parametrize(
    "preset", [f"{data}_{method}" for data in ("ntu60", "ntu120", "pkummd") for method in PUBLISHED]
)
def test_published_presets_start(preset, store):
    """At their own sizes, on few clips: the losses are finite, and the first step is not the second."""
    tree = presets.read(preset)
    train = {"steps": 2, "batch": 4, "accumulate": None, "device": "cpu"}
    config = Config.from_dict(presets.merge(tree, {"train": train, "optim": {"warmup_epochs": 0}}))
    trainer = Trainer(config, Store.open(store))
    first, second = (trainer.run_step().loss for _ in range(2))
    assert first != second
