"""Streams: against the plain reference, published numbers, and what they must do on any skeleton."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast.data.layout import LAYOUTS
from s2vfast.data.streams import STREAMS, Stream, bone_matrix, mode_matrix, reroot
from s2vfast.errors import ConfigError
from s2vfast.reference import streams as reference

GOLDEN = Path(__file__).parent / "golden_skeattnclr_small.npz"
# (parent, child), numbered from 1, as InfoGCN lists NTU's bones, and (child, parent) as it lists NW-UCLA's.
NTU_EDGES = (
    "2-1 2-21 21-3 3-4 21-5 5-6 6-7 7-8 8-23 23-22 21-9 9-10 10-11 11-12 12-25 25-24 1-13 13-14 14-15 15-16 "
    "1-17 17-18 18-19 19-20"
)
NW_UCLA_EDGES = "1-2 2-3 4-3 5-3 6-5 7-6 8-7 9-3 10-9 11-10 12-11 13-1 14-13 15-14 16-15 17-1 18-17 19-18 20-19"


def clips(layout, frames=7, dtype=torch.float64):
    values = np.random.default_rng(0).normal(size=(3, 2, frames, layout.num_joints, 3))
    values[1, 1] = 0
    return torch.from_numpy(values).to(dtype)


def published_modes(edges, count, k):
    """I - P^k with P[child, parent] = 1 for NTU's pairs, as the pairs are listed for NW-UCLA."""
    adjacency = np.zeros((count, count), int)
    for pair in edges.split():
        first, second = (int(number) - 1 for number in pair.split("-"))
        adjacency[second, first] = 1
    return np.eye(count, dtype=int) - np.linalg.matrix_power(adjacency, k)


@pytest.mark.parametrize("name", ["kinect_v2", "kinect_v1", "coco17"])
@pytest.mark.parametrize("motion", [None, "forward", "backward"])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_is_its_reference(stream, motion, name):
    layout, lengths = LAYOUTS[name], [7, 5, 1]
    x = clips(layout)
    for fields in [{"k": k, "direction": d} for k in (1, 2, 5) for d in ("ancestors", "descendants")]:
        output = Stream(stream, motion=motion, **fields)(x, layout, torch.tensor(lengths)).numpy()
        for clip, length, result in zip(x.numpy(), lengths, output, strict=True):
            if stream == "mode":
                clip = reference.mode(clip, layout.bone_parents, fields["k"], fields["direction"] == "descendants")
            elif stream.startswith("bone"):
                clip = reference.bones(clip, layout.bone_parents)
            kind = motion or ("forward" if stream.endswith("motion") else "none")
            if kind != "none":
                clip = reference.motion(clip, length, kind == "backward")
            np.testing.assert_allclose(result, clip, rtol=1e-12, atol=1e-12)
        if stream != "mode":
            break


def test_skeattnclr_sees_the_same_streams():
    golden = np.load(GOLDEN, allow_pickle=False)
    x, bone, motion = (
        torch.from_numpy(golden[name].astype(np.float64).transpose(0, 4, 2, 3, 1).copy())
        for name in ("xq", "view/bone", "view/motion")
    )
    layout = LAYOUTS["kinect_v2"]
    assert torch.equal(Stream("bone")(x, layout), bone)
    assert torch.equal(Stream("motion")(x, layout), motion)
    torch.testing.assert_close(Stream("bone_motion")(x, layout), Stream("motion")(bone, layout), rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", [1, 2, 5, 6, 8])
def test_modes_are_infogcns(k):
    ntu, nw_ucla = LAYOUTS["kinect_v2"], LAYOUTS["kinect_v1"]
    mode = Stream("mode", k=k, root="spine_mid")
    assert np.array_equal(mode.matrix(ntu), published_modes(NTU_EDGES, 25, k))
    mode = Stream("mode", k=k, direction="descendants")
    assert np.array_equal(mode.matrix(nw_ucla), published_modes(NW_UCLA_EDGES, 20, k))


def test_what_the_modes_of_each_set_are():
    ntu, nw_ucla = LAYOUTS["kinect_v2"], LAYOUTS["kinect_v1"]
    assert np.array_equal(Stream("mode", k=8, root="spine_mid").matrix(ntu), np.eye(25))
    assert not np.array_equal(Stream("mode", k=7, root="spine_mid").matrix(ntu), np.eye(25))
    sixth = np.array(Stream("mode", k=6, direction="descendants").matrix(nw_ucla)) - np.eye(20)
    assert np.argwhere(sixth).tolist() == [[2, 15], [2, 19]]  # joint 3 minus joints 16 and 20
    assert (sixth[sixth != 0] == -1).all()
    assert np.array_equal(Stream("mode", k=7, direction="descendants").matrix(nw_ucla), np.eye(20))
    # The first generation is the bone stream, but for the root, which stays raw.
    first, bone = np.array(Stream("mode").matrix(ntu)), np.array(Stream("bone").matrix(ntu))
    assert np.argwhere(first != bone).tolist() == [[20, 20]]


TREES = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.integers(0, max(joint - 1, 0)) for joint in range(n)]).map(lambda up: (-1, *up[1:]))
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parents=TREES, data=st.data())
def test_a_tree_hung_from_another_joint_has_the_same_bones(parents, data):
    root = data.draw(st.integers(0, len(parents) - 1))
    turned = reroot(parents, root)
    assert turned[root] == -1
    assert turned.count(-1) == 1
    assert {frozenset(bone) for bone in enumerate(turned) if bone[1] >= 0} == {
        frozenset(bone) for bone in enumerate(parents) if bone[1] >= 0
    }
    assert reroot(turned, 0) == parents
    for k in (1, 2, 3):
        ancestors, descendants = mode_matrix(turned, k), mode_matrix(turned, k, "descendants")
        assert np.array_equal(np.array(ancestors).T, descendants)
    assert (np.array(bone_matrix(turned)).sum(1) == 0).all()  # no bone changes when all joints move alike


def test_a_stream_comes_back_from_its_data():
    for stream in (Stream("bone", motion="backward"), Stream("mode", k=8, root="spine_mid"), Stream()):
        assert Stream.from_data(stream.to_data()) == stream
    assert Stream.from_data({"name": "bone_motion"}) == Stream("bone_motion")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"name": "bones"},
            "stream.name: 'bones' is not one of joint, bone, motion, bone_motion, mode",
        ),
        ({"nam": "bone"}, "stream.nam: no such field; did you mean stream.name?"),
        ({"motion": "front"}, "stream.motion: 'front'; one of none, forward, backward or null is expected"),
        ({"name": "bone_motion", "motion": "none"}, "stream.motion: none, and the stream is bone_motion"),
        ({"name": "mode", "k": 0}, "stream.k: 0; 1 or more is expected"),
        ({"name": "mode", "k": 1.5}, "stream.k: 1.5; a whole number"),
        ({"direction": "up"}, "stream.direction: 'up' is not one of ancestors, descendants"),
        ("bone", "stream: a section of fields is expected, not 'bone'"),
    ],
)
def test_impossible_streams_are_refused(data, message):
    with pytest.raises(ConfigError) as caught:
        Stream.from_data(data)
    assert str(caught.value).startswith(message)


def test_roots_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="'spine_mi' is no joint of layout kinect_v2 "):
        Stream("mode", root="spine_mi").matrix(LAYOUTS["kinect_v2"])
    two_trees = replace(LAYOUTS["coco17"], bone_parents=(-1, -1, *LAYOUTS["coco17"].parents[2:]))
    with pytest.raises(ConfigError, match="several trees"):
        Stream("bone", root="nose").matrix(two_trees)
    assert Stream("bone").matrix(two_trees)[1] == (0,) * 17
