"""People whom a detector found frame by frame, on a stream: as an import of the same frames would have them."""

import json

import numpy as np
import pytest

from s2vfast.data.formats.lines import Reader
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.evaluate.lines import LineStream, lines_as_they_come
from s2vfast.evaluate.predict import predict


def write(path, frames):
    path.write_text(json.dumps(frames))
    return path


def rankings(stream, frames):
    return [
        dict(answer.ranking) for answer in LineStream(stream).answer(list(map(json.dumps, frames))) if answer.ranking
    ]


def test_a_stream_of_landmarks_is_what_their_file_is(mediapipe_run, load, people, tmp_path):
    """Two people, each about the origin, whom the detector lists in turn; one is missed for a frame."""
    poses = [people.person(12, 33, seed=1), people.person(12, 33, seed=2)]
    images = [0.1 * people.person(12, 33, seed=n) + 0.3 + 0.4 * n for n in (0, 1)]
    frames = []
    for at in range(12):
        order = [] if at == 3 else [0, 1] if at % 2 else [1, 0]
        frames.append(
            {
                "pose_landmarks": [people.landmarks(images[i][at]) for i in order],
                "pose_world_landmarks": [people.landmarks(poses[i][at]) for i in order],
            }
        )
    model = load(mediapipe_run)
    [whole] = rankings(model.stream(window=12, step=12), frames)
    [expected] = predict(mediapipe_run, [write(tmp_path / "a.json", frames)])
    assert whole == pytest.approx(dict(expected["top"]), abs=1e-6)
    # The main body of the window, where the store has it.
    import_dataset(tmp_path / "a.json", tmp_path / "store")
    stream = model.stream(window=12, step=12)
    window = [stream.take(Reader(model.layout, "m").read(json.dumps(frame))) for frame in frames][-1]
    store = Store.open(tmp_path / "store")
    np.testing.assert_array_equal(window.bodies[0].joints.astype(np.float32), store.frames[: store.tracks["count"][0]])
    assert [body.body_id for body in window.bodies] == ["0", "1"]


def test_one_person_is_as_numbers_are(mediapipe_run, load, people):
    poses = people.person(10, 33).round(4)
    objects = [{"pose_world_landmarks": people.landmarks(pose)} for pose in poses]
    numbers = [pose.tolist() for pose in poses]
    for frames in (objects, numbers, [*objects[:4], *numbers[4:]]):
        frames.insert(2, [])
    streams = [load(mediapipe_run).stream(window=6, step=2) for _ in range(3)]
    first, *others = (
        rankings(stream, frames)
        for stream, frames in zip(streams, (objects, numbers, [*objects[:5], *numbers[5:]]), strict=True)
    )
    assert len(first) == 5
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert one == pytest.approx(two, abs=1e-6)


def test_joints_that_the_detector_was_not_sure_of_were_not_seen(mediapipe_run, load, people):
    model, pose = load(mediapipe_run), people.person(1, 33)[0]
    model.min_confidence = 0.5
    stream = model.stream(window=1)
    visibility = np.ones(33)
    visibility[[4, 9]] = 0.4, np.nan
    window = stream.take(Reader(model.layout, "m").read(json.dumps(people.landmarks(pose, visibility))))
    np.testing.assert_array_equal(np.flatnonzero(~window.bodies[0].joints[0].any(-1)), [4, 9])
    unsure = json.dumps(people.landmarks(pose, 0.1))
    assert stream.take(Reader(model.layout, "m").read(unsure)) is None


def test_keypoints_in_pixels(rtmpose_run, load, people):
    model = load(rtmpose_run)
    assert model.layout.planar
    keypoints = (people.person(8, 17)[:, :, :2] + 1) * 200
    lines = [{"keypoints": [pose.tolist()], "scores": [[0.9] * 17]} for pose in keypoints]
    numbers = [pose.tolist() for pose in keypoints]
    one, two = (rankings(model.stream(window=8, step=8), frames)[0] for frames in (lines, numbers))
    assert one == pytest.approx(two, abs=1e-6)
    [answer] = LineStream(model.stream()).answer([json.dumps({"keypoints": [[[1e6, 1]] * 17], "scores": [[1] * 17]})])
    assert "absurd (more than 100000 from the camera); the run was trained on coordinates in px" in answer.error


def test_lines_end_where_they_end():
    pieces = [b"1 2", b"\n\n3\r", b"\n4", b""]
    assert list(lines_as_they_come(lambda size: pieces.pop(0))) == [["1 2", ""], ["3\r"], ["4"]]
