"""Hi-TRS: packed levels, draws, and a run through everything."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from s2vfast.config import Config
from s2vfast.data.augment.temporal import sliding_windows
from s2vfast.errors import ConfigError
from s2vfast.networks.hitrs import Block, HiTRS, HiTRSConfig
from s2vfast.networks.windows import LevelNoise, pack, pack_fixed, scales, window_count
from s2vfast.objectives import Draw, MicroBatch
from s2vfast.objectives.classify import Classify, ClassifyConfig
from s2vfast.objectives.hitrs import HiTRSLoss, HiTRSLossConfig

SMALL = {"width": 8, "depth": 2, "heads": 2, "head_width": 4, "dropout": 0.0}


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
        packed, fixed = (network._states(clips, packs(clips, 2, section)) for packs in (pack, pack_fixed))
        for one, other in zip(packed, fixed, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        whole = network(clips)
        assert torch.equal(whole[:, 0], packed[-1])
        hidden = network.hidden(clips, 2)
        assert torch.equal(hidden[1], whole)
        # The token after a block is what the network without the blocks above it gives.
        shorter = copy.deepcopy(network)
        shorter.video_blocks = shorter.video_blocks[:1]
        torch.testing.assert_close(hidden[0], shorter(clips), rtol=1e-12, atol=1e-12)
        with pytest.raises(NotImplementedError, match="layers below the 2 of the video level"):
            network.hidden(clips, 3)
        paths = torch.ones(6, network.depth, 2)
        torch.testing.assert_close(network.with_drop_path(clips, paths, []), whole)
        paths[2] = 0
        changed = (network.with_drop_path(clips, paths, []) - whole).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False, False]


def test_the_readout_may_be_the_mean_of_windows():
    """By any packing; drop path and dropout reach it; there is no token after a block of the video level."""
    torch.manual_seed(0)
    network = HiTRS(HiTRSConfig(**SMALL | {"dropout": 0.5}, readout="windows"), 5, 2).double()
    clips = ragged_clips()
    with torch.no_grad():
        packing = pack(clips, 2, network.section)
        windows = network.windows(network.frames(clips.flatten(0, 1)[packing.frames]), packing.windows)
        means = torch.stack([windows[packing.tracks[1] == track].mean(0) for track in range(6)])
        whole = network(clips)
        torch.testing.assert_close(whole, means[:, None])
        torch.testing.assert_close(network._read(clips, pack_fixed(clips, 2, network.section)), whole)
        paths = torch.ones(6, network.depth, 2)
        torch.testing.assert_close(network.with_drop_path(clips, paths, []), whole)
        paths[2] = 0
        changed = (network.with_drop_path(clips, paths, []) - whole).abs().amax((1, 2)) > 1e-6
        noise = network.draw_noise(clips, Draw(3, 1, torch.tensor([4, 9, 2])).words(0, 2, clips.device))
        assert not torch.allclose(network.with_noise(clips, noise), whole)
    assert changed.tolist() == [False, False, True, False, False, False]
    with pytest.raises(NotImplementedError, match="windows has no tokens of the video"):
        network.hidden(clips, 1)


def dropping(rate=0.2, **options):
    section = HiTRSConfig(**SMALL | {"dropout": rate})
    return HiTRSLoss(HiTRS(section, 5, 2), HiTRSLossConfig(**options))


def rows_of_track(inputs, track):
    """What dropout keeps of a track: of frames, windows and videos, by layer."""
    (frames, windows, videos), numbers = inputs.packing.tracks, inputs.packing.parts[1]
    lengths = torch.cat([torch.full((len(v),), v.shape[1] + 1) for v in inputs.packing.videos])
    of_rows = videos.repeat_interleave(lengths)
    frames = (frames == track) & (torch.arange(len(frames)) > 0)
    noise = inputs.noise
    return [
        *(layer[:, frames] for layer in noise.frames),
        *(layer[:, windows == track] for layer in noise.windows),
        *(layer[:, of_rows == track] for layer in noise.videos),
        *(layer[:, inputs.tracks == track] for layer in inputs.future_noise.windows),
    ], numbers


def test_dropout_is_of_the_track_its_row_and_the_epoch():
    model, clips = dropping(), ragged_clips().float()
    together = model.prepare((clips,), Draw(3, 1, torch.tensor([4, 9, 2])))
    layers, _ = rows_of_track(together, 2)
    alone, _ = rows_of_track(model.prepare((clips[2:4],), Draw(3, 1, torch.tensor([9]))), 0)
    later, _ = rows_of_track(model.prepare((clips[2:4],), Draw(3, 2, torch.tensor([9]))), 0)
    assert len(layers) == 8
    for one, other, next_epoch in zip(layers, alone, later, strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, next_epoch)
    everything = torch.cat([layer.flatten() for layer in layers]).float()
    assert float(everything.mean()) == pytest.approx(1 - 51 / 256, abs=0.01)
    frames, windows = layers[0].flatten(2), layers[2].flatten(2)
    assert len(frames[0].unique(dim=0)) == frames.shape[1], "each frame has its own"
    assert len(windows[0].unique(dim=0)) == windows.shape[1], "each window has its own"
    assert len(layers[4][0].unique(dim=0)) == layers[4].shape[1], "so has each token of either video"
    assert not torch.equal(frames[0], frames[1]), "attention and MLP have their own"
    loss = model.step_loss(MicroBatch((clips,), together)).loss
    assert loss != model.step_loss(MicroBatch((clips,), replace(together, noise=None))).loss


def test_dropout_acts_on_branches():
    """All kept at rate 1/2: branches are doubled, and so are the maps that end them."""
    model, clips = dropping(0.5), ragged_clips().float()
    inputs = model.prepare((clips,), Draw(3, 1, torch.tensor([4, 9, 2])))
    ones = [LevelNoise(*([torch.ones_like(x) for x in part] for part in vars(noise).values()))
            for noise in (inputs.noise, inputs.future_noise)]  # fmt: skip
    kept = model.outputs(replace(inputs, noise=ones[0], future_noise=ones[1]))
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        for block in doubled.encoder.modules():
            if isinstance(block, Block):
                for part in (block.out.weight, block.fc2.weight, block.fc2.bias):
                    part.mul_(2.0)
    empty = doubled.outputs(replace(inputs, noise=None, future_noise=None))
    torch.testing.assert_close(kept["frames"][1:], empty["frames"][1:])
    plain = copy.deepcopy(model).outputs(replace(inputs, noise=None, future_noise=None))
    torch.testing.assert_close(kept["frames"][0], plain["frames"][0])
    inner = [row for row, frames in enumerate(inputs.packing.windows) if (frames > 0).all()]
    torch.testing.assert_close(kept["windows"][inner], empty["windows"][inner], rtol=1e-4, atol=1e-5)
    last = [row for row, frames in enumerate(inputs.future) if (frames > 0).all()]
    torch.testing.assert_close(kept["target"][last], empty["target"][last], rtol=1e-4, atol=1e-5)
    for one, other in ((kept, ones[0]), (empty, None)):
        scale = scales(other, 0.5)[2]
        one["again"] = (doubled if other is None else model).encoder.videos(kept["windows"], inputs.packing, scale)
    torch.testing.assert_close(kept["again"], empty["again"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rate", "target"), [(0.0, "last"), (0.2, "last"), (0.2, "other")])
def test_shapes_that_repeat_change_no_loss(rate, target):
    model, clips = dropping(rate, future_target=target), ragged_clips().float()
    clips[0, 15:] = clips[1, 15:] = 0  # too short to be looked at
    views = (clips, clips.flip(1))[: model.views]
    shapes, losses = set(), []
    for fixed in (False, True):
        draw = Draw(3, 1, torch.tensor([4, 9, 2]), None, fixed)
        inputs = model.prepare(views, draw)
        loss = model.step_loss(MicroBatch(views, inputs))
        gradients = torch.autograd.grad(loss.loss, list(model.parameters()), materialize_grads=True)
        losses.append([loss.loss, *loss.terms.values(), *gradients])
    for one, other in zip(*losses, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-5)
    for lengths in ((44, 44, 30), (43, 44, 30), (44, 43, 31)):
        changed = clips.clone()
        for track, length in enumerate(lengths):
            changed[track, length:] = 0
        views = (changed,) * model.views
        batch = MicroBatch(views, model.prepare(views, Draw(3, 1, torch.tensor([4, 9, 2]), None, True)))
        shapes.add(tuple(tuple(tensor.shape) for tensor in batch.tensors()))
    assert len(shapes) == 1


def model_and_batch(**options):
    torch.manual_seed(0)
    model = HiTRSLoss(HiTRS(HiTRSConfig(**SMALL), 5, 2), HiTRSLossConfig(**options)).double()
    return model, ragged_clips(), Draw(3, 1, torch.tensor([4, 9, 2]))


def test_the_other_view_is_told_by_the_mean_of_its_windows():
    """Of its own length, unmasked; that mean learns."""
    model, clips, draw = model_and_batch(future_target="other", pose=0.0, clip=0.0, video=0.0)
    other = 2.0 * clips
    other[2:4, 25:] = 0
    encoder = model.encoder
    target = model.outputs(model.prepare((clips, other), draw))["target"]
    packing = pack(other, 2, encoder.section)
    windows = encoder.windows(encoder.frames(other.flatten(0, 1)[packing.frames]), packing.windows)
    means = [windows[packing.tracks[1] == track].mean(0) for track in range(5)]
    torch.testing.assert_close(target, torch.stack(means))
    assert target.requires_grad
    assert not model.outputs(model.prepare((clips,), draw))["target"].requires_grad


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


class NoQuestions(TorchDispatchMode):
    """Refuses what makes a host wait for its device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        asks = name in ("_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave", "_unique2")
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not asks, f"{name} asks the device"
        assert not by_mask, "a mask is an index of unknown length"
        return func(*args, **(kwargs or {}))


def test_no_step_asks_the_device(monkeypatch):
    """Neither one on what was prepared, nor one of fine-tuning where a step may be captured."""
    clips, draw = ragged_clips().float(), Draw(3, 1, torch.tensor([4, 9, 2]), torch.tensor([0, 1, 2]), True)
    model = dropping()
    inputs = model.prepare((clips,), draw)
    with NoQuestions():
        model.step_loss(MicroBatch((clips,), inputs)).loss.backward()
    monkeypatch.setattr(HiTRS, "_packing_of", lambda self, clips: pack_fixed(clips, self.bodies, self.section))
    options = ClassifyConfig(hidden=4, dropout=0.0, drop_path=0.5)
    classify = Classify(model.encoder, options, 2, range(3))
    batch = MicroBatch((clips,), classify.prepare((clips,), draw))
    with NoQuestions():
        classify.step_loss(batch).loss.backward()


def test_fine_tuning_has_dropout_and_both_bodies():
    clips, draw = ragged_clips().float(), Draw(3, 1, torch.tensor([4, 9, 2]), torch.tensor([0, 1, 2]))
    options = ClassifyConfig(head="linear", dropout=0.0, drop_path=0.0, label_smoothing=0.0, noise=True)
    classify = Classify(dropping().encoder, options, 2, range(3))
    batch = MicroBatch((clips,), classify.prepare((clips,), draw))
    logits = classify(clips.unflatten(0, (3, 2)))
    embedded = classify.encoder(clips)[:, 0].unflatten(0, (3, 2))
    torch.testing.assert_close(logits, classify.head(embedded.mean(1)))
    with_noise = classify.encoder.with_noise(clips, batch.inputs.noise)
    assert not torch.equal(with_noise[:, 0].unflatten(0, (3, 2)), embedded)
    expected = torch.nn.functional.cross_entropy(
        classify.head(with_noise[:, 0].unflatten(0, (3, 2)).mean(1)), draw.labels
    )
    torch.testing.assert_close(classify.step_loss(batch).loss, expected)


def test_maps_of_tokens():
    """Rows sum to 1; a window that is not there is not looked at; a joint that others look at more is salient."""
    network, clips = dropping().encoder.eval(), ragged_clips().float()
    with torch.no_grad():
        maps = network.token_maps(clips)
    S, V = maps.grid
    assert (S, V, maps.segment_frames, maps.layers) == (6, 5, 7, 2)
    layers = list(maps.attention)
    assert len(layers) == 2
    assert maps.features.shape == (6, S * V, 8)
    for weights in layers:
        torch.testing.assert_close(weights.sum(-1), torch.ones(6, 2, S * V))
        assert (weights[0, :, :, 4 * V :] == 0).all(), "20 frames have 3 windows"
    assert (maps.salience.amax(1) == 1).all()
    assert (maps.salience[0, 4 * V :] == 0).all()
