"""Every reader against mutated files: a recording, a report or a DataError in one line; never another exception.

The corpus is made here: one good file of each format. ``make fuzz`` runs the same for S2VFAST_FUZZ mutations.
"""

import contextlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from s2vfast.data import archive
from s2vfast.data.formats import FORMATS
from s2vfast.data.formats.base import Source
from s2vfast.data.labels import Labelling
from s2vfast.data.layout import LAYOUTS, get_layout
from s2vfast.data.read_task import read_checked
from s2vfast.data.store import Sequence, Store, hash_file, header_bytes
from s2vfast.errors import DataError

from . import depth_pictures
from .ntu_files import IDS, frames_of, person, skeleton_text
from .pose_files import as_dicts, as_lists, world
from .stores import example

ROUNDS = int(os.environ.get("S2VFAST_FUZZ", "120"))
ROOT = Path(__file__).parents[2]


def npz():
    x, y = np.random.default_rng(0).uniform(0.1, 1, (2, 3, 150)).astype(np.float32), np.eye(2)
    return npz_of(x_train=x, y_train=y, x_test=x, y_test=y)


def npz_of(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def annotations(protocol):
    keypoint = np.random.default_rng(0).uniform(0.1, 1, (2, 3, 25, 3)).astype(np.float32)
    entries = [{"frame_dir": f"a{i}", "label": i, "total_frames": 3, "keypoint": keypoint + i} for i in range(2)]
    return pickle.dumps({"split": {"x_train": ["a0"], "x_val": ["a1"]}, "annotations": entries}, protocol)


def dumped(data):
    return json.dumps(data).encode()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for action in (1, 2):
            out.writestr(f"x/S001C001P001R001A00{action}.skeleton", CORPUS["ntu"][1])
    return buffer.getvalue()


RNG = np.random.default_rng(0)
LANDMARKS = world(2)
POSE = {"keypoints": RNG.uniform(1, 99, (17, 2)).round(2).tolist(), "keypoint_scores": [0.5] * 17, "track_id": 3}
LISTS = [as_lists(pose) for pose in LANDMARKS]
FLAT = RNG.uniform(1, 99, 51).round(1).tolist()
OPENPOSE = {"version": 1.3, "people": [{"person_id": [-1], "pose_keypoints_2d": RNG.uniform(1, 99, 75).tolist()}] * 2}
SKELETON = {"pose": RNG.uniform(0, 1, 36).round(3).tolist(), "score": [0.5] * 18}
VIDEO = {"data": [{"frame_index": 1, "skeleton": [SKELETON] * 2}], "label": "a", "label_index": 1}
BODIES = RNG.uniform(-1, 1, (2, 12, 25, 3)).astype(np.float32)
UCLA = {"file_name": "a01_s01_e00_v01", "label": 1, "skeletons": np.full((2, 20, 3), 0.5).tolist()}
CORPUS = {
    "ntu": ("S001C001P001R001A001.skeleton", skeleton_text(frames_of((IDS[0], 0, person(2)), total=3)).encode()),
    "pyskl": ("a.pkl", annotations(4)),
    "pyskl 2": ("a.pkl", annotations(2)),
    "ctrgcn": ("a.npz", npz()),
    "nwucla": ("a01_s01_e00_v01.json", json.dumps(UCLA).encode()),
    "pkummd": ("0002-L.txt", "\n".join([" ".join(["0.5"] * 150)] * 3).encode()),
    "stgcn": ("train_data.npy", npy(BODIES.transpose(3, 1, 2, 0)[None])),
    "stgcn labels": ("train_label.pkl", pickle.dumps((["a"], [0]))),
    "kinetics": ("a.json", dumped(VIDEO)),
    "mediapipe": ("a.json", dumped([{"pose_world_landmarks": as_dicts(pose), "frame": 1} for pose in LANDMARKS[:1]])),
    "mediapipe lists": ("a.json", dumped([as_lists(pose) for pose in LANDMARKS])),
    "mediapipe people": (
        "a.json",
        dumped([{"worldLandmarks": LISTS, "landmarks": LISTS[:number]} for number in (2, 1)]),
    ),
    "alphapose": ("a.json", dumped([{"image_id": f"{at}.jpg", "keypoints": FLAT, "idx": [at]} for at in (1, 1, 3)])),
    "rtmpose": ("a.json", dumped({"instance_info": [{"frame_id": at, "instances": [POSE]} for at in (1, 2)]})),
    "openpose": ("a_000000000001_keypoints.json", dumped(OPENPOSE)),
    "arrays npy": ("a.npy", npy(BODIES)),
    "arrays npz": ("a.npz", npz_of(keypoints=BODIES[0], scores=BODIES[0, ..., 0])),
    "arrays csv": ("a.csv", ("x," * 74 + "x\n" + ",".join(["-0.5"] * 75) + "\n").encode()),
}
DEPTH = np.zeros((2, 240, 320), np.uint16)
DEPTH[:, 100:110, 150:160] = 400
CORPUS["msr_action3d"] = ("a01_s01_e01_sdepth.mat", depth_pictures.mat(depth_pictures.mat_array(DEPTH)))
CORPUS["ntu zip"] = ("a.zip", zipped())


def mutated(data, rng):
    """One to four changes of bytes: flipped, put in, taken out, repeated, cut, of one of the numbers at the edges."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 9))
        kind = rng.integers(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + 8 * length]
        elif kind == 4:
            data[at : at + 4] = [b"\xff\xff\xff\x7f", b"\0\0\0\0", b"1e99", b"[[[[", b"_1_0"][rng.integers(5)]
        elif rng.integers(4) == 0:
            del data[at:]
    return bytes(data)


def one_line(message):
    assert "\n" not in message


def read_all(format, path):
    """What an import reads, how many sequences; DataError alone may come out."""
    module, sequences = FORMATS[format], 0
    archive._open.cache_clear()  # files change here faster than their times
    module.detect(path)
    source = module.open_source(path, None, labelled=format != "pkummd")
    for item in source.items:
        for entry in read_checked(source, item):
            if isinstance(entry, dict):
                assert len(str(entry)) < 2000
            else:
                sequences += 1
                arrays = [entry.points] if source.layout.kind == "points" else [body.joints for body in entry.bodies]
                assert all(np.isfinite(array).all() for array in arrays)
    return sequences


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CORPUS)
def test_no_reader_raises_but_data_errors(tmp_path, name):
    file, data = CORPUS[name]
    format, path = name.split(" ")[0], tmp_path / file
    rng = np.random.default_rng(list(CORPUS).index(name))
    path.write_bytes(data)
    src = path
    if name == "stgcn labels":  # the pickle beside a good array
        src = tmp_path / "train_data.npy"
        src.write_bytes(CORPUS["stgcn"][1])
    assert read_all(format, src)
    refused = 0
    for number in range(ROUNDS):
        path.write_bytes(changed := mutated(data, rng))
        try:
            read_all(format, src)
        except DataError as error:
            refused += 1
            one_line(str(error))
        except BaseException:
            (tmp_path / "found").write_bytes(changed)
            print(f"round {number}: {tmp_path / 'found'}")
            raise
    assert refused or format != "ctrgcn"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CORPUS)
def test_inputs_that_a_guided_fuzzer_found(tmp_path, name):
    """Each of them reached code that others did not (`fuzz_guided`)."""
    file, data = CORPUS[name]
    src = tmp_path / file
    if name == "stgcn labels":
        src = tmp_path / "train_data.npy"
        src.write_bytes(CORPUS["stgcn"][1])
    kept = sorted((Path(__file__).with_name("fuzz_corpus") / name.replace(" ", "_")).iterdir())
    assert kept
    for path in kept:
        (tmp_path / file).write_bytes(path.read_bytes())
        try:
            read_all(name.split(" ")[0], src)
        except DataError as error:
            one_line(str(error))


@pytest.mark.parametrize("file", ["l.csv", "l.json"])
def test_labels_raise_but_data_errors(tmp_path, file):
    rng = np.random.default_rng(1)
    data = b"file,class,subject,part\na.json,walk,7,train\nb/c.npy,run,anna,val\n"
    if file == "l.json":
        data = json.dumps({"a.json": "walk", "b/c.npy": {"class": "run", "subject": 3}}).encode()
    for _ in range(ROUNDS):
        (tmp_path / file).write_bytes(mutated(data, rng))
        source = Source(LAYOUTS["coco17"], [], list, names=["a", "b/c"])
        try:
            list(Labelling(tmp_path / file, source).apply([Sequence("a", 0, 1, []), Sequence("b/c", 0, 1, [])], []))
        except DataError as error:
            one_line(str(error))


def test_layouts_raise_but_data_errors(tmp_path):
    rng, data = np.random.default_rng(0), json.dumps(LAYOUTS["coco17"].to_dict()).encode()
    for _ in range(ROUNDS):
        (tmp_path / "l.json").write_bytes(mutated(data, rng))
        with contextlib.suppress(DataError):
            get_layout(tmp_path / "l.json")


def test_forged_stores_are_refused_or_read(tmp_path):
    """Any file of a store changed, with fresh hashes: what opens can be read and checked."""
    good, rng = example(tmp_path / "good")[0].path, np.random.default_rng(0)
    names = ("tracks.npy", "sequences.npz", "splits.json", "notes.json", "frame_index.npy", "frames.npy")
    refused = 0
    for number in range(ROUNDS):
        folder = tmp_path / "forged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        name = names[number % len(names)]
        (folder / name).write_bytes(mutated((folder / name).read_bytes(), rng))
        meta = json.loads((folder / "store.json").read_bytes())
        meta["files"][name] = {"size": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
        (folder / "store.json").write_bytes(header_bytes(meta))
        try:
            store = Store.open(folder)
            store.verify()
            row, count = store.track_table(store.max_bodies)
            assert ((row >= 0) & (count >= 0) & (row + count <= len(store.frames))).all()
            for index in range(len(store)):
                if store.total_frames[index] < 10**6:
                    store.sequence(index)
        except DataError as error:
            refused += 1
            one_line(str(error))
    assert refused > ROUNDS / 3


SANITIZED = """
#include <cstdio>
#include <cstdlib>
#include <string>
#include "text.h"
// Every prefix of a file, and the file with each byte changed, in memory of its very size.
int main(int argc, char** argv) {
  std::string text;
  FILE* file = std::fopen(argv[1], "rb");
  for (int c; (c = std::fgetc(file)) != EOF;) text.push_back(char(c));
  std::fclose(file);
  const char changes[] = {'_', '-', '.', 'e', '9', ' ', '\\n', '\\0', char(0xff)};
  size_t good = 0;
  for (size_t at = 0; at <= text.size(); ++at)
    for (size_t i = 0; i <= sizeof(changes); ++i) {
      const bool cut = i == sizeof(changes);
      if (!cut && at == text.size()) continue;
      const size_t size = cut ? at : text.size();
      char* copy = static_cast<char*>(std::malloc(size ? size : 1));
      for (size_t j = 0; j < size; ++j) copy[j] = text[j];
      if (!cut) copy[at] = changes[i];
      s2v::TextNtu ntu;
      std::vector<double> numbers;
      good += argc > 2 ? s2v::text_pkummd(copy, size, &numbers) : s2v::text_ntu(copy, size, &ntu);
      std::free(copy);
    }
  std::printf("%zu", good);
}
"""


@pytest.mark.parametrize("format", ["ntu", "pkummd"])
def test_the_parsers_stay_in_their_memory(tmp_path, format):
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, where the compiler has them."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C++ compiler with sanitizers")
    flags = ["-std=c++17", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}"]
    (tmp_path / "main.cpp").write_text(SANITIZED)
    sources = [str(tmp_path / "main.cpp"), *(str(ROOT / f"csrc/text_{name}.cpp") for name in ("ntu", "pkummd"))]
    built = subprocess.run([compiler, *flags, *sources, "-o", str(tmp_path / "main")], capture_output=True, text=True)
    if built.returncode:
        assert "error:" not in built.stderr, built.stderr
        pytest.skip(f"no sanitizers here: {built.stderr.strip().splitlines()[-1]}")
    small = skeleton_text(frames_of((IDS[0], 0, person(1)), total=1), "\r\n").encode()
    (tmp_path / "file").write_bytes(small if format == "ntu" else b" ".join([b"-1.5e-3", b"0.25"] * 75) + b"\n")
    command = [str(tmp_path / "main"), str(tmp_path / "file"), *(["pkummd"] if format == "pkummd" else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LD_PRELOAD": ""})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
