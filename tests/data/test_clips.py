"""Clips by steps of a view, and streams: what training, evaluation and prediction all see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from s2vfast.config import Config
from s2vfast.data.augment import Compose, ViewKey
from s2vfast.data.clips import clip_spec, view_steps
from s2vfast.data.layout import get_layout
from s2vfast.data.store import Store
from s2vfast.data.streams import Stream
from s2vfast.errors import ConfigError
from s2vfast.train.feed import Recordings
from tests.train.conftest import write_tiny_store

TRAIN = [
    {"name": "rotate", "x": [-60, 60], "y": [-60, 60], "z": [0, 0], "unit": "whole_degrees", "order": "xyz"},
    {"name": "min_max"},
    {"name": "sample_frames", "frames": 8},
]
TEST = [{"name": "min_max"}, {"name": "sample_frames", "frames": 8, "even": True}]


def config(**data):
    return Config.from_dict({"data": {"frames": 8, **data}, "model": {"segment_frames": 4}, "mask": {"tube_len": 1}})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store.open(write_tiny_store(tmp_path_factory.mktemp("clips") / "store"))


def clips_of(settings, store, ids, **draw):
    return Recordings(settings, store, torch.device("cpu")).clips(torch.tensor(ids), **draw)


def test_the_published_test_clip_of_nwucla(store):
    """floor(linspace) frames of every axis in [-1, 1], in plain NumPy; the second body where it is there."""
    clips = clips_of(config(train_steps=TRAIN, test_steps=TEST), store, [3, 0]).unflatten(0, (2, 2))
    for clip, number in zip(clips.double().numpy(), (3, 0), strict=True):
        bodies, present = store.sequence(number)
        assert present.all()
        low, high = bodies.min(axis=(0, 1, 2)), bodies.max(axis=(0, 1, 2))
        scaled = 2 * (bodies.astype(np.float64) - low) / (high - low) - 1
        index = np.floor(np.linspace(0, bodies.shape[1] - 1, 8)).astype(int)
        np.testing.assert_allclose(clip[: len(bodies)], scaled[:, index], atol=2e-6)
        assert not clip[len(bodies) :].any()


def test_training_clips_are_the_view_of_the_whole_recording(store):
    settings = config(train_steps=TRAIN, test_steps=TEST)
    clips = clips_of(settings, store, [3, 5], epoch=7, seed=2)
    view = Compose(TRAIN, get_layout("kinect_v2"))
    for number, clip in zip((3, 5), clips.unflatten(0, (2, 2)), strict=True):
        whole = torch.from_numpy(store.sequence(number)[0])[None]
        expected, _ = view(whole, ViewKey(2, 7, torch.tensor([number])))
        torch.testing.assert_close(clip[None, : whole.shape[1]], expected, rtol=0, atol=1e-6)
    assert not torch.equal(clips, clips_of(settings, store, [3, 5], epoch=8, seed=2))
    assert torch.equal(clips[:2], clips_of(settings, store, [3], epoch=7, seed=2))


@pytest.mark.parametrize("steps", [{}, {"train_steps": TRAIN, "test_steps": TEST}], ids=["spec", "steps"])
def test_a_stream_and_its_velocities(store, steps):
    joints = clips_of(config(**steps), store, [1, 2])
    bones = clips_of(config(stream="bone", **steps), store, [1, 2])
    torch.testing.assert_close(bones, Stream("bone")(joints[:, None], get_layout("kinect_v2"))[:, 0])
    both = clips_of(config(stream="bone", velocity=2.0, **steps), store, [1, 2])
    torch.testing.assert_close(both[..., :3], bones)
    moves = (bones[:, 1:] - bones[:, :-1]) * 2.0
    seen = (bones != 0).any(-1, keepdim=True)
    torch.testing.assert_close(both[:, :-1, :, 3:], torch.where(seen[:, 1:] & seen[:, :-1], moves, 0.0))
    assert not both[:, -1, :, 3:].any()


WRONG = {
    "no test": ({"train_steps": TRAIN}, "data.test_steps: steps are expected where data.train_steps has some"),
    "no mapping": (
        {"train_steps": ["shear"], "test_steps": TEST},
        "data.train_steps: ('shear',); mappings are expected",
    ),
    "unknown": (
        {"train_steps": [{"name": "sheer"}], "test_steps": TEST},
        "data.train_steps.0.name: 'sheer' is not one of one_of, maybe, ",
    ),
    "frames": (
        {"train_steps": TRAIN, "test_steps": [{"name": "sample_frames", "frames": 9}]},
        "data.test_steps: 9 frames; data.frames = 8 must come out, whatever the recording's length",
    ),
    "any length": (
        {"train_steps": [{"name": "min_max"}], "test_steps": TEST},
        "data.train_steps: 8 or 25 frames; data.frames = 8 must come out",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    data, message = WRONG[name]
    with pytest.raises(ConfigError) as caught:
        view_steps(config(**data).data, get_layout("kinect_v2"))
    assert str(caught.value).startswith(message)


def test_steps_are_plain_data_of_a_config():
    settings = config(train_steps=TRAIN, test_steps=TEST, stream="motion")
    assert Config.from_dict(settings.to_dict()) == settings
    assert replace(settings.data, stream="joint") != settings.data


def test_recordings_of_two_coordinates_turn_in_their_plane():
    data, layout = Config().data, replace(get_layout("coco17"), dimensions=(2,))
    with pytest.raises(ConfigError, match="turn in their plane alone"):
        clip_spec(replace(data, rotate=(0.1, 0.0, 0.0)), layout)
    assert clip_spec(replace(data, rotate=(0.0, 0.0, 0.4)), layout).rotate == (0.0, 0.0, 0.4)
