"""Two versions side by side: their files, their processes, and what each is allowed to lack."""

import subprocess

import pytest
import torch

from benchmarks import _versions, _worker
from s2vfast import errors
from s2vfast.inputs import inputs

CPU = torch.device("cpu")


def git(folder, *words):
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def version(tmp_path):
    """Makes versions out of this tree's files, changed by a function of their folder; ends their processes."""
    made = []

    def make(change=lambda folder: None, is_this_tree=False):
        folder = tmp_path / f"version{len(made)}"
        _versions.snapshot(folder)
        change(folder)
        made.append(_versions.Version(folder.name, folder, CPU, "float32", is_this_tree))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_moved_inputs_are_the_same_numbers_on_other_lines():
    x = torch.arange(15.0).reshape(3, 5)
    copies = [_worker.moved(x) for _ in range(8)]
    assert all(torch.equal(one, x) and one.data_ptr() % 64 == 0 for one in copies)
    assert len({one.data_ptr() % 4096 for one in copies}) > 1


# Processes


def test_what_a_version_lacks_is_not_taken_from_an_installation(version, tmp_path):
    one = version(lambda folder: (folder / "s2vfast/verify.py").unlink())
    assert "masked_mse" in one.ask(do="hello")["has"]
    verify = one.ask(do="verify", op="masked_mse", impl="torch", sizes={})
    assert verify == {"failed": "ModuleNotFoundError: there is no s2vfast.verify"}
    # Nor are arguments taken away that an operation had not yet.
    torch.save(inputs("masked_mse") | {"weight": 1.0}, tmp_path / "inputs.pt")
    request = {"op": "masked_mse", "impl": "torch", "inputs": str(tmp_path / "inputs.pt"), "threads": 1}
    assert "unexpected keyword argument 'weight'" in one.ask(do="prepare", **request, backward=False)["failed"]


@pytest.mark.parametrize(
    ("answer", "is_this_tree", "fault"),
    [
        ({"wrong": "by 1"}, False, True),
        ({"wrong": "by 1"}, True, True),
        ({"failed": "TypeError: no"}, False, False),
        ({"failed": "TypeError: no"}, True, True),
        ({"declined": "too wide"}, False, False),
        ({"declined": "too wide"}, True, False),
    ],
)
def test_an_old_revision_may_lack_what_this_tree_may_not(answer, is_this_tree, fault, tmp_path, monkeypatch):
    version = _versions.Version("one", tmp_path, CPU, "float32", is_this_tree)
    monkeypatch.setattr(version, "ask", lambda **request: answer)
    with pytest.raises(_versions.NotCompared, match=f"^one.*: {next(iter(answer.values()))}$") as raised:
        version.need(do="sample")
    assert raised.value.fault == fault


def test_a_process_that_dies_costs_one_case(version):
    def deadly(folder):
        head = "def _torch(prediction: Tensor, target: Tensor) -> Tensor:\n"
        path = folder / "s2vfast/ops/masked_mse.py"
        path.write_text(path.read_text().replace(head, f"{head}    import os; os.kill(os.getpid(), 11)\n"))

    one = version(deadly)
    assert "its process ended with SIGSEGV" in one.ask(do="verify", op="masked_mse", impl="torch", sizes={})["failed"]
    one.start()
    one.process.kill()
    one.process.wait()  # so that there is nobody to write a request to
    assert "its process ended with SIGKILL" in one.ask(do="hello")["failed"]
    assert one.ask(do="verify", op="mask_fill", impl="torch", sizes={"N": 1, "unknown": 3}) == {}


# The extension


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two versions whose setup.py writes an extension at once, and a working tree that has a built one."""
    setup = "open('s2vfast/_native.fake.so', 'w').write('built')"
    for name in ("root", "old", "new"):
        for part in ("s2vfast", "csrc", "kernels", "configs"):
            (tmp_path / name / part).mkdir(parents=True)
        (tmp_path / name / "csrc/a.cpp").write_text("1")
        (tmp_path / name / "setup.py").write_text(setup)
    (tmp_path / "root/s2vfast/_native.fake.so").write_text("copied")
    monkeypatch.setattr(_versions, "ROOT", tmp_path / "root")
    return tmp_path / "old", tmp_path / "new"


def extensions(folders):
    paths = [folder / "s2vfast/_native.fake.so" for folder in folders]
    return [path.read_text() if path.exists() else None for path in paths]


def test_the_same_sources_get_the_same_extension(folders, capsys):
    _versions.install(*folders, gpu=False)
    assert extensions(folders) == ["copied", "copied"]
    assert capsys.readouterr().out == ""


def test_other_sources_are_both_built(folders, capsys):
    (folders[0] / "csrc/a.cpp").write_text("2")
    _versions.install(*folders, gpu=False)
    assert extensions(folders) == ["built", "built"]
    assert capsys.readouterr().out.count("is built: its sources differ") == 2


def test_what_cannot_be_built_is_said(folders, capsys):
    (folders[0] / "setup.py").write_text("raise SystemExit('no such compiler')")
    _versions.install(*folders, gpu=False)
    assert extensions(folders) == [None, "built"]
    assert "it cannot be built, so that native is not compared; no such compiler" in capsys.readouterr().out


# This tree


def test_this_tree_is_copied_as_it_is_but_for_what_was_built(folders, tmp_path):
    root = tmp_path / "root"
    (root / "s2vfast/_new.py").write_text("not committed")
    (root / "s2vfast/__pycache__").mkdir()
    _versions.snapshot(tmp_path / "copy")
    paths = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*")}
    assert paths == {"s2vfast", "s2vfast/_new.py", "kernels", "configs", "csrc", "csrc/a.cpp", "setup.py"} | {
        "s2vfast/kernels",
        "s2vfast/configs",
    }
    for name in ("kernels", "configs"):
        assert (tmp_path / "copy/s2vfast" / name).samefile(tmp_path / "copy" / name)


# Revisions


@pytest.fixture
def repository(tmp_path):
    """A git repository of one file and two commits."""
    folder = tmp_path / "repository"
    (folder / "s2vfast").mkdir(parents=True)
    git(folder, "init", "--quiet")
    for number in range(2):
        (folder / "s2vfast/__init__.py").write_text(f"number = {number}")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", str(number))
    return folder


def test_a_revision_is_unpacked(repository, monkeypatch, tmp_path):
    monkeypatch.setattr(_versions, "ROOT", repository)
    assert _versions.unpack("HEAD~1", tmp_path / "out") == git(repository, "rev-parse", "HEAD~1")[:10]
    assert (tmp_path / "out/s2vfast/__init__.py").read_text() == "number = 0"


def test_a_revision_that_is_not_there(repository, monkeypatch, tmp_path):
    monkeypatch.setattr(_versions, "ROOT", repository)
    with pytest.raises(errors.ConfigError, match="--compare nowhere: there is no such commit, branch or tag here$"):
        _versions.unpack("nowhere", tmp_path / "out")


def test_a_shallow_clone_says_how_to_get_the_rest(repository, monkeypatch, tmp_path):
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{repository}", "shallow")
    monkeypatch.setattr(_versions, "ROOT", tmp_path / "shallow")
    with pytest.raises(errors.ConfigError, match="--compare HEAD~1: there is no such .*git fetch --unshallow"):
        _versions.unpack("HEAD~1", tmp_path / "out")


def test_without_git_it_says_so(repository, monkeypatch, tmp_path):
    monkeypatch.setattr(_versions, "ROOT", repository / "s2vfast")
    with pytest.raises(errors.ConfigError, match="--compare HEAD: needs a git checkout of s2vfast, and .* is a part"):
        _versions.unpack("HEAD", tmp_path / "out")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setattr(_versions, "ROOT", tmp_path)
    with pytest.raises(errors.ConfigError, match="--compare HEAD: needs a git checkout .*not a git repository"):
        _versions.unpack("HEAD", tmp_path / "out")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(errors.ConfigError, match="git cannot be run"):
        _versions.unpack("HEAD", tmp_path / "out")
