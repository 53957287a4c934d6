"""Clips of point clouds in the feed: frames and points of the operation, moved as a whole; refusals name a field."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from s2vfast.config import Config, DataConfig
from s2vfast.data.clips import clip_spec, moved_points, point_spec
from s2vfast.data.layout import get_layout
from s2vfast.data.memory import memory_store
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.errors import ConfigError
from s2vfast.ops.point_sample import PointSpec
from s2vfast.reference import philox
from s2vfast.reference.clip_sample import rotation
from s2vfast.reference.point_sample import point_sample
from s2vfast.train.feed import PointRecordings, Recordings

DATA = DataConfig(bodies=1, frames=4, points=8, sampling="window", stride=2, rotate=(0.0, 0.0, 0.0))


def recordings(lengths=(9, 5, 12), seed=0):
    """Recordings of 5 to 30 points a frame, the second one with frames without any."""
    rng = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        counts = rng.integers(5, 30, length)
        if number == 1:
            counts[[0, 3]] = 0
        points = rng.normal([0.3, 0.1, 2.5], 0.4, (counts.sum(), 3)).astype(np.float32)
        made.append(PointSequence(f"s{number}", number % 2, length, points, counts))
    return memory_store(made, PointLayout())


def clips(data, ids=(0, 1, 2), **draw):
    return Recordings(replace(Config(), data=data), recordings(), torch.device("cpu")).clips(torch.tensor(ids), **draw)


@pytest.mark.parametrize("epoch", [None, 3])
@pytest.mark.parametrize("sampling", ["window", "bins"])
def test_clips_are_those_of_the_reference(sampling, epoch):
    store = recordings()
    source = Recordings(replace(Config(), data=replace(DATA, sampling=sampling)), store, torch.device("cpu"))
    assert type(source) is PointRecordings
    assert source.present.tolist() == [[True]] * 3
    found = source.clips(torch.tensor([2, 1]), epoch=epoch, seed=5)
    assert found.shape == (2, 4, 8, 3)
    assert found.isfinite().all()
    # Frames 0 and 3 of the second recording have no points: those of their neighbours stand for them.
    begin, size = torch.from_numpy(store.frame_rows[:-1].copy()), torch.from_numpy(np.diff(store.frame_rows))
    for empty, neighbour in ((9, 10), (12, 11)):
        begin[empty], size[empty] = begin[neighbour], size[neighbour]
    spec = PointSpec(4, 8, 2, "window" if sampling == "window" else "even")
    tables = [torch.from_numpy(store.first_frame[:-1]), torch.from_numpy(store.total_frames), torch.zeros(3, 3)]
    draws = {"seed": 5 if epoch is not None else 0, "epoch": epoch or 0, "training": epoch is not None}
    expected = point_sample(torch.from_numpy(store.points), begin, size, *tables, torch.tensor([2, 1]), spec, **draws)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_there_is_to_say():
    def notes(data):
        return Recordings(replace(Config(), data=data), recordings(), torch.device("cpu")).notes

    assert notes(DATA) == ["1 of 3 sequences have less than 7 frames: clips repeat some"]
    assert notes(replace(DATA, sampling="bins")) == []


def test_clips_lie_about_their_sequences_centre_or_where_the_camera_saw_them():
    about, seen = clips(DATA), clips(replace(DATA, center="none"))
    centres = torch.from_numpy(recordings().centres)
    torch.testing.assert_close(seen - about, centres[:, None, None].expand_as(about), rtol=0, atol=1e-6)


def test_a_clip_is_moved_as_a_whole_by_the_draws_that_are_documented():
    data = replace(DATA, rotate=(0.1, 0.3, 0.0), scale_jitter=0.1, shift=0.2)
    plain, moved = clips(DATA, epoch=2, seed=7), clips(data, epoch=2, seed=7)
    u = 2.0 * philox.uniform(philox.random_bits(7, 2, torch.arange(3), philox.POINT_MOVE, 9)) - 1.0
    for clip, image, draw in zip(plain, moved, u, strict=True):
        turned = clip @ rotation(draw[:3] * torch.tensor([0.1, 0.3, 0.0])).T
        torch.testing.assert_close(image, turned * (1.0 + 0.1 * draw[3:6]) + 0.2 * draw[6:9])
    torch.testing.assert_close(clips(data), clips(DATA), rtol=0, atol=0)  # not in evaluation
    assert not torch.equal(moved, clips(data, epoch=3, seed=7))
    torch.testing.assert_close(clips(data, (2,), epoch=2, seed=7), moved[2:], rtol=0, atol=0)
    assert moved_points(plain, DATA, torch.arange(3), 7, 2) is plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bodies": 2}, "data.bodies: 2; of point clouds 1"),
        ({"sampling": "crop"}, "data.sampling: crop; of point clouds bins or window"),
        ({"center": "frame"}, "data.center: frame; of point clouds first or none"),
        ({"scale": "torso"}, "data.scale: of skeletons"),
        ({"stream": "bone"}, "data.stream: of skeletons"),
        ({"velocity": 1.0}, "data.velocity: of skeletons"),
        ({"confidence": True}, "data.confidence: of skeletons"),
    ],
)
def test_what_point_clouds_do_not_have(change, message):
    with pytest.raises(ConfigError, match=message):
        point_spec(replace(DATA, **change))


@pytest.mark.parametrize("change", [{"sampling": "window"}, {"shift": 0.1}])
def test_what_skeletons_do_not_have(change):
    with pytest.raises(ConfigError, match="for point clouds; the store holds skeletons"):
        clip_spec(DataConfig(**change), get_layout("kinect_v2"))


def test_a_network_of_joints_refuses_points():
    with pytest.raises(ConfigError, match="model.name: transformer reads skeletons, the store holds points"):
        Config().validate(PointLayout())
