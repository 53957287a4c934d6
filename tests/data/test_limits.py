"""Small files that ask for much: each is one clear line, soon, in bounded memory."""

import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from s2vfast.data import limits
from s2vfast.data.importer import import_dataset
from s2vfast.data.layout import get_layout
from s2vfast.errors import DataError

from .ntu_files import IDS, frames_of, person, skeleton_text


def keypoint(frames=3, joints=25):
    return np.random.default_rng(0).uniform(0.1, 1, (1, frames, joints, 3)).astype(np.float32)


def annotation(name="a", **more):
    return {"frame_dir": name, "label": 0, "keypoint": keypoint(), "total_frames": 3} | more


def nested(levels, width=2):
    value = [1]
    for _ in range(levels):
        value = [value] * width
    return value


def empty(shape):
    """A pickled array of this shape without a byte."""
    return np.zeros(shape, np.float32)


SHARED = annotation("s")
LAYOUT = {"name": "x", "joints": ["a"], "root": 0, "torso": [0, 0], "sides": [0, 0]}
ARRAY = keypoint(1000)
PICKLES = {
    "a tree of lists as label": {"annotations": [annotation(label=nested(60))]},
    "a tree of lists as split": {"annotations": [annotation()], "split": {"x_train": nested(60)}},
    "a tree of tuples as key": {"annotations": [annotation()], "split": {(1, (2, (3, 4))): ["a"]}},
    "four levels of one list": {"annotations": [annotation()], "more": nested(3, 3000)},
    "one annotation many times": {"annotations": [SHARED] * 100_000},
    "one array many times": {"annotations": [annotation(f"{i}", keypoint=ARRAY) for i in range(3000)]},
    "many annotations that are none": {"annotations": [None] * 500_000},
    "many bodies without joints": {"annotations": [annotation(keypoint=empty((10**9, 3, 0, 3)))]},
    "many frames without joints": {"annotations": [annotation(keypoint=empty((1, 10**9, 0, 3)))]},
    "an array as total_frames": {"annotations": [annotation(total_frames=np.arange(3))]},
    "an array as split": {"annotations": [annotation()], "split": np.arange(3)},
    "a class list of one text": {"annotations": [annotation()], "classes": ["x" * 100_000] * 100_000},
    "a large label": {"annotations": [annotation(label=10**9)]},
    "a long name": {"annotations": [annotation("x" * 500_000)]},
    "many splits of one list": {"annotations": [annotation()], "split": {f"{i}_train": ["a"] for i in range(5000)}},
    "a layout of a long list": {"annotations": [annotation()], "layout": LAYOUT | {"parents": [-1] * 150_000}},
}  # fmt: skip


@pytest.fixture
def bounded():
    """Within the test 500 MB more than now may be asked for, and 5 s of a processor, whatever else the machine does."""

    def late(*_):
        raise TimeoutError

    before, handler = resource.getrlimit(resource.RLIMIT_DATA), signal.signal(signal.SIGPROF, late)
    with open("/proc/self/status") as status:
        data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (data + 500 * 2**20, before[1]))
    signal.setitimer(signal.ITIMER_PROF, 5)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, handler)
    resource.setrlimit(resource.RLIMIT_DATA, before)


def refused_or_dropped(src, out, **options):
    """Import; the file costs itself at most. Returns what was said."""
    try:
        report = import_dataset(src, out, **options)
    except DataError as error:
        said = str(error)
    else:
        said = str(report.dropped)
    assert "\n" not in said
    assert len(said) < 1500
    return said


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_stay_within_the_limits(tmp_path, bounded, name):
    data = pickle.dumps(PICKLES[name])
    assert len(data) < 2**20, "a small file"
    (tmp_path / "a.pkl").write_bytes(data)
    refused_or_dropped(tmp_path / "a.pkl", tmp_path / "store")


def npz(path, replace=(), method=zipfile.ZIP_DEFLATED, twice=(), after=b""):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.uniform(0.1, 1, (2, 4, 150)).astype(np.float32), "y_train": np.array([0, 1])}
    arrays |= {"x_test": arrays["x_train"], "y_test": arrays["y_train"]} | dict(replace)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue() + (after if name == "x_train" else b""))
    return path


ONE_HOT = np.eye(2)
ARCHIVES = {
    "labels of 10**12": ({"replace": {"y_train": np.array([0, 10**12])}}, "whole numbers from 0 to below"),
    "labels that are NaN": ({"replace": {"y_train": np.array([0, np.nan])}}, "whole numbers from 0 to below"),
    "a bomb": ({"replace": {"x_train": np.zeros((3000, 100, 150), np.float32)}}, "that become"),
    "a bomb of labels": ({"replace": {"y_train": np.zeros((3000, 9000))}}, "that become"),
    "bzip2": ({"method": zipfile.ZIP_BZIP2}, "compressed by another method"),
    "LZMA": ({"method": zipfile.ZIP_LZMA}, "compressed by another method"),
    "more data than sequences": ({"after": b"\0"}, "more data than 2 sequences"),
    "sequences without frames": (
        {"replace": {"x_train": np.zeros((9_999_999, 0, 150), np.float32)}},
        "expected [n, T, 150]",
    ),
    "one-hot with NaN": ({"replace": {"y_train": ONE_HOT * np.nan}}, "the label is not one-hot"),
    "one-hot with -7.5": ({"replace": {"y_train": ONE_HOT * -7.5}}, "the label is not one-hot"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_stay_within_the_limits(tmp_path, bounded, name):
    options, message = ARCHIVES[name]
    assert message in refused_or_dropped(npz(tmp_path / "a.npz", **options), tmp_path / "store")


def test_a_checksum_is_looked_at(tmp_path):
    data = bytearray(npz(tmp_path / "a.npz", method=zipfile.ZIP_STORED).read_bytes())
    data[data.index(b"NUMPY") + 400] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match="x_train: damaged .Bad CRC-32"):
        import_dataset(tmp_path / "a.npz", tmp_path / "store")


NAME = "a01_s01_e00_v01"


def ucla(**more):
    return {"file_name": NAME, "label": 1, "skeletons": np.full((2, 20, 3), 0.5).tolist()} | more


JSONS = {
    "a text as number": (json.dumps(ucla(skeletons=[[["0.5", 1, 1]] * 20])), "frame 0: expected 20 lists of 3 numbers"),
    "true as number": (json.dumps(ucla(skeletons=[[[True, 1, 1]] * 20])), "frame 0: expected 20 lists of 3 numbers"),
    "true as label": (json.dumps(ucla(label=True)), "label True, expected 1"),
    "a float as label": (json.dumps(ucla(label=1.0)), "label 1.0, expected 1"),
    "no file_name": (
        json.dumps({k: v for k, v in ucla().items() if k != "file_name"}),
        "expected an object with file_name",
    ),
    "a key twice": (json.dumps(ucla())[:-1] + ', "label": 1}', "the key 'label' stands twice"),
    "deep lists": ("[" * 200_000, "nested too deeply"),
    "a long number": (json.dumps(ucla())[:-1] + ', "x": ' + "9" * 100_000 + "}", "not JSON"),
    "a huge number": (json.dumps(ucla(skeletons=[[[10**400, 1, 1]] * 20])), "a number beyond any coordinate"),
}


@pytest.mark.parametrize("name", JSONS)
def test_json_is_read_strictly(tmp_path, bounded, name):
    text, message = JSONS[name]
    (tmp_path / f"{NAME}.json").write_text(text)
    said = refused_or_dropped(tmp_path / f"{NAME}.json", tmp_path / "store", format="nwucla")
    assert message.replace("'", "") in said.replace("'", "").replace("\\", "")


def crowd(people):
    """A video of ``people`` who are elsewhere in every frame: as many tracks as sightings."""
    rng = np.random.default_rng(0)
    poses = (9 * rng.random((people, 1)) + 0.2 * rng.random((people, 36))).round(1).tolist()
    people = [{"pose": pose, "score": [1] * 18} for pose in poses]
    frames = [{"skeleton": people[at : at + 64]} for at in range(0, len(people), 64)]
    return json.dumps({"data": frames}, separators=(",", ":"))


LANDMARKS = "[" + ",".join(["[1,1,1]"] * 33) + "]"
FLOODS = {
    "a.json as kinetics": (crowd(1500), "kinetics", ""),
    "frames without anybody": (f"[{LANDMARKS}{',[]' * 100_000}]", "mediapipe", ""),
    "deep landmarks": ('[{"pose_landmarks":' + "[" * 400_000, "mediapipe", "nested too deeply"),
    "a number of 900,000 digits": ('[[{"keypoints":[[1' + "0" * 900_000 + ",1]]}]]", "rtmpose", "Exceeds the limit"),
    "a million columns": ("1," * 400_000 + "1\n1\n", "arrays", "1 numbers, the first line has 400001"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_floods_of_keypoints_stay_within_the_limits(tmp_path, bounded, name):
    text, format, message = FLOODS[name]
    path = tmp_path / ("a.csv" if format == "arrays" else "a.json")
    path.write_text(text)
    assert path.stat().st_size < 2**20
    assert message in refused_or_dropped(path, tmp_path / "store", format=format)


def test_layouts_stay_within_the_limits(tmp_path, bounded):
    layout = get_layout("kinect_v1").to_dict()
    for change in (
        {"up": [10**400, 0, 0]},
        {"parents": list(range(-1, 5000)), "joints": [f"j{i}" for i in range(5001)]},
    ):
        (tmp_path / "l.json").write_text(json.dumps(layout | change))
        with pytest.raises(DataError, match=r"l\.json: "):
            get_layout(tmp_path / "l.json")
    (tmp_path / "l.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        get_layout(tmp_path / "l.json")
    with pytest.raises(DataError, match="neither a known layout"):
        get_layout("/dev/zero")


def test_terminals_carry_nothing_out():
    assert limits.printable("a\x1b[31mb\r\nc é 走") == "a\\x1b[31mb\\r\\nc é 走"


def cli(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "s2vfast", *map(str, words)], capture_output=True, text=True, **options
    )


def test_names_are_printed_in_ascii_where_a_terminal_has_no_more(tmp_path):
    (tmp_path / "a.pkl").write_bytes(
        pickle.dumps({"annotations": [annotation("走\x1b[31m", label="x"), annotation("b")]})
    )
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = cli("data", "import", tmp_path / "a.pkl", "--out", tmp_path / "store", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u8d70\\x1b[31m" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_import_that_is_stopped_leaves_nothing_and_can_be_repeated(tmp_path, number):
    src = tmp_path / "src"
    src.mkdir()
    text = skeleton_text(frames_of((IDS[0], 0, person(60)), total=60))
    (tmp_path / "one").write_text(text)
    for i in range(12_000):  # it must not be over before a busy machine lets this process look
        os.link(
            tmp_path / "one",
            src / f"S{i // 1000 + 1:03d}C001P{i % 40 + 1:03d}R{i // 40 % 25 + 1:03d}A{i % 60 + 1:03d}.skeleton",
        )
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "s2vfast", "data", "import", str(src), "--out", str(out / "store"), "--workers", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not os.listdir(out) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.strip().splitlines()[-1] == f"s2vfast: stopped by {number.name}"
    assert os.listdir(out) == []
