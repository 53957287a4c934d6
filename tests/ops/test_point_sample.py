import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast import _extension, errors
from s2vfast.ops.point_sample import PointSpec, frame_table, point_sample
from s2vfast.reference.point_sample import frames_of
from s2vfast.reference.point_sample import point_sample as reference


def store(lengths, seed=0, empty=False):
    """Frames of 1 to 40 points; x is the number of the point in its frame, y the frame, z the sequence."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.tensor(lengths, dtype=torch.int32)
    row = count.long().cumsum(0) - count
    sizes = torch.randint(0 if empty else 1, 41, (int(count.sum()),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    points = torch.tensor(
        [
            (float(p), float(f), float(q))
            for q, frames in enumerate(lengths)
            for f in range(frames)
            for p in range(int(sizes[row[q] + f]))
        ]
    ).reshape(-1, 3)
    return points, *frame_table(offsets, row, count), row, count, torch.zeros(len(lengths), 3)


LENGTHS = [1, 3, 7, 8, 9, 30]
SPEC = PointSpec(frames=8, points=16)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", [{}, {"stride": 3}, {"sampling": "even"}, {"points": 50}, {"frames": 1}], ids=str)
def test_agrees_with_the_reference(impl, change, training):
    tables = store(LENGTHS)
    tables[-1][:] = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([5, 0, 1, 4, 5])
    spec = dataclasses.replace(SPEC, **change)
    for window in range(1 if training else 3):
        options = {"seed": 2**40 + 3, "epoch": 2, "training": training, "window": window, "windows": 3}
        expected = reference(*tables, ids, spec, **options)
        assert torch.equal(point_sample(*tables, ids, spec, **options, impl=impl), expected)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(0, 2**40),
    st.booleans(),
    st.sampled_from(["window", "even"]),
)
def test_laws_of_frames(count, T, stride, seed, training, sampling):
    spec = PointSpec(T, 1, stride, sampling)
    frames = torch.tensor(frames_of(count, 5, spec, seed, 0, training, (0, 1)))
    assert frames.shape == (T,)
    assert frames.min() >= 0
    assert frames.max() < count
    steps = frames.diff()
    if sampling == "window" and count >= spec.span:
        assert (steps == stride).all()
    else:
        assert (steps >= (count >= T)).all()
        assert len(frames.unique()) == min(count, T)  # a recording that is too short is repeated evenly


def test_windows_are_spread_evenly(impl):
    """30 frames have 23 windows of 8."""
    tables, ids = store([30]), torch.tensor([0])

    def start(i, n):
        return int(point_sample(*tables, ids, SPEC, training=False, window=i, windows=n, impl=impl)[0, 0, 0, 1])

    assert [start(i, 1) for i in range(1)] == [11]
    assert [start(i, 23) for i in range(23)] == list(range(23))
    assert [start(i, 4) for i in range(4)] == [2, 8, 14, 20]


def test_points_of_a_frame(impl):
    """Of enough points none comes twice; of few each as often as another, give or take one; all are of their frame."""
    tables, ids = store([30] * 4), torch.arange(4)
    clips = point_sample(*tables, ids, SPEC, seed=5, impl=impl)
    size, row = tables[2], tables[3]
    for b, clip in enumerate(clips):
        for frame in clip:
            assert frame[:, 1:].unique(dim=0).shape == (1, 2)
            assert frame[0, 2] == b
            n = int(size[row[b] + int(frame[0, 1])])
            times = torch.bincount(frame[:, 0].long(), minlength=n)
            assert len(times) == n
            assert times.max() - times.min() <= 1


def test_draws_are_uniform():
    """40 points in 16 bins: in 500 epochs each comes about 500 * 16 / 40 times."""
    points = torch.arange(40.0)[:, None].expand(40, 3)
    table = torch.tensor([0]), torch.tensor([40], dtype=torch.int32)
    tables = points, *table, torch.tensor([0]), torch.tensor([1], dtype=torch.int32), torch.zeros(1, 3)
    spec = PointSpec(1, 16)
    drawn = torch.cat([point_sample(*tables, torch.tensor([0]), spec, epoch=e).flatten(0, 2)[:, 0] for e in range(500)])
    times = torch.bincount(drawn.long(), minlength=40)
    # Bins of two points and of three: a half and a third of the draws.
    assert times.min() > 130
    assert times.max() < 290


def test_draws_depend_on_sample_epoch_and_seed_alone(impl):
    tables = store([50] * 4)

    def clips(ids, **draws):
        return point_sample(*tables, torch.tensor(ids), SPEC, **draws, impl=impl)

    alone = clips([2], seed=1, epoch=4)
    assert torch.equal(clips([0, 2, 3], seed=1, epoch=4)[1:2], alone)
    for draws in ({"seed": 1, "epoch": 5}, {"seed": 2, "epoch": 4}):
        assert not torch.equal(clips([2], **draws), alone)


def test_a_frame_without_points_has_those_of_the_nearest(impl):
    """Sizes 0 2 0 0 1 0: of two as near the earlier one. A sequence that has none is NaN."""
    offsets = torch.tensor([0, 0, 2, 2, 2, 3, 3, 3])
    row, count = torch.tensor([0, 6]), torch.tensor([6, 1], dtype=torch.int32)
    begin, size = frame_table(offsets, row, count)
    assert begin[:6].tolist() == [0, 0, 0, 2, 2, 2]
    assert size.tolist() == [2, 2, 2, 1, 1, 1, 0]
    points = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0]])
    tables = points, begin, size, row, count, torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    clips = point_sample(*tables, torch.tensor([0, 1]), PointSpec(6, 2), training=False, impl=impl)
    assert clips[0, :, :, 0].tolist() == [[0, 1], [0, 1], [0, 1], [2, 2], [2, 2], [2, 2]]
    assert clips[1].isnan().all()
    nothing = tables[0][:0], begin, torch.zeros_like(size), *tables[3:]
    assert point_sample(*nothing, torch.tensor([0]), PointSpec(6, 2), impl=impl).isnan().all()


def test_half_precision_points(impl):
    points, *tables = store([30, 40])
    ids = torch.tensor([0, 1])
    half = point_sample(points.half() / 7, *tables, ids, SPEC, impl=impl)
    assert half.dtype == torch.float32
    assert torch.equal(half, point_sample((points.half() / 7).float(), *tables, ids, SPEC, impl=impl))


def test_empty_batch(impl):
    clips = point_sample(*store([5]), torch.zeros(0, dtype=torch.int64), SPEC, impl=impl)
    assert clips.shape == (0, 8, 16, 3)


@pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")
@pytest.mark.parametrize(
    ("table", "number", "said"),
    [
        ("ids", 2, "ids has a number that is no sequence's"),
        ("ids", -1, "ids has a number that is no sequence's"),
        ("row", 7, "row and count of a sequence are not within the frames"),
        ("count", 0, "row and count of a sequence are not within the frames"),
        ("count", 2**31 - 1, "row and count of a sequence are not within the frames"),
        ("size", -1, "begin and size of a frame are not within the points"),
        ("begin", 2**62, "begin and size of a frame are not within the points"),
    ],
)
def test_tables_that_lead_out_of_the_points_are_refused(table, number, said):
    names = ("points", "begin", "size", "row", "count", "origin", "ids")
    tables = dict(zip(names, (*store([5, 6]), torch.tensor([0, 1])), strict=True))
    tables[table][1] = number
    with pytest.raises(errors.ShapeError, match=said):
        point_sample(**tables, spec=SPEC, impl="native")


def test_refuses_by_name():
    points, begin, size, row, count, origin = store([5, 6])
    ids = torch.tensor([0])
    for name, tables in (
        ("points", (points[:, :2], begin, size, row, count, origin)),
        ("size", (points, begin, size[1:], row, count, origin)),
        ("count", (points, begin, size, row, count[:1], origin)),
        ("origin", (points, begin, size, row, count, origin[:1])),
    ):
        with pytest.raises(errors.ShapeError, match=f"point_sample: {name}"):
            point_sample(*tables, ids, SPEC)
    with pytest.raises(errors.ShapeError, match="point_sample: window"):
        point_sample(points, begin, size, row, count, origin, ids, SPEC, window=2, windows=2)
    with pytest.raises(ValueError, match="expected frames, points, stride"):
        PointSpec(0, 4)
