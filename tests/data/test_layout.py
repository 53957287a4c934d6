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
