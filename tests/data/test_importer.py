import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

from s2vfast.data import importer
from s2vfast.data.formats import FORMATS, detect_format
from s2vfast.data.importer import import_dataset
from s2vfast.data.report import imported
from s2vfast.data.skeleton_store import FILES
from s2vfast.data.store import HEADER, Store
from s2vfast.errors import DataError

from .ntu_files import IDS, frames_of, person, skeleton_text
from .pose_files import as_lists, world


@pytest.fixture(scope="module")
def ntu(tmp_path_factory):
    """75 recordings in two folders, some of them broken or empty."""
    src = tmp_path_factory.mktemp("ntu")
    for number in range(75):
        folder = src / f"part{number % 2}"
        folder.mkdir(exist_ok=True)
        length = 12 + number % 5
        tracks = [(IDS[0], 0, person(length, seed=number))]
        if number % 3 == 0:
            tracks.append((IDS[1], 0, person(length, seed=1000 + number, x=1.0)))
        text = skeleton_text(frames_of(*tracks, total=length))
        if number % 20 == 7:
            text = text.replace("\r\n25\r\n", "\r\n24\r\n", 1)
        if number % 20 == 9:
            text = skeleton_text([[]] * 5)
        name = f"S001C{number % 3 + 1:03d}P{number % 9 + 1:03d}R001A{number % 60 + 1:03d}"
        (folder / f"{name}.skeleton").write_text(text)
    return src


def content(store):
    return {name: (store / name).read_bytes() for name in (*FILES, HEADER)}


def test_the_store_does_not_depend_on_workers_or_order(ntu, tmp_path, monkeypatch):
    reports = [import_dataset(ntu, tmp_path / "w0", workers=0)]
    monkeypatch.setattr(importer, "CHUNK", 3)  # more chunks than wait at a time
    reports.append(import_dataset(ntu, tmp_path / "w2", workers=2))
    assert content(tmp_path / "w0") == content(tmp_path / "w2")
    real = type(ntu).rglob
    monkeypatch.setattr(type(ntu), "rglob", lambda self, pattern: reversed(list(real(self, pattern))))
    import_dataset(ntu, tmp_path / "reversed", workers=0)
    assert content(tmp_path / "reversed") == content(tmp_path / "w0")
    assert reports[0].dropped == reports[1].dropped
    names = Store.open(tmp_path / "w0").names
    assert names == sorted(names)


def test_a_broken_file_is_named_with_its_folder(tmp_path, capsys):
    """As files of one name lie in every folder; an excluded name counts with its folder too."""
    src = tmp_path / "src"
    for name in ("walk/01", "run/01", "sit/01"):
        (src / name).parent.mkdir(parents=True)
        text = json.dumps([as_lists(pose) for pose in world(12)])
        (src / f"{name}.json").write_text(text[: 60_000 if name == "walk/01" else 5_000])
    (tmp_path / "names").write_text("sit/01\n")
    report = import_dataset(src, tmp_path / "store", exclude=tmp_path / "names")
    assert [(entry["name"], entry.get("file"), entry["kind"]) for entry in report.dropped] == [
        ("run/01", "01.json", "broken"),
        ("sit/01", None, "excluded"),
    ]
    reason = report.dropped[0]["reason"]
    assert re.fullmatch(r"not JSON: Expecting .* at character 5,001 \(cut off\?\)", reason)
    assert f"run/01 (01.json:1): {reason}" in imported(report)


def test_classes_without_a_recording_are_said(tmp_path):
    """Labels that begin at 1 leave class 0 empty; nothing is said where no recording has a label."""
    joints = np.random.default_rng(0).uniform(0.1, 1, (1, 12, 25, 3))
    for first, said in (
        (1, "1 of 3 classes have no recording: class 0; labels begin at 1"),
        (0, None),
        (-2, None),
    ):
        labels = [max(first + n, -1) if first >= 0 else -1 for n in range(2)]
        entries = [{"frame_dir": f"a{n}", "label": label, "keypoint": joints} for n, label in enumerate(labels)]
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(entries))
        report = import_dataset(tmp_path / "a.pkl", tmp_path / str(first), layout="kinect_v2")
        assert [note for note in report.notes if "no recording" in note] == ([said] if said else [])
        assert Store.open(tmp_path / str(first)).meta["source"]["notes"] == report.notes


def test_a_confidence_that_is_no_number_is_none(tmp_path):
    """json writes NaN as a word, which a run that takes confidences would multiply into everything."""
    pose = {"keypoints": [[1.0, 2.0]] * 17, "keypoint_scores": [float("nan")] + [0.5] * 16}
    (tmp_path / "a.json").write_text(json.dumps([[pose]] * 12))
    import_dataset(tmp_path / "a.json", tmp_path / "store", min_confidence=0.25)
    store = Store.open(tmp_path / "store")
    assert store.confidence[0].tolist() == [0.0] + [0.5] * 16
    assert store.frames[0, :2].tolist() == [[0.0] * 3, [1.0, 2.0, 0.0]]


def test_the_report_counts_what_was_dropped(ntu, tmp_path):
    calls = []
    report = import_dataset(ntu, tmp_path / "store", progress=lambda *at: calls.append(at))
    assert calls[-1] == (75, 75)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert report.sequences == 75 - 8
    assert len(report.dropped) == 8
    assert len(report.broken) == 4
    for entry in report.broken:
        assert re.fullmatch(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}\.skeleton", entry["file"])
        assert entry["line"] == 4
        assert entry["reason"] == "24 joints, expected 25"
    assert {entry["reason"] for entry in report.dropped if entry["kind"] == "empty"} == {"no body in any frame"}
    assert Store.open(tmp_path / "store").dropped == report.dropped
    text = imported(report)
    assert "imported 67 sequences" in text
    assert "dropped: 8 sequences or files, 4 of them broken" in text
    assert f"{report.broken[0]['file']}:4: 24 joints, expected 25" in text
    assert sum(report.splits["xsub"].values()) == 67


@pytest.mark.parametrize("workers", [0, 2])
def test_fail_stops_at_the_first_broken_file_in_order(ntu, tmp_path, workers):
    first = import_dataset(ntu, tmp_path / "skip").broken[0]["file"]
    with pytest.raises(DataError, match=f"^{first}:4: 24 joints, expected 25$"):
        import_dataset(ntu, tmp_path / "store", on_error="fail", workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["skip"]


def test_an_interrupted_import_leaves_nothing(ntu, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    for workers in (0, 2):
        with pytest.raises(KeyboardInterrupt):
            import_dataset(ntu, tmp_path / "store", workers=workers, progress=stop)
        assert list(tmp_path.iterdir()) == []


def test_a_script_without_a_guard_is_told(ntu, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from s2vfast.data.importer import import_dataset\n"
        f"import_dataset({str(ntu)!r}, {str(tmp_path / 'store')!r}, workers=1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode != 0
    assert 'if __name__ == "__main__" guard); import with workers=0' in done.stderr.strip().splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_unreadable_files_are_broken_ones(ntu, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    good = "S001C001P001R001A001.skeleton"
    (src / good).write_text(skeleton_text(frames_of((IDS[0], 0, person(12)), total=12)))
    (src / "S001C001P001R001A002.skeleton").symlink_to("nowhere")
    (src / "S001C001P001R001A003.skeleton").mkdir()
    report = import_dataset(src, tmp_path / "store")
    assert report.sequences == 1
    assert [entry["reason"] for entry in report.broken] == [
        "cannot be read: No such file or directory",
        "cannot be read: Is a directory",
    ]


def test_two_files_of_one_name_are_noticed(tmp_path):
    text = skeleton_text(frames_of((IDS[0], 0, person(12)), total=12))
    for folder in ("a", "b"):
        (tmp_path / "src" / folder).mkdir(parents=True)
        (tmp_path / "src" / folder / "S001C001P001R001A001.skeleton").write_text(text)
    report = import_dataset(tmp_path / "src", tmp_path / "store")
    assert report.sequences == 1
    assert report.broken[0]["reason"] == "a second recording of this name"


def test_nothing_usable_is_one_clear_error(ntu, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (src / "S001C001P001R001A001.skeleton").write_text("1\n")
    with pytest.raises(DataError, match="no sequence to store; the first dropped: S001.*: the file ends in frame 1"):
        import_dataset(src, tmp_path / "store")
    with pytest.raises(DataError, match="nothing: no such file or folder"):
        import_dataset(tmp_path / "nothing", tmp_path / "store")
    with pytest.raises(DataError, match="format 'bvh': unknown, expected one of ntu, pyskl, ctrgcn, nwucla, pkummd"):
        import_dataset(ntu, tmp_path / "store", format="bvh")
    with pytest.raises(DataError, match="on_error 'stop': expected skip or fail"):
        import_dataset(ntu, tmp_path / "store", on_error="stop")
    with pytest.raises(DataError, match="format ntu has layout kinect_v2, not kinect_v1"):
        import_dataset(ntu, tmp_path / "store", layout="kinect_v1")
    for name in FORMATS:
        empty = tmp_path / "empty"
        empty.mkdir(exist_ok=True)
        with pytest.raises(DataError, match=str(empty)):
            import_dataset(empty, tmp_path / "store", format=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "src"]


def test_an_existing_store_is_refused_before_the_work(ntu, tmp_path, monkeypatch):
    import_dataset(ntu, tmp_path / "store")
    monkeypatch.setattr(FORMATS["ntu"], "open_source", lambda *_: pytest.fail("began to read"))
    with pytest.raises(DataError, match="exists already"):
        import_dataset(ntu, tmp_path / "store")


def test_formats_are_detected(ntu, tmp_path):
    assert detect_format(ntu) == "ntu"
    (tmp_path / "a.pickle").write_bytes(b"")
    assert detect_format(tmp_path / "a.pickle") == "pyskl"
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="of no known format; name one with --format: ntu, pyskl"):
        detect_format(tmp_path / "notes.txt")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "x.skeleton").write_text("")
    (tmp_path / "both" / "a01_s01_e00_v01.json").write_text("")
    with pytest.raises(DataError, match="may be ntu or nwucla; name one with --format"):
        detect_format(tmp_path / "both")


def test_splits_that_the_data_does_not_fill_are_said(tmp_path):
    (tmp_path / "src").mkdir()
    for camera in (2, 3):
        text = skeleton_text(frames_of((IDS[0], 0, person(12)), total=12))
        (tmp_path / "src" / f"S001C{camera:03d}P00{camera}R001A001.skeleton").write_text(text)
    report = import_dataset(tmp_path / "src", tmp_path / "store")
    assert list(report.splits) == ["xsub"]
    assert "split xview left out: nothing in its test part" in report.notes
    assert Store.open(tmp_path / "store").meta["source"]["notes"] == report.notes
