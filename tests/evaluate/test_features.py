"""Features: which weights, which clips, which pooling."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import s2vfast.errors as errors
from s2vfast import ops
from s2vfast.config import Config
from s2vfast.evaluate import features
from s2vfast.evaluate.arguments import POOLS
from s2vfast.networks import build_network
from s2vfast.train import checkpoint
from s2vfast.train.feed import Recordings

JOINTS = 5  # of the store in conftest.py


def _by_hand(encoder, made, store, ids, pool):
    """One sequence and one body at a time, absent bodies through the encoder like any other."""
    frames, index = torch.from_numpy(np.array(store.frames)), torch.from_numpy(np.array(store.frame_index))
    row, count = map(torch.from_numpy, store.track_table(made.data.bodies))
    spec = ops.ClipSpec(frames=12, root=0, torso=(0, 1), sides=(3, 4), up=1)
    rows = []
    for i in ids:
        clips = ops.clip_sample(frames, index, row, count, torch.tensor([i]), spec, training=False)
        bodies = []
        for clip in clips:
            tokens = encoder(clip[None])[0].reshape(4, JOINTS, -1)  # [S, V, D]
            if pool == "mean":
                bodies.append(tokens.mean(dim=(0, 1)))
            else:
                joints = [tokens[:, v].mean(dim=0) for v in range(JOINTS)]
                segments = [tokens[s].mean(dim=0) for s in range(4)]
                bodies.append(torch.cat(joints + segments))
        rows.append(sum(bodies) / len(bodies))
    return torch.stack(rows)


@pytest.mark.parametrize("pool", ["mean", "joint_time"])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_features_are_the_teachers_pooled(run, store, pool, batch):
    path, made, teacher = run
    encoder, read, step = features.load_encoder(path)
    assert (read, step) == (made, 30)
    ids = np.array([7, 0, 3, 4, 8, 23])  # two bodies: 0, 4, 8
    with torch.no_grad():
        expected = _by_hand(teacher, made, store, ids, pool)
    found = features.extract(encoder, read, store, ids, pool=pool, batch=batch)
    assert found.dtype == torch.float32
    assert found.shape == (6, features.feature_width(encoder, pool))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (expected[1] - expected[2]).abs().max() > 1e-3  # the test would see a wrong order


def test_without_a_teacher_the_student_is_evaluated(tmp_path, store, small):
    small.make_run(tmp_path / "run", store, objective="mamp")
    found = checkpoint.load_latest(tmp_path / "run").tensors["model"]
    student = {name: torch.rand_like(tensor) for name, tensor in found.items() if name.startswith("student.encoder.")}
    checkpoint.save(tmp_path / "run", 40, {"model": student}, {}, keep=2)
    encoder, _, step = features.load_encoder(tmp_path / "run")
    assert step == 40
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, student[f"student.encoder.{name}"])


def test_pooled_values_of_known_tokens():
    # Token = 100 * segment + joint, in both channels; V = 3, S = 2.
    tokens = torch.tensor([[0.0, 1, 2, 100, 101, 102]])[..., None].repeat(2, 1, 2)
    network = SimpleNamespace(grid=(2, 3), width=2)
    assert features.pool_tracks(tokens, network, "mean").tolist() == [[51.0, 51.0]] * 2
    expected = [50.0, 50, 51, 51, 52, 52, 1, 1, 101, 101]
    assert features.pool_tracks(tokens, network, "joint_time").tolist() == [expected] * 2
    assert features.pool_tracks(tokens, network, "joint").tolist() == [expected[:6]] * 2
    assert features.pool_tracks(tokens, network, "segment").tolist() == [expected[6:]] * 2
    widths = [features.feature_width(network, pool) for pool in POOLS]
    assert widths == [2, 6, 4, 10, 2 * (4 + 9 + 4)]


def test_statistics_are_of_all_tokens_of_joints_and_of_segments():
    values = torch.tensor([[1.0, -2, 4, 3, 0, -8]])  # V = 3, S = 2
    network = SimpleNamespace(grid=(2, 3), width=1)
    everything = [-1 / 3, 4, values.std(correction=0).item(), 3 / 6]
    joints = [2, -1, -2, 3, 0, 4, 1, 1, 6]  # means, maxima, deviations
    segments = [1, -5 / 3, 4, 3]  # means, maxima
    pooled = features.pool_tracks(values[..., None], network, "statistics")
    torch.testing.assert_close(pooled, torch.tensor([[*everything, *joints, *segments]]))
    network.grid = None
    torch.testing.assert_close(features.pool_tracks(values[..., None], network, "statistics"), pooled[:, :4])


def test_features_of_several_layers(run, store):
    encoder, made, _ = features.load_encoder(run[0])
    ids = np.array([7, 0, 4])
    both = features.extract(encoder, made, store, ids, pool="joint", layers=2)
    last = features.extract(encoder, made, store, ids, pool="joint")
    torch.testing.assert_close(both[:, last.shape[1] :], last, rtol=1e-5, atol=1e-6)
    clips = Recordings(made, store, torch.device("cpu")).clips(torch.from_numpy(ids))
    with torch.no_grad():
        below = encoder.hidden(clips, 2)[0]
    expected = features.pool_tracks(below, encoder, "joint").unflatten(0, (-1, 2)).mean(1)
    torch.testing.assert_close(both[:, : last.shape[1]], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(errors.ConfigError, match=rf"--layers: 9; Transformer has {encoder.depth}, 1 to"):
        features.extract(encoder, made, store, ids, layers=9)


def test_tokens_that_are_no_joints_have_no_means_of_joints():
    network = SimpleNamespace(grid=None, width=8, depth=1)
    assert features.feature_width(network, "mean") == 8
    with pytest.raises(errors.ConfigError, match="--pool: joint_time needs tokens of joints and segments"):
        features.check_pool(network, Config(), "joint_time")
    features.check_pool(network, Config(), "mean")


def test_same_features_every_time(run, store):
    encoder, made, _ = features.load_encoder(run[0])
    ids = np.arange(9)
    assert torch.equal(features.extract(encoder, made, store, ids), features.extract(encoder, made, store, ids))


def test_draws_are_trainings_clips(run, store):
    path, made, teacher = run
    encoder, _, _ = features.load_encoder(path)
    ids = np.array([4, 9])
    frames, index = torch.from_numpy(np.array(store.frames)), torch.from_numpy(np.array(store.frame_index))
    row, count = map(torch.from_numpy, store.track_table(2))
    spec = ops.ClipSpec(frames=12, rotate=(0.3, 0.3, 0.3), root=0, torso=(0, 1), sides=(3, 4), up=1)
    clips = ops.clip_sample(frames, index, row, count, torch.from_numpy(ids), spec, seed=5, epoch=2, training=True)
    with torch.no_grad():
        expected = teacher(clips).mean(dim=1).reshape(2, 2, -1).mean(dim=1)
    found = features.extract(encoder, made, store, ids, draw=2, seed=5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - features.extract(encoder, made, store, ids)).abs().max() > 1e-3


def test_untrained_is_what_the_run_started_from(run, small):
    path, made, teacher = run
    encoder, _, step = features.load_encoder(path, untrained=True)
    start = build_network(made, small.layout)
    assert step == 0
    for name, tensor in start.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor)
        assert not torch.equal(teacher.state_dict()[name], tensor)


def test_untrained_needs_no_checkpoint(run):
    path = run[0]
    for folder in (path / "checkpoints").iterdir():
        shutil.rmtree(folder)
    features.load_encoder(path, untrained=True)
    with pytest.raises(errors.CheckpointError, match="no checkpoint"):
        features.load_encoder(path)


def test_a_damaged_checkpoint_is_passed_over_and_said(run):
    path, _, teacher = run
    checkpoint.save(path, 40, {"model": {"teacher.norm.weight": torch.zeros(16)}}, {}, keep=2)
    file = path / "checkpoints" / "step-00000040" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    said = []
    encoder, _, step = features.load_encoder(path, log=said.append)
    assert step == 30
    assert "step-00000040" in said[0]
    assert torch.equal(encoder.norm.weight, teacher.norm.weight)


def test_a_checkpoint_of_another_network_is_one_line(run):
    path = run[0]
    checkpoint.save(path, 40, {"model": {"teacher.norm.weight": torch.zeros(16)}}, {}, keep=2)
    with pytest.raises(errors.CheckpointError, match="step-00000040.*not the network of") as caught:
        features.load_encoder(path)
    assert "\n" not in str(caught.value)


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(errors.CheckpointError, match="nowhere"):
        features.load_encoder(tmp_path / "nowhere")


def test_features_that_are_not_finite_name_the_sequence(run, store):
    path, made, _ = run
    encoder, _, _ = features.load_encoder(path)
    encoder.norm.weight[3] = float("nan")
    with pytest.raises(errors.DataError, match=r"sequence s002 .*\(2 of 2 sequences\)"):
        features.extract(encoder, made, store, np.array([2, 5]))


def test_no_sequence_gives_no_row(run, store):
    encoder, made, _ = features.load_encoder(run[0])
    assert features.extract(encoder, made, store, np.zeros(0, dtype=np.int64)).shape == (0, 16)


@pytest.mark.parametrize(("number", "clips"), [(0, [2]), (1, [2, 1])])
def test_a_sequence_costs_its_own_clips(run, store, number, clips):
    """A stream asks for one at a time; nobody's clip is computed where a body is absent."""
    encoder, read, _ = features.load_encoder(run[0])
    seen = []
    encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    features.extract(encoder, read, store, np.array([number]))
    assert seen == clips


def test_progress_counts_sequences(run, store):
    encoder, made, _ = features.load_encoder(run[0])
    seen = []
    features.extract(encoder, made, store, np.arange(7), batch=3, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_the_clips_of_the_config(run, store, small, tmp_path):
    """Every field of a clip that evaluation uses changes the features."""
    ids = np.arange(8)
    plain = features.extract(*features.load_encoder(run[0])[:2], store, ids)
    changes = [
        {"data__sampling": "crop"},
        {"data__center": "frame"},
        {"data__scale": "torso"},
        {"data__align": "yaw"},
        {"data__velocity": 1.0},
        {"data__bodies": 1},
    ]
    for number, change in enumerate(changes):
        path = tmp_path / f"run{number}"
        small.make_run(path, store, **change)
        found = features.extract(*features.load_encoder(path)[:2], store, ids)
        assert (found - plain).abs().max() > 1e-3, change


def test_devices():
    assert features.resolve_device("cpu").type == "cpu"
    assert features.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(errors.ConfigError, match="^device: 'toaster'"):
        features.resolve_device("toaster")
    with pytest.raises(errors.ConfigError, match="^device: cuda:99"):
        features.resolve_device("cuda:99")
