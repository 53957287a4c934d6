"""Keypoints of RTMPose, OpenPose and Kinetics-skeleton: who is who from frame to frame, and what is refused."""

import json

import numpy as np
import pytest

from s2vfast.data.formats import detect_format
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.data.tracks import LINK_GAP, MAX_TRACKS, Sighting, link
from s2vfast.errors import DataError

from .pose_files import moving

COCO = np.round(300 + 100 * moving(12, 17)[..., :2], 2)
OTHER = np.round(300 + 100 * moving(12, 17, seed=1, x=3.0)[..., :2], 2)
SCORES = np.full(17, 0.75)


def stored(path, out, data=None, **options):
    if data is not None:
        path.write_text(json.dumps(data))
    summary = import_dataset(path, out, **options)
    return summary, Store.open(out)


def joints_of(store, bodies):
    rows, counts = (table[0] for table in store.track_table(bodies))
    return [store.frames[row : row + count, :, :2] for row, count in zip(rows, counts, strict=True)]


def person(keypoints, **more):
    return {"keypoints": keypoints.tolist(), "keypoint_scores": SCORES.tolist()} | more


def flat(keypoints):
    return np.column_stack([keypoints, SCORES[: len(keypoints)]]).reshape(-1).tolist()


RTMPOSE = {
    "MMPose": {
        "meta_info": {},
        "instance_info": [
            {"frame_id": number, "instances": [person(k, bbox=[[0, 0, 1, 1]])]} for number, k in enumerate(COCO, 1)
        ],
    },
    "people alone": [[person(k)] for k in COCO],
    "rtmlib a frame": [{"keypoints": [k.tolist()], "scores": [SCORES.tolist()]} for k in COCO],
    "rtmlib, one person": [{"keypoints": k.tolist(), "scores": SCORES.tolist()} for k in COCO],
    "rtmlib, all": {"keypoints": COCO[:, None].tolist(), "scores": [[SCORES.tolist()]] * 12},
    "flat": {"frames": [[{"keypoints": flat(k)}] for k in COCO]},
    "whole body": [[{"keypoints": np.pad(k, ((0, 116), (0, 0))).tolist(), "scores": [0.75] * 133}] for k in COCO],
}


@pytest.mark.parametrize("name", RTMPOSE)
def test_rtmpose_in_any_form(tmp_path, name):
    summary, store = stored(tmp_path / "clip.json", tmp_path / "store", RTMPOSE[name])
    assert summary.format == "rtmpose"
    assert (store.names, store.layout.name, store.unit, store.dimensions) == (["clip"], "coco17", "px", 2)
    np.testing.assert_array_equal(store.frames[..., :2], COCO.astype(np.float32))
    np.testing.assert_array_equal(store.confidence, np.full((12, 17), 0.75, np.float16))
    assert store.frame_index.tolist() == list(range(12))


def test_people_are_followed_whatever_their_order(tmp_path):
    """The order changes in every frame; without ids by place, with ids by these."""
    for ids in (False, True):
        frames = []
        for at in range(12):
            people = [person(COCO[at]), person(OTHER[at] if not ids else COCO[at] + 1)]
            if ids:
                people[0]["track_id"], people[1]["track_id"] = 7, 9
            frames.append(people[:: 1 if at % 2 else -1] if at not in (5, 6) else people[:1])
        _, store = stored(tmp_path / f"{ids}.json", tmp_path / f"store_{ids}", frames)
        bodies = joints_of(store, 2)
        assert sorted(map(len, bodies)) == [10, 12]
        for body in bodies:
            targets = (COCO, COCO + 1) if ids else (COCO, OTHER)
            rows = [0, 1, 2, 3, 4, *range(7, 12)] if len(body) == 10 else range(12)
            assert any(np.allclose(body, target[list(rows)], atol=1e-3) for target in targets)
        assert set(store.tracks["body"].tolist()) == ({"7", "9"} if ids else {"0", "1"})


def test_other_skeletons(tmp_path):
    for joints, name in ((26, "halpe26"), (18, None)):
        frames = [[{"keypoints": np.resize(k, (joints, 2)).tolist(), "scores": [0.5] * joints}] for k in COCO]
        if name:
            _, store = stored(tmp_path / f"{joints}.json", tmp_path / f"s{joints}", frames)
            assert store.layout.name == name
    three = [[person(np.pad(k, ((0, 0), (0, 1)), constant_values=0.5) / 300)] for k in COCO]
    _, store = stored(tmp_path / "three.json", tmp_path / "three", three)
    assert (store.dimensions, store.layout.name) == (3, "coco17")
    with pytest.raises(DataError, match="17 keypoints, layout kinect_v2 has 25 joints"):
        import_dataset(tmp_path / "three.json", tmp_path / "no", layout="kinect_v2")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ([{"keypoints": COCO[0][:16].tolist()}], "[16, 2] keypoints, the first recording has [17, 2]"),
        ([{"keypoints": np.ones((17, 3)).tolist()}], "3 numbers each and no keypoint_scores: x, y, z or x, y, score?"),
        ([{"keypoints": [["1", 2]] * 17}], "frame 1: keypoints: expected 17 lists of 2 or 3 numbers"),
        ([{"keypoints": [1, 2]}], "frame 1: keypoints: 2 numbers, expected x, y and score of each"),
        ([{"keypoints": 7}], "frame 1: keypoints: 7, expected a list"),
        ([person(COCO[0], track_id=1.5)], "frame 1: the id of a person is 1.5"),
        ([{"scores": []}], "frame 1: expected people with keypoints"),
        ([person(COCO[0])] * 65, "frame 1: 65 people, 64 at most are read"),
        ([person(COCO[0]) | {"keypoint_scores": [1]}], "frame 1: scores: a list of 1, expected 17 numbers"),
        ({"keypoints": [COCO[0].tolist()], "scores": []}, "frame 1: scores: a list of 0, expected 1 lists"),
    ],
)
def test_rtmpose_that_is_wrong_is_said_with_its_frame(tmp_path, frame, reason):
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.json").write_text(json.dumps([[person(k)] for k in COCO]))
    (src / "b.json").write_text(json.dumps([[person(COCO[0])], frame]))
    summary = import_dataset(src, tmp_path / "store")
    assert summary.sequences == 1
    ((entry),) = summary.broken
    assert reason in entry["reason"]


def alphapose(frames, ids=False):
    """Its results of people frame by frame: of one numbered from 1, which are pictures, or from 0, of a video."""
    return [
        {
            "image_id": f"walk_{at:04d}.jpg" if ids else f"{at}.jpg",
            "category_id": 1,
            "keypoints": flat(keypoints) if keypoints.shape[1] == 2 else keypoints.reshape(-1).tolist(),
            "score": 2.5,
            "box": [0.0, 0.0, 1.0, 1.0],
            "idx": [[float(which + 1)], which + 1, [[which + 1], [9]]][at % 3] if ids else [0.0],
        }
        for at, people in frames
        for which, keypoints in people
    ]


@pytest.mark.parametrize("ids", [False, True])
def test_alphapose_is_a_list_of_people(tmp_path, ids):
    """A frame without anybody is not in the list; the order of people changes; the file is called after its folder."""
    frames = [(at, [(0, COCO[at]), (1, OTHER[at])][:: 1 if at % 2 else -1]) for at in range(12) if at != 5]
    src = tmp_path / "src"
    for name in ("walk/a", "run/a"):
        (src / name).mkdir(parents=True)
        (src / name / "alphapose-results.json").write_text(json.dumps(alphapose(frames, ids)))
    assert detect_format(src) == "alphapose"
    _, store = stored(src, tmp_path / "store")
    assert (store.names, store.classes) == (["run/a", "walk/a"], ["run", "walk"])
    assert (store.layout.name, store.unit, store.dimensions) == ("coco17", "px", 2)
    assert store.total_frames.tolist() == [12, 12]
    rows = [0, 1, 2, 3, 4, *range(6, 12)]
    assert store.frame_index[:11].tolist() == rows
    bodies = joints_of(store, 2)
    for target in (COCO, OTHER):
        assert any(np.array_equal(body, target[rows].astype(np.float32)) for body in bodies)
    assert set(store.tracks["body"].tolist()) == ({"1", "2"} if ids else {"0", "1"})
    said = "1 id(s) that two people of a frame have say nothing: who is who is told by place"
    assert (said in store.notes.get("run/a", [])) != ids
    np.testing.assert_array_equal(store.confidence, np.full((44, 17), 0.75, np.float16))


@pytest.mark.parametrize(("joints", "body"), [(136, 26), (133, 17), (26, 26)])
def test_alphapose_of_whole_bodies(tmp_path, joints, body):
    keypoints = np.round(np.random.default_rng(0).uniform(100, 300, (joints, 2)), 2)
    _, store = stored(
        tmp_path / "a.json", tmp_path / "store", alphapose([(0, [(0, np.c_[keypoints, keypoints[:, :1]])])])
    )
    assert (store.names, store.layout.name) == (["a"], "halpe26" if body == 26 else "coco17")
    np.testing.assert_array_equal(store.frames[0, :, :2], keypoints[:body].astype(np.float32))


@pytest.mark.parametrize(
    ("people", "reason"),
    [
        ({"people": []}, "expected a list of frames, or an object with one under results"),
        ([{"image_id": "0.jpg"}], "entry 0: expected an object with image_id and keypoints"),
        ([{"image_id": "x.jpg", "keypoints": []}], "entry 0: image_id 'x.jpg' has no number, which tells the frame"),
        ([{"image_id": "a1.jpg", "keypoints": []}, {"image_id": "b1.jpg", "keypoints": []}],
         "'a1.jpg' and 'b1.jpg' are both frame 1; one recording a file is read"),
        ([*alphapose([(0, [(0, COCO[0])])]), {"image_id": 2, "keypoints": [1, 2]}],
         "frame 1: keypoints: 2 numbers, expected x, y and score of each"),
    ],
)  # fmt: skip
def test_alphapose_that_is_wrong_is_said(tmp_path, people, reason):
    src = tmp_path / "src"
    src.mkdir()
    (src / "a.json").write_text(json.dumps(alphapose([(at, [(0, k)]) for at, k in enumerate(COCO)])))
    (src / "b.json").write_text(json.dumps(people if isinstance(people, list) else people | {"image_id": 1}))
    summary = import_dataset(src, tmp_path / "store")
    assert [entry["name"] for entry in summary.broken] == ["b"]
    assert reason in summary.broken[0]["reason"]


BODY25 = np.round(300 + 100 * moving(6, 25)[..., :2], 2)


def openpose(folder, clip, keypoints, numbers=None):
    folder.mkdir(parents=True, exist_ok=True)
    for at, pose in zip(numbers or range(len(keypoints)), keypoints, strict=True):
        values = np.column_stack([pose, np.full(len(pose), 0.5)]).reshape(-1).tolist()
        people = [{"person_id": [-1], "pose_keypoints_2d": values, "face_keypoints_2d": []}]
        (folder / f"{clip}_{at:012d}_keypoints.json").write_text(json.dumps({"version": 1.3, "people": people}))


@pytest.mark.parametrize("joints", [25, 18])
def test_openpose_has_a_file_a_frame(tmp_path, joints):
    src = tmp_path / "src"
    openpose(src / "walk", "a", BODY25[:, :joints], [3, 4, 5, 8, 9, 10])
    openpose(src / "run", "a", BODY25[:, :joints])
    openpose(src / "run", "b", BODY25[:, :joints])
    (src / "run" / "b_000000000002_keypoints.json").write_text('{"people": []}')
    assert detect_format(src) == "openpose"
    _, store = stored(src, tmp_path / "store")
    assert (store.names, store.classes) == (["run/a", "run/b", "walk/a"], ["run", "walk"])
    assert (store.layout.name, store.dimensions, store.unit) == ("body25" if joints == 25 else "openpose18", 2, "px")
    assert store.total_frames.tolist() == [6, 6, 8]
    assert store.frame_index.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 3, 4, 5, 0, 1, 2, 5, 6, 7]
    np.testing.assert_array_equal(store.frames[-6:, :, :2], BODY25[:, :joints].astype(np.float32))
    (src / "run" / "b_000000000003_keypoints.json").write_text('{"people": [{"pose_keypoints_2d": [1]}]}')
    (src / "walk" / "a_003_keypoints.json").write_text('{"people": []}')
    summary, _ = stored(src, tmp_path / "broken")
    reasons = {entry["name"]: entry["reason"] for entry in summary.broken}
    assert f"pose_keypoints_2d: a list of 1, expected {3 * joints} numbers" in str(reasons)
    assert "a second file of frame 3" in str(reasons)


def video(label=0, name="wave", frames=6, seed=0):
    poses = np.round(moving(frames, 18, seed=seed, size=0.3)[..., :2] + 0.5, 3)
    return {
        "data": [
            {"frame_index": at + 1, "skeleton": [{"pose": pose.reshape(-1).tolist(), "score": [0.5] * 18}]}
            for at, pose in enumerate(poses)
        ],
        "label": name,
        "label_index": label,
    }


def kinetics(src, lists=True):
    for part, videos in (("train", {"a": (0, "wave"), "b": (2, "swim")}), ("val", {"c": (2, "swim")})):
        (src / f"kinetics_{part}").mkdir(parents=True)
        for at, (name, (label, text)) in enumerate(videos.items()):
            (src / f"kinetics_{part}" / f"{name}.json").write_text(json.dumps(video(label, text, seed=at)))
        if lists:
            entries = {k: {"has_skeleton": True, "label": t, "label_index": i} for k, (i, t) in videos.items()}
            (src / f"kinetics_{part}_label.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("lists", [True, False])
def test_kinetics_with_and_without_lists(tmp_path, lists):
    kinetics(tmp_path / "src", lists)
    assert detect_format(tmp_path / "src") == "kinetics"
    summary, store = stored(tmp_path / "src", tmp_path / "store")
    assert store.names == ["kinetics_train/a", "kinetics_train/b", "kinetics_val/c"]
    assert (store.classes, store.labels.tolist()) == (["wave", "class 1", "swim"], [0, 2, 2])
    assert {part: ids.tolist() for part, ids in store.splits["default"].items()} == {"train": [0, 1], "test": [2]}
    assert (store.layout.name, store.unit, store.dimensions) == ("openpose18", "normalised", 2)
    assert float(store.confidence.max()) == 0.5
    assert ("no list of labels: classes are those of the videos" in summary.notes) != lists


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": {}}, "expected a list of frames, or an object with one under data"),
        ({"data": [7]}, "frame 0: expected skeleton, a list of objects with pose and score"),
        ({"data": [{"skeleton": [{"pose": [1] * 34, "score": [1] * 17}]}]}, "pose: a list of 34, expected 36 numbers"),
        ({"data": [{"skeleton": [{"pose": [1] * 36}]}]}, "score: None, expected 18 numbers"),
        ({"label_index": "0"}, "label_index '0', expected a whole number from 0"),
        ({"label_index": 3}, "label 3, expected 0 to 2"),
    ],
)
def test_a_video_that_is_wrong_costs_itself(tmp_path, change, reason):
    kinetics(tmp_path / "src")
    (tmp_path / "src" / "kinetics_val" / "d.json").write_text(json.dumps(video() | change))
    summary, _ = stored(tmp_path / "src", tmp_path / "store")
    assert summary.sequences == 3
    assert reason in summary.broken[0]["reason"]


def test_lists_that_contradict_each_other_are_refused(tmp_path):
    kinetics(tmp_path / "src")
    path = tmp_path / "src" / "kinetics_val_label.json"
    for data, message in (
        ({"c": {"label": "swim", "label_index": 0}}, "label_index 0 is 'swim' and 'wave'"),
        ({"c": {"label_index": 0}}, r"kinetics_val_label\.json: expected label, a text, and label_index"),
        ([1], "expected an object of video"),
    ):
        path.write_text(json.dumps(data))
        with pytest.raises(DataError, match=message):
            import_dataset(tmp_path / "src", tmp_path / "store", format="kinetics")


class TestLinks:
    """Sightings to tracks."""

    def frames(self, *tracks):
        """(number, sightings) of tracks {number: x}."""
        numbers = sorted({number for track in tracks for number in track})
        pose = moving(1, 20)[0]
        return [(n, [Sighting(pose + np.array([track[n], 0, 0])) for track in tracks if n in track]) for n in numbers]

    def lengths(self, *tracks):
        return [len(body.frame_index) for body in link(self.frames(*tracks))]

    def test_one_person_is_one_track_wherever_they_jump(self):
        assert self.lengths({0: 0.0, 1: 9.0, 500: -9.0}) == [3]

    def test_the_nearest_goes_on(self):
        near, far = {n: 0.1 * n for n in range(10)}, {n: 5 + 0.1 * n for n in range(10)}
        assert self.lengths(near, far) == [10, 10]
        assert self.lengths(far, near) == [10, 10]

    def test_a_gap_ends_a_track(self):
        still = dict.fromkeys(range(20), 9.0)
        assert self.lengths(still, {0: 0.0, LINK_GAP: 0.0}) == [20, 2]
        assert self.lengths(still, {0: 0.0, LINK_GAP + 1: 0.0}) == [20, 1, 1]

    def test_a_jump_ends_a_track(self):
        still = dict.fromkeys(range(20), 99.0)
        assert self.lengths(still, {0: 0.0, 1: 5.0}) == [20, 1, 1]

    def test_the_longest_of_many_are_taken(self):
        notes = []
        tracks = [dict.fromkeys(range(2 + k % 2), 10.0 * k) for k in range(60)]
        tracks += [{5 + k: 1000.0 * k} for k in range(1, 90)]
        bodies = link(self.frames(*tracks), notes)
        assert len(bodies) == MAX_TRACKS
        assert sum(len(body.frame_index) > 1 for body in bodies) == 60
        assert notes == [f"{149 - MAX_TRACKS} of 149 tracks left out: the shortest"]

    def test_an_id_of_two_people_is_none(self):
        """As AlphaPose writes them where it follows nobody; another id is still one."""
        pose, notes = moving(1, 20)[0], []
        frames = [
            (at, [Sighting(pose + 9 * which, track=id) for which, id in enumerate(ids)])
            for at, ids in enumerate(["0", "00", "0b0", "00b"])
        ]
        bodies = link(frames, notes)
        assert [(body.body_id, body.frame_index.tolist()) for body in bodies] == [
            ("0", [0, 1, 2, 3]), ("1", [1, 3]), ("b", [2, 3]), ("3", [2])
        ]  # fmt: skip
        assert notes == ["1 id(s) that two people of a frame have say nothing: who is who is told by place"]

    def test_nobody(self):
        assert link([(0, []), (1, [Sighting(np.zeros((20, 3)))])]) == []
