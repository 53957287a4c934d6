"""Reading a checkpoint file runs nothing that is in it, and says in one line why one cannot be read."""

import argparse
import os
import pathlib
import pickle
import resource
import time
import zipfile

import numpy as np
import pytest
import torch

from s2vfast import errors
from s2vfast.compat import read_checkpoint, source_networks
from s2vfast.compat.reader import OpaqueObject, read_file

from .published import mae, model, prefixed, state, write


class Touch:
    """Makes a file when it is unpickled: by a shell, by a builtin, or by a method of an object it has built."""

    def __init__(self, path, how):
        self.path, self.how = str(path), how

    def __reduce__(self):
        if self.how == "shell":
            return os.system, (f"touch {self.path}",)
        if self.how == "open":
            return open, (self.path, "w")
        if self.how == "eval":
            return eval, (f"open({self.path!r}, 'w')",)
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("how", ["shell", "open", "eval", "method"])
@pytest.mark.parametrize("where", ["beside", "inside", "arguments"])
def test_a_pickle_that_would_run_something_is_refused(tmp_path, form, how, where):
    made, evil = mae(model("mamp")), Touch(tmp_path / "ran", how)
    if where == "beside":
        made["extra"] = evil
    elif where == "inside":
        made["model"]["mask_token"] = evil
    else:
        made["args"].callback = evil
    path = write(tmp_path / "x.pth", made, form)
    with pytest.raises(errors.CheckpointError) as caught:
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    message = str(caught.value)
    assert message.startswith(f"{path}: refused, and nothing of it was run: it asks for ")
    assert "\n" not in message
    torch.load(path, weights_only=False)  # so it was no harmless file
    assert (tmp_path / "ran").exists()


def test_an_environment_cannot_switch_it_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = write(tmp_path / "x.pth", {"model": {"a": torch.ones(1)}, "x": Touch(tmp_path / "ran", "shell")})
    with pytest.raises(errors.CheckpointError, match="refused"):
        read_file(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_what_lies_beside_weights_is_not_built(tmp_path, form):
    arguments = argparse.Namespace(lr=np.float64(3.0), path=pathlib.PurePosixPath("x"), inner={"num_heads": 8})
    content = {"w": torch.arange(3.0), "args": arguments, "loss": np.float32(2.0), "curve": np.arange(4)}
    found_form, found = read_file(write(tmp_path / "x.pth", content, form))
    assert found_form == form
    assert torch.equal(found["w"], content["w"])
    assert all(isinstance(found[name], OpaqueObject) for name in ("args", "loss", "curve"))
    assert isinstance(found["args"].state["path"], OpaqueObject)
    assert found["args"].state["inner"] == {"num_heads": 8}


def test_reading_leaves_nothing_allowed_behind(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_file(write(tmp_path / "x.pth", mae(model("mamp"))))
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_content_decides_and_not_the_name(tmp_path):
    tensors = state("mamp", model("mamp"))
    for form, name in (("safetensors", "a.pth"), ("zip", "b.safetensors"), ("legacy", "c.safetensors")):
        found_form, found = read_file(write(tmp_path / name, tensors, form))
        assert found_form == form
        assert all(torch.equal(found[key], value) for key, value in tensors.items())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_files_that_are_no_checkpoint(tmp_path):
    whole = write(tmp_path / "whole.pth", state("mamp", model("mamp"))).read_bytes()
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "script.pt")
    cases = {
        "empty": b"",
        "text": b"no checkpoint at all",
        "half": whole[: len(whole) // 2],
        "pickle": pickle.dumps({"a": 1}),
        "tensors": (7).to_bytes(8, "little") + b"{broken",
        "script": (tmp_path / "script.pt").read_bytes(),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.CheckpointError) as caught:
            read_file(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert "weights_only" not in str(caught.value), "PyTorch's advice to run what is in the file"
    with pytest.raises(errors.CheckpointError, match="missing: cannot be read: No such file"):
        read_file(tmp_path / "missing")
    with pytest.raises(errors.CheckpointError, match="a checkpoint file is expected"):
        read_file(tmp_path)


def test_a_whole_module_is_named_and_refused(tmp_path):
    with pytest.raises(
        errors.CheckpointError, match=r"asks for torch.nn.modules.linear.Linear.*save its weights alone"
    ):
        read_file(write(tmp_path / "x.pth", {"model": torch.nn.Linear(1, 1)}))


def test_containers_that_hold_themselves(tmp_path):
    content = {"model": state("mamp", model("mamp"))}
    content["again"] = content
    assert read_checkpoint(write(tmp_path / "x.pth", content)).prefix == "model."


def test_names_cannot_write_to_a_terminal(tmp_path):
    content = state("mamp", model("mamp")) | prefixed("\x1b[31m", {"x": torch.ones(1)})
    with pytest.raises(errors.CheckpointError) as caught:
        read_checkpoint(write(tmp_path / "x.pth", content))
    assert str(caught.value).isprintable()
    # The same where PyTorch says it.
    named = write(tmp_path / "x.pth", state("mamp", model("mamp")), "legacy").read_bytes()
    (tmp_path / "x.pth").write_bytes(named.replace(b"OrderedDict", b"Ord\x1b[1mDict"))
    with pytest.raises(errors.CheckpointError, match="refused, and nothing of it was run") as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert str(caught.value).isprintable()


def test_tensors_that_are_not_all_in_the_file(tmp_path):
    content = state("mamp", model("mamp"))
    content["norm.weight"] = torch.ones(1).expand(16)
    with pytest.raises(errors.CheckpointError, match=r"norm.weight: more numbers than the file holds"):
        read_checkpoint(write(tmp_path / "x.pth", content))
    content["norm.weight"] = torch.ones(16, dtype=torch.int64)
    with pytest.raises(errors.CheckpointError, match=r"norm.weight: a tensor of torch.int64"):
        read_checkpoint(write(tmp_path / "x.pth", content))
    content["norm.weight"] = torch.full((16,), torch.nan)
    with pytest.raises(errors.CheckpointError, match=r"norm.weight: holds numbers that are not finite"):
        read_checkpoint(write(tmp_path / "x.pth", content))


def zipped(path, members, method):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_small_file_takes_little_memory(tmp_path, form):
    """Two gigabytes by a size in a pickle, and half a gigabyte of zeros in an archive."""
    huge = b"\x80\x02c__builtin__\nbytearray\nJ" + (2_000_000_000).to_bytes(4, "little") + b"\x85R."
    path = tmp_path / "x.pth"
    if form == "zip":
        zipped(path, {"data.pkl": huge, "version": "3\n"}, zipfile.ZIP_STORED)
        zipped(tmp_path / "zeros.pth", {"data.pkl": b"\x80\x02}.", "data/0": bytes(2**28)}, zipfile.ZIP_DEFLATED)
    else:
        path.write_bytes(huge)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(errors.CheckpointError, match="it asks for bytearray"):
        read_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
    if form == "zip":
        with pytest.raises(errors.CheckpointError, match="bytes become 268,"):
            read_file(tmp_path / "zeros.pth")


def test_many_containers_take_a_time_that_grows_with_them():
    begun = time.process_time()
    assert sum(1 for _ in source_networks._containers({str(number): number for number in range(400_000)})) == 1
    assert time.process_time() - begun < 10.0
