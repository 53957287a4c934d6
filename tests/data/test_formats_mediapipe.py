"""MediaPipe's landmarks in the forms in which scripts write them."""

import json

import numpy as np
import pytest

from s2vfast.data.formats import detect_format
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.errors import DataError

from .pose_files import as_dicts, as_lists, moving, world

WORLD = world(6)
IMAGE = moving(6, 33, size=0.2) + 0.5


def imported(path, data, out, **options):
    path.write_text(json.dumps(data))
    assert detect_format(path) == "mediapipe"
    summary = import_dataset(path, out, **options)
    return summary, Store.open(out)


FRAMES = {
    "both": [
        {"pose_landmarks": as_dicts(i), "pose_world_landmarks": as_dicts(w)} for i, w in zip(IMAGE, WORLD, strict=True)
    ],
    "camel case, several people": [
        {"landmarks": [as_dicts(i)], "worldLandmarks": [as_dicts(w)]} for i, w in zip(IMAGE, WORLD, strict=True)
    ],
    "MessageToDict": [{"poseWorldLandmarks": {"landmark": as_dicts(w)}} for w in WORLD],
    "dicts alone": [as_dicts(w) for w in WORLD],
    "lists alone": [as_lists(w) for w in WORLD],
    "lists of people": [[as_lists(w)] for w in WORLD],
    "in an object": {
        "fps": 30,
        "frames": [{"world_landmarks": as_lists(w), "frame": 2 * i} for i, w in enumerate(WORLD)],
    },
}


@pytest.mark.parametrize("name", FRAMES)
def test_world_landmarks_in_any_form(tmp_path, name):
    summary, store = imported(tmp_path / "clip.json", FRAMES[name], tmp_path / "store")
    assert (store.names, store.layout.name, store.unit, store.dimensions) == (["clip"], "mediapipe33", "m", 3)
    np.testing.assert_array_equal(store.frames, WORLD.astype(np.float32))
    np.testing.assert_array_equal(store.frame_index, np.arange(6))
    np.testing.assert_array_equal(store.confidence, np.full((6, 33), 0.9, np.float16))
    said = (
        "unit m taken: the hips lie about (0, 0)" if "lists" in name or "alone" in name else "pose_world_landmarks read"
    )
    assert any(said in note for note in summary.notes)


@pytest.mark.parametrize("bare", [False, True])
def test_image_landmarks_are_no_metres(tmp_path, bare):
    frames = [as_dicts(i) if bare else {"pose_landmarks": as_dicts(i), "pose_world_landmarks": None} for i in IMAGE]
    summary, store = imported(tmp_path / "clip.json", frames, tmp_path / "store")
    assert (store.unit, store.dimensions) == ("normalised", 3)
    np.testing.assert_array_equal(store.frames, IMAGE.astype(np.float32))
    said = "unit normalised taken: the hips do not lie" if bare else "image landmarks read, which have no metres"
    assert any(said in note for note in summary.notes)


def test_frames_without_anybody_are_gaps(tmp_path):
    frames = [None, as_dicts(WORLD[0]), [], {}, {"pose_world_landmarks": None}, as_dicts(WORLD[1]), []]
    _, store = imported(tmp_path / "clip.json", frames, tmp_path / "store")
    assert (store.frame_index.tolist(), store.total_frames.tolist()) == ([1, 5], [7])
    assert len(store.tracks) == 1


@pytest.mark.parametrize("bare", [True, False])
def test_a_frame_a_line(tmp_path, bare):
    """As a script prints them, and as `s2vfast live --record` keeps them."""
    frames = [[as_lists(w)] if bare else {"pose_world_landmarks": [as_dicts(w)]} for w in WORLD]
    texts = ["[]", "", *map(json.dumps, frames), "null"]
    (tmp_path / "lines.json").write_text("".join(f"{text}\n" for text in texts))
    import_dataset(tmp_path / "lines.json", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(store.frames, WORLD.astype(np.float32))
    assert store.frame_index.tolist() == list(range(2, 2 + len(WORLD)))
    (tmp_path / "broken.json").write_text("\n".join([*texts, '{"pose']))
    with pytest.raises(DataError, match="not JSON: Extra data"):
        import_dataset(tmp_path / "broken.json", tmp_path / "none")


def test_two_people_are_told_apart_by_where_they_are_in_the_picture(tmp_path):
    """World landmarks are all about the origin: one person is a frame ahead of the other, and would go on as the other.

    The detector's order changes in every second frame.
    """
    people = [world(13, seed=1)[:12], world(13, seed=1)[1:]]
    images = [moving(12, 33, seed=1, size=0.2, x=0.3), moving(12, 33, seed=2, size=0.2, x=0.7)]
    frames = []
    for at in range(12):
        order = [0, 1] if at % 2 else [1, 0]
        frames.append(
            {
                "pose_landmarks": [as_dicts(images[i][at]) for i in order],
                "pose_world_landmarks": [as_dicts(people[i][at]) for i in order],
            }
        )
    _, store = imported(tmp_path / "clip.json", frames, tmp_path / "store")
    joints = [store.frames[row : row + count] for row, count in zip(*(x[0] for x in store.track_table(2)), strict=True)]
    assert len(joints) == 2
    for body in joints:
        assert any(np.array_equal(body, person.astype(np.float32)) for person in people)


def test_positions_count_where_every_frame_has_them(tmp_path):
    """A frame whose pictures' landmarks are of fewer people, or of none: who is who is told by the world's."""
    people, images = (world(6, seed=1), world(6, seed=2) * 3), (IMAGE, IMAGE + 1)
    frames = [
        {
            "pose_landmarks": [as_dicts(image[at]) for image in images[: 0 if at == 2 else 1 if at == 4 else 2]],
            "pose_world_landmarks": [as_dicts(person[at]) for person in people],
        }
        for at in range(6)
    ]
    _, store = imported(tmp_path / "clip.json", frames, tmp_path / "store")
    assert [track["count"] for track in store.tracks] == [6, 6]
    joints = [store.frames[:6], store.frames[6:]]
    for person in people:
        assert any(np.array_equal(body, person.astype(np.float32)) for body in joints)


def test_results_of_the_tasks_api_as_they_are_dumped(tmp_path):
    """``dataclasses.asdict`` of a PoseLandmarkerResult; a model may leave visibility out."""
    frames = [
        {
            "timestamp_ms": 33 * at,
            "pose_landmarks": [[joint | {"presence": 0.9, "name": None} for joint in as_dicts(IMAGE[at])]],
            "pose_world_landmarks": [[joint | {"presence": 0.9, "name": None} for joint in as_dicts(WORLD[at])]],
            "segmentation_masks": None,
        }
        for at in range(6)
    ]
    frames[2] |= {"pose_landmarks": [], "pose_world_landmarks": []}
    _, store = imported(tmp_path / "clip.json", frames, tmp_path / "store")
    np.testing.assert_array_equal(store.frames, np.delete(WORLD, 2, 0).astype(np.float32))
    assert (store.frame_index.tolist(), float(store.confidence.max())) == ([0, 1, 3, 4, 5], np.float16(0.9))
    for frame in frames:
        for joint in (joint for key in ("pose_landmarks", "pose_world_landmarks") for p in frame[key] for joint in p):
            joint["visibility"] = None
    _, store = imported(tmp_path / "clip.json", frames, tmp_path / "none")
    np.testing.assert_array_equal(store.frames, np.delete(WORLD, 2, 0).astype(np.float32))
    assert store.confidence is None


def test_a_folder_has_classes_and_leaves_other_json_aside(tmp_path):
    src = tmp_path / "src"
    for number, name in enumerate(["walk/a", "walk/b", "run/a"]):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / f"{name}.json").write_text(json.dumps([as_dicts(w) for w in world(4, seed=number)]))
    (src / "meta.json").write_text('{"camera": 1}')
    assert detect_format(src) == "mediapipe"
    summary = import_dataset(src, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert (store.names, store.classes, store.labels.tolist()) == (
        ["run/a", "walk/a", "walk/b"],
        ["run", "walk"],
        [0, 1, 1],
    )
    assert "1 .json files that are no mediapipe recordings left out: meta.json" in summary.notes
    (tmp_path / "l.csv").write_text("file,class,subject\nrun/a.json,x,1\nwalk/a.json,y,2\n")
    import_dataset(src, tmp_path / "two", labels=tmp_path / "l.csv")
    two = Store.open(tmp_path / "two")
    assert (two.classes, two.labels.tolist(), two.subjects.tolist()) == (["x", "y"], [0, 1, -1], [1, 2, -1])
    np.testing.assert_array_equal(two.frames, store.frames)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (as_dicts(WORLD[0])[:32], "frame 1: landmarks: 32, expected 33 lists of 3 or 4 numbers"),
        ([{"x": 0.5, "y": 0.5}] * 33, "frame 1: landmarks: landmark 0 has no z"),
        ([{"x": "1", "y": 1, "z": 1}] * 33, "frame 1: landmarks: expected 33 lists of 3 or 4 numbers"),
        ([[True, 1, 1]] * 33, "frame 1: landmarks: expected 33 lists"),
        ([[1, 1, 10**400]] * 33, "frame 1: landmarks: a number beyond any coordinate"),
        ([[1, 1, 1e9]] * 33, "absurd (more than 20 from the camera)"),
        ({"pose_landmarks": as_dicts(IMAGE[0])}, "frame 1: no landmarks without a name, which the first recording has"),
        ([as_lists(WORLD[0])] * 65, "frame 1: 65 people, 64 at most are read"),
        ([as_dicts(WORLD[0]), 7], "frame 1: landmarks: 7, expected 33 lists"),
    ],
)
def test_what_is_wrong_is_said_with_its_frame(tmp_path, frame, reason):
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.json").write_text(json.dumps([as_dicts(w) for w in WORLD]))
    (src / "b.json").write_text(json.dumps([as_dicts(WORLD[0]), frame]))
    summary = import_dataset(src, tmp_path / "store")
    assert summary.sequences == 1
    ((entry),) = summary.broken
    assert entry["name"] in ("b", "b.json")
    assert reason in entry["reason"]


def test_numbers_of_frames_ascend(tmp_path):
    frames = [{"pose_world_landmarks": as_dicts(WORLD[0]), "frame": number} for number in (3, 5, 5)]
    with pytest.raises(DataError, match=r"frame 2: its number is 5 after 5, expected ascending"):
        imported(tmp_path / "clip.json", frames, tmp_path / "store")
    for number, reason in ((1.5, "is 1.5, expected a whole number"), (10**7, "are read")):
        frames[2]["frame"] = number
        with pytest.raises(DataError, match=reason):
            imported(tmp_path / "clip.json", frames, tmp_path / "store")
