"""Who may begin a run in a folder, and what a run began with: neither can be changed behind its back."""

import functools
import hashlib
import json
import os
import subprocess
import sys
import time

import pytest

from s2vfast.data.store import Store
from s2vfast.errors import CheckpointError
from s2vfast.evaluate import runs
from s2vfast.train import checkpoint, rundir
from s2vfast.train.loop import train

BOTH = """
import sys, time
from pathlib import Path
from s2vfast.config import Config
from s2vfast.data.store import Store
from s2vfast.errors import CheckpointError
from s2vfast.train import rundir
store, run, at = Store.open(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
rundir.check_free(run)  # as the command line does, long before
time.sleep(max(0.0, at - time.time()))
try:
    claim = rundir.create(run, Config(), store)
except CheckpointError as error:
    print("refused", error)
else:
    print("began")
    time.sleep(1)
"""


def test_of_two_processes_that_begin_at_once_one_trains(tmp_path, tiny_store):
    for round_ in range(2):
        run, at = tmp_path / f"new/run{round_}", time.time() + 4
        command = [sys.executable, "-c", BOTH, str(tiny_store), str(run), str(at)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        said = sorted(process.communicate(timeout=60)[0].split(maxsplit=1)[0] for process in processes)
        assert said == ["began", "refused", "refused"]
        assert sorted(os.listdir(run)) == [".lock", "config.yaml", "run.json"]


def test_the_lock_outlives_that_run_json_is_written_again(tmp_path, tiny_store, tiny_config):
    with rundir.create(tmp_path / "run", tiny_config(), Store.open(tiny_store)):
        text = (tmp_path / "run/run.json").read_bytes()
        (tmp_path / "run/run.json").unlink()
        (tmp_path / "run/run.json").write_bytes(text)
        with pytest.raises(CheckpointError, match="another process is training"):
            rundir.lock(tmp_path / "run")
    rundir.lock(tmp_path / "run").close()


def test_a_run_that_began_meanwhile_is_left_alone(tmp_path, tiny_store, tiny_config):
    store = Store.open(tiny_store)
    rundir.create(tmp_path / "run", tiny_config(), store).close()
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already"):
        rundir.create(tmp_path / "run", tiny_config(), store)
    assert (tmp_path / "run/run.json").read_bytes() == before


@pytest.fixture
def run(tmp_path, tiny_store, tiny_config, fake_trainer):
    """A run of the fake trainer, and what goes on with it."""
    make = functools.partial(fake_trainer)
    train(tiny_config(), tiny_store, tmp_path / "run", make_trainer=make)
    return tmp_path / "run", lambda: train(None, tiny_store, tmp_path / "run", resume=True, make_trainer=make)


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, text
    path.write_text(text.replace(old, new))


def test_an_edited_config_is_refused_field_by_field(run):
    folder, resume = run
    tree = (folder / "config.yaml").read_text()
    seed = next(line for line in tree.splitlines() if line.strip().startswith("seed:"))
    edit(folder / "config.yaml", seed, "  seed: 77")
    old = seed.split(":")[1].split("#")[0].strip()
    with pytest.raises(
        CheckpointError, match=rf"config\.yaml: edited since the run began: train\.seed is 77 and was {old}\."
    ):
        resume()
    with pytest.raises(CheckpointError, match=r"train\.seed is 77"):
        runs.load_weights(folder, print)
    (folder / "config.yaml").write_text(tree)
    assert resume().finished


def test_what_changes_no_weight_may_be_edited(run):
    folder, resume = run
    text = (folder / "config.yaml").read_text()
    line = next(line for line in text.splitlines() if line.strip().startswith("log_every:"))
    edit(folder / "config.yaml", line, "  log_every: 1")
    assert resume().finished


def test_another_store_cannot_be_put_under_a_run(run):
    folder, _ = run
    about = json.loads((folder / "run.json").read_text())
    about["store"]["fingerprint"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"run\.json: edited since the run began: the store's fingerprint"):
        runs.load_weights(folder, print)


def reseal(path, **changes):
    manifest = json.loads(path.read_text()) | changes
    manifest["sha256"] = checkpoint._digest(manifest)
    path.write_text(json.dumps(manifest))


MANIFESTS = [
    {"files": None},
    {"files": []},
    {"files": {"../../x.safetensors": {"bytes": 1, "sha256": ""}}},
    {"files": {"model.safetensors": 3}},
    {"files": {"model.safetensors": {"bytes": 1}}},
    {"meta": []},
    {"meta": None},
]


@pytest.mark.parametrize("changes", MANIFESTS)
def test_a_resealed_manifest_is_passed_over(run, changes):
    folder, resume = run
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    reseal(newest / "manifest.json", **changes)
    told = []
    assert checkpoint.load_latest(folder, log=told.append).step == 10
    assert "damaged (manifest.json is no manifest)" in told[0]
    assert resume().finished


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin1")]
)
def test_a_deep_manifest_does_not_stop_the_fall_back(run, text):
    folder, _ = run
    (sorted((folder / "checkpoints").iterdir())[-1] / "manifest.json").write_text(text)
    assert checkpoint.load_latest(folder, log=lambda line: None).step == 10


@pytest.mark.parametrize(
    "name", ["step-3²", "step-9", "step-", "step-000000012", "step-x", "step--0000012", "step-٠٠٠٠٠٠٩٩"]
)
def test_other_folders_are_no_checkpoints(run, name):
    folder, resume = run
    (folder / "checkpoints" / name).mkdir()
    assert checkpoint.steps(folder) == [10, 12]
    assert resume().finished


def test_a_file_that_is_no_safetensors_is_passed_over(run):
    folder, _ = run
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    entries = json.loads((newest / "manifest.json").read_text())["files"]
    name = next(iter(entries))
    (newest / name).write_bytes(b"\xff" * 100)
    entries[name] = {"bytes": 100, "sha256": hashlib.sha256(b"\xff" * 100).hexdigest()}
    reseal(newest / "manifest.json", files=entries)
    told = []
    assert checkpoint.load_latest(folder, log=told.append).step == 10
    assert "is no safetensors file" in told[0]
