"""`s2vfast live` from its command line: what it reads, tells, keeps and says, until Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from s2vfast import cli
from s2vfast.data.point_layout import PointLayout
from s2vfast.errors import ConfigError, DataError
from s2vfast.evaluate.model import Stream
from s2vfast.live import session as live
from s2vfast.live.arrivals import Followed


@pytest.fixture
def play(capfd, monkeypatch):
    """play(words, script) runs the command in this thread, and script(url) in one that then presses Ctrl-C.

    Returns (exit code, lines of standard error).
    """

    def run(words, script):
        failures, addresses = [], []

        def browse(url):
            addresses.append(url)
            try:
                script(url)
            except BaseException as error:
                failures.append(error)
            # To this thread: the one that waits for lines is not woken, as where a signal comes just before it sleeps.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.setattr(live.webbrowser, "open", browse)
        code = cli.main(["live", *map(str, words), "--port", "0"])
        if failures:
            raise failures[0]
        assert addresses, "a browser was opened"
        return code, capfd.readouterr().err.splitlines()

    return run


@pytest.fixture
def stdin(monkeypatch):
    """Standard input as a pipe: ``write(text)``, ``close()``."""
    reading, writing = os.pipe()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(fileno=lambda: reading))
    file = open(writing, "w", buffering=1)  # noqa: SIM115 - closed below
    yield file
    file.close()
    os.close(reading)


def test_a_stream_is_shown_until_ctrl_c(mediapipe_run, people, play, stdin, watch, tmp_path):
    poses = people.person(12, 33).round(4)
    lines = [json.dumps({"pose_world_landmarks": people.landmarks(pose)}) for pose in poses[:6]]
    lines += [" ".join(map(str, pose.ravel())) for pose in poses[6:]]
    lines[3:3] = ["[]", "1 2 3", '{"pose', ""]
    record = tmp_path / "frames.json"

    def script(url):
        reader = watch(url)
        assert reader.until(lambda update: "reset" in update)["looks"] == []
        stdin.writelines(f"{line}\n" for line in lines[:8])
        update = reader.until(lambda update: update["state"].get("frames") == 6)
        assert "ended" not in reader.state()
        shown = np.reshape(update["state"]["bodies"], (-1, 33, 3))
        np.testing.assert_allclose(shown, poses[3:4], atol=1e-4)
        stdin.writelines(f"{line}\n" for line in lines[8:])
        reader.until(lambda update: update["state"].get("frames") == len(lines) - 2)
        stdin.close()
        assert reader.until(lambda update: update["state"].get("ended"))["state"]["ended"] == "the input has ended"
        state = reader.state()
        assert (state["looks"], state["broken"], state["waiting"]) == (7, 2, 0)
        assert 0 < state["latency"] < 60_000
        assert [number for _, number, _ in reader.looks()] == [2, 4, 8, 10, 12, 14, 16]
        for _, _, pairs in reader.looks():
            assert sum(value for _, value in pairs) == pytest.approx(1, abs=0.02)
            assert [value for _, value in pairs] == sorted((value for _, value in pairs), reverse=True)
        assert [line for update in reader.updates for line, _ in update["broken"]] == [5, 6]

    words = [mediapipe_run, "-", "--window", "4", "--step", "2", "--smooth", "0.5", "--record", record]
    code, said = play(words, script)
    assert code == 0
    assert said[0].startswith("http://127.0.0.1:")
    assert said[0].endswith("/ shows standard input; Ctrl-C ends it")
    assert said[1].startswith("skipped: line 5: 3 numbers; 99 numbers a body")
    assert said[2].startswith("skipped: line 6: not JSON")
    assert said[3] == "standard input has ended; the page stays until Ctrl-C"
    assert said[4].startswith("14 frames in ")
    assert said[4].endswith(f"; 2 broken lines; 14 frames kept in {record}")
    assert len(said) == 5
    # What was kept is the stream again.
    kept = record.read_text().splitlines()
    assert kept[:3] == lines[:3]
    assert kept[3:5] == ["[]", "[]"]
    np.testing.assert_array_equal([json.loads(line)["pose_world_landmarks"][0] for line in kept[-6:]], poses[6:])
    with pytest.raises(DataError, match=r"--record .*frames\.json: is there already; name a new file"):
        live.show(mediapipe_run, "-", record=record, log=lambda line: None)


def test_a_file_is_followed_as_it_grows(mediapipe_run, people, play, watch, tmp_path):
    """Also where it is cut to begin anew, and where another takes its name."""
    poses = people.person(5, 33).round(4)
    lines = [f"{json.dumps(pose.tolist())}\n" for pose in poses]
    path = tmp_path / "frames.jsonl"
    path.write_text(lines[0] + lines[1][:30])  # a line that is not finished

    def script(url):
        reader = watch(url)

        def until(frames):
            update = reader.until(lambda update: update["state"].get("frames") == frames)
            np.testing.assert_allclose(np.ravel(update["state"]["bodies"]), poses[frames - 1].ravel(), atol=1e-4)

        until(1)
        with path.open("a") as file:
            file.write(lines[1][30:])
        until(2)
        path.write_text(lines[2])
        until(3)
        (tmp_path / "new").write_text(lines[3])
        (tmp_path / "new").replace(path)
        until(4)
        with path.open("a") as file:
            file.write(lines[4])
        until(5)
        assert "ended" not in {key for key, value in reader.state().items() if value}

    code, said = play([mediapipe_run, path], script)
    assert code == 0
    assert said[-1].startswith("5 frames in ")
    assert "0 broken lines" in said[-1]


def test_a_named_pipe_ends_with_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=lambda: (tmp_path / "pipe").write_text("1 2\n")).start()
    followed = Followed(tmp_path / "pipe")
    assert followed.read(100) == b"1 2\n"
    assert followed.read(100) == b""


def test_frames_that_wait_at_the_end_are_kept(mediapipe_run, people, play, stdin, watch, tmp_path, monkeypatch):
    """The network is slow: Ctrl-C does not wait for it, and loses no frame that has come."""
    line = json.dumps({"pose_world_landmarks": people.person(1, 33).tolist()})
    numbers = threading.Event()
    answer = live.LineStream.answer

    def slow(self, lines):
        numbers.wait(30)
        return answer(self, lines)

    monkeypatch.setattr(live.LineStream, "answer", slow)

    def script(url):
        stdin.writelines(f"{line}\n" for _ in range(100))
        threading.Timer(0.5, numbers.set).start()

    code, said = play([mediapipe_run, "-", "--record", tmp_path / "frames"], script)
    assert code == 0
    assert (tmp_path / "frames").read_text().splitlines() == [line] * 100
    assert said[-1].endswith(f"100 frames kept in {tmp_path / 'frames'}")
    assert int(said[-1].split()[0]) < 100, "not all were looked at"


def test_broken_lines_do_not_fill_the_terminal(mediapipe_run, play, stdin, watch):
    def script(url):
        stdin.write("x\n" * 500)
        reader = watch(url)
        reader.until(lambda update: update["state"].get("broken") == 500)

    code, said = play([mediapipe_run, "-"], script)
    assert code == 0
    assert len([line for line in said if line.startswith("skipped: ")]) == 10
    assert said[10].endswith("; more are counted, and shown on the page")
    assert said[-1].startswith("0 frames in ")
    assert "500 broken lines" in said[-1]


def test_ctrl_c_in_a_terminal(mediapipe_run):
    """A process of its own, whose standard input stays open: no traceback, and it is gone at once."""
    command = f"{sys.executable} -m s2vfast live {mediapipe_run} - --port 0 --no-browser"
    process = subprocess.Popen(
        command.split(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"DISPLAY": ":0"}
    )
    assert process.stderr.readline().startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    text = process.stderr.read()
    assert process.wait(30) == 0
    assert time.monotonic() - began < 20
    assert text.startswith("0 frames in ")
    assert text.count("\n") == 1


def test_what_cannot_be_shown_is_refused(mediapipe_run, pretrained_run, tmp_path, cli):
    def refused(words, message, code):
        found, _, err = cli(f"live {words} --no-browser")
        assert (found, len(err)) == (code, 1), err
        assert message in err[0]

    refused(f"{pretrained_run} -", "a pretrained run, which has no classes; make one that has with", 1)
    refused(f"{tmp_path}/nowhere -", "no run here", 1)
    refused(f"{mediapipe_run} {tmp_path}/nothing", "nothing: cannot be read: No such file or directory", 1)
    refused(f"{mediapipe_run} {tmp_path}", "a folder; expected a file that grows, or - for standard input", 1)
    refused(f"{mediapipe_run} - --smooth 1", "smooth: 1.0; a number in [0, 1) is expected", 2)
    refused(f"{mediapipe_run} - --top 0", "top: 0; 1 or more", 2)
    refused(f"{mediapipe_run}", "needed: -|FILE", 2)
    refused(f"{mediapipe_run} {os.devnull} --port 65536", "--port: 65536; a number from 0 to 65535 is expected", 2)
    (tmp_path / "file").touch()
    refused(f"{mediapipe_run} {os.devnull} --port 0 --record {tmp_path}/file/f", "file/f: cannot be written: ", 1)


def test_a_run_on_point_clouds_is_refused(monkeypatch):
    data = SimpleNamespace(frames=24)
    model = SimpleNamespace(
        run_dir="runs/points", layout=PointLayout(), classes=["clap"], config=SimpleNamespace(data=data)
    )
    model.stream = lambda *words, **options: Stream(model, *words, **options)
    monkeypatch.setattr(live, "Model", lambda *words: model)
    with pytest.raises(ConfigError, match="runs/points: a run on point clouds takes whole recordings, not frames as"):
        live.show("runs/points", "-", log=lambda line: None)
