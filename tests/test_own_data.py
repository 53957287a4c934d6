"""docs/own-data.md as a user follows it: its scripts and commands, in their order, on synthetic people."""

import contextlib
import http.client
import io
import json
import re
import runpy
import shlex
import signal
import sys
import threading
import webbrowser
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from s2vfast import _extension
from s2vfast.cli import main
from s2vfast.data.layout import get_layout
from s2vfast.data.store import Store
from s2vfast.data.synth import generate
from s2vfast.train import rundir

PAGE = Path(__file__).parents[1] / "docs/own-data.md"
CLASSES = ("clap", "kick", "sit down")
PEOPLE = ("anna", "ben", "cem", "dora")
# A page's commands take hours; nothing but their length is changed.
SHORT = {
    "pretrain": "--train.steps 30 --train.device cpu --train.threads 1",
    "live": "--port 0 --device cpu",
    "finetune": "--finetune.epochs 8 --finetune.min_steps 0 --finetune.hidden 32 --device cpu",
}
KINECT_OF = {
    "nose": "head", "eye": "head", "ear": "head", "mouth": "neck", "pinky": "hand_tip", "index": "hand_tip",
    "heel": "ankle", "foot_index": "foot", "thumb": "thumb",
}  # fmt: skip


def blocks():
    """(language, title, text) of the page's blocks, in their order."""
    pattern = r'```(bash|python)(?: title="([^"]+)")?\n(.*?)```'
    return [match.groups() for match in re.finditer(pattern, PAGE.read_text("utf-8"), re.DOTALL)]


def as_world_landmarks(joints, layout):
    """MediaPipe's 33 landmarks [F, 33, 3] of a body of kinect_v2 [F, 25, 3]: metres from the hips, y down."""
    numbers = []
    for name in get_layout("mediapipe33").joints:
        side = name.partition("_")[0] if name.startswith(("left_", "right_")) else ""
        part = name.removeprefix(f"{side}_").removesuffix("_inner").removesuffix("_outer")
        part = KINECT_OF.get(part, part)
        numbers.append(layout.joints.index(part if part in ("head", "neck") else f"{side}_{part}"))
    poses = joints[:, numbers] * np.array([1.0, -1.0, 1.0])
    poses += np.linspace(0, 0.02, 33)[None, :, None]  # no two landmarks in one place
    return poses - poses[:, 23:25].mean(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """{name of a recording: world landmarks [F, 33, 3]}."""
    folder = tmp_path_factory.mktemp("people")
    store = generate(folder / "store", subjects=len(PEOPLE), views=1, repetitions=2, seed=4)
    recordings = {}
    for number in range(len(store)):
        if (name := store.class_name(number)) in CLASSES:
            clip, present = store.sequence(number)
            person = PEOPLE[sorted(set(store.subjects.tolist())).index(store.subjects[number])]
            recording = f"{name}/{person}_{store.repetitions[number]:02d}"
            recordings[recording] = as_world_landmarks(clip[0][present[0]][::2].astype(float), store.layout)
    return recordings


def detector(monkeypatch, videos):
    """MediaPipe and OpenCV that "see" what was generated: an image is a pose, and nobody is in the second frame."""

    class Capture:
        def __init__(self, source):
            poses = videos["clap/anna_01"] if source == 0 else videos[source]
            self.images = [*poses[:1], None, *poses[1:]]

        def read(self):
            return (True, self.images.pop(0)) if self.images else (False, None)

    class Landmarker:
        """As `PoseLandmarker` of MediaPipe 0.10.31 to 1.2: timestamps ascend, and a result lists people."""

        @staticmethod
        def create_from_options(options):
            assert options == {"base_options": "pose_landmarker_full.task", "running_mode": "video"}
            return contextlib.nullcontext(Landmarker())

        def detect_for_video(self, image, timestamp_ms):
            assert timestamp_ms > getattr(self, "before", -1)
            self.before = timestamp_ms
            poses = [] if image is None else [image.tolist()]
            people = [[SimpleNamespace(x=x, y=y, z=z, visibility=0.9) for x, y, z in pose] for pose in poses]
            return SimpleNamespace(pose_world_landmarks=people)

    modules = {name: ModuleType(name) for name in ("cv2", "mediapipe", "mediapipe.tasks", "mediapipe.tasks.python")}
    cv2, mediapipe, tasks = modules["cv2"], modules["mediapipe"], modules["mediapipe.tasks.python"]
    cv2.VideoCapture, cv2.cvtColor, cv2.COLOR_BGR2RGB = Capture, lambda image, code: image, 4
    mediapipe.ImageFormat, mediapipe.Image = SimpleNamespace(SRGB=1), lambda image_format, data: data
    tasks.BaseOptions = lambda model_asset_path: model_asset_path
    tasks.vision = SimpleNamespace(
        PoseLandmarkerOptions=dict, RunningMode=SimpleNamespace(VIDEO="video"), PoseLandmarker=Landmarker
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def without_a_compiler(monkeypatch):
    """The package as it is where the extension could not be built."""
    monkeypatch.setitem(sys.modules, "s2vfast._native", None)
    _extension._attempt.cache_clear()
    yield
    _extension._attempt.cache_clear()


def watch(monkeypatch, updates):
    """A browser: what it is told until the input has ended goes to ``updates``; then Ctrl-C is pressed."""

    def browse(url):
        try:
            connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=60)
            connection.request("GET", "/events")
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    updates.append(json.loads(line[6:]))
                    if updates[-1]["state"].get("ended"):
                        break
        finally:
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", browse)


def run_script(name, *words, monkeypatch):
    """What a script of the page prints."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(name, run_name="__main__")
    return printed.getvalue()


def test_from_videos_to_a_classifier_of_a_stream(videos, tmp_path, monkeypatch, capsys, without_a_compiler):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    detector(monkeypatch, videos)
    printed, updates = {}, []
    watch(monkeypatch, updates)
    streams = contextlib.ExitStack()
    for language, title, text in blocks():
        if language == "python":
            assert title, "a script has a name"
            Path(title).write_text(text)
        if title == "landmarks.py":
            for name in videos:
                Path("recordings", name).parent.mkdir(parents=True, exist_ok=True)
                run_script(title, name, f"recordings/{name}.json", monkeypatch=monkeypatch)
        if title == "use.py":
            printed[title] = run_script(title, monkeypatch=monkeypatch)
        for line in text.splitlines() if language == "bash" else ():
            script, pipe, command = line.rpartition("| ")
            if pipe:
                stream = run_script(*script.split()[1:], monkeypatch=monkeypatch)
                Path("stream.txt").write_text(stream)
                monkeypatch.setattr(
                    sys, "stdin", streams.enter_context(io.TextIOWrapper(io.BufferedReader(io.FileIO("stream.txt"))))
                )
            words = shlex.split(command)
            assert words[0] == "s2vfast", line
            for name, options in SHORT.items():
                words += options.split() if name in words else []
            capsys.readouterr()
            assert main(words[1:]) == 0, (line, capsys.readouterr())
            printed[line] = capsys.readouterr().out

    streams.close()
    store = Store.open("data/mine")
    assert (sorted(store.classes), store.layout.name, store.unit) == (sorted(CLASSES), "mediapipe33", "m")
    assert len(store) == len(CLASSES) * len(PEOPLE) * 2
    assert {*store.splits} == {"without-anna", "people-1of2", "people-2of2", *(f"subject-{n}" for n in (1, 2, 3, 4))}
    assert all("anna" in store.names[number] for number in store.select("without-anna", "test"))
    config = rundir.read_config("runs/mine")
    assert (config.data.split, config.data.align) == ("without-anna", "yaw")
    last = next(out for line, out in printed.items() if "| s2vfast predict" in line).splitlines()  # the stream
    assert len(last) == (len(videos["clap/anna_01"]) + 1) // 5
    assert all(re.match(r"frame \d+   [a-z ]+ [0-9.]+ %", line) for line in last)
    measured = json.loads(next(out for line, out in printed.items() if "classify" in line).splitlines()[-1])
    assert measured["top1"] > 50.0, "guessing gives 33"
    assert "top5" not in measured
    whole = next(out for line, out in printed.items() if line.endswith("recordings/clap/anna_01.json"))
    assert whole.startswith("recordings/clap/anna_01.json   ")
    assert printed["use.py"].splitlines()[0].startswith("('")
    # The same stream in the browser, and as a recording of one more class.
    looks = [look for update in updates for look in update["looks"]]
    assert [f"frame {number}" for _, number, _ in looks] == [line.partition("   ")[0] for line in last]
    assert updates[-1]["state"]["ended"] == "the input has ended"
    assert main("data import recordings --labels {class}/{subject}_* --out data/more".split()) == 0
    more = Store.open("data/more")
    assert {*more.classes} - {*store.classes} == {"other"}
    assert int(more.total_frames[more.names.index("other/dora_09")]) == len(videos["clap/anna_01"]) + 1
    for page in ("clap.html", "curves.html"):
        assert Path(page).stat().st_size > 10_000
