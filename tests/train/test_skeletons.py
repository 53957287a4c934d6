"""From recordings of other skeletons to a trained network, by the command line: two dimensions, means of joints."""

import json
import pickle

import numpy as np
import pytest
import yaml

from s2vfast.data.layout import get_layout
from s2vfast.data.store import Store

TINY = {
    "data": {"frames": 8, "bodies": 1, "split": "default", "center": "frame", "scale": "torso", "rotate": [0, 0, 0.3]},
    "model": {"segment_frames": 4, "dim": 8, "heads": 2, "depth": 2, "layer_scale": 0.1},
    "train": {"steps": 2, "batch": 4, "threads": 1, "device": "cpu"},
}
MASKED = {"mask": {"ratio": 0.8, "tube_len": 1}, "objective": {"decoder_depth": 1, "top_k": 2}}


def annotations(joints, dimensions, size, scores=False):
    """Twelve walks of two classes; with scores, a joint is far away and unsure in every fifth frame."""
    rng, made = np.random.default_rng(joints), []
    for number in range(12):
        walk = rng.normal(0.5, 0.2, (1, 1, joints, dimensions)) + rng.normal(
            0, 0.01, (1, 14, joints, dimensions)
        ).cumsum(1)
        made.append({"frame_dir": f"s{number:02d}", "label": number % 2, "total_frames": 14, "keypoint": walk * size})
        if scores:
            made[-1]["keypoint_score"] = np.ones((1, 14, joints))
            made[-1]["keypoint_score"][:, ::5, 0] = 0.1
            made[-1]["keypoint"][:, ::5, 0] = 40.0 * size
    names = [annotation["frame_dir"] for annotation in made]
    return {"annotations": made, "split": {"train": names[:8], "test": names[8:]}, "classes": ["wave", "walk"]}


def write(path, data):
    path.write_bytes(pickle.dumps(data))
    return path


def test_a_skeleton_in_pixels_from_files_to_classes(cli, tmp_path):
    data = annotations(17, 2, 300.0, scores=True)
    source = write(tmp_path / "coco.pkl", data)
    assert cli(f"data import {source} --out {tmp_path}/store --min_confidence 0.3")[0] == 0
    store = Store.open(tmp_path / "store")
    assert (store.layout.name, store.layout.root, store.layout.planar, store.unit) == ("coco17", (11, 12), True, "px")
    assert Store.open(tmp_path / "store").meta["layout"]["root"] == [11, 12]

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"objective": {"name": "classify", "hidden": 8}}))
    words = f"pretrain --config {tmp_path}/tiny.yaml --data {tmp_path}/store --out {tmp_path}"
    code, _, err = cli(f"{words}/turned --data.rotate [0.1,0,0]")
    assert code == 2
    assert "turn in their plane alone" in err[0]
    code, _, err = cli(f"{words}/run")
    assert code == 0, err
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (described["unit"], described["min_confidence"], described["layout"]["dimensions"]) == ("px", 0.3, [2])

    # The same joints count as missing as in training: the answers are those for a file that lacks them.
    for annotation in data["annotations"]:
        annotation["keypoint"][annotation.pop("keypoint_score") < 0.3] = 0.0
    lacking = write(tmp_path / "lacking.pkl", data)
    answers = [cli(f"predict {tmp_path}/run {file} --json") for file in (source, lacking)]
    tops = [[json.loads(line)["top"] for line in out] for code, out, _ in answers if code == 0]
    assert len(tops) == 2
    assert len(tops[0]) == 12
    assert tops[0] == tops[1]
    deep = write(tmp_path / "deep.pkl", annotations(17, 3, 1.0))
    code, _, err = cli(f"predict {tmp_path}/run {deep}")
    assert code == 1
    assert "deep.pkl: its joints have 3 coordinates, those of the run 2" in err[0]


def test_a_unit_that_does_not_look_like_the_runs_is_said(cli, tmp_path):
    """Millimetres for a run in metres: taken at their word with a word of doubt, as a guess may be wrong."""
    source = write(tmp_path / "metres.pkl", annotations(33, 3, 1.0))
    assert cli(f"data import {source} --out {tmp_path}/store")[0] == 0
    config = TINY | {"objective": {"name": "classify", "hidden": 8}}
    config["data"] = TINY["data"] | {"scale": "none"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert cli(f"pretrain --config {tmp_path}/tiny.yaml --data {tmp_path}/store --out {tmp_path}/run")[0] == 0
    code, out, err = cli(f"predict {tmp_path}/run {write(tmp_path / 'm.pkl', annotations(33, 3, 1.01))}")
    assert (code, err) == (0, [])
    _, _, err = cli(f"predict {tmp_path}/run {write(tmp_path / 'mm.pkl', annotations(33, 3, 1000.0))}")
    assert "mm.pkl: its unit is mm (bodies measure" in err[0]


@pytest.mark.parametrize("of_file", [False, True], ids=["mediapipe33", "a file's"])
def test_a_skeleton_in_metres_is_pretrained_on(cli, tmp_path, of_file):
    """A layout of one's own in a file: the store holds it, and needs the file no longer."""
    source, option = write(tmp_path / "pose.pkl", annotations(33, 3, 1.0)), ""
    if of_file:
        own = get_layout("mediapipe33").to_dict() | {"name": "own", "root": ["left_hip", "right_hip", "nose"]}
        (tmp_path / "own.json").write_text(json.dumps(own))
        option = f" --layout {tmp_path}/own.json"
    assert cli(f"data import {source} --out {tmp_path}/store{option}")[0] == 0
    (tmp_path / "own.json").unlink(missing_ok=True)
    layout = Store.open(tmp_path / "store").layout
    assert (layout.name, layout.root) == (("own", (23, 24, 0)) if of_file else ("mediapipe33", (23, 24)))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | MASKED))
    words = f"--config {tmp_path}/tiny.yaml --data {tmp_path}/store --out {tmp_path}/run --data.align yaw"
    code, _, err = cli(f"pretrain {words}")
    assert code == 0, err
    code, _, err = cli(f"view mask {tmp_path}/store 0 --run {tmp_path}/run --out {tmp_path}/mask.html")
    assert code == 0, err


def test_a_skeleton_that_could_be_two_is_asked_for(cli, tmp_path):
    source = write(tmp_path / "pose.pkl", annotations(17, 3, 1.0))
    code, _, err = cli(f"data import {source} --out {tmp_path}/store")
    assert code == 1
    assert "give their layout with --layout, coco17 or h36m17, or FILE.json" in err[0]
    assert cli(f"data import {source} --out {tmp_path}/store --layout h36m17")[0] == 0
    assert Store.open(tmp_path / "store").layout.name == "h36m17"


def test_a_run_knows_the_skeleton_of_the_files_that_it_is_asked_about(cli, tmp_path):
    """17 joints of 2 coordinates would be taken for COCO's; the run's recordings were said to be Human3.6M's."""
    source = write(tmp_path / "pose.pkl", annotations(17, 2, 300.0))
    assert cli(f"data import {source} --out {tmp_path}/store --layout h36m17")[0] == 0
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | {"objective": {"name": "classify", "hidden": 8}}))
    assert cli(f"pretrain --config {tmp_path}/tiny.yaml --data {tmp_path}/store --out {tmp_path}/run")[0] == 0
    assert cli(f"predict {tmp_path}/run {source}")[::2] == (0, [])
    other = write(tmp_path / "ntu.pkl", annotations(25, 3, 1.0))
    code, _, err = cli(f"predict {tmp_path}/run {other}")
    assert code == 1
    assert "ntu.pkl: its layout is kinect_v2; the run was made with h36m17 (17 joints)" in err[0]


def test_skeletons_are_listed_and_printed(cli, tmp_path):
    code, out, _ = cli("data layouts")
    assert code == 0
    assert [line.split()[0] for line in out[1:]] == sorted(line.split()[0] for line in out[1:])
    assert any(line.split()[:3] == ["kinect_v2", "25", "2"] and " ntu " in line for line in out)
    code, out, _ = cli("data layouts coco")
    assert "root       mean of left_hip and right_hip" in out
    assert [line.split()[0] for line in out[-17:-14]] == ["0", "1", "3"]
    chain = {"name": "chain", "joints": [f"j{i}" for i in range(1024)], "parents": list(range(-1, 1023)), "root": 0}
    (tmp_path / "chain.json").write_text(json.dumps(chain | {"torso": [0, 1], "sides": [0, 1]}))
    assert cli(f"data layouts {tmp_path}/chain.json")[0] == 0
    code, _, err = cli("data layouts kinect_v3")
    assert code == 1
    assert "'kinect_v3': neither a known layout" in err[0]
