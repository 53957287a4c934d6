import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast import errors
from s2vfast.ops import voxelize
from s2vfast.ops.voxelize import KERNELS
from s2vfast.reference.voxelize import voxelize as reference


def clip(*points):
    """One clip of one frame."""
    return torch.tensor(points, dtype=torch.float32).reshape(1, 1, -1, 3)


def cloud(seed, N=2, T=3, P=40, absent=0.2, width=0.3):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randn(N, T, P, 3, generator=generator) * width
    clips[torch.rand(N, T, P, generator=generator) < absent] = float("nan")
    return clips


def agree(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        if e.is_floating_point():
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(a, e)


@pytest.mark.parametrize(("kernel", "capacity"), [("cube", None), ("hybrid", None), ("cross", 150)])
def test_agrees_with_the_reference(impl, kernel, capacity):
    options = {"kernel": kernel, "strides": ((1, 2), (2, 3)), "capacity": capacity}
    clips = cloud(0, P=20)
    agree(voxelize(clips, 0.08, **options, impl=impl), reference(clips, 0.08, **options))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 3), st.integers(0, 4), st.integers(0, 60), st.floats(0.01, 2.0), st.floats(0, 1), st.integers(0, 99)
)
def test_agrees_at_any_size(N, T, P, size, absent, seed):
    clips = cloud(seed, N, T, P, absent)
    options = {"kernel": "cross", "strides": ((2, 2),), "capacity": None}
    agree(voxelize(clips, size, **options), reference(clips, size, **options))


def test_by_hand(impl):
    """Two points in one cell, one on the border that two cells share, one below the origin, one absent."""
    points = [[0.1, 0.1, 0.1], [0.3, 0.1, 0.1], [0.5, 0.0, 0.0], [-0.1, 0.0, 0.0], [float("nan"), 0.0, 0.0]]
    voxels = voxelize(clip(*points), 0.5, kernel="cross", strides=[(1, 2)], impl=impl)
    fine, coarse = voxels.levels
    assert fine.coordinates.tolist() == [[0, 0, -1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    expected = [[1, 0.3, -0.5, -0.5], [1, -0.1, -0.3, -0.3], [1, -0.5, -0.5, -0.5]]
    torch.testing.assert_close(voxels.features, torch.tensor(expected))
    assert fine.starts.tolist() == [0, 3]
    before, itself, after = (KERNELS["cross"].index((0, d, 0, 0)) for d in (-1, 0, 1))
    assert fine.neighbors[before].tolist() == [-1, 0, 1]
    assert fine.neighbors[itself].tolist() == [0, 1, 2]
    assert fine.neighbors[after].tolist() == [1, 2, -1]
    assert coarse.coordinates.tolist() == [[0, 0, -1, 0, 0], [0, 0, 0, 0, 0]]
    assert coarse.children.T.tolist() == [[-1, -1, -1, -1, 0, -1, -1, -1], [1, -1, -1, -1, 2, -1, -1, -1]]


def test_neighbours_in_time_are_of_the_same_clip(impl):
    """One point a frame at the same place: the last frame of a clip is no neighbour of the next one's first."""
    clips = torch.zeros(2, 3, 1, 3)
    level = voxelize(clips, 0.1, kernel="cross", impl=impl).levels[0]
    before = KERNELS["cross"].index((-1, 0, 0, 0))
    assert level.neighbors[before].tolist() == [-1, 0, 1, -1, 3, 4]
    assert level.neighbors[-1 - before].tolist() == [1, 2, -1, 4, 5, -1]


@pytest.mark.parametrize("kernel", KERNELS)
def test_offsets_against_each_other_mirror_the_table(kernel, impl):
    """Where s is r's neighbour at an offset, r is s's at the offset against it, which is as far from the end."""
    assert [tuple(-d for d in offset) for offset in KERNELS[kernel][::-1]] == list(KERNELS[kernel])
    table = voxelize(cloud(4), 0.08, kernel=kernel, impl=impl).levels[0].neighbors
    for rows, mirrored in zip(table, table.flip(0), strict=True):
        here = torch.nonzero(rows >= 0)[:, 0]
        assert torch.equal(mirrored[rows[here].long()].long(), here)


def test_points_far_away_are_ignored_and_near_the_edge_are_not(impl):
    """Cells run from -1022 to 1021; no neighbour of those at an edge is at the opposite one."""
    edge = 1021.5
    points = [[edge, -edge, edge], [-edge, -edge, edge], [1022.0, 0, 0], [0, -1022.5, 0], [0, float("inf"), 0]]
    level = voxelize(clip(*points), 1.0, kernel="cube", strides=[(1, 2)], impl=impl).levels[0]
    assert level.coordinates.tolist() == [[0, 0, -1022, -1022, 1021], [0, 0, 1021, -1022, 1021]]
    assert (level.neighbors >= 0).sum() == 2


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 2, 0)])
@pytest.mark.parametrize("capacity", [None, 5])
def test_nothing_in_gives_nothing_out(impl, shape, capacity):
    voxels = voxelize(torch.zeros(*shape, 3), 0.1, strides=[(1, 2)], capacity=capacity, impl=impl)
    assert voxels.features.shape == (capacity or 0, 4)
    for level in voxels.levels:
        assert level.starts.tolist() == [0] * (shape[0] + 1)
        assert (level.neighbors == -1).all()
        assert (level.children == -1).all()


def test_capacity(impl):
    clips = cloud(5)
    exact = voxelize(clips, 0.2, strides=[(1, 2)], impl=impl)
    count = len(exact.features)
    roomy = voxelize(clips, 0.2, strides=[(1, 2)], capacity=count + 7, impl=impl)
    for name, wide, narrow in (
        ("features", roomy.features, exact.features),
        *(
            (name, getattr(w, name), getattr(n, name))
            for w, n in zip(roomy.levels, exact.levels, strict=True)
            for name in n._fields
        ),
    ):
        dim = 1 if name in ("neighbors", "children") else 0
        size = narrow.shape[dim]
        assert torch.equal(wide.narrow(dim, 0, size), narrow), name
        outside = wide.narrow(dim, size, wide.shape[dim] - size)
        assert (outside == (-1 if dim else 0)).all(), name
    agree(voxelize(clips, 0.2, capacity=count, impl=impl), voxelize(clips, 0.2, impl=impl))
    with pytest.raises(errors.ShapeError, match=f"voxelize: capacity: {count} cells where there are {count - 1} rows"):
        voxelize(clips, 0.2, capacity=count - 1, impl=impl)


def test_the_order_of_points_does_not_matter(impl):
    clips = cloud(6)
    order = torch.randperm(clips.shape[2], generator=torch.Generator().manual_seed(0))
    agree(voxelize(clips[:, :, order], 0.1, impl=impl), voxelize(clips, 0.1, impl=impl))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("clips", torch.zeros(2, 3, 4)),
        ("clips", torch.zeros(2, 3, 4, 3, dtype=torch.float64)),
        ("clips", torch.zeros(1, 1023, 1, 3)),
        ("size", 0.0),
        ("kernel", "star"),
        ("strides", [(1, 0)]),
        ("capacity", -1),
    ],
)
def test_refuses_by_name(name, wrong):
    with pytest.raises(errors.ShapeError, match=f"voxelize: {name}"):
        voxelize(**{"clips": torch.zeros(1, 1, 1, 3), "size": 0.1, name: wrong})
