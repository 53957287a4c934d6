import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from s2vfast import files
from s2vfast.data import store_writer
from s2vfast.data.store import Body, Sequence, Store
from s2vfast.errors import DataError

from .stores import V1, body, example, left_behind, many, write


def bad(change):
    good = body([0, 1, 2])
    change(good)
    return good


def set_nan(b):
    b.joints[1, 1, 0] = np.nan


def set_inf(b):
    b.joints[2, 0, 2] = np.inf


def set_repeat(b):
    b.frame_index = np.array([0, 1, 1])


def set_late(b):
    b.frame_index = np.array([0, 1, 3])


def set_short(b):
    b.frame_index = np.array([0, 1])


def set_joints(b):
    b.joints = np.ones((3, 25, 3))


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (Sequence("a", 2, 3, [body([0])]), "a: label 2, expected 0 to 1"),
        (Sequence("a", -2, 3, [body([0])]), "a: label -2"),
        (Sequence("", 0, 3, [body([0])]), "expected a non-empty text"),
        (Sequence("a", 0, 3, [bad(set_nan)]), "a, body 1: frame 1, joint 1 is not a finite number"),
        (Sequence("a", 0, 3, [bad(set_inf)]), "a, body 1: frame 2, joint 0 is not a finite number"),
        (Sequence("a", 0, 3, [bad(set_repeat)]), "frame numbers must ascend"),
        (Sequence("a", 0, 3, [bad(set_late)]), "frame numbers must ascend from 0 to below 3"),
        (Sequence("a", 0, 3, [bad(set_short)]), "2 frame numbers for 3 frames"),
        (Sequence("a", 0, 3, [bad(set_joints)]), "shape [3, 25, 3], expected [frames, 2, 3] for layout tiny"),
    ],
)
def test_impossible_sequences_leave_nothing_behind(tmp_path, sequence, message):
    with pytest.raises(DataError) as caught:
        write(tmp_path / "store", [Sequence("ok", 0, 1, [body([0])]), sequence])
    assert message in str(caught.value)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"classes": ["x\udfff"]}, r"class name 'x\\udfff'"),
        ({"splits": {"\udfff": {"train": ["a"]}}}, r"split name '\\udfff'"),
        ({"name": "a\udfff"}, r"sequence name 'a\\udfff'"),
    ],
)
def test_half_a_character_is_no_name(tmp_path, more, what):
    one = Sequence(more.pop("name", "a"), 0, 1, [body([0])])
    with pytest.raises(DataError, match=f"^{what}: not a text, it holds half a character"):
        write(tmp_path / "store", [one], **more)
    assert left_behind(tmp_path) == []


def test_names_are_unique_and_float16_must_hold_the_numbers(tmp_path):
    same = [Sequence("a", 0, 1, [body([0])]), Sequence("a", 0, 1, [body([0])])]
    with pytest.raises(DataError, match="a: two sequences of this name"):
        write(tmp_path / "store", same)
    large = Sequence("a", 0, 1, [Body("1", np.array([0]), np.full((1, 2, 3), 1e5))])
    with pytest.raises(DataError, match="does not fit float16; use float32"):
        write(tmp_path / "store", [large], dtype="float16")
    with pytest.raises(DataError, match="dtype: expected float32 or float16"):
        write(tmp_path / "store", [large], dtype="int8")
    assert left_behind(tmp_path) == []
    half, sequences = example(tmp_path / "store", dtype="float16")
    assert half.frames.dtype == np.float16
    assert half.sequence(1)[0].dtype == np.float32
    np.testing.assert_allclose(half.sequence(1)[0][0], sequences[1].bodies[0].joints, rtol=1e-3)


def test_an_existing_place_is_not_touched_unless_asked(tmp_path):
    store, _ = example(tmp_path / "store")
    before = store.fingerprint
    with pytest.raises(DataError, match="exists already"):
        write(store.path, [Sequence("new", 0, 1, [body([0])])])
    with pytest.raises(DataError, match="label 7"):
        write(store.path, [Sequence("new", 7, 1, [body([0])])], overwrite=True)
    assert Store.open(store.path).fingerprint == before, "a failed overwrite keeps the old store"
    assert write(store.path, [Sequence("new", 0, 1, [body([0])])], overwrite=True).names == ["new"]
    assert left_behind(tmp_path) == ["store"]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    with pytest.raises(DataError, match="is not a store, so it is not overwritten"):
        write(tmp_path / "precious", [Sequence("new", 0, 1, [body([0])])], overwrite=True)
    assert (tmp_path / "precious" / "file").read_text() == "mine"


def test_what_a_killed_writer_left_is_removed(tmp_path):
    finished = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    process, host = int(finished.stdout), files._host()
    (tmp_path / f".tmp-store-{host}-{process}").mkdir()
    (tmp_path / f".tmp-store-{host}-1").mkdir()  # process 1 lives
    (tmp_path / f".tmp-other-{host}-{process}").mkdir()
    example(tmp_path / "store")
    assert left_behind(tmp_path) == sorted([f".tmp-store-{host}-1", f".tmp-other-{host}-{process}", "store"])
    (tmp_path / "store").rename(tmp_path / f".tmp-store-{host}-{process}-old")  # killed between two renames
    with pytest.raises(DataError):
        write(tmp_path / "store", [Sequence("new", 7, 1, [body([0])])], overwrite=True)
    assert Store.open(tmp_path / "store").names == ["s0", "s1", "s2"]


@pytest.mark.parametrize("size_limit", [0, 60_000, 1_000_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path, size_limit):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_limit, size_limit))

    code = (
        "import pathlib, sys\n"
        "sys.path[:0] = sys.argv[1:3]\n"
        "import stores as t\n"
        "from s2vfast.errors import DataError\n"
        "try: t.write(pathlib.Path(sys.argv[3]), t.many(), layout=t.V1)\n"
        "except DataError as error: print(error)\n"
    )
    command = [sys.executable, "-B", "-c", code, os.path.dirname(__file__), os.getcwd(), tmp_path / "store"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert f"{tmp_path / 'store'}: the store could not be written: File too large" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "Exception ignored" not in done.stderr
    assert left_behind(tmp_path) == []


def test_a_full_file_system_is_named(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        with pytest.raises(DataError, match="could not be written: No space left on device"):
            write(small / "store", many(), layout=V1)
        assert left_behind(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("step", ["mkdir", "open", "fsync", "rename"])
def test_an_error_at_any_step_leaves_nothing_behind(tmp_path, monkeypatch, step):
    def fail(*_args, **_more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "mkdir":
        monkeypatch.setattr("pathlib.Path.mkdir", fail)
    elif step == "open":
        monkeypatch.setattr(store_writer, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(DataError, match="could not be written: No space left on device"):
        example(tmp_path / "store")
    assert left_behind(tmp_path) == []


def test_the_old_store_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    store, _ = example(tmp_path / "store")
    rename, calls = os.rename, []

    def fail_second(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_second)
    with pytest.raises(DataError, match="could not be written: Input/output error"):
        write(store.path, [Sequence("new", 0, 1, [body([0])])], overwrite=True)
    assert left_behind(tmp_path) == ["store"]
    assert Store.open(store.path).fingerprint == store.fingerprint


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    def interrupted():
        yield Sequence("a", 0, 1, [body([0])])
        signal.raise_signal(signal.SIGINT)
        yield Sequence("b", 0, 1, [body([0])])

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "store", interrupted())
    assert left_behind(tmp_path) == []


def test_a_read_only_place_is_named(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(DataError, match="could not be written: Permission denied"):
            example(folder / "store")
    finally:
        folder.chmod(0o755)


def test_a_place_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/store: the store could not be written: "):
        example(tmp_path / "file" / "store")


def test_errors_of_the_producer_pass_as_they_are(tmp_path):
    def broken():
        yield Sequence("a", 0, 1, [body([0])])
        raise FileNotFoundError("input.txt")

    with pytest.raises(FileNotFoundError, match="input.txt"):
        write(tmp_path / "store", broken())
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_appears_at_out_meanwhile_is_never_deleted(tmp_path, overwrite, kind):
    out = tmp_path / "store"

    def sequences():
        yield Sequence("s0", 0, 6, [body([0, 1])])
        if kind == "folder":
            out.mkdir()
            (out / "thesis.tex").write_text("years of work")
        elif kind == "file":
            out.write_text("years of work")
        else:
            out.symlink_to(tmp_path)

    with pytest.raises(DataError, match="something else has this name by now"):
        write(out, sequences(), overwrite=overwrite)
    assert os.listdir(tmp_path) == ["store"]
    if kind != "link":
        assert (out / "thesis.tex" if kind == "folder" else out).read_text() == "years of work"


def test_a_store_with_other_files_in_it_is_not_overwritten(tmp_path):
    example(tmp_path / "store")
    (tmp_path / "store" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="exists and is not a store"):
        example(tmp_path / "store", overwrite=True)
    assert (tmp_path / "store" / "thesis.tex").exists()


def test_overwriting_does_not_follow_what_was_exchanged_between_look_and_rename(tmp_path, monkeypatch):
    example(tmp_path / "store")
    real = os.rename

    def exchange(source, target):
        if str(source) == str(tmp_path / "store"):
            monkeypatch.setattr(os, "rename", real)
            shutil.rmtree(source)
            os.mkdir(source)
            (tmp_path / "store" / "thesis.tex").write_text("years of work")
        return real(source, target)

    monkeypatch.setattr(os, "rename", exchange)
    with pytest.raises(DataError, match="something else has this name by now"):
        example(tmp_path / "store", overwrite=True)
    assert (tmp_path / "store" / "thesis.tex").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["store"]
