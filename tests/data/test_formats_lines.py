"""A frame as a line: numbers, and the JSON that scripts around MediaPipe and RTMPose print."""

import json
from dataclasses import replace

import numpy as np
import pytest

from s2vfast.data.formats.lines import Reader
from s2vfast.data.layout import get_layout
from s2vfast.data.tracks import Sighting, in_order
from s2vfast.errors import DataError

RNG = np.random.default_rng(0)
POSE = RNG.uniform(-1, 1, (33, 3)).round(3)
POSE[24] = -POSE[23]  # the middle of the hips is the origin
IMAGE = RNG.uniform(0.2, 0.8, (33, 3)).round(3)
VISIBILITY = RNG.uniform(0, 1, 33).round(3)
KEYPOINTS = RNG.uniform(0, 600, (2, 17, 2)).round(2)
SCORES = RNG.uniform(0, 1, (2, 17)).round(3)
WORLD = Reader(get_layout("mediapipe33"), "m")
PIXELS = Reader(replace(get_layout("coco17"), dimensions=(2,)), "px")


def dicts(pose):
    numbers = np.hstack([pose, VISIBILITY[:, None]]).tolist()
    return [dict(zip(("x", "y", "z", "visibility"), joint, strict=True)) for joint in numbers]


LISTS = np.hstack([POSE, VISIBILITY[:, None]]).tolist()
MEDIAPIPE = {
    "tasks": {"pose_landmarks": [dicts(IMAGE)], "pose_world_landmarks": [dicts(POSE)], "timestamp_ms": 33},
    "solutions": {"pose_world_landmarks": {"landmark": dicts(POSE)}, "frame": 7},
    "javascript": {"worldLandmarks": [dicts(POSE)]},
    "bare objects": dicts(POSE),
    "bare people": [dicts(POSE)],
    "bare lists": LISTS,
    "bare lists of people": [LISTS],
}


@pytest.mark.parametrize("name", MEDIAPIPE)
def test_mediapipe(name):
    [person] = WORLD.read(json.dumps(MEDIAPIPE[name]) + "\r")
    np.testing.assert_array_equal(person.joints, POSE)
    np.testing.assert_array_equal(person.confidence, VISIBILITY)
    assert (person.position is not None) == (name == "tasks")


def test_image_landmarks_are_read_where_the_run_has_no_metres():
    reader = Reader(get_layout("mediapipe33"), "normalised")
    for line in (MEDIAPIPE["tasks"], {"pose_landmarks": dicts(IMAGE)}, dicts(IMAGE)):
        [person] = reader.read(json.dumps(line))
        np.testing.assert_array_equal(person.joints, IMAGE)


ONE = {"keypoints": KEYPOINTS[1].tolist(), "keypoint_scores": SCORES[1].tolist(), "track_id": 4}
BOTH = list(zip(KEYPOINTS.tolist(), SCORES.tolist(), strict=True))
WHOLE = {"keypoints": np.tile(KEYPOINTS, (1, 8, 1))[:, :133].tolist(), "scores": np.tile(SCORES, 8)[:, :133].tolist()}
RTMPOSE = {
    "rtmlib": {"keypoints": KEYPOINTS.tolist(), "scores": SCORES.tolist(), "frame_id": 3},
    "mmpose": {"instances": [{"keypoints": k, "keypoint_scores": s, "track_id": 4} for k, s in BOTH]},
    "people": [{"keypoints": k, "scores": s} for k, s in BOTH],
    "whole body": WHOLE,
}


@pytest.mark.parametrize("name", RTMPOSE)
def test_rtmpose(name):
    people = PIXELS.read(json.dumps(RTMPOSE[name]))
    np.testing.assert_array_equal([person.joints[:, :2] for person in people], KEYPOINTS)
    np.testing.assert_array_equal([person.confidence for person in people], SCORES)
    assert {person.track for person in people} == ({"4"} if name == "mmpose" else {None})
    assert not any(person.joints[:, 2].any() for person in people)


@pytest.mark.parametrize(
    "line",
    ["", "  ", "null", "[]", "[[]]", "{}", '{"pose_world_landmarks": []}', '{"keypoints": [], "scores": []}'],
)
def test_nobody(line):
    for reader in (WORLD, PIXELS):
        if not (reader is PIXELS and "pose" in line):
            assert not reader.read(line)


@pytest.mark.parametrize(
    ("reader", "line", "message"),
    [
        (WORLD, '{"pose_world_landmarks": [', "not JSON: Expecting value"),
        (WORLD, json.dumps({"pose_landmarks": dicts(IMAGE)}), "no pose_world_landmarks, which the run was trained on"),
        (WORLD, json.dumps(dicts(IMAGE)), "whose hips do not lie about (0, 0), as in world landmarks"),
        (WORLD, json.dumps({"pose_world_landmarks": dicts(POSE)[:32]}), "landmarks: 32, expected 33 lists of 3 or 4"),
        (WORLD, json.dumps([dicts(POSE)] * 65), "65 people, 64 at most are read"),
        (WORLD, json.dumps(ONE), "[17, 2] keypoints, the skeleton of the run has [33, 3]"),
        (WORLD, '{"people": [{"pose_keypoints_2d": []}]}', "an object without what a stream is read for: MediaPipe's"),
        (WORLD, '{"visibility": 1, "visibility": 1}', "the key 'visibility' stands twice"),
        (WORLD, "[[1, 2, 3]]", "lists of the shape [1, 3]; 99 numbers a body are expected (33 joints, x y z each)"),
        (PIXELS, json.dumps(MEDIAPIPE["tasks"]), "MediaPipe's landmarks; the skeleton of the run is coco17"),
        (PIXELS, json.dumps(ONE | {"keypoint_scores": [1]}), "scores: a list of 1, expected 17 numbers"),
        (PIXELS, '{"keypoints": [1, "2", 3]}', "keypoints: a list of 3, expected 3 numbers"),
        (PIXELS, "1 2 3", "3 numbers; 34 numbers a body are expected (17 joints, x y each)"),
        (PIXELS, '{"instances": 7, "keypoints": 1}', "expected people with keypoints"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_said(reader, line, message):
    with pytest.raises(DataError) as caught:
        reader.read(line)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not str(caught.value).startswith((":", "frame 0"))


def test_a_frame_is_kept_as_it_came():
    """A detector's JSON stays as it is; numbers become what the reader, and the importer, takes for the same."""
    numbers, expected = POSE.copy(), POSE.copy()
    numbers[3, 1], expected[3] = np.nan, 0  # a joint that was not seen
    for line in (" ".join(map(repr, numbers.ravel().tolist())), json.dumps([numbers.tolist()])):
        kept_line = WORLD.as_json(line, WORLD.read(line))
        assert json.loads(kept_line) == {"pose_world_landmarks": [expected.tolist()]}
        [person] = WORLD.read(kept_line)
        np.testing.assert_array_equal(person.joints, expected)
    for line in (json.dumps(MEDIAPIPE["tasks"]), json.dumps(LISTS)):
        assert WORLD.as_json(f" {line}\r", WORLD.read(line)) == line
    assert json.loads(PIXELS.as_json(" ", KEYPOINTS)) == KEYPOINTS.tolist()
    assert WORLD.as_json("  ", None) == WORLD.as_json("null", None) == "[]"


def test_people_stay_in_order():
    """By the nearest place, by the place in the picture, by a tracker's ids; who is new comes last."""

    def order(before, after):
        return [
            next(number for number, each in enumerate(after) if each is person) for person in in_order(before, after)
        ]

    first, second, third = (Sighting(POSE + np.array([x, 0, 0])) for x in (0.0, 3.0, 6.0))
    assert order([], [second, first]) == [0, 1]
    assert order([second, first], [third, first, second]) == [2, 1, 0]
    assert order([second, first], [first]) == [0]
    pictured = [replace(first, position=POSE[:, :2] + x) for x in (0.0, 9.0)]
    moved = [replace(person, position=person.position + 0.1) for person in pictured[::-1]]
    assert order(pictured, moved) == [1, 0]
    assert order([*pictured, third], moved) == [0, 1], "positions of some alone compare with nothing"
    named = [replace(first, track="a"), replace(second, track="b")]
    assert order(named, [replace(first, track="b"), replace(second, track="a")]) == [1, 0]
