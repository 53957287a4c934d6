import hashlib
import json

import pytest

from s2vfast.data.layout import LAYOUTS, Layout, UnknownLayout, get_layout, layout_of_shape
from s2vfast.errors import DataError

HASHES = {"kinect_v1": "e328ce973899c36a", "kinect_v2": "8a1c1999c3cbb6cf"}
TRIANGLE = {
    "name": "triangle",
    "joints": ["base", "left", "right"],
    "parents": [-1, "base", 0],
    "root": "base",
    "torso": ["base", "left"],
    "sides": ["left", "right"],
}


# Joints, and the joints that a Kinect's file, OpenPose's, ... numbers so: a swap of two rows would show.
PUBLISHED = {
    "kinect_v2": (25, {0: "spine_base", 4: "left_shoulder", 20: "spine_shoulder", 24: "right_thumb"}),
    "kinect_v1": (20, {0: "hip_center", 2: "shoulder_center", 8: "right_shoulder", 19: "right_foot"}),
    "coco17": (17, {0: "nose", 1: "left_eye", 6: "right_shoulder", 9: "left_wrist", 16: "right_ankle"}),
    "halpe26": (
        26,
        {16: "right_ankle", 17: "head_top", 18: "neck", 19: "mid_hip", 20: "left_big_toe", 25: "right_heel"},
    ),
    "body25": (25, {1: "neck", 2: "right_shoulder", 8: "mid_hip", 12: "left_hip", 15: "right_eye", 24: "right_heel"}),
    "mediapipe33": (
        33,
        {7: "left_ear", 11: "left_shoulder", 20: "right_index", 23: "left_hip", 32: "right_foot_index"},
    ),
    "openpose18": (18, {1: "neck", 2: "right_shoulder", 8: "right_hip", 13: "left_ankle", 14: "right_eye"}),
    "h36m17": (17, {0: "pelvis", 1: "right_hip", 6: "left_ankle", 8: "thorax", 11: "left_shoulder", 16: "right_wrist"}),
    "smpl22": (22, {1: "left_hip", 9: "spine3", 12: "neck", 13: "left_collar", 15: "head", 21: "right_wrist"}),
    "azure32": (
        32,
        {2: "spine_chest", 4: "left_clavicle", 10: "left_thumb", 18: "left_hip", 26: "head", 31: "right_ear"},
    ),
}


def test_these_are_known():
    assert LAYOUTS.keys() == PUBLISHED.keys()
    assert {name: get_layout(name).name for name in ("ntu", "coco")} == {"ntu": "kinect_v2", "coco": "coco17"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_layout_is_a_whole_body(name):
    layout = get_layout(name)
    joints, numbers = PUBLISHED[name]
    assert layout.name == name
    assert layout.num_joints == joints
    assert {number: layout.joints[number] for number in numbers} == numbers
    for tree in (layout.parents, layout.bone_parents):
        assert tree.count(-1) == 1, "one tree"
    assert sorted(sum(layout.parts.values(), ())) == list(range(joints)), "every joint in one part"
    assert connected(layout) == set(range(joints))
    assert list(layout.parts) == [
        "left_arm",
        "right_arm",
        "left_leg",
        "right_leg",
        "trunk",
    ]
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def connected(layout):
    """The joints that lines lead to from joint 0."""
    reached, before = {0}, set()
    while reached != before:
        before = set(reached)
        reached |= {joint for bone in layout.bones if before & set(bone) for joint in bone}
    return reached


@pytest.mark.parametrize("name", PUBLISHED)
def test_left_and_right_mirror_each_other(name):
    layout = get_layout(name)

    def other(joint):
        swapped = layout.joints[joint].replace("left", "?").replace("right", "left").replace("?", "right")
        return layout.joints.index(swapped)

    bones = {frozenset(bone) for bone in layout.bones}
    assert {frozenset(map(other, bone)) for bone in bones} == bones
    assert len(bones) == len(layout.bones)
    for tree in (layout.parents, layout.bone_parents):
        assert all(other(parent) == tree[other(joint)] for joint, parent in enumerate(tree) if parent >= 0)
    for place in (layout.root, *layout.torso, *layout.spine):
        assert {other(joint) for joint in place} == set(place), "on the midline"
    for (left, right), limb in ((layout.sides, "shoulder"), (layout.hips, "hip")):
        assert (layout.joints[left], layout.joints[right]) == (f"left_{limb}", f"right_{limb}")
    sided = {name for name in layout.joints if name.startswith(("left_", "right_"))}
    assert {layout.joints[joint] for pair in layout.mirror for joint in pair} == sided
    for left, right in layout.mirror:
        assert layout.joints[left].startswith("left_")
        assert other(left) == right
    for limb in ("arm", "leg"):
        assert {other(joint) for joint in layout.parts[f"left_{limb}"]} == set(layout.parts[f"right_{limb}"])


def test_a_shape_of_one_skeleton_is_taken_for_it():
    taken = {(25, 3): "kinect_v2", (20, 3): "kinect_v1", (17, 2): "coco17", (26, 2): "halpe26", (33, 2): "mediapipe33"}
    taken |= {(33, 3): "mediapipe33", (22, 3): "smpl22", (32, 3): "azure32"}
    assert {shape: layout_of_shape(*shape, where="x").name for shape in taken} == taken


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((17, 3), "skeletons of 17 joints with 3 coordinates .* --layout, coco17 or h36m17, or FILE.json"),
        ((25, 2), "skeletons of 25 joints with 2 coordinates .* --layout, body25 or kinect_v2, or FILE.json"),
        ((21, 3), "skeletons of 21 joints .* --layout, one of azure32, body25, .*, or FILE.json"),
        ((20, 2), "skeletons of 20 joints"),
    ],
)
def test_any_other_shape_is_asked_for(shape, message):
    with pytest.raises(UnknownLayout, match=f"^x.pkl: {message}"):
        layout_of_shape(*shape, where="x.pkl")


def test_layout_from_a_file_takes_names_and_numbers(tmp_path):
    path = tmp_path / "triangle.json"
    path.write_text(json.dumps(TRIANGLE))
    layout = get_layout(path)
    assert layout.parents == (-1, 0, 0)
    assert layout.torso == ((0,), (1,))
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
        ({"root": []}, "root: expected a joint, or 2 to 4 joints whose mean counts, found 0"),
        ({"root": [0, 1, 2, 0, 1]}, "whose mean counts, found 5"),
        ({"root": [1, "left"]}, "root: a joint stands in it more than once"),
        ({"root": [1, "tail"]}, "root: 'tail' is no joint"),
        ({"torso": [1, 1]}, "torso: expected two different joints"),
        ({"torso": [[0, 1], 3]}, "torso: 3 is no joint"),
        ({"sides": [1]}, "sides: expected two different joints"),
        ({"up": [0, 2, 0]}, "up: expected a vector of length 1"),
        ({"up": [0, "a", 0]}, "up: expected three numbers"),
        ({"parts": {"leg": [7]}}, "parts.leg: 7 is no joint"),
        ({"parts": [1]}, "parts: expected an object"),
        ({"name": ""}, "name: expected a non-empty text"),
        ({"bones": [[0, 3]]}, "bones: 3 is no joint"),
        ({"graph_centre": "tail"}, "graph_centre: 'tail' is no joint"),
        ({"dimensions": [3, 2]}, "dimensions: expected [2], [3] or [2, 3]"),
        ({"about": 1}, "about: expected a text"),
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
    with pytest.raises(
        DataError,
        match="'kinect_v3': neither a known layout .azure32, body25, coco, coco17, .* openpose18, smpl22. nor",
    ):
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
    assert plain.graph_centre == 0
    assert plain.bones == ((1, 0), (2, 0))
    assert plain.hips is None
    assert plain.mirror == ((1, 2),)
    full = {
        **TRIANGLE,
        "bone_parents": [1, -1, 1],
        "root": ["left", "right"],
        "torso": ["base", ["left", "right"]],
        "graph_centre": "right",
        "spine": [[0, 1], 2],
        "hips": ["base", "left"],
        "mirror": [["left", "base"]],
        "bones": [["left", "base"], ["right", "base"], ["left", "right"]],
        "dimensions": [2],
        "about": "three joints",
    }
    assert Layout.from_dict(full).root == (1, 2)
    assert Layout.from_dict(full).torso == ((0,), (1, 2))
    assert Layout.from_dict(full).to_dict()["torso"] == [0, [1, 2]]
    assert Layout.from_dict(Layout.from_dict(full).to_dict()) == Layout.from_dict(full)
    assert Layout.from_dict(full).hips == (0, 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_store_holds_what_clips_need_and_gets_the_facts_by_name(name):
    layout = LAYOUTS[name]
    stored = layout.to_dict()
    assert set(stored) == {"name", "joints", "parents", "root", "torso", "sides", "up", "parts"}
    assert Layout.from_dict(stored) == layout
    undirected = {frozenset(bone) for bone in enumerate(layout.parents) if bone[1] >= 0}
    tree = {frozenset(bone) for bone in enumerate(layout.bone_parents) if bone[1] >= 0}
    moved = {frozenset(pair) for pair in ((21, 7), (23, 11), (21, 22), (23, 24))}  # Kinect v2's finger tips
    assert undirected ^ tree == (moved if name == "kinect_v2" else set())


def test_kinect_layouts_are_stored_byte_for_byte_as_before():
    """So that stores keep their fingerprints: the hashes are of stores written when layouts stood in the code."""
    texts = {name: json.dumps(LAYOUTS[name].to_dict(), sort_keys=True) for name in ("kinect_v1", "kinect_v2")}
    assert {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()} == HASHES


def test_a_store_from_when_coco_was_centred_on_the_nose():
    new = LAYOUTS["coco17"]
    stored = new.to_dict() | {"name": "coco", "root": 0, "torso": [11, 5]}
    old = Layout.from_dict(stored)
    assert (old.root, old.torso, old.hips, old.bones) == ((0,), ((11,), (5,)), (11, 12), new.bones)
    assert old.to_dict() == stored
