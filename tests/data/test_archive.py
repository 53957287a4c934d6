"""Zips as they were downloaded: read in place, whatever lies in them; what is dangerous in them is refused."""

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from s2vfast.data.formats import detect_format
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store
from s2vfast.errors import DataError

from .ntu_files import IDS, frames_of, person, skeleton_text
from .pose_files import as_dicts, moving, world
from .test_formats_poses import kinetics, openpose
from .test_formats_stgcn import ntu_pairs

CASES = Path(os.environ.get("S2VFAST_DATA", "nowhere")).parent / "cases"


def zipped(src, path, top="data/", method=zipfile.ZIP_DEFLATED):
    """A folder as an archive, with what macOS adds."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(src.rglob("*")):
            inside = file.relative_to(src)
            archive.write(file, top + inside.as_posix())
            if file.is_file():
                archive.writestr(f"__MACOSX/{top}{inside.with_name(f'._{inside.name}').as_posix()}", b"\0")
    return path


def ntu(src):
    for at in range(3):
        text = skeleton_text(frames_of((IDS[0], 0, person(12, seed=at)), total=12))
        (src / f"S001C00{at + 1}P001R001A001.skeleton").write_text(text)


def nwucla(src):
    for camera in (1, 2, 3):
        name = f"a01_s01_e00_v0{camera}"
        data = {"file_name": name, "label": 1, "skeletons": moving(5, 20, seed=camera).tolist()}
        (src / f"{name}.json").write_text(json.dumps(data))


def pkummd(src):
    for name, folder in (("skel", "numbers"), ("lab", "labels")):
        (src / name).mkdir()
        for view in "LMR":
            rows = moving(9, 50).reshape(9, 150)
            text = "\n".join(" ".join(map(str, row)) for row in rows) if folder == "numbers" else "3,1,7,2\n"
            (src / name / f"0002-{view}.txt").write_text(text)


def annotations(count, first=0):
    return [
        {"frame_dir": f"r{first + i}", "label": i % 2, "keypoint": moving(8, 25, seed=i)[None]} for i in range(count)
    ]


def pyskl(src):
    (src / "train.pkl").write_bytes(pickle.dumps(annotations(3)))
    (src / "val.pkl").write_bytes(pickle.dumps(annotations(2, 3)))


def pyskl_single(src):
    (src / "a.pkl").write_bytes(pickle.dumps({"annotations": annotations(3)}))


def ctrgcn(src):
    x = np.random.default_rng(0).uniform(0.1, 2, (3, 8, 150)).astype(np.float32)
    np.savez(src / "NTU60_CS.npz", x_train=x, y_train=np.eye(3), x_test=x, y_test=np.eye(3))


def mediapipe(src):
    for at, name in enumerate(("walk/a", "run/a")):
        (src / name).parent.mkdir()
        (src / f"{name}.json").write_text(json.dumps([as_dicts(pose) for pose in world(4, seed=at)]))


def arrays(src):
    for at, name in enumerate(("walk/a", "run/a")):
        (src / name).parent.mkdir()
        np.save(src / f"{name}.npy", moving(9, 25, seed=at))
    np.savez_compressed(src / "run" / "b.npz", keypoints=moving(9, 25))
    (src / "walk" / "c.csv").write_text("\n".join(",".join(map(str, row.reshape(-1))) for row in moving(9, 25)))


def openpose_folder(src):
    openpose(src / "clips", "a", np.round(300 + 100 * moving(4, 25)[..., :2], 2))


MAKERS = (ntu, nwucla, pkummd, pyskl, pyskl_single, ctrgcn, ntu_pairs, kinetics, mediapipe, openpose_folder, arrays)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_gives_what_its_folder_gives(tmp_path, make, method, monkeypatch):
    src = tmp_path / "src"
    src.mkdir()
    make(src)
    top = "" if make is mediapipe or make is arrays else "data/"
    path = zipped(src, tmp_path / "src.ZIP", top, method)
    files = [file for file in src.rglob("*") if file.is_file()]
    import_dataset(files[0] if len(files) == 1 else src, tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    import_dataset(path, tmp_path / "two")
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "two"]), "nothing is unpacked"
    one, two = (Store.open(tmp_path / name) for name in ("one", "two"))
    names = [name.removeprefix("data/") for name in two.names]
    assert (one.names, one.classes, one.labels.tolist()) == (names, two.classes, two.labels.tolist())
    for name in ("frames.npy", "frame_index.npy", "splits.json"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


def test_processes_read_one_archive(tmp_path):
    (tmp_path / "src").mkdir()
    ntu(tmp_path / "src")
    path = zipped(tmp_path / "src", tmp_path / "a.zip")
    for workers in (0, 2):
        import_dataset(path, tmp_path / f"w{workers}", workers=workers)
    assert (tmp_path / "w0" / "store.json").read_bytes() == (tmp_path / "w2" / "store.json").read_bytes()


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected inputs are not on this machine")
def test_ntu_as_downloaded(tmp_path):
    import_dataset(CASES / "s_ntu.zip", tmp_path / "store", exclude="none")
    store = Store.open(tmp_path / "store")
    assert (store.names, store.subjects.tolist(), store.views.tolist()) == (["S001C002P005R002A008"], [5], [2])


GOOD = skeleton_text(frames_of((IDS[0], 0, person(12)), total=12))
NAME = "S001C001P001R001A001.skeleton"


def archive(path, files, **options):
    with zipfile.ZipFile(path, "w", options.pop("method", zipfile.ZIP_DEFLATED)) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x.skeleton", "refused: '../x.skeleton' in it is no name, absolute or leads out of the archive"),
        ("/etc/x.skeleton", "in it is no name, absolute or leads out of the archive"),
        ("a/../../x.skeleton", "in it is no name, absolute or leads out of the archive"),
        ("C:/x.skeleton", "in it is no name, absolute or leads out of the archive"),
        (".", "'.' in it is no name"),
        ("..\\x.skeleton", "in it is no name, absolute or leads out of the archive"),
    ],
)
def test_names_that_lead_out_are_refused(tmp_path, name, message):
    path = archive(tmp_path / "a.zip", {NAME: GOOD, name: GOOD})
    for format in (None, "ntu"):
        with pytest.raises(DataError, match=message):
            import_dataset(path, tmp_path / "store", format=format)


def test_bombs_are_refused(tmp_path):
    zeros = b"0" * (30 << 20)
    path = archive(tmp_path / "a.zip", {NAME: zeros})
    with pytest.raises(DataError, match=r"a\.zip: refused: [\d,]+ bytes that become 31,457,280"):
        import_dataset(path, tmp_path / "store")
    # Each within its limits, together beyond them.
    path = archive(tmp_path / "b.zip", {f"S001C001P001R001A{i:03d}.skeleton": b"0" * (4 << 20) for i in range(1, 9)})
    with pytest.raises(DataError, match=r"b\.zip: refused: [\d,]+ bytes that become 33,554,432"):
        import_dataset(path, tmp_path / "store")
    noise = np.random.default_rng(0).bytes(2 << 20)
    path = archive(tmp_path / "c.zip", {NAME: GOOD, "S001C001P001R001A002.skeleton": zeros, "noise": noise})
    report = import_dataset(path, tmp_path / "store")
    assert "bytes that become 31,457,280: refused" in report.broken[0]["reason"]


def test_other_methods_and_encryption_cost_that_file_alone(tmp_path):
    path = archive(tmp_path / "a.zip", {NAME: GOOD})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_BZIP2) as out:
        out.writestr("S001C001P001R001A002.skeleton", GOOD)
    assert import_dataset(path, tmp_path / "one").broken[0]["reason"] == "compressed by another method than deflate"
    path = archive(tmp_path / "b.zip", {NAME: GOOD, "S001C001P001R001A002.skeleton": GOOD})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.rindex(signature) + offset] |= 1
    path.write_bytes(data)
    assert import_dataset(path, tmp_path / "two").broken[0]["reason"] == "is encrypted; unpack it"


def test_damage_costs_that_file_alone_and_a_cut_the_archive(tmp_path):
    path = archive(tmp_path / "a.zip", {NAME: GOOD, "S001C001P001R001A002.skeleton": GOOD}, method=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"0.02764709")] = ord("1")
    path.write_bytes(data)
    assert "damaged (Bad CRC-32" in import_dataset(path, tmp_path / "one").broken[0]["reason"]
    path.write_bytes(data[:-30])
    with pytest.raises(DataError, match=r"a\.zip: damaged"):
        import_dataset(path, tmp_path / "store")


def test_an_archive_that_changes_is_read_anew(tmp_path):
    path = archive(tmp_path / "a.zip", {NAME: GOOD})
    assert detect_format(path) == "ntu"
    path.unlink()
    archive(path, {"a.json": json.dumps([as_dicts(pose) for pose in world(9)]), "x/b.json": "[]"})
    assert detect_format(path) == "mediapipe"


def test_two_files_of_one_name_are_refused(tmp_path):
    path = archive(tmp_path / "a.zip", {NAME: GOOD, NAME.replace("A001", "A002"): GOOD})
    path.write_bytes(path.read_bytes().replace(b"A002", b"A001"))
    with pytest.raises(DataError, match="two files 'S001C001P001R001A001.skeleton' in it"):
        import_dataset(tmp_path / "a.zip", tmp_path / "store")
