"""Hi-TRS: packed levels, draws, and a run through everything."""

import json

import pytest
import torch

from s2vfast import cli
from s2vfast.config import Config
from s2vfast.data.augment.temporal import sliding_windows
from s2vfast.data.synth import generate
from s2vfast.errors import ConfigError
from s2vfast.networks.hitrs import HiTRS, HiTRSConfig, window_count
from s2vfast.objectives import Draw, MicroBatch
from s2vfast.objectives.hitrs import HiTRSLoss, HiTRSLossConfig

SMALL = {"width": 8, "depth": 2, "heads": 2, "head_width": 4}


def ragged_clips(joints=5):
    """Three samples of two bodies: one of both, one of a body that goes, one of a single body."""
    clips = torch.randn(6, 44, joints, 3, dtype=torch.float64)
    clips[:2, 20:] = 0
    clips[3, 30:] = 0
    clips[4, 33:] = 0
    clips[5] = 0
    return clips


@pytest.mark.parametrize(("window", "stride", "dilation"), [(7, 7, 2), (5, 5, 1), (3, 2, 2)])
def test_packed_levels_are_the_padded_ones(window, stride, dilation):
    section = HiTRSConfig(**SMALL, window=window, stride=stride, dilation=dilation)
    for length in range(1, 60):
        assert window_count(length, section) == len(sliding_windows(length, window, stride, dilation))
    network, clips = HiTRS(section, 5, 2).double().eval(), ragged_clips()
    with torch.no_grad():
        packed = network(clips)
        torch.testing.assert_close(packed[:, 0], network.dense(clips), rtol=1e-12, atol=1e-12)
        paths = torch.ones(6, network.depth, 2)
        torch.testing.assert_close(network.with_drop_path(clips, paths, []), packed)
        paths[2] = 0
        changed = (network.with_drop_path(clips, paths, []) - packed).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False, False]


def model_and_batch(**options):
    torch.manual_seed(0)
    model = HiTRSLoss(HiTRS(HiTRSConfig(**SMALL), 5, 2), HiTRSLossConfig(**options)).double()
    return model, ragged_clips(), Draw(3, 1, torch.tensor([4, 9, 2]))


def test_masks_follow_their_law():
    model, _, _ = model_and_batch()
    clips = torch.randn(40, 60, 25, 3) + 5.0
    seen = torch.ones(40, 60, dtype=torch.bool)
    seen[:, 50:] = False
    masked, chosen = model.mask(clips, seen, 0, 0, torch.arange(40))
    assert not chosen[:, 50:].any()
    assert float(chosen[:, :50].float().mean()) == pytest.approx(0.15, abs=0.005)
    fixed, same = (masked == 1.0).all(-1), (masked == clips).all(-1)
    assert float(fixed[chosen].float().mean()) == pytest.approx(0.8, abs=0.015)
    assert float(same[chosen].float().mean()) == pytest.approx(0.1, abs=0.012)
    assert same[~chosen].all()
    moved = masked[chosen & ~fixed & ~same]
    sources = clips[:, :50].reshape(-1, 3)
    assert all((sources == row).all(1).any() for row in moved[:20])


def test_draws_are_of_the_sample_alone():
    model, clips, draw = model_and_batch()
    together = model.drawn(clips, draw)
    alone = model.drawn(clips[2:4], Draw(3, 1, torch.tensor([9])))
    assert torch.equal(together["masked"][2:4], alone["masked"])
    assert [pair[1:] for pair in together["pairs"] if pair[0] in (2, 3)] == [pair[1:] for pair in alone["pairs"]]
    assert list(together["counts"]) == [0, 1, 2, 3, 4], "the absent body is no sequence"
    for track, first, one, two in together["pairs"]:
        assert two - one >= 2
        assert 0 <= first < 44, track
    assert together["exchanges"][:2] == [(0, 1)] * 2, "two windows are all that there are"


def test_weights_choose_terms_and_tracks_without_windows_are_left_out():
    model, clips, draw = model_and_batch(clip=0.0, video=0.0, future=0.0)
    loss = model.step_loss(MicroBatch((clips,), model.prepare((clips,), draw)))
    torch.testing.assert_close(loss.loss.detach(), loss.terms["pose"])
    clips[:, 6:] = 0.0
    short = model.step_loss(MicroBatch((clips,), model.prepare((clips,), draw)))
    assert short.loss == 0


def test_what_cannot_be_is_refused():
    for tree, message in (
        ({"data": {"frames": 12}}, "data.frames: 12; 3 windows do not fit"),
        ({"model": {"name": "hitrs", "positions": 2}}, "model.positions: 2; data.frames = 90 make"),
        ({"model": {"name": "hitrs", "width": 7}}, "model.width: 7; an even number"),
        ({"model": {"name": "infogcn"}}, "model.name: infogcn has none"),
    ):
        with pytest.raises(ConfigError, match=message):
            Config.from_dict({"model": {"name": "hitrs"}, "objective": {"name": "hitrs"}, **tree})


@pytest.mark.slow
def test_a_run_goes_through_everything(tmp_path, capsys):
    generate(tmp_path / "store", subjects=2, views=1, repetitions=1)
    run = str(tmp_path / "run")
    words = [
        "--config",
        "nwucla_hitrs",
        "--data",
        str(tmp_path / "store"),
        "--data.split",
        "xsub",
        "--data.bodies",
        "2",
    ]
    words += ["--model.width", "4", "--model.depth", "1", "--model.head_width", "4", "--train.batch", "4"]
    words += ["--train.steps", "2", "--optim.warmup_epochs", "0", "--train.device", "cpu", "--train.log_every", "1"]

    def call(*words):
        assert cli.main(list(words)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    call("pretrain", *words, "--out", run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all({"pose", "clip", "video", "future"} <= line.keys() for line in lines)
    result = call("evaluate", run, "--protocol", "knn", "--json", "--device", "cpu").splitlines()[-1]
    assert 0 <= json.loads(result)["top1"] <= 100
    call("export", run, "--to", "onnx", "--out", str(tmp_path / "onnx"))
