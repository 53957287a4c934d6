"""Networks of point clouds: against the same in plain loops, alone and in a batch, of clips without points."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from s2vfast.networks.point_tubes import PointTubes, PointTubesConfig
from s2vfast.networks.sparse4d import Sparse4D, Sparse4DConfig
from s2vfast.ops.voxelize import KERNELS

SPARSE = Sparse4DConfig(segment_frames=4, voxel=0.25, channels=(3, 4, 5))
TUBES = PointTubesConfig(segment_frames=4, tubes=3, neighbors=5, dim=8, heads=2, depth=2)


def networks():
    torch.manual_seed(0)
    return {"sparse4d": Sparse4D(SPARSE, 8).eval(), "point_tubes": PointTubes(TUBES, 8).eval()}


def clips(n=3, frames=8, points=20):
    return torch.randn(n, frames, points, 3, generator=torch.Generator().manual_seed(0)) * 0.6


def convolved(cells, conv, table):
    """Of features by cell; ``table`` says for a cell of the result which cells it is made of, None: none there."""
    result = {}
    for cell, sources in table.items():
        total = sum(cells[source] @ weight for source, weight in zip(sources, conv.weight, strict=True) if source)
        result[cell] = F.layer_norm(total, total.shape, conv.norm.weight, conv.norm.bias, conv.norm.eps)
    return result


def near(cells, kernel="hybrid"):
    moved = {cell: [tuple(map(sum, zip(cell, offset, strict=True))) for offset in KERNELS[kernel]] for cell in cells}
    return {cell: [source if source in cells else None for source in sources] for cell, sources in moved.items()}


def block(cells, layer):
    inner = {cell: F.relu(x) for cell, x in convolved(cells, layer.conv1, near(cells)).items()}
    return {cell: F.relu(cells[cell] + x) for cell, x in convolved(inner, layer.conv2, near(cells)).items()}


def by_loops(network, clip):
    """The features of one stretch [s, P, 3], cell by cell."""
    voxel, points = network.section.voxel, {}
    for t, frame in enumerate(clip):
        for point in frame:
            points.setdefault((t, *(math.floor(q / voxel) for q in point.tolist())), []).append(point / voxel)
    cells = {}
    for cell, members in points.items():
        offset = torch.stack(members).mean(0) - torch.tensor(cell[1:]) - 0.5
        cells[cell] = torch.cat([torch.ones(1), offset])
    cells = {cell: F.relu(x) for cell, x in convolved(cells, network.stem, near(cells)).items()}
    cells = block(cells, network.blocks[0])
    for down, layer, (st, ss) in zip(network.down, network.blocks[1:], ((1, 2), (2, 2)), strict=True):
        table = {}
        for cell in cells:
            parent = (cell[0] // st, *(q // ss for q in cell[1:]))
            corner = (parent[0] * st, *(q * ss for q in parent[1:]))
            offsets = itertools.product(range(st), range(ss), range(ss), range(ss))
            children = [tuple(map(sum, zip(corner, step, strict=True))) for step in offsets]
            table[parent] = [child if child in cells else None for child in children]
        cells = block({cell: F.relu(x) for cell, x in convolved(cells, down, table).items()}, layer)
    final = []
    for (t, *xyz), x in cells.items():
        where = [(t + 0.5) * 2 / len(clip) - 0.5, *((q + 0.5) * 4 * voxel for q in xyz)]
        final.append(F.relu(x + network.position(torch.tensor(where))))
    final = torch.stack(final)
    return torch.cat([final.mean(0), final.amax(0)])


def test_sparse4d_is_that_of_loops():
    network = networks()["sparse4d"]
    with torch.no_grad():
        for number, tokens in enumerate(network.tokens(clips())):
            for stretch in range(2):
                expected = by_loops(network, clips()[number, 4 * stretch : 4 * stretch + 4])
                assert torch.allclose(tokens[stretch], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["sparse4d", "point_tubes"])
def test_a_stretch_is_encoded_by_itself(name):
    """In any batch, in any order of its points; one without a point has numbers too."""
    network, batch = networks()[name], clips()
    with torch.no_grad():
        tokens = network.tokens(batch)
        assert tokens.shape == (3, 2, network.width)
        assert torch.allclose(network.tokens(batch[1:2, 4:])[0, 0], tokens[1, 1], atol=1e-5)
        batch[0] = float("nan")
        without = network.tokens(batch)
    assert without.isfinite().all()
    assert torch.allclose(without[1:], tokens[1:], atol=1e-5)
    assert torch.equal(without[0, 0], without[0, 1])


def test_order_of_points_does_not_matter_to_cells():
    network, batch = networks()["sparse4d"], clips()
    with torch.no_grad():
        assert torch.allclose(network.tokens(batch.flip(2)), network.tokens(batch), atol=1e-5)


def test_time_and_place_matter():
    for name, network in networks().items():
        with torch.no_grad():
            tokens, moved = network.tokens(clips()), network.tokens(clips() + 2.0)
            reversed_in_time = network.tokens(clips().unflatten(1, (2, 4)).flip(2).flatten(1, 2))
        for other in (moved, reversed_in_time):
            assert (tokens - other).abs().max() > 1e-3, name


def test_with_room_for_more_cells_features_are_the_same(monkeypatch):
    """As on a GPU, where shapes are static; too little room leaves cells out without a word."""
    network, batch = networks()["sparse4d"], clips()
    with torch.no_grad():
        tokens = network.tokens(batch)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert torch.allclose(network.tokens(batch), tokens, atol=1e-5)


@pytest.mark.parametrize("name", ["sparse4d", "point_tubes"])
def test_every_parameter_learns_and_has_a_layer(name):
    network = networks()[name]
    network.tokens(clips()).square().sum().backward()
    layers = {network.layer_of(key) for key, _ in network.named_parameters()}
    assert layers == set(range(network.depth + 2))
    # Offsets that no pair of cells has would get none: every one is there in this many random points.
    assert not [key for key, parameter in network.named_parameters() if not parameter.grad.abs().sum() > 0]
