import json

import pytest

from s2vfast.data.layout import LAYOUTS, Layout, get_layout
from s2vfast.errors import DataError

TRIANGLE = {
    "name": "triangle",
    "joints": ["base", "left", "right"],
    "parents": [-1, "base", 0],
    "root": "base",
    "torso": ["base", "left"],
    "sides": ["left", "right"],
}


@pytest.mark.parametrize(("name", "joints", "root"), [("kinect_v2", 25, 1), ("kinect_v1", 20, 1), ("coco", 17, 0)])
def test_known_layouts_are_whole_trees(name, joints, root):
    layout = get_layout(name)
    assert layout.num_joints == joints
    assert layout.root == root
    assert len(layout.bones) == joints - 1, "one tree"
    assert sorted(sum(layout.parts.values(), ())) == list(range(joints)), "every joint in one part"
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_left_and_right_mirror_each_other(name):
    layout = get_layout(name)

    def other(joint):
        swapped = layout.joints[joint].replace("left", "?").replace("right", "left").replace("?", "right")
        return layout.joints.index(swapped)

    for joint, parent in layout.bones:
        # A coco arm hangs from the nose on both sides, so the mirrored bone is a bone too.
        assert (other(joint), other(parent)) in layout.bones
    assert other(layout.sides[0]) == layout.sides[1]
    assert layout.joints[layout.sides[0]] == "left_shoulder"
    for side in ("arm", "leg"):
        assert {other(joint) for joint in layout.parts[f"left_{side}"]} == set(layout.parts[f"right_{side}"])


def test_layout_from_a_file_takes_names_and_numbers(tmp_path):
    path = tmp_path / "triangle.json"
    path.write_text(json.dumps(TRIANGLE))
    layout = get_layout(path)
    assert layout.parents == (-1, 0, 0)
    assert layout.torso == (0, 1)
    assert layout.sides == (1, 2)
    assert layout.up == (0.0, 1.0, 0.0)
    assert layout.bones == ((1, 0), (2, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": None}, "joints: expected a list"),
        ({"joints": ["a", "a", "b"]}, "joints: a named more than once"),
        ({"parents": [-1, 0]}, "parents: 2 given for 3 joints"),
        ({"parents": [-1, 2, 1]}, "parents: joint left never reaches a root"),
        ({"parents": [-1, 3, 0]}, "parents: 3 is no joint"),
        ({"root": -1}, "root: -1 is no joint"),
        ({"root": True}, "root: True is no joint"),
        ({"root": "tail"}, "root: 'tail' is no joint"),
        ({"torso": [1, 1]}, "torso: expected two different joints"),
        ({"sides": [1]}, "sides: expected two different joints"),
        ({"up": [0, 2, 0]}, "up: expected a vector of length 1"),
        ({"up": [0, "a", 0]}, "up: expected three numbers"),
        ({"parts": {"leg": [7]}}, "parts.leg: 7 is no joint"),
        ({"parts": [1]}, "parts: expected an object"),
        ({"name": ""}, "name: expected a non-empty text"),
        ({"colour": 1}, "unknown field(s) colour"),
    ],
)
def test_impossible_layouts_are_refused_with_the_field(tmp_path, change, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**TRIANGLE, **change}))
    with pytest.raises(DataError) as caught:
        get_layout(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_missing_fields_and_files_are_named(tmp_path):
    with pytest.raises(DataError, match="missing field.s. torso"):
        Layout.from_dict({key: value for key, value in TRIANGLE.items() if key != "torso"})
    with pytest.raises(DataError, match="expected an object"):
        Layout.from_dict([1])
    with pytest.raises(DataError, match="'kinect_v3': neither a known layout .coco, kinect_v1, kinect_v2."):
        get_layout("kinect_v3")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(DataError, match="text.json: cannot be read as JSON"):
        get_layout(tmp_path / "text.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bone_parents": [1, 2, 0]}, "bone_parents: joint base never reaches a root"),
        ({"bone_parents": [-1]}, "bone_parents: 1 given for 3 joints"),
        ({"spine": ["base"]}, "spine: expected two different joints"),
        ({"hips": ["base", "x"]}, "hips: 'x' is no joint"),
        ({"mirror": [["base", "left"], ["left", "right"]]}, "mirror: a joint stands in more than one pair"),
        ({"mirror": [["base", "base"]]}, "mirror: expected two different joints"),
    ],
)
def test_impossible_facts_for_views_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        Layout.from_dict({**TRIANGLE, **change})


def test_facts_for_views_have_defaults():
    plain = Layout.from_dict(TRIANGLE)
    assert plain.bone_parents == plain.parents
    assert plain.spine == plain.torso
    assert plain.hips is None
    assert plain.mirror == ((1, 2),)
    full = {
        **TRIANGLE,
        "bone_parents": [1, -1, 1],
        "spine": [0, 2],
        "hips": ["base", "left"],
        "mirror": [["left", "base"]],
    }
    assert Layout.from_dict(Layout.from_dict(full).to_dict()) == Layout.from_dict(full)
    assert Layout.from_dict(full).hips == (0, 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_known_layout_is_stored_as_before(name):
    """Stores written before these facts were there have the same bytes, and get the facts when they are read."""
    layout = LAYOUTS[name]
    stored = layout.to_dict()
    assert set(stored) == {"name", "joints", "parents", "root", "torso", "sides", "up", "parts"}
    assert Layout.from_dict(stored) == layout
    undirected = {frozenset(bone) for bone in layout.bones}
    tree = {frozenset(bone) for bone in enumerate(layout.bone_parents) if bone[1] >= 0}
    moved = {frozenset(pair) for pair in ((21, 7), (23, 11), (21, 22), (23, 24))}  # Kinect v2's finger tips
    assert undirected ^ tree == (moved if name == "kinect_v2" else set())
    left, right = zip(*layout.mirror, strict=True)
    assert all(layout.joints[joint].startswith("left") for joint in left)
    assert all(layout.joints[joint].startswith("right") for joint in right)
    assert layout.joints[layout.hips[0]].startswith("left")
