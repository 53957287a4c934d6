import pytest
import torch

from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.errors import ConfigError
from s2vfast.networks import graph

KINECTS = LAYOUTS["kinect_v1"], LAYOUTS["kinect_v2"]
# As the authors' files list them, joints from 1: (parent, child) for NTU, (child, parent) for NW-UCLA.
NTU = (
    "2-1 2-21 21-3 3-4 21-5 5-6 6-7 7-8 8-23 23-22 21-9 9-10 10-11 11-12 12-25 25-24 1-13 13-14 14-15 15-16 1-17 17-18 "
    "18-19 19-20"
)
NWUCLA = "1-2 2-3 4-3 5-3 6-5 7-6 8-7 9-3 10-9 11-10 12-11 13-1 14-13 15-14 16-15 17-1 18-17 19-18 20-19"


def listed(text, V):
    """The authors' "in": 1 at [j, i] for an edge (i, j)."""
    matrix = torch.zeros(V, V)
    for edge in text.split():
        i, j = (int(joint) - 1 for joint in edge.split("-"))
        matrix[j, i] = 1.0
    return matrix


def by_columns(matrix):
    return torch.stack([column / column.sum() if column.sum() else column for column in matrix.T], dim=1)


def fork(name="fork"):
    """hip - neck - (left, right), and an arm of the left one."""
    return Layout(name, ("hip", "neck", "left", "right", "hand"), (-1, 0, 1, 1, 2), 0, (0, 1), (2, 3))


@pytest.mark.parametrize(("layout", "edges"), list(zip(KINECTS, (NWUCLA, NTU), strict=True)), ids=["nwucla", "ntu"])
def test_published_edges_are_the_authors(layout, edges):
    inward = listed(edges, layout.num_joints)
    expected = torch.stack([torch.eye(layout.num_joints), by_columns(inward), by_columns(inward.T)])
    assert torch.equal(graph.in_out_graph(layout, "published"), expected)
    for k in (1, 2, 6, 8):
        power = torch.linalg.matrix_power(inward, k)
        assert torch.equal(graph.mode(layout, k, "published"), torch.eye(len(power)) - power)


def test_right_edges_point_one_way_in_every_layout():
    """NTU's direction: a mode subtracts the k-th ancestor; NW-UCLA's published one subtracts descendants."""
    nwucla, ntu = KINECTS
    assert torch.equal(graph.mode(ntu, 2), graph.mode(ntu, 2, "published"))
    assert torch.equal(graph.in_out_graph(ntu), graph.in_out_graph(ntu, "published"))
    child = listed(NWUCLA, 20).T
    assert torch.equal(graph.mode(nwucla, 2), torch.eye(20) - child @ child)
    published = graph.in_out_graph(nwucla, "published")
    assert torch.equal(graph.in_out_graph(nwucla), published[[0, 2, 1]])


def test_who_takes_whose_value():
    layout = fork()
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])
    own, parent, children = x @ graph.spatial_graph(layout.bone_parents)
    assert own.tolist() == x.tolist()
    assert parent.tolist() == [0.0, 1.0, 10.0, 10.0, 100.0]
    assert children.tolist() == [10.0, 550.0, 10000.0, 0.0, 0.0]
    assert torch.equal(graph.in_out_graph(layout), graph.spatial_graph(layout.bone_parents)[[0, 2, 1]])
    assert (graph.mode(layout, 2) @ x).tolist() == [1.0, 10.0, 99.0, 999.0, 9990.0]
    assert (graph.mode(layout, 4) @ x).tolist() == x.tolist()


def test_rows_and_columns_are_divided_and_empty_ones_stay():
    matrix = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert graph.normalised(matrix).tolist() == [[0.5, 1.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert graph.normalised(matrix, over="destinations").tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0] * 3]


def test_trees_of_several_roots_need_no_other_root():
    layout = Layout("two", ("a", "b", "c", "d"), (-1, 0, -1, 2), 0, (0, 1), (2, 3))
    assert graph.mode(layout, 1).sum(1).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_mode_zero_is_refused():
    with pytest.raises(ConfigError, match="model.k: 0; 1 or more"):
        graph.mode(fork(), 0)
