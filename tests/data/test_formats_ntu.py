import time

import numpy as np
import pytest

from s2vfast.data.formats import ntu
from s2vfast.data.formats.base import BrokenRecording
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.data.store_writer import SequenceInfo

from . import ntu_files
from .ntu_files import IDS, frames_of, person, skeleton_text

NAME = "S001C002P003R002A050"


def recording(folder, frames, name=NAME, newline="\r\n"):
    path = folder / f"{name}.skeleton"
    path.write_bytes(skeleton_text(frames, newline).encode())
    return path


def read(folder, *tracks, total, newline="\r\n"):
    (sequence,) = ntu.read_file(recording(folder, frames_of(*tracks, total=total), newline=newline))
    return sequence


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_two_bodies_and_what_the_name_says(tmp_path, newline):
    slow, fast = person(40, seed=1, motion=0.05), person(40, seed=2, motion=0.3, x=1.0)
    sequence = read(tmp_path, (IDS[0], 0, slow), (IDS[1], 0, fast), total=40, newline=newline)
    assert (sequence.setup, sequence.view, sequence.subject, sequence.repetition, sequence.label) == (1, 2, 3, 2, 49)
    assert sequence.name == NAME
    assert sequence.total_frames == 40
    assert [body.body_id for body in sequence.bodies] == list(IDS[:2]), "as the file has them; the importer ranks"
    np.testing.assert_array_equal(sequence.bodies[0].joints, slow.astype(np.float32))
    np.testing.assert_array_equal(sequence.bodies[1].joints, fast.astype(np.float32))
    assert sequence.notes == []


def test_a_body_that_vanishes_and_returns_keeps_its_gap(tmp_path):
    joints = person(50)
    sequence = read(tmp_path, (IDS[0], 0, joints[:20]), (IDS[0], 33, joints[33:]), total=60)
    (body,) = sequence.bodies
    assert body.frame_index.tolist() == [*range(20), *range(33, 50)]
    np.testing.assert_array_equal(body.joints, joints[body.frame_index].astype(np.float32))
    assert sequence.total_frames == 60


def test_frames_without_bodies_and_zero_joints_are_gaps(tmp_path):
    joints = person(20)
    joints[4] = 0
    sequence = read(tmp_path, (IDS[0], 5, joints), total=30)
    assert sequence.bodies[0].frame_index.tolist() == [5, 6, 7, 8, *range(10, 25)]


def test_bodies_that_swap_their_order_stay_themselves(tmp_path):
    a, b = person(30, seed=1), person(30, seed=2, x=1.0)
    frames = frames_of((IDS[0], 0, a), (IDS[1], 0, b), total=30)
    for frame in frames[10:20]:
        frame.reverse()
    (sequence,) = ntu.read_file(recording(tmp_path, frames))
    tracks = {body.body_id: body.joints for body in sequence.bodies}
    np.testing.assert_array_equal(tracks[IDS[0]], a.astype(np.float32))
    np.testing.assert_array_equal(tracks[IDS[1]], b.astype(np.float32))


def test_a_recording_without_bodies_is_dropped_with_a_reason(tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    recording(src, [[] for _ in range(12)])
    recording(src, frames_of((IDS[0], 0, np.zeros((5, 25, 3))), total=5), name="S001C001P001R001A002")
    recording(src, frames_of((IDS[0], 0, person(12)), total=12), name="S001C001P001R001A001")
    report = import_dataset(src, tmp_path / "store")
    assert report.sequences == 1
    assert report.broken == []
    reasons = {entry["name"]: entry["reason"] for entry in report.dropped}
    assert reasons[NAME] == "no body in any frame"
    assert "no body in any frame; body 72057594037931101" in reasons["S001C001P001R001A002"]


def edit(line, new):
    def change(lines):
        lines[line - 1] = new
        return lines

    return change


# Line 1: frames; 2: bodies; 3: the body; 4: joints; 5 to 29: joints of frame 0; 30: bodies of frame 1 ...
BROKEN = [
    ("empty", lambda lines: [], ":1: the file is empty"),
    ("frame count is text", edit(1, b"ten"), ":1: number of frames: expected a whole number, found 'ten'"),
    ("negative frame count", edit(1, b"-1"), ":1: number of frames: -1, expected 0 to"),
    ("huge frame count", edit(1, b"99999999999"), ":1: number of frames: 99999999999, expected 0 to"),
    ("fewer frames than there are", edit(1, b"9"), ":254: 28 more lines after the last of 9 frames"),
    ("body count is text", edit(2, b"x"), ":2: number of bodies: expected a whole number, found 'x'"),
    ("too many bodies", edit(2, b"1000000"), ":2: number of bodies: 1000000, expected 0 to"),
    ("no fields of a body", edit(3, b"72057594037931101 0 1"), ":3: a body's line has 10 fields, found 3"),
    ("wrong joint count", edit(4, b"20"), ":4: 20 joints, expected 25"),
    ("wrong joint count at the end", lambda lines: edit(256, b"24")(lines)[:270], ":256: 24 joints, expected 25"),
    ("non-numeric", edit(7, b"0.1 zwei 3 4 5 6 7 8 9 10 11 12"), ":7: x y z are not three numbers: '0.1 zwei 3'"),
    ("NaN", edit(8, b"nan 0 3 4 5 6 7 8 9 10 11 12"), ":8: joint 3: x is nan, not a finite number (frame 0)"),
    ("Inf", edit(40, b"0 -inf 3 4 5 6 7 8 9 10 11 12"), ":40: joint 7: y is -inf, not a finite number (frame 1)"),
    ("absurd", edit(41, b"0 1 300 4 5 6 7 8 9 10 11 12"), ":41: joint 8: z is 300, absurd (more than 20"),
    ("missing number", edit(10, b"1 2 3 4 5 6 7 8 9 10 11"), ":10: a joint's line has 12 numbers, found 11"),
    ("line lost", lambda lines: lines[:12] + lines[13:], ":30: number of bodies: expected a whole number, found"),
    ("cut between frames", lambda lines: lines[:29], ":29: the file ends in frame 2 of 10 (cut off?)"),
    ("cut in a frame", lambda lines: lines[:100], ":100: the file ends in frame 4 of 10 (cut off?)"),
    ("cut after the body's line", lambda lines: lines[:3], ":3: the file ends in frame 1 of 10 (cut off?)"),
    ("not text", lambda lines: [b"\x00\xff\x80"], ":1: number of frames: expected a whole number"),
]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_files_give_file_line_and_reason(tmp_path, change, message, newline):
    text = skeleton_text(frames_of((IDS[0], 0, person(10)), total=10), "\n").encode()
    path = tmp_path / f"{NAME}.skeleton"
    path.write_bytes(newline.join(change(text.split(b"\n")[:-1])) + newline)
    with pytest.raises(BrokenRecording) as caught:
        ntu.read_file(path)
    assert str(caught.value).startswith(f"{NAME}.skeleton{message}"), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_anywhere_is_noticed():
    text = skeleton_text(frames_of((IDS[0], 0, person(3)), (IDS[1], 1, person(2)), total=3), "\n").encode()
    ntu.parse(text, "f")
    for lines in range(1, text.count(b"\n")):
        with pytest.raises(BrokenRecording, match="cut off"):
            ntu.parse(b"".join(text.splitlines(keepends=True)[:lines]), "f")


def test_the_other_nine_numbers_may_be_anything(tmp_path):
    text = skeleton_text(frames_of((IDS[0], 0, person(3)), total=3)).replace("-0.2059 0.0510", "nan 1e9")
    _, tracks, _ = ntu.parse(text.encode(), "f")
    np.testing.assert_array_equal(tracks[0].joints, person(3).astype(np.float32))


def test_a_body_twice_in_a_frame_is_counted_once(tmp_path):
    sequence = read(tmp_path, (IDS[0], 0, person(20)), (IDS[0], 5, person(1, seed=1)), total=20)
    np.testing.assert_array_equal(sequence.bodies[0].joints, person(20).astype(np.float32))
    assert sequence.notes == [f"body {IDS[0]}: twice in frame 5, the second left out"]


@pytest.mark.parametrize("name", ["S001C001P001R001A000", "S001C001P001R001A121"])
def test_names_must_tell_a_possible_action(tmp_path, name):
    with pytest.raises(BrokenRecording, match=r"the name says action \d+, expected 1 to 120"):
        ntu.read_file(recording(tmp_path, frames_of((IDS[0], 0, person(3)), total=3), name=name))


def infos():
    """Every performer, camera and setup there is, in one action each."""
    return [
        SequenceInfo(f"S{s:03d}C{c:03d}P{p:03d}", 0, p, c, 1, s, 10)
        for p in range(1, 107)
        for c in (1, 2, 3)
        for s in (1, 2, 31, 32)
    ]


def test_official_splits():
    sixty = ntu.splits60([info for info in infos() if info.subject <= 40])
    assert set(sixty) == {"xsub", "xview"}
    xsub = {int(name[9:12]) for name in sixty["xsub"]["train"]}
    assert sorted(xsub) == [1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38]
    assert {int(name[9:12]) for name in sixty["xsub"]["test"]} == set(range(1, 41)) - xsub
    assert {int(name[5:8]) for name in sixty["xview"]["train"]} == {2, 3}
    assert {int(name[5:8]) for name in sixty["xview"]["test"]} == {1}
    hundred = ntu.splits120(infos())
    assert set(hundred) == {"xsub", "xset"}
    xsub = {int(name[9:12]) for name in hundred["xsub"]["train"]}
    official = """1 2 4 5 8 9 13 14 15 16 17 18 19 25 27 28 31 34 35 38 45 46 47 49 50 52 53 54 55 56 57 58 59 70 74 78
        80 81 82 83 84 85 86 89 91 92 93 94 95 97 98 100 103"""
    assert xsub == {int(number) for number in official.split()}
    assert {int(name[9:12]) for name in hundred["xsub"]["test"]} == set(range(1, 107)) - xsub
    assert {int(name[1:4]) for name in hundred["xset"]["train"]} == {2, 32}
    assert {int(name[1:4]) for name in hundred["xset"]["test"]} == {1, 31}
    for parts in (*sixty.values(), *hundred.values()):
        assert not set(parts["train"]) & set(parts["test"])


@pytest.mark.parametrize(("action", "classes", "splits"), [(60, 60, ["xsub", "xview"]), (61, 120, ["xsub", "xset"])])
def test_import_knows_60_from_120(tmp_path, action, classes, splits):
    src = tmp_path / "src"
    (src / "deep").mkdir(parents=True)
    frames = frames_of((IDS[0], 0, person(12)), total=12)
    names = ["S001C001P003R001A001", "S002C002P001R001A001", f"S002C003P001R001A{action:03d}"]
    for name in names:
        recording(src / "deep", frames, name=name)
    report = import_dataset(src, tmp_path / "store")
    assert report.format == "ntu"
    assert list(report.splits) == splits
    store = Store.open(tmp_path / "store")
    assert len(store.classes) == classes
    assert store.class_name(2) == {60: "walking apart from each other", 61: "put on headphone"}[action]
    assert store.layout.name == "kinect_v2"
    assert store.names == names
    assert store.labels.tolist() == [0, 0, action - 1]
    assert store.select(splits[1], "test").tolist() == [0]


def test_speed(tmp_path):
    frames = frames_of((IDS[0], 0, person(100)), (IDS[1], 0, person(20, seed=1)), total=100)
    path = recording(tmp_path, frames)
    assert path.stat().st_size > 250_000
    best = min(_time(path) for _ in range(5))
    rate = path.stat().st_size / best / 1e6
    assert rate > 5, f"{rate:.1f} MB/s; a generous bound, about 40 are usual"


def _time(path):
    start = time.process_time()
    ntu.read_file(path)
    return time.process_time() - start


def test_generated_files_have_the_shape_of_real_ones():
    lines = ntu_files.skeleton_text(frames_of((IDS[0], 1, person(1)), total=2)).split("\r\n")
    assert lines[:3] == ["2", "0", "1"]
    assert len(lines[3].split()) == 10
    assert lines[4] == "25"
    assert {len(line.split()) for line in lines[5:30]} == {12}
    assert lines[30:] == [""]
