"""What docs/adding.md adds from outside of the package works through everything, as it stands there."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from s2vfast import cli, verify
from s2vfast.config.registry import NETWORKS, OBJECTIVES
from s2vfast.data import Store
from s2vfast.data.formats import FORMATS
from s2vfast.data.synth import generate
from s2vfast.ops._dispatch import operation

from .calls import call, rank_command, run_ranks

STEPS = 12
SETTINGS = (
    "--model.name mixer --objective contrast --data.frames 16 --data.bodies 2 --train.batch 8 --objective.queue 16 "
    f"--train.steps {STEPS} --optim.warmup_epochs 1 --checkpoint.every 4 --train.log_every 1 --train.threads 1 "
    "--train.device cpu --train.impl torch --optim.name sgd --optim.nesterov true --optim.decay all "
    "--optim.schedule steps --optim.milestones [1,1.5]"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files of docs/adding.md, and a store."""
    folder = tmp_path_factory.mktemp("adding")
    text = (Path(__file__).parents[1] / "docs" / "adding.md").read_text("utf-8")
    blocks = re.findall(r'```python title="([\w.]+)"\n(.*?)```', text, re.DOTALL)
    assert [name for name, _ in blocks] == ["mixer.py", "contrast.py", "my_attention.py", "csv_format.py"]
    for name, code in blocks:
        (folder / name).write_text(code)
    generate(folder / "store", subjects=2, views=1, repetitions=1)
    return folder


@pytest.fixture(scope="module", autouse=True)
def forgotten_afterwards():
    """Other tests look at the lists of what there is."""
    for registry in (NETWORKS, OBJECTIVES):
        registry.names()  # what is built in registers itself once, when it is first asked for
    implementations = operation("attention").implementations
    lists = (NETWORKS._classes, OBJECTIVES._classes, FORMATS, implementations)
    before = [dict(entries) for entries in lists]
    yield
    for entries, original in zip(lists, before, strict=True):
        entries.clear()
        entries.update(original)


@pytest.fixture(scope="module")
def plugins(place):
    return ["--plugin", str(place / "mixer.py"), "--plugin", str(place / "contrast.py")]


def arguments(place, plugins, out):
    words = ["pretrain", *plugins, "--config", "nwucla", *SETTINGS]
    return [*words, "--data", str(place / "store"), "--data.split", "xsub", "--out", str(out)]


def run(words, ranks=1):
    done = run_ranks(ranks, words)
    assert done.returncode == 0, done.stderr
    return done


def weights(out):
    return load_file(out / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors")


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(place, plugins):
    run(arguments(place, plugins, place / "run"))
    return place / "run"


def test_state_beside_the_network_is_saved_and_learned(trained):
    saved, lines = weights(trained), metrics(trained)
    assert len(lines) == STEPS
    assert {"accuracy", "ema_decay"} <= lines[0].keys()
    assert all(np.isfinite(line["loss"]) for line in lines)
    names = {"student.queue", "student.oldest", "student.head.weight", "key_head.weight"}
    names |= {f"{of}.layers.0.norm.running_mean" for of in ("student.encoder", "key_encoder")}
    assert names <= saved.keys()
    assert saved["student.oldest"] == STEPS * 8 % 16
    assert (saved["student.queue"].norm(dim=1) - 1).abs().max() < 1e-5, "keys, all of them replaced"
    assert saved["student.encoder.layers.0.norm.num_batches_tracked"] == 2 * 0 + STEPS


def test_a_killed_run_ends_at_the_same_bytes(place, plugins, trained):
    out = place / "killed"
    process = subprocess.Popen(
        rank_command(1, arguments(place, plugins, out)),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    while not (out / "checkpoints" / "step-00000004").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(["pretrain", *plugins, "--resume", "--out", str(out)])
    assert (out / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    ours, theirs = weights(out), weights(trained)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_two_ranks_are_one(place, plugins, trained):
    run(arguments(place, plugins, place / "ranks"), ranks=2)
    for one, two in zip(metrics(trained), metrics(place / "ranks"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["accuracy"] == pytest.approx(one["accuracy"], abs=1e-6)
    one, two = weights(trained), weights(place / "ranks")
    assert max(float((one[name].double() - two[name].double()).abs().max()) for name in one) < 1e-4


def test_every_protocol_measures_it(trained, plugins, capsys):
    found = json.loads(
        call(
            capsys, "evaluate", str(trained), *plugins, "--protocol", "all", "--json", "--device", "cpu",
            "--epochs", "2", "--lists", "1", "--percents", "50", "--finetune.epochs", "1", "--finetune.hidden", "8",
        ).splitlines()[-1]
    )  # fmt: skip
    assert set(found["results"]) == {"floor", "linear", "knn", "retrieval", "finetune", "supervised", "semi"}
    tuned = found["results"]["finetune"]["folders"][0]
    again = json.loads(call(capsys, "evaluate", tuned, *plugins, "--protocol", "classify", "--json").splitlines()[-1])
    assert again["top1"] == found["results"]["finetune"]["top1"]
    for pool in ("joint", "joint_time"):
        call(capsys, "evaluate", str(trained), *plugins, "--protocol", "knn", "--pool", pool, "--device", "cpu")


def test_it_is_exported(trained, plugins, capsys, tmp_path):
    for target in ("torch", "onnx"):
        call(capsys, "export", str(trained), *plugins, "--to", target, "--out", str(tmp_path / target))
        assert (tmp_path / target).stat().st_size > 0


def test_its_features_are_drawn(trained, plugins, place, capsys, tmp_path):
    page = tmp_path / "map.html"
    call(
        capsys, "view", "map", *plugins, str(trained), str(place / "store"), "--method", "pca", "--device", "cpu",
        "--out", str(page), "--png", str(tmp_path / "map.png"),
    )  # fmt: skip
    assert page.stat().st_size > 0
    assert cli.main(["view", "attention", *plugins, str(trained), str(place / "store"), "0"]) == 2
    assert "model.name: mixer has no attention" in capsys.readouterr().err


def test_sections_are_documented_and_checked(plugins, capsys):
    text = " ".join(call(capsys, "pretrain", *plugins, "--help").split())
    # Beside the texts and the values of other networks and objectives with fields of these names.
    for words in ("mixer: Channels of a token.", "mixer: 16", "contrast: Of the softmax over the key and the queue."):
        assert words in text
    assert "contrast: 0.1" in text
    config = ["pretrain", *plugins, "--config", "nwucla", "--model.name", "mixer", "--objective", "contrast"]
    for words, message in (
        (["--objective.temperature", "0"], "objective.temperature: 0; a positive number is expected"),
        (["--model.widht", "3"], "model.widht: no such field; did you mean model.width?"),
        (["--mask.ratio", "0.5"], "mask: objective.name: contrast masks nothing; leave the section out"),
        (["--objective", "mamp"], "objective.name: mamp masks tokens of joints and segments; model.name: mixer cannot"),
    ):
        assert cli.main([*config, *words, "--print_config"]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["pretrain", "--plugin", "nowhere.py", "--print_config"]) == 2
    assert "--plugin nowhere.py: no such file" in capsys.readouterr().err


def test_an_implementation_is_held_to_the_reference(place, capsys):
    words = ["attention", "--plugin", str(place / "my_attention.py"), "--impl", "two_products"]
    assert verify.main([*words, "--sizes", "N=2,L=77,D=64"]) == 0
    assert "two_products" in capsys.readouterr().out


def test_a_format_is_read(place, tmp_path, capsys):
    folder = tmp_path / "csv"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("wave-1-0", "wave-2-0", "sit-1-1", "sit-2-1"):
        np.savetxt(folder / f"{name}.csv", rng.normal(size=(12, 75)), delimiter=",")
    (folder / "sit-2-9.csv").write_text("1,2,3\n")
    call(capsys, "data", "import", "--plugin", str(place / "csv_format.py"), str(folder), "--out", str(tmp_path / "s"))
    store = Store.open(tmp_path / "s")
    assert (len(store), list(store.classes)) == (4, ["sit", "wave"])
    assert len(store.select("subject", "test")) == 2
