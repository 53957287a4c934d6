"""The network by itself, and as a run goes through everything with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from s2vfast import cli, presets
from s2vfast.config import Config
from s2vfast.data.layout import LAYOUTS
from s2vfast.errors import ConfigError
from s2vfast.networks import build_network
from s2vfast.networks.infogcn import InfoGCN, InfoGCNConfig

from ..calls import call, run_ranks

TINY = "--model.base 8 --model.stages [1,1] --data.frames 8 --data.bodies 2 --train.batch 4 --train.threads 1".split()


def tiny(**section):
    torch.manual_seed(0)
    return InfoGCN(InfoGCNConfig(**{"base": 8, "stages": (2, 1), **section}), torch.eye(5), 8, 2).eval()


def test_shapes():
    network, clips = tiny(), torch.randn(4, 8, 5, 3)
    assert (network.width, network.depth, network.grid, network.segment_frames) == (16, 3, (4, 5), 2)
    assert network(clips).shape == (4, 20, 16)
    assert tiny()(torch.randn(4, 7, 5, 3)).shape == (4, 20, 16), "ceil(7 / 2) segments"
    with pytest.raises(NotImplementedError, match="several widths"):
        network.hidden(clips, 3)
    layers = {name: network.layer_of(name) for name, _ in network.named_parameters()}
    assert (layers["stem.joint"], layers["blocks.2.graph.weight"]) == (0, 3)


def test_attention_is_of_a_segments_joints():
    network, clips = tiny(), torch.randn(2, 8, 5, 3)
    maps = list(network.attention(clips))
    assert [weights.shape for weights in maps] == [(2, 3, 20, 20)] * 3
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 20))
        assert (weights[:, :, :5, 5:] == 0).all()
    moved = clips.clone()
    moved[:, 4:6] += 1.0  # the frames of segment 2
    first, again = maps[0], next(iter(network.attention(moved)))
    changed = (first - again).abs().amax((0, 1)).unflatten(0, (4, 5)).amax(1).amax(1)
    assert changed.gt(1e-4).tolist() == [False, False, True, False]


def test_a_body_is_told_from_another():
    """The batch norm of the embedding has statistics of its own for every body of a sample."""
    network = tiny()
    network.stem.norm.running_mean.normal_()
    clip = torch.randn(1, 8, 5, 3)
    first, second = network(clip.repeat(2, 1, 1, 1))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"k": 0}, "model.k: 0; 1 or more is expected: k = 0"),
        ({"kernel": 4}, "model.kernel: 4; an odd number is expected"),
        ({"base": 12}, "model.base: 12 is no multiple of 8, the head_ratio"),
        ({"stages": [3, 0]}, "model.stages: \\[3, 0\\]; a number above 0"),
    ],
)
def test_what_cannot_be_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        Config.from_dict({"model": {"name": "infogcn", **section}, "objective": {"name": "infogcn"}})


def test_published_attention_starts_as_one_joint():
    """The published start of queries and keys; by the other one all joints are attended to."""
    largest = {}
    for init in ("published", "linear"):
        torch.manual_seed(0)
        network = InfoGCN(InfoGCNConfig(stages=(1,), attention_init=init), torch.eye(20), 4, 1).eval()
        maps = next(iter(network.attention(torch.randn(2, 4, 20, 3))))
        largest[init] = float(maps.detach().amax(-1).mean())
    assert largest["published"] > 0.9
    assert largest["linear"] < 0.15


@pytest.mark.parametrize(
    ("preset", "layout", "parameters"),
    [("ntu60_infogcn", "kinect_v2", 1_556_807), ("ntu120_infogcn", "kinect_v2", 1_572_227)],
)
def test_presets_have_the_published_size(preset, layout, parameters):
    from s2vfast.objectives import build_objective

    config = Config.from_dict(presets.read(preset))
    classes = [str(i) for i in range(120 if "120" in preset else 60)]
    objective = build_objective(config, LAYOUTS[layout], classes)
    assert sum(parameter.numel() for parameter in objective.parameters()) == parameters


def test_the_start_is_a_function_of_the_seed():
    config = Config.from_dict({"model": {"name": "infogcn", "base": 8}, "objective": {"name": "infogcn"}})
    one, two = (build_network(config, LAYOUTS["kinect_v2"]).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def command(store, out):
    words = ["pretrain", "--config", "ntu60_infogcn", *TINY, "--train.steps", "4", "--train.log_every", "1"]
    words += ["--optim.lr", "0.01", "--optim.warmup_epochs", "1", "--checkpoint.every", "2", "--train.device", "cpu"]
    return [*words, "--data", str(store), "--out", str(out)]


@pytest.fixture(scope="module")
def trained(store, runs):
    assert cli.main(command(store, runs / "run")) == 0
    return runs / "run"


def lines(run: Path):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_cut_off_ends_at_the_same_bytes(trained, tmp_path):
    """Batch norms, momentum, the prior and the noise of every step."""
    again, last = tmp_path / "again", "checkpoints/step-00000004"
    shutil.copytree(trained, again)
    shutil.rmtree(again / last)
    assert cli.main(["pretrain", "--resume", "--out", str(again)]) == 0
    assert (again / last / "model.safetensors").read_bytes() == (trained / last / "model.safetensors").read_bytes()
    assert [line["loss"] for line in lines(again)][-4:] == [line["loss"] for line in lines(trained)]


@pytest.mark.slow
def test_two_ranks_are_one(store, runs, trained):
    """Class means of the discrepancy are those of both ranks' samples."""
    out = runs / "ranks"
    done = run_ranks(2, command(store, out))
    assert done.returncode == 0, done.stderr
    for one, two in zip(lines(trained), lines(out), strict=True):
        for name in ("loss", "cls", "mmd", "l2"):
            assert two[name] == pytest.approx(one[name], rel=1e-4)


def test_its_terms_are_reported(trained):
    last = lines(trained)[-1]
    total = last["cls"] + 0.1 * last["mmd"] + 1e-4 * last["l2"]
    assert last["loss"] == pytest.approx(total, rel=1e-5)


def test_it_is_measured_and_told_classes(trained, store, capsys):
    result = json.loads(call(capsys, "evaluate", str(trained), "--protocol", "classify", "--json").splitlines()[-1])
    assert 0 <= result["top1"] <= 100
    call(capsys, "evaluate", str(trained), "--protocol", "knn", "--device", "cpu")


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_it_is_exported(trained, capsys, tmp_path, target):
    if target == "onnx":
        pytest.importorskip("onnxruntime")
    call(capsys, "export", str(trained), "--to", target, "--out", str(tmp_path / target))
    assert (tmp_path / target).stat().st_size > 0


def test_it_is_drawn(trained, store, capsys, tmp_path):
    for kind, more in (("map", ["--method", "pca", "--device", "cpu"]), ("attention", ["0"])):
        page = tmp_path / f"{kind}.html"
        call(capsys, "view", kind, str(trained), str(store), *more, "--out", str(page))
        assert page.stat().st_size > 0
