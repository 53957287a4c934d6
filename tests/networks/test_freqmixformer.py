"""FreqMixFormer against the published class in plain PyTorch, and its config."""

import json
import os
import pickle
import signal

import pytest
import torch
import torch.nn.functional as F

from s2vfast import cli, errors, presets
from s2vfast.compat.freqmixformer import from_freqmixformer, to_freqmixformer
from s2vfast.config import Config
from s2vfast.data import Store
from s2vfast.data.layout import get_layout
from s2vfast.evaluate import finetune
from s2vfast.evaluate.predict import predict
from s2vfast.networks import build_network, graph
from s2vfast.objectives import build_objective
from s2vfast.objectives.classify import Classify, ClassifyConfig
from s2vfast.reference import freqmixformer as reference
from s2vfast.train.feed import Recordings
from s2vfast.train.trainer import Trainer

from ..calls import call, run_ranks

LAYOUT = get_layout("kinect_v1")
PLAIN_HEAD = ClassifyConfig(head="linear", dropout=0.0, drop_path=0.0, label_smoothing=0.0)


def network(frames=8, bodies=1, **model):
    tree = {
        "data": {"frames": frames, "bodies": bodies, "velocity": 0.0},
        "model": {"name": "freqmixformer", "base": 40, **model},
        "objective": {"name": "classify", "drop_path": 0.0},
    }
    config = Config.from_dict(tree)
    config.validate(LAYOUT)
    return build_network(config, LAYOUT)


def published_pair(bodies=2, frames=8, k=2, edges="published", **frequencies):
    """The reference with random statistics, and the network with its weights; both in float64."""
    torch.manual_seed(3)
    mode, graphs = graph.mode(LAYOUT, k, edges), graph.in_out_graph(LAYOUT, edges)
    plain = reference.FreqMixFormer(mode, graphs, frames, bodies, classes=6, base=40, **frequencies)
    for name, value in plain.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_()
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    ours = Classify(network(frames, bodies, k=k, graph=edges, **frequencies), PLAIN_HEAD, bodies, range(6))
    weights = {own_name(name): value for name, value in from_freqmixformer(plain.state_dict()).items()}
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return plain.double(), ours.double()


def own_name(name):
    return f"head.{name.removeprefix('fc.')}" if name.startswith("fc.") else f"encoder.{name}"


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_computes_what_the_published_class_does(mode):
    """Logits, buffers after a step, and every gradient; with other weights of frequencies than the defaults."""
    plain, ours = published_pair(split=9, low=0.3, high=1.7)
    x = torch.randn(3, 3, 8, 20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 5, 2])
    results = []
    for module, clips in ((plain, x), (ours, x.permute(0, 4, 2, 3, 1))):
        module.train(mode == "train")
        logits = module(clips)
        F.cross_entropy(logits, labels).backward()
        results.append(logits.detach())
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    strip = {name.removeprefix("encoder.").replace("head.", "fc."): value for name, value in gradients.items()}
    published = to_freqmixformer(strip)
    largest = max(p.grad.abs().max() for p in plain.parameters())
    for name, parameter in plain.named_parameters():
        expected = parameter.grad.flatten()
        torch.testing.assert_close(published[name].flatten(), expected, rtol=1e-7, atol=1e-9 * float(largest))
    buffers = {name.removeprefix("encoder."): value for name, value in ours.named_buffers()}
    for name, value in to_freqmixformer(buffers).items():
        torch.testing.assert_close(value, plain.get_buffer(name), rtol=1e-9, atol=1e-10)


def test_a_weight_that_is_off_by_little_shows():
    plain, ours = published_pair()
    x = torch.randn(2, 3, 8, 20, 2, dtype=torch.float64)
    clips = x.permute(0, 4, 2, 3, 1)
    before = ours.eval()(clips)
    with torch.no_grad():
        ours.encoder.blocks[0].spatial.across.bias[3] += 1e-6
    assert (ours(clips) - before).abs().max() > 1e-9 * before.abs().max()


def test_the_split_follows_the_joints():
    """13 of NTU's 25; the authors' 13 is a number like any other."""
    spatial = network().blocks[0].spatial
    assert spatial.weights.tolist() == [0.5] * 10 + [1.5] * 10
    assert network(split=13).blocks[0].spatial.weights.tolist() == [0.5] * 13 + [1.5] * 7


def test_starts_as_published():
    net = network()
    block = net.blocks[5]
    for weight, rows in ((block.spatial.linear.weight, 3 * 80), (block.temporal.expand.weight, 16)):
        assert weight.std().item() == pytest.approx((2 / rows) ** 0.5, rel=0.1)
    assert torch.equal(block.spatial.learned, block.spatial.constant)
    assert (block.spatial.norm.weight == 1).all()
    assert (block.spatial.linear.bias == 0).all()


def test_tracks_of_a_sample_are_told_apart_and_attention_is_of_joints():
    net = network(bodies=2).eval()
    clips = torch.randn(2, 8, 20, 3, generator=torch.Generator().manual_seed(1))
    net.stem.norm.weight.data.uniform_(0.5, 1.5)
    assert not torch.allclose(net(clips), net(clips.flip(0)).flip(0))
    assert net(clips).shape == (2, 2 * 20, 160)
    maps = list(net.attention(clips))
    assert len(maps) == net.depth == 10
    for attention in maps:
        assert attention.shape == (2, 4, 40, 40)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 40))
        assert (attention[..., :20, 20:] == 0).all()
    names = [net.layer_of(name) for name in ("stem.joint", "blocks.9.spatial.learned", "skips.0.projection.weight")]
    assert names == [0, 10, 11]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"base": 44}, "model.base: 44 is no multiple of 2 [*] model.units = 8"),
        ({"base": 48}, "model.base: 48 is no multiple of 5, the branches over time"),
        ({"kernel": 4}, "model.kernel: 4; an odd number is expected"),
        ({"stages": (2, 0)}, "model.stages: .2, 0.; whole numbers from 1 on"),
        ({"frames": 6}, "data.frames: 6 is no multiple of 4"),
        ({"k": 0}, "model.k: 0"),
    ],
)
def test_refuses_what_does_not_fit(model, message):
    with pytest.raises(errors.ConfigError, match=message):
        network(**model)


@pytest.mark.parametrize(
    ("preset", "layout", "classes", "parameters"),
    [("ntu60_freqmixformer", "kinect_v2", 60, 2_065_048), ("ntu120_freqmixformer", "kinect_v2", 120, 2_084_308)],
)
def test_presets_have_the_published_size(preset, layout, classes, parameters):
    """Beside the 14 344 numbers that the published class never uses, in 70 tensors."""
    config = Config.from_dict(presets.read(preset))
    objective = build_objective(config, get_layout(layout), [str(i) for i in range(classes)])
    assert sum(parameter.numel() for parameter in objective.parameters()) == parameters - 14_344


TINY = (
    "--model.base 40 --model.stages [1,1] --train.batch 4 --train.threads 1 --train.device cpu --optim.lr 0.01".split()
)


def words_of(store, out, steps):
    words = ["pretrain", "--config", "ntu60_freqmixformer", *TINY, "--train.steps", str(steps)]
    return [*words, "--train.log_every", "1", "--checkpoint.every", "2", "--data", str(store), "--out", str(out)]


@pytest.fixture(scope="module")
def trained(store, runs):
    assert cli.main(words_of(store, runs / "run", 3)) == 0
    return runs / "run"


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(trained, store, runs, monkeypatch):
    step = Trainer.run_step

    def until(self):
        result = step(self)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", until)
        assert cli.main(words_of(store, runs / "parts", 3)) == 128 + signal.SIGTERM
    assert cli.main(["pretrain", "--resume", "--out", str(runs / "parts")]) == 0
    for name in ("metrics.jsonl", "checkpoints/step-00000003/model.safetensors"):
        assert (trained / name).read_bytes() == (runs / "parts" / name).read_bytes()


@pytest.mark.slow
def test_two_ranks_are_one(trained, store, runs):
    """Batch norms see the rows of both; losses agree to rounding."""
    done = run_ranks(2, words_of(store, runs / "ranks", 3))
    assert done.returncode == 0, done.stderr
    one, two = (
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (trained, runs / "ranks")
    )
    assert len(one) == 3
    assert two == pytest.approx(one, rel=1e-4)


def test_it_is_measured_exported_and_drawn(trained, store, capsys, tmp_path):
    result = json.loads(call(capsys, "evaluate", str(trained), "--protocol", "classify", "--json").splitlines()[-1])
    assert 0 <= result["top1"] <= 100
    pytest.importorskip("onnxruntime")
    call(capsys, "export", str(trained), "--to", "onnx", "--out", str(tmp_path / "net.onnx"))
    for kind, more in (("map", ["--method", "pca", "--device", "cpu"]), ("attention", ["0"])):
        page = tmp_path / f"{kind}.html"
        call(capsys, "view", kind, str(trained), str(store), *more, "--out", str(page))
        assert page.stat().st_size > 0


def test_it_names_the_actions_of_files(trained, store, tmp_path):
    """By the numbers of the network on the same recordings."""
    recordings = Store.open(store)
    ids = [i for i in range(len(recordings)) if len(recordings.sequence(i)[0]) == 1][:3]
    annotations = [
        {
            "frame_dir": f"clip{i}",
            "total_frames": recordings.sequence(i)[0].shape[1],
            "keypoint": recordings.sequence(i)[0],
        }
        for i in ids
    ]
    (tmp_path / "clips.pkl").write_bytes(pickle.dumps({"annotations": annotations}))
    model, config, about = finetune.load_classifier(trained)
    clips = Recordings(config, recordings, torch.device("cpu")).clips(torch.tensor(ids))
    expected = torch.softmax(model(clips.unflatten(0, (-1, config.data.bodies))), dim=1)
    entries = list(predict(trained, [tmp_path / "clips.pkl"], layout=recordings.layout.name, top=2))
    assert [entry["sequence"] for entry in entries] == [f"clip{i}" for i in ids]
    for entry, row in zip(entries, expected, strict=True):
        values, order = row.sort(descending=True)
        assert [name for name, _ in entry["top"]] == [about["classes"][i] for i in order[:2]]
        assert [value for _, value in entry["top"]] == pytest.approx(values[:2].tolist(), abs=1e-5)
