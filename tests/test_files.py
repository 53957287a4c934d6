"""Files and folders that are there whole or as they were: after errors, signals and kills at every step."""

import errno
import json
import os
import subprocess
import sys

import pytest

from s2vfast import files
from s2vfast.errors import DataError


def names(folder):
    return sorted(os.listdir(folder))


def refuse(monkeypatch, name, call=1):
    """Let the os function fail at its ``call``-th call."""
    real, calls = getattr(os, name), []

    def failing(*args, **more):
        calls.append(args)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **more)

    monkeypatch.setattr(os, name, failing)


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    files.write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(("step", "call"), [("fsync", 1), ("replace", 1)])
def test_an_error_leaves_the_file_as_it_was(tmp_path, monkeypatch, step, call):
    path = tmp_path / "a"
    path.write_text("before")
    refuse(monkeypatch, step, call)
    with (
        pytest.raises(DataError, match="a: cannot be written: No space left on device"),
        files.disk_errors(path, DataError),
    ):
        files.write_text(path, "after")
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_fails_in_the_block_leaves_nothing(tmp_path, error):
    def half():
        with files.whole_file(tmp_path / "a") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        half()
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_noticed_before_the_work(tmp_path):
    worked = []
    with pytest.raises(OSError, match="No such file"), files.whole_file(tmp_path / "missing" / "a"):
        worked.append(True)
    assert not worked


def fill(target, text):
    new = files.NewFolder(target)
    try:
        new.make()
        files.write_into(new.path, "content", text.encode())
        new.commit()
    except BaseException:
        new.abandon()
        raise


def test_a_folder_is_replaced(tmp_path):
    for text in ("one", "two"):
        fill(tmp_path / "folder", text)
        assert (tmp_path / "folder" / "content").read_text() == text
        assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize(("step", "call"), [("fsync", 1), ("fsync", 2), ("rename", 1), ("rename", 2)])
def test_an_error_leaves_the_folder_as_it_was(tmp_path, monkeypatch, step, call):
    fill(tmp_path / "folder", "before")
    refuse(monkeypatch, step, call)
    with pytest.raises(OSError, match="No space left"):
        fill(tmp_path / "folder", "after")
    assert (tmp_path / "folder" / "content").read_text() == "before"
    assert names(tmp_path) == ["folder"]


KILLED = """
import os, sys
from pathlib import Path
from s2vfast import files
name, left, target = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
real = getattr(os, name)
def dying(*args, **more):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    return real(*args, **more)
setattr(os, name, dying)
if target.name == "file":
    files.write_text(target, "after")
else:
    new = files.NewFolder(target)
    new.make()
    files.write_into(new.path, "content", b"after")
    new.commit()
"""


@pytest.mark.parametrize("moment", ["fsync 1", "fsync 2", "rename 1", "rename 2", "rmdir 1", "mkdir 1"])
@pytest.mark.parametrize("name", ["file", "folder"])
def test_a_kill_at_any_step_leaves_one_of_the_two(tmp_path, name, moment):
    target = tmp_path / name
    if name == "file":
        target.write_text("before")
    else:
        fill(target, "before")
    subprocess.run([sys.executable, "-c", KILLED, *moment.split(), str(target)], check=False)
    files.recover(target)
    content = target if name == "file" else target / "content"
    assert content.read_text() in ("before", "after")
    assert names(tmp_path) == [name]


def test_what_others_are_writing_stays(tmp_path):
    other = tmp_path / f"{files.TEMPORARY}a-{files._host()}-1"  # process 1 lives
    elsewhere = tmp_path / f"{files.TEMPORARY}a-another.host-99999999"
    for path in (other, elsewhere):
        path.write_text("")
    files.recover(tmp_path / "a")
    assert names(tmp_path) == sorted([other.name, elsewhere.name])
    files.remove_temporaries(tmp_path)
    files.remove_temporaries(tmp_path / "missing")
    assert names(tmp_path) == []


def test_a_removed_folder_is_never_half_there(tmp_path, monkeypatch):
    fill(tmp_path / "folder", "x")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *args, **more: None)  # as if it were killed here
        files.remove_folder(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    files.recover(tmp_path / "folder")
    files.remove_folder(tmp_path / "folder")
    files.remove(tmp_path / "missing")
