"""Checkpoints: equal bytes for equal state, every kind of damage seen, nothing half-written when the disk refuses."""

import errno
import json
import os
import resource
import shutil
import signal

import pytest
import torch

from s2vfast.errors import CheckpointError, TrainingError
from s2vfast.train import checkpoint


def state(step):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(7, 5, generator=generator)
    return {
        "model": {"b.weight": weight, "a.tied": weight, "a.turned": weight.t(), "scalar": torch.tensor(step)},
        "optimizer": {"moment": torch.randn(3, generator=generator).bfloat16(), "none": torch.empty(0, 4)},
    }


def save(run, step, keep=3):
    return checkpoint.save(run, step, state(step), {"step": step, "note": "x"}, keep)


def names(run):
    return sorted(os.listdir(checkpoint.folder(run)))


def test_what_was_saved_comes_back_bitwise(tmp_path):
    path = save(tmp_path, 10)
    found = checkpoint.load_latest(tmp_path)
    assert (found.step, found.meta, found.path) == (10, {"step": 10, "note": "x"}, path)
    for group, tensors in state(10).items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(found.tensors[group][name], tensor)


def test_groups_picks_files(tmp_path):
    save(tmp_path, 10)
    (checkpoint.folder(tmp_path) / "step-00000010/optimizer.safetensors").unlink()
    assert set(checkpoint.load_latest(tmp_path, groups=("model",)).tensors) == {"model"}


def test_equal_state_gives_equal_bytes(tmp_path):
    one, two = save(tmp_path / "one", 10), save(tmp_path / "two", 10)
    # The order in which a dict was filled is not state.
    turned = {group: dict(reversed(tensors.items())) for group, tensors in reversed(state(10).items())}
    three = checkpoint.save(tmp_path / "three", 10, turned, {"note": "x", "step": 10}, 3)
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes() == (three / file.name).read_bytes()


def test_only_the_last_stay(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000015", "step-00000020"]


def test_a_folder_without_checkpoints_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.load_latest(tmp_path)


def truncate(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(path):
    file = path / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_meta(path):
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"note": "x"', '"note": "y"'))


def of_another_step(path):
    shutil.rmtree(path)
    shutil.copytree(path.parent / "step-00000010", path)


DAMAGES = {
    "truncated file": (truncate, "model.safetensors has"),
    "flipped bit": (flip, "optimizer.safetensors is not what was written"),
    "missing file": (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
    "missing manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "empty manifest": (lambda path: (path / "manifest.json").write_bytes(b""), "manifest.json is empty"),
    "no JSON": (lambda path: (path / "manifest.json").write_bytes(b"\xff{"), "manifest.json is no JSON"),
    "empty object": (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is not what was written"),
    "changed meta": (change_meta, "manifest.json is not what was written"),
    "another step's": (of_another_step, "manifest.json is of step 10"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, name):
    save(tmp_path, 10)
    damage, reason = DAMAGES[name]
    damage(save(tmp_path, 20))
    lines = []
    found = checkpoint.load_latest(tmp_path, log=lines.append)
    assert found.step == 10
    assert torch.equal(found.tensors["model"]["b.weight"], state(10)["model"]["b.weight"])
    assert len(lines) == 1
    assert "step-00000020: damaged" in lines[0]
    assert reason in lines[0]


def test_every_flipped_byte_is_seen(tmp_path):
    path = save(tmp_path, 10)
    for file in path.iterdir():
        content = file.read_bytes()
        for at in range(0, len(content), 7):
            # Space and newline between JSON tokens mean nothing; everything else must be noticed.
            changed = content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
            if content[at] in b" \n":
                continue
            file.write_bytes(changed)
            with pytest.raises(CheckpointError):
                checkpoint.load_latest(tmp_path, log=lambda line: None)
        file.write_bytes(content)
    assert checkpoint.load_latest(tmp_path).step == 10


def test_none_intact_is_an_error(tmp_path):
    flip(save(tmp_path, 10))
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is intact"):
        checkpoint.load_latest(tmp_path, log=lambda line: None)


def test_another_format_is_refused_not_passed_over(tmp_path, monkeypatch):
    save(tmp_path, 10)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save(tmp_path, 20)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2, this version of s2vfast reads format 1"):
        checkpoint.load_latest(tmp_path)


def test_set_aside_and_saving_past_it(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    assert [path.name for path in checkpoint.set_aside(tmp_path, after=10)] == [
        "damaged-step-00000020",
        "damaged-step-00000030",
    ]
    assert checkpoint.steps(tmp_path) == [10]
    save(tmp_path, 20)
    assert checkpoint.load_latest(tmp_path).step == 20


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path):
    flip(save(tmp_path, 10))
    save(tmp_path, 10)
    assert checkpoint.load_latest(tmp_path).step == 10
    assert names(tmp_path) == ["step-00000010"]


def test_clean_removes_what_a_kill_left(tmp_path):
    path = save(tmp_path, 10)
    shutil.copytree(path, path.parent / ".tmp-step-00000020-4711")
    (tmp_path / ".tmp-run.json-4711").write_text("{")
    checkpoint.clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["checkpoints"]
    assert names(tmp_path) == ["step-00000010"]


def refuse(monkeypatch, name, number, calls=1):
    """Let the os function ``name`` fail at its ``calls``-th call."""
    real, left = getattr(os, name), [calls]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize(("name", "calls"), [("fsync", 1), ("fsync", 2), ("fsync", 3), ("fsync", 4), ("rename", 1)])
def test_a_refusal_at_any_point_leaves_the_older_one(tmp_path, monkeypatch, name, calls):
    save(tmp_path, 10)
    refuse(monkeypatch, name, errno.ENOSPC, calls)
    with pytest.raises(TrainingError, match=r"step-00000020: .* No space left on device; older .* --resume") as caught:
        save(tmp_path, 20)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["step-00000010"]
    assert checkpoint.load_latest(tmp_path).step == 10


def test_ctrl_c_while_saving_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    save(tmp_path, 10)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 20)
    assert names(tmp_path) == ["step-00000010"]


def test_a_limit_on_file_sizes_is_one_clear_error(tmp_path):
    """As a full disk, by the kernel: writes beyond the limit fail with EFBIG."""
    save(tmp_path, 10)
    big = {"model": {"weight": torch.zeros(1 << 20)}}
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(TrainingError, match="File too large"):
            checkpoint.save(tmp_path, 20, big, {}, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["step-00000010"]


def test_the_manifest_can_be_read_by_people(tmp_path):
    manifest = json.loads((save(tmp_path, 10) / "manifest.json").read_text())
    assert manifest["step"] == 10
    assert set(manifest["files"]) == {"model.safetensors", "optimizer.safetensors"}
