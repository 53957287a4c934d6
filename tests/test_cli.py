"""The command line as one types it: what it prints, what it leaves, its exit codes; never a traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from s2vfast import completion, presets, signals
from s2vfast.cli import _commands
from s2vfast.config import Config
from s2vfast.config.fields import field_texts
from s2vfast.data.store import Store
from s2vfast.evaluate.finetune_config import FinetuneConfig
from s2vfast.train import checkpoint


def sequences(place):
    """Number of sequences in a folder's ``store``; half of them train."""
    return len(Store.open(place / "store"))


def refused(result, message, code=2):
    """The command ended with ``code`` and one line on standard error that holds ``message``."""
    found, out, err = result
    assert (found, len(err)) == (code, 1), (out, err)
    assert err[0].startswith("s2vfast: error: ")
    assert message in err[0]


def test_help_is_quick_and_complete():
    slow = "torch numpy matplotlib sklearn scipy tensorboard".split()
    script = f"import sys, s2vfast.cli as c; c.main(['--help']); print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    commands = (
        "demo",
        "pretrain",
        "evaluate",
        "embed",
        "predict",
        "live",
        "export",
        "import-checkpoint",
        "data",
        "view",
        "doctor",
    )
    for command in commands:
        assert f"    {command} " in done.stdout
    assert done.stdout.endswith("[]\n"), "help imports what it does not need"


def test_a_command_without_its_second_word_prints_help(cli):
    assert "pretrain" in "".join(cli("")[1])
    code, out, err = cli("data")
    assert (code, err) == (0, [])
    assert all(
        any(line.split()[:1] == [name] for line in out) for name in ("import", "check", "show", "subset", "synth")
    )


def test_version(cli):
    import s2vfast

    assert cli("--version") == (0, [f"s2vfast {s2vfast.__version__}"], [])


def test_pretrain_help_documents_every_field(cli):
    text = " ".join(" ".join(cli("pretrain --help")[1]).split()).replace("- ", "-")  # lines break at hyphens
    tuning = " ".join(" ".join(cli("evaluate --help")[1]).split())
    for name, documentation in field_texts(FinetuneConfig).items():
        assert documentation, name
        assert f"--finetune.{name} " in tuning
        assert " ".join(documentation.replace("``", "").split())[:60] in tuning
    sections = presets.documentation()
    assert list(sections) == ["data", "model", "mask", "objective", "optim", "train", "checkpoint"]
    for section, fields in sections.items():
        for name, (documentation, defaults) in fields.items():
            assert documentation, f"{section}.{name}"
            assert f"--{section}.{name} " in text
            assert " ".join(documentation.replace("``", "").split()).replace("- ", "-")[:60] in text
            assert defaults
    # What objectives alone have says whose it is, and each its default.
    assert {"decoder_depth", "top_k", "label_smoothing"} <= set(sections["objective"])
    assert set(sections["objective"]["label_smoothing"][1]) == {"classify", "infogcn"}
    assert "[classify: 0.1, infogcn: 0.1]" in text


def test_a_run_can_be_evaluated_and_embedded(cli, place, tmp_path):
    code, out, err = cli(f"evaluate {place}/run --data {place}/store --split xsub --protocol linear --json")
    assert (code, err) == (0, [])
    found = json.loads(out[-1])
    assert {"top1", "top5", "n_train", "n_test", "protocol", "pool", "split"} <= set(found)
    assert (found["protocol"], found["pool"], found["split"], found["n_train"]) == (
        "linear",
        "mean",
        "xsub",
        sequences(place) // 2,
    )
    assert 0 <= found["top1"] <= found["top5"] <= 100
    code, out, err = cli(f"evaluate {place}/run --protocol knn --pool joint_time --untrained")
    assert (code, err) == (0, [])
    assert "untrained encoder, 1-nearest-neighbour on joint_time features" in out[0]
    code, out, err = cli(f"embed {place}/run --data {place}/store --split xsub --out {tmp_path}/f.npz")
    assert (code, err) == (0, [])
    assert np.load(tmp_path / "f.npz")["features"].shape == (sequences(place), 8)


def test_data_check_names_a_flipped_byte(cli, tmp_path):
    assert cli(f"data synth --out {tmp_path}/store --subjects 2 --views 1 --repetitions 1")[0] == 0
    code, out, _ = cli(f"data check {tmp_path}/store")
    assert code == 0
    assert "intact" in out[-1]
    assert f"{sequences(tmp_path)} sequences" in out[-1]
    content = bytearray((tmp_path / "store/frames.npy").read_bytes())
    content[-7] ^= 1
    (tmp_path / "store/frames.npy").write_bytes(content)
    code, out, err = cli(f"data check {tmp_path}/store")
    assert code == 1
    assert f"error: {tmp_path}/store/frames.npy: damaged" in err[-1]


def test_data_show_prints_what_is_there(cli, place):
    code, out, err = cli(f"data show {place}/store")
    assert (code, err) == (0, [])
    assert any(str(sequences(place)) in line for line in out)
    assert any("xsub" in line for line in out)


def test_data_import_says_what_is_wrong(cli, tmp_path):
    refused(cli(f"data import {tmp_path}/nowhere --out {tmp_path}/s"), "nowhere: no such file or folder", 1)
    (tmp_path / "letter.txt").write_text("dear")
    refused(cli(f"data import {tmp_path}/letter.txt --out {tmp_path}/s"), "of no known format", 1)
    refused(cli(f"data import {tmp_path} --out {tmp_path}/s --format vhs"), "vhs", 1)
    refused(cli("data import"), "needed: SRC, --out")
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_doctor_prints_something_to_paste(cli):
    code, out, err = cli("doctor")
    assert (code, err) == (0, [])
    assert any("torch" in line for line in out)


def test_print_config_prints_what_a_run_would_use(cli):
    code, out, err = cli(
        "pretrain --config ntu120 --data.rotate [0,0.5,0] --mask.keep 3 --optim.lr 1e-4 --print_config"
    )
    assert (code, err) == (0, [])
    expected = presets.load("ntu120")
    expected.data.rotate, expected.mask.keep, expected.optim.lr = (0.0, 0.5, 0.0), 3, 1e-4
    assert Config.from_dict(presets.parse("\n".join(out), "printed")) == expected
    assert "  # Peak learning rate." in out


WRONG = [
    ("--modl.dim 8", "modl: no such field; did you mean model?"),
    ("--model.dims=8", "model.dims: no such field; did you mean model.dim?"),
    ("--model.dim wide", "model.dim: 'wide'; a whole number is expected"),
    ("--model.dim 65 --model.heads 2", "model.dim: 65 is no multiple of model.heads = 2"),
    ("--train.steps=2.5", "train.steps: 2.5; a whole number or null is expected"),
    ("--train.batch 0", "train.batch: 0; 1 or more is expected"),
    ("--train.batch 500", "train.batch: 500 is more than the "),
    ("--data.sampling bin", "data.sampling: 'bin' is not one of bins, crop"),
    ("--mask.ratio 0.97", "mask.ratio: 0.97 leaves 0 of 25 joints visible"),
    ("--train.device cuda:99", "train.device: cuda:99"),
    ("--train.device nonsense", "train.device: 'nonsense'"),
    ("--resumee", "unrecognized arguments: --resumee"),
    ("--train.seed", "argument --train.seed: expected one argument"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[options for options, _ in WRONG])
def test_a_wrong_option_is_one_line_and_leaves_nothing(cli, place, tmp_path, options, message):
    refused(cli(f"pretrain --config {place}/tiny.yaml --data {place}/store --out {tmp_path}/run {options}"), message)
    assert os.listdir(tmp_path) == []


def test_a_wrong_file_is_one_line_and_leaves_nothing(cli, place, tmp_path):
    for number, (text, message) in enumerate(
        [
            ("train: {bach: 3}", "train.bach: no such field; did you mean train.batch?"),
            ("optim: {lr: fast}", "optim.lr: 'fast'; a finite number is expected"),
            ("train: {batch: 3", "no valid YAML"),
        ]
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        refused(cli(f"pretrain --config {file} --data {place}/store --out {tmp_path}/run"), message)
    refused(cli("pretrain --config demmo --data x --out y"), "did you mean demo? presets: demo, msr_order, ntu120")
    refused(cli("pretrain --data x --out y"), "--config: needed")
    refused(cli("pretrain --config demo --data x"), "--out: needed")
    refused(cli("pretrain --config demo --out y"), "--data: needed")
    assert not (tmp_path / "run").exists()


def test_a_missing_store_or_split_is_one_line(cli, place, tmp_path):
    line = f"pretrain --config {place}/tiny.yaml --out {tmp_path}/run"
    refused(cli(f"{line} --data {tmp_path}/nowhere"), "nowhere: no store here", 1)
    refused(cli(f"{line} --data {place}/store --data.split xset"), "no split 'xset'; this store has xsub", 1)
    refused(cli(f"evaluate {place}/run --data {tmp_path}/nowhere"), "nowhere: no store here", 1)
    refused(cli(f"evaluate {tmp_path}/run"), "no run here", 1)
    refused(cli(f"data check {tmp_path}/nowhere"), "nowhere: no store here", 1)
    refused(cli(f"data show {tmp_path}/nowhere"), "nowhere: no store here", 1)
    refused(cli("evaluate"), "needed: RUN")
    refused(
        cli(f"evaluate {place}/run --protocol guess"), "--protocol: 'guess' is not one of floor, linear, knn, retrieval"
    )
    assert os.listdir(tmp_path) == []


def test_a_store_of_another_layout_is_one_line(cli, place, tmp_path):
    from s2vfast.data.layout import get_layout
    from s2vfast.data.store import Body, Sequence
    from s2vfast.data.store_writer import write_store

    frames = np.arange(9, dtype=np.int32)
    sequences = [Sequence(f"s{n}", 0, 9, [Body("0", frames, np.ones((9, 20, 3), np.float32) + n)]) for n in range(4)]
    write_store(
        tmp_path / "v1",
        sequences,
        layout=get_layout("kinect_v1"),
        classes=["stand"],
        splits={"xsub": {"train": ["s0", "s1"], "test": ["s2", "s3"]}},
        source={"format": "test"},
        dropped=[],
    )
    message = "v1: its layout is kinect_v1 (20 joints); the run"
    refused(cli(f"evaluate {place}/run --data {tmp_path}/v1"), message, 1)
    refused(cli(f"embed {place}/run --data {tmp_path}/v1 --out {tmp_path}/f.npz"), message, 1)
    refused(cli(f"pretrain --resume --data {tmp_path}/v1 --out {place}/run"), message, 1)
    assert os.listdir(tmp_path) == ["v1"]


def test_a_second_run_in_the_same_folder_and_resume(cli, place):
    line = f"pretrain --config {place}/tiny.yaml --data {place}/store --out {place}/run"
    refused(cli(line), "holds a run already; go on with it by --resume", 1)
    code, out, err = cli(f"{line} --resume")
    assert (code, err) == (0, [])
    assert "is left aside: --resume takes" in out[0]
    assert "finished, 8 steps; nothing is left to do" in out[1]
    refused(
        cli(f"pretrain --resume --out {place}/run --train.steps 9"), "train.steps: 9 asked, but the run began with 8"
    )


def test_resume_needs_a_folder(cli):
    refused(cli("pretrain --resume"), "--out: needed with --resume")


def test_a_run_that_cannot_make_its_first_step_leaves_no_folder(cli, place, tmp_path):
    line = f"pretrain --config {place}/tiny.yaml --data {place}/store --out {tmp_path}/run"
    wide = "--train.impl attention=triton --model.dim 264"
    refused(cli(f"{line} {wide}"), "attention: impl='triton' cannot run here", 1)
    assert os.listdir(tmp_path) == []
    code, out, _ = cli(f"{line} --optim.warmup_epochs 100")
    assert code == 0
    assert "warning: warmup_epochs 100 last as long as the run or longer (8 steps)" in out[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s2vfast dat", ["data"]),
        ("s2vfast data sp", ["split"]),
        ("s2vfast data split store --fo", ["--folds"]),
        ("s2vfast pretrain --config ow", ["own"]),
        ("s2vfast pretrain --train.ste", ["--train.steps"]),
        ("s2vfast evaluate run --finetune.warm", ["--finetune.warmup_epochs"]),
        ("s2vfast predict run fil", []),
        ("s2vfast nothing", []),
    ],
)
def test_tab_completes(line, expected):
    assert completion.following(line, _commands()) == expected


def test_bash_completes(tmp_path):
    """The script in a bash, which asks the program."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    (tmp_path / "s2vfast").write_text(f'#!/bin/sh\nexec {sys.executable} -m s2vfast "$@"\n')
    (tmp_path / "s2vfast").chmod(0o755)
    script = 'eval "$(s2vfast completion)"; COMP_LINE="s2vfast data sub"; COMP_POINT=16; _s2vfast; echo "$COMPREPLY"'
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout == "subset\n", done.stderr


def test_debug_shows_the_traceback(cli, monkeypatch):
    monkeypatch.setenv("S2VFAST_DEBUG", "1")
    assert any("Traceback" in line for line in cli("data check nowhere")[2])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("options", ["size=40k", "ro"])
def test_a_full_or_read_only_disk_is_one_line(cli, place, tmp_path, options):
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        result = cli(f"pretrain --config {place}/tiny.yaml --data {place}/store --out {tmp_path}/run")
        refused(result, "Read-only file system" if options == "ro" else "No space left on device", 1)
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".tmp", "step-"))]
        refused(cli(f"data synth --out {tmp_path}/s --subjects 2 --views 1 --repetitions 1"), f"{tmp_path}/s: ", 1)
        refused(cli(f"embed {place}/run --out {tmp_path}/no/f.npz"), f"{tmp_path}/no/f.npz: cannot be written", 1)
        assert os.listdir(tmp_path) == ([] if options == "ro" else ["run"])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def begin(place, out, *options):
    """A pretraining process of its own that has logged two more lines and has many more steps to do."""
    metrics = out / "metrics.jsonl"
    wanted = 2 + (metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
    command = (
        f"{sys.executable} -W ignore -m s2vfast pretrain --config {place}/tiny.yaml --data {place}/store --out {out}"
    )
    process = subprocess.Popen(
        [*command.split(), "--train.steps", "20000", "--checkpoint.every", "7", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < wanted:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("seconds", [0, 30])
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, signals.Signalled), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_in_a_destructor_comes_again(number, error, seconds):
    """An exception in a destructor is printed and forgotten, and the command would go on."""

    class Last:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.001)

    def wait():
        Last()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.001)

    with pytest.raises(error), signals.cleaning_up():
        wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_how_to_go_on_and_does(place, tmp_path, number):
    process = begin(place, tmp_path / "run")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopping after this step" in err
    assert "Traceback" not in err
    last = out.splitlines()[-1]
    assert last.startswith(f"stopped by {number.name} after step ")
    assert last.endswith(f"go on with: s2vfast pretrain --resume --out {tmp_path / 'run'}")
    step = int(last.split(" after step ")[1].split()[0])
    assert checkpoint.load_latest(tmp_path / "run").step == step
    process = begin(place, tmp_path / "run", "--resume")
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert f"going on from step {step} of 20000" in out


def test_a_reader_that_goes_away_is_no_traceback(place, tmp_path):
    line = f"{sys.executable} -m s2vfast pretrain --config {place}/tiny.yaml --print_config"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line} | true"], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_objective_takes_its_preset(cli):
    code, out, _ = cli("pretrain --config ntu60 --objective mamp --mask.ratio 0.8 --print_config")
    assert code == 0
    assert presets.parse("\n".join(out), "printed") == presets.merge(
        Config.from_dict(presets.read("ntu60_mamp")).to_dict(), {"mask": {"ratio": 0.8}}
    )
    refused(
        cli("pretrain --config nwucla --objective mamp --objective.name classify --print_config"),
        "--objective mamp and --objective.name classify: give one of them",
        2,
    )
    refused(
        cli("pretrain --config nwucla --objective mampp --print_config"),
        "objective.name: 'mampp' is not one of classify, clip_order, hitrs, infogcn, mamp, skeattnclr, skeleton2vec",
    )


def test_an_objective_of_a_file_is_trained_and_evaluated(cli, place, tmp_path):
    config = f"--config {place}/tiny.yaml --objective mamp --mask.keep 4"
    code, out, err = cli(f"pretrain {config} --data {place}/store --out {tmp_path}/run")
    assert code == 0, err
    assert presets.read(tmp_path / "run" / "config.yaml")["objective"]["name"] == "mamp"
    code, out, _ = cli(f"evaluate {tmp_path}/run --protocol knn --json")
    assert code == 0
    assert json.loads(out[-1])["protocol"] == "knn"
    refused(
        cli(f"pretrain --resume --out {tmp_path}/run --objective skeletonmae"),
        "objective.name",
    )
