"""The loop around the step, with an trainer that has no network: folders, numbers, messages, signals, refusals."""

import contextlib
import errno
import functools
import json
import os
import signal
import subprocess

import pytest

from s2vfast.errors import CheckpointError, ConfigError, DataError, TrainingError
from s2vfast.objectives.skeleton2vec import COLLAPSED_VARIANCE
from s2vfast.train import checkpoint, rundir
from s2vfast.train.loop import train


def files(run):
    """Bytes of everything that must be equal between equal runs."""
    place = checkpoint.folder(run)
    kept = {f"{step.name}/{file.name}": file.read_bytes() for step in place.iterdir() for file in step.iterdir()}
    return kept | {"metrics": (run / "metrics.jsonl").read_bytes()}


def stale(run):
    return [path for path in run.rglob("*") if path.name.startswith((".tmp-", "damaged-"))]


@pytest.fixture
def start(tiny_store, tiny_config, fake_trainer):
    """start(run, **keywords of FakeTrainer and pretrain)."""

    def call(run, config=None, resume=False, store=tiny_store, trainer=None, **fake):
        config = config or tiny_config()
        return train(config, store, run, resume=resume, make_trainer=trainer or functools.partial(fake_trainer, **fake))

    return call


def kill_at(step, number=signal.SIGTERM):
    return lambda done: os.kill(os.getpid(), number) if done == step else None


def test_a_run_leaves_what_was_promised(tmp_path, start, tiny_config, tiny_store):
    run = tmp_path / "a/b/run"
    summary = start(run)
    assert (summary.step, summary.total_steps, summary.signal, summary.finished) == (12, 12, None, True)
    assert sorted(os.listdir(run)) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "run.json",
        "throughput.jsonl",
    ]
    assert checkpoint.steps(run) == [10, 12]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8, 10, 12]
    expected = {"step", "epoch", "loss", "lr", "ema_decay", "grad_norm", "target_var", "pred_var"}
    assert all(set(row) == expected for row in rows)
    assert rows[-1]["loss"] == summary.loss
    assert len((run / "throughput.jsonl").read_text().splitlines()) == len(rows)
    assert rundir.read_config(run) == tiny_config()
    described = rundir.read(run)
    assert described["store"]["path"] == str(tiny_store)
    assert described["layout"]["name"] == "kinect_v2"
    assert described["classes"] == ["still", "moving"]


def test_equal_runs_have_equal_bytes(tmp_path, start, tiny_config):
    start(tmp_path / "one")
    start(tmp_path / "two")
    start(tmp_path / "other", config=tiny_config(seed=2))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert files(tmp_path / "one") != files(tmp_path / "other")


def test_a_run_is_not_begun_over_another(tmp_path, start):
    start(tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a run already; go on with it by --resume"):
        start(tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_a_folder_of_something_else_is_refused(tmp_path, start):
    (tmp_path / "letter.txt").write_text("dear")
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"is not empty \(it holds letter.txt\)"):
            start(tmp_path, resume=resume)
    with pytest.raises(CheckpointError, match="is a file"):
        start(tmp_path / "letter.txt")
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_what_a_kill_left_of_a_beginning_is_no_obstacle(tmp_path, start):
    (tmp_path / "config.yaml").write_text("train: {")
    (tmp_path / ".tmp-run.json-1").write_text("{")
    assert start(tmp_path).finished
    assert not stale(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("step", [0, 5, 7])
def test_a_signal_saves_and_resume_is_bitwise(tmp_path, start, capfd, number, step):
    start(tmp_path / "whole")
    handler = signal.getsignal(number)
    stopped = start(tmp_path / "run", before=kill_at(step, number))
    assert (stopped.step, stopped.signal, stopped.finished) == (step + 1, number, False)
    assert checkpoint.load_latest(tmp_path / "run").step == step + 1
    out, err = capfd.readouterr()
    assert f"go on with: s2vfast pretrain --resume --out {tmp_path / 'run'}" in out
    assert "once more stops at once" in err
    assert signal.getsignal(number) == handler
    assert start(tmp_path / "run", resume=True).finished
    assert f"going on from step {step + 1} of 12" in capfd.readouterr().out
    ours, whole = files(tmp_path / "run"), files(tmp_path / "whole")
    assert all(ours[name] == whole[name] for name in ours if name.startswith("step-00000012") or name == "metrics")
    assert not stale(tmp_path)


def test_the_second_ctrl_c_stops_at_once(tmp_path, start):
    def twice(done):
        if done == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, before=twice)
    assert checkpoint.steps(tmp_path) == [5]


def test_an_ignored_hangup_stays_ignored(tmp_path, start):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert start(tmp_path, before=kill_at(3, signal.SIGHUP)).finished
    finally:
        signal.signal(signal.SIGHUP, before)


def test_resume_of_a_crash_cuts_the_metrics_back(tmp_path, start):
    def crash(done):
        if done == 8:
            raise RuntimeError("power cut")

    start(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        start(tmp_path / "run", before=crash)
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"step": 9, "lo')  # Half a line, as a kill may leave it.
    with open(tmp_path / "run/throughput.jsonl", "a") as file:
        file.write('{"step": 9, "lo')
    start(tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    # Steps 1 to 8 by the first process, 6 to 12 by the second, of 4 clips each.
    rates = [json.loads(line) for line in (tmp_path / "run/throughput.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rates] == [1, 2, 4, 6, 8, 6, 8, 10, 12]
    assert [row["clips"] for row in rates] == [4, 8, 16, 24, 32, 4, 12, 20, 28]
    assert [row["process"] == rates[0]["process"] for row in rates] == [True] * 5 + [False] * 4


def test_resume_before_the_first_checkpoint_begins_at_0(tmp_path, start):
    def crash(done):
        if done == 3:
            raise RuntimeError

    start(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        start(tmp_path / "run", before=crash)
    start(tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_resume_where_nothing_began_says_so(tmp_path, start, capsys):
    assert start(tmp_path / "run", resume=True).finished
    assert "no run has begun here; beginning one" in capsys.readouterr().out


def test_resume_of_a_finished_run_does_nothing(tmp_path, start, capsys):
    start(tmp_path)
    before = files(tmp_path)
    summary = start(tmp_path, resume=True)
    assert (summary.finished, summary.loss) == (True, None)
    assert "finished, 12 steps" in capsys.readouterr().out
    assert files(tmp_path) == before


def test_a_damaged_checkpoint_is_set_aside_and_the_result_the_same(tmp_path, start, capsys):
    start(tmp_path / "whole")
    start(tmp_path / "run", before=kill_at(10))
    file = checkpoint.folder(tmp_path / "run") / "step-00000011/model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    start(tmp_path / "run", resume=True)
    out = capsys.readouterr().out
    assert "step-00000011: damaged (model.safetensors has" in out
    assert "going on from step 10 of 12" in out
    assert [path.name for path in stale(tmp_path / "run")] == ["damaged-step-00000011"]
    ours, whole = files(tmp_path / "run"), files(tmp_path / "whole")
    assert all(ours[name] == whole[name] for name in whole)


def test_resume_takes_store_and_config_from_the_run(tmp_path, start, fake_trainer, tiny_store):
    start(tmp_path, before=kill_at(4))
    summary = train(None, None, tmp_path, resume=True, make_trainer=fake_trainer)
    assert summary.finished


def test_resume_refuses_other_numbers_by_name(tmp_path, start, tiny_config):
    start(tmp_path, before=kill_at(4))
    before = files(tmp_path)
    for change, message in [
        ({"steps": 20}, "train.steps: 20 asked, but the run began with 12"),
        ({"batch": 8}, "train.batch: 8 asked, but the run began with 4"),
        ({"seed": 9}, "train.seed: 9 asked"),
    ]:
        with pytest.raises(ConfigError, match=message):
            start(tmp_path, config=tiny_config(**change), resume=True)
    assert files(tmp_path) == before


def test_resume_admits_what_changes_no_weight(tmp_path, start, tiny_config, capsys):
    start(tmp_path / "whole")
    start(tmp_path / "run", before=kill_at(4))
    config = tiny_config(log_every=3, threads=2)
    config.checkpoint.every, config.checkpoint.keep, config.data.workers = 3, 1, 2
    start(tmp_path / "run", config=config, resume=True)
    assert "train.threads: 1 so far, 2 from here on; results may differ in the last bits" in capsys.readouterr().out
    assert checkpoint.steps(tmp_path / "run") == [12]
    ours, whole = files(tmp_path / "run"), files(tmp_path / "whole")
    name = "step-00000012/model.safetensors"
    assert ours[name] == whole[name]


def test_resume_refuses_another_store(tmp_path, start, other_store, write_store_at):
    start(tmp_path / "run", before=kill_at(4))
    with pytest.raises(CheckpointError, match=r"layout is kinect_v1 \(20 joints\); the run .* kinect_v2 \(25 joints\)"):
        start(tmp_path / "run", store=other_store, resume=True)
    with pytest.raises(CheckpointError, match="not the store that the run .* began with"):
        start(tmp_path / "run", store=write_store_at(tmp_path / "store", seed=1), resume=True)
    with pytest.raises(DataError, match="no store here"):
        start(tmp_path / "run", store=tmp_path / "nowhere", resume=True)


def test_a_missing_store_leaves_no_folder(tmp_path, start):
    with pytest.raises(DataError, match="no store here"):
        start(tmp_path / "run", store=tmp_path / "nowhere")
    assert os.listdir(tmp_path) == []


def test_a_config_that_does_not_fit_the_store_leaves_no_folder(tmp_path, start, tiny_config):
    config = tiny_config()
    config.mask.keep = 25
    with pytest.raises(ConfigError, match="mask.keep: 25 leaves 25 of 25 joints visible"):
        start(tmp_path / "run", config=config)
    assert os.listdir(tmp_path) == []


def test_two_processes_cannot_train_in_one_folder(tmp_path, start):
    start(tmp_path, before=kill_at(4))
    with rundir.lock(tmp_path), pytest.raises(CheckpointError, match="another process is training"):
        start(tmp_path, resume=True)
    assert start(tmp_path, resume=True).finished


def test_numbers_that_are_not_finite_end_the_run(tmp_path, start):
    def nan(done):
        if done == 8:
            raise TrainingError("loss is nan at samples 3, 5")

    with pytest.raises(TrainingError, match="samples 3, 5"):
        start(tmp_path, before=nan)
    assert checkpoint.load_latest(tmp_path).step == 5


def test_a_first_step_that_fails_leaves_the_folder_as_it_was(tmp_path, start):
    def fail(done):
        raise TrainingError("no such implementation")

    (tmp_path / "run").mkdir()
    for run in (tmp_path / "run", tmp_path / "new"):
        with pytest.raises(TrainingError, match="no such implementation"):
            start(run, before=fail)
        assert not run.exists() or not os.listdir(run)
        assert start(run).finished, "the same command can be given again"


def test_a_collapsed_teacher_is_called_out_once(tmp_path, start, capsys):
    start(tmp_path / "collapsed", target_var=COLLAPSED_VARIANCE * 0.9)
    assert capsys.readouterr().out.count("warning: step 1: the teacher has collapsed") == 1
    start(tmp_path / "fine", target_var=COLLAPSED_VARIANCE)
    assert "collapsed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_a_disk_that_is_full_at_the_beginning_leaves_no_folder(tmp_path, start, monkeypatch, name):
    def refuse(path, content):
        if name in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(content)

    monkeypatch.setattr("s2vfast.files.write_bytes", refuse)
    with pytest.raises(TrainingError, match="the run's folder cannot be written: No space left on device"):
        start(tmp_path / "a/run")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def mount(tmp_path):
    """mount(size in KiB) -> a folder of that size; skipped where mounting is not permitted."""
    made = []

    def do(kib):
        place = tmp_path / "mounted"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
        made.append(place)
        return place

    yield do
    for place in made:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_with_one_message_and_resume_goes_on(tmp_path, start, mount):
    start(tmp_path / "whole")
    place = mount(64)
    filler = place / "filler"

    def fill(done):
        if done == 9:
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(512)):
                    pass

    with pytest.raises(TrainingError, match="No space left on device") as caught:
        start(place / "run", before=fill)
    assert "\n" not in str(caught.value)
    assert checkpoint.load_latest(place / "run").step == 5
    assert not stale(place / "run")
    filler.unlink()
    assert start(place / "run", resume=True).finished
    assert files(place / "run") == files(tmp_path / "whole")


def test_a_read_only_disk_is_one_message(tmp_path, start, mount):
    place = mount(1024)
    start(place / "run", before=kill_at(4))
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    with pytest.raises(TrainingError, match="the run's folder cannot be written: Read-only file system"):
        start(place / "new")
    with pytest.raises(TrainingError, match="Read-only file system"):
        start(place / "run", resume=True)
    assert checkpoint.load_latest(place / "run").step == 5
    assert os.listdir(place) == ["run"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_message(tmp_path, start):
    tmp_path.chmod(0o555)
    with pytest.raises(TrainingError, match="Permission denied"):
        start(tmp_path / "run")


def test_lines_that_cannot_be_written_are_taken_back(tmp_path, monkeypatch):
    lines = rundir.JsonLines(tmp_path / "x.jsonl")
    lines.write(step=1)

    class HalfFull:
        def __init__(self, file):
            self.file, self.left = file, 5

        def write(self, content):
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= (written := self.file.write(content[: self.left]))
            return written

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(lines, "_file", HalfFull(lines._file))
    with pytest.raises(TrainingError, match=r"x.jsonl: cannot be written: No space left on device"):
        lines.write(step=2)
    assert (tmp_path / "x.jsonl").read_text() == '{"step": 1}\n'
