"""Recordings without labels through every command that can do without, and the few that have one where they count."""

import json
import pickle

import numpy as np
import pytest

from s2vfast.cli import main
from s2vfast.data.store import Store

SHORT = "--train.steps 6 --train.device cpu --train.threads 1"


def recordings(path, labels):
    """A pickle of walks of one body of 17 joints in the plane; label None: it has none."""
    rng = np.random.default_rng(0)
    annotations = []
    for number, label in enumerate(labels):
        walk = rng.normal(0, 3, (1, 24, 17, 2)).cumsum(1) + rng.uniform(100, 400, (1, 1, 17, 2)) + 50 * (label or 0)
        annotations.append({"frame_dir": f"clip{number:02d}", "keypoint": walk.astype(np.float32)})
        if label is not None:
            annotations[-1]["label"] = label
    path.write_bytes(pickle.dumps({"annotations": annotations}))
    return path


@pytest.fixture
def run(capsys):
    """run("words of a command") -> its output; it succeeds, or fails with ``code``."""

    def call(line, code=0):
        capsys.readouterr()
        assert main(line.split()) == code, (line, capsys.readouterr())
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return call


def test_without_any_label(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    recordings(tmp_path / "clips.pkl", [None] * 10)
    assert "without a label: 10 sequences" in run("data import clips.pkl --layout coco17 --out store")
    assert "without a label: 10" in run("data show store")
    assert run("data split store --by share --test 0.2").startswith("split share-20: train 8, test 2")
    printed = run(f"pretrain --config own --data store --data.split share-20 {SHORT} --out run")
    assert printed.endswith("next: s2vfast embed run --out features.npz\n"), "there is nothing to measure with"
    run("embed run --out features.npz --device cpu")
    with np.load("features.npz") as file:
        assert file["labels"].tolist() == [-1] * 10
        assert sorted(set(file["part"])) == ["test", "train"]
    pages = ("sequence store clip03", "mask store clip03 --run run", "neighbours run store clip03")
    for page in (*pages, "map run store --method pca", "attention run store clip03"):
        run(f"view {page} --out page.html")
        assert (tmp_path / "page.html").stat().st_size > 10_000
    for protocol in ("knn", "linear", "retrieval", "finetune", "all"):
        message = run(f"evaluate run --protocol {protocol}", code=1)
        assert "has a label, and an accuracy needs them; pretrain, embed, view and predict work without" in message
    message = run(f"pretrain --config own --objective classify --data store {SHORT} --out classes", code=2)
    assert "classify needs a store with classes" in message
    assert "a pretrained run, which has no classes" in run("predict run clips.pkl", code=1)


def test_a_few_labels_among_many(tmp_path, monkeypatch, run):
    """All are pretrained on, those with a label are fine-tuned on and measured, and files without one are predicted."""
    monkeypatch.chdir(tmp_path)
    recordings(tmp_path / "some.pkl", [0, 1, 0, 1, 0, 1, None, None, None, None, None, None])
    recordings(tmp_path / "new.pkl", [None, None])
    run("data import some.pkl --layout coco17 --out store")
    assert "split share-50: train 5 (2 classes), test 7 (2 classes)" in run("data split store --by share --test 0.5")
    run(f"pretrain --config own --data store --data.split share-50 {SHORT} --out run")
    tuned = "--finetune.epochs 2 --finetune.min_steps 0 --finetune.hidden 8 --device cpu --json"
    result = json.loads(run(f"evaluate run --protocol finetune --recipe nwucla {tuned} --out tuned").splitlines()[-1])
    labels = Store.open("store").labels[Store.open("store").select("share-50", "train")]
    assert result["n_train"] == int((labels >= 0).sum())
    lines = run("predict tuned new.pkl --device cpu").splitlines()
    assert [line.split("   ")[0] for line in lines] == ["new.pkl:clip00", "new.pkl:clip01"]
