"""Every block of code in README and docs is run by a test, or the table below says why it is not.

The blocks of docs/tutorials.md, and of README and docs/evaluation.md what takes seconds, are run here on synthetic
data: in their order, as they stand, but for their length.
"""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from benchmarks import run as benchmarks_run
from s2vfast import cli, verify
from s2vfast.data.synth import generate
from s2vfast.ops._dispatch import operation

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

HERE = "here"
OUTPUT = "no code: what stands in a file, or the form of a command"
SETUP = "makes an environment and tests all: CI is that"
PARSED = "placeholders, and hours; test_docs.py parses each line, tests/compat, evaluate and view run what they name"
DATA = "needs recordings of people, and hours; the same commands are run here and in tests/benchmarks on synthetic data"
GPUS = "eight GPUs or more; tests/train runs two ranks, two hosts, the profile and the cost model"
CLUSTER = "a job of a scheduler, which is not here"
NVCC = "nvcc, or minutes; tests/kernels/emulator makes the same calls"
BLOCKS = {
    "README.md": [SETUP, HERE, HERE, HERE, "tests/test_docs.py::test_readmes_python_runs"],
    "adding.md": ["tests/test_adding.py::place"] * 4,
    "architecture.md": [OUTPUT],
    "checkpoints.md": [PARSED],
    "cluster.md": [GPUS, "tests/train/test_scaling.py::test_the_table", CLUSTER, CLUSTER],
    "containers.md": [
        OUTPUT,
        PARSED,
        OUTPUT,
        "tests/data/test_containers.py::test_the_script_of_the_docs_converts_trc",
    ],
    "emulator.md": [
        NVCC,
        "tests/kernels/emulator/test_kernels.py::test_the_example_of_the_page_runs",
        NVCC,
        NVCC,
    ],
    "evaluation.md": [PARSED, PARSED, HERE, HERE, PARSED, PARSED],
    "layouts.md": ["tests/test_docs.py::test_the_layouts_page_has_every_layout_and_an_example_that_is_one"],
    "msr_action3d.md": [DATA],
    "nwucla.md": [DATA] * 10,
    "own-data.md": ["tests/test_own_data.py::test_from_videos_to_a_classifier_of_a_stream"] * 10,
    "pictures.md": [PARSED],
    "points.md": [DATA, DATA],
    "python.md": [
        "tests/test_python.py::test_the_page_runs",
        "tests/test_python.py::test_a_loop_of_ones_own_has_the_losses_and_the_teacher_of_the_trainer",
        "tests/test_python.py::test_the_page_runs",
    ],
    "status.md": [NVCC],
    "training.md": [GPUS],
    "tutorials.md": [HERE] * 8,
    "views.md": [
        "tests/data/test_views_page.py::test_the_examples_run",
        *["tests/data/test_views_page.py::test_a_published_view_makes_clips"] * 8,
        "tests/data/test_views_page.py::test_the_examples_run",
    ],
}


def blocks(page):
    """(language, title, text) of a page's blocks, in their order."""
    pattern = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
    return [match.groups() for match in pattern.finditer(page.read_text("utf-8"))]


def test_every_block_is_run_or_has_a_reason():
    counts = {page.name: len(blocks(page)) for page in PAGES}
    assert {name: len(entries) for name, entries in BLOCKS.items()} == {name: n for name, n in counts.items() if n}
    for page in PAGES:  # a fence that the pattern does not see would be a block that nobody runs
        fences = re.findall(r"^\s*(?:```|~~~)", page.read_text("utf-8"), re.MULTILINE)
        assert len(fences) == 2 * counts[page.name], page.name


@pytest.mark.parametrize("name", sorted({entry for entries in BLOCKS.values() for entry in entries if "::" in entry}))
def test_the_tests_that_run_blocks_are_there(name):
    file, _, test = name.partition("::")
    assert re.search(rf"^def {test}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)


# What a page's commands take long for; nothing else of them is changed.
SHORT = {
    "pretrain": "--train.steps 2 --train.batch 8 --train.device cpu --train.threads 1",
    "evaluate": "--epochs 1 --lists 1 --percents 50 --finetune.epochs 1 --finetune.min_steps 0 --finetune.hidden 8 "
    "--device cpu",
}
ACTIONS, PEOPLE, VIEWS = 3, 3, 3


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder in NW-UCLA's format: the first 20 joints of synthetic people, some frames each."""
    folder = tmp_path_factory.mktemp("recordings")
    store = generate(folder / "store", subjects=PEOPLE, views=1, repetitions=1)
    raw = folder / "nw_ucla"
    raw.mkdir()
    for number in range(ACTIONS * PEOPLE * VIEWS):
        action, (person, view) = number % ACTIONS + 1, divmod(number // ACTIONS, VIEWS)
        name = f"a{action:02d}_s{person + 1:02d}_e00_v{view + 1:02d}"
        joints = store.sequence(number)[0][0][:30, :20].astype(float).round(4)
        (raw / f"{name}.json").write_text(
            json.dumps({"file_name": name, "skeletons": joints.tolist(), "label": action})
        )
    return raw


@pytest.fixture
def place(tmp_path, recordings, monkeypatch):
    """An empty folder to follow a page in; what it registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    implementations = operation("masked_mse").implementations
    before = dict(implementations)
    yield tmp_path
    implementations.clear()
    implementations.update(before)


def follow(text, replacements):
    """Run the commands of a block."""
    for old, new in replacements.items():
        text = text.replace(old, str(new))
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "s2vfast":
            options = next((options for name, options in SHORT.items() if name == words[1]), "").split()
            assert cli.main([*words[1:], *options]) == 0, line
        else:
            program = {"s2vfast.verify": verify, "benchmarks.run": benchmarks_run}[words[2]]
            assert program.main(words[3:]) == 0, line


def section(title):
    """The blocks of a section of docs/tutorials.md."""
    page = ROOT / "docs/tutorials.md"
    texts = re.split(r"^## ", page.read_text("utf-8"), flags=re.MULTILINE)
    (text,) = [text for text in texts if text.startswith(title)]
    return [block for block in blocks(page) if block[2] in text]


def test_from_recordings_to_a_table(place, recordings, capsys):
    for _, _, text in section("NW-UCLA"):
        follow(text, {"PATH/TO/nw_ucla": recordings})
    printed = capsys.readouterr().out
    assert "| skeleton2vec" in printed
    assert "| floor" in printed
    assert "\\begin{tabular}" in Path("table.tex").read_text("utf-8")
    assert Path("confusion.html").stat().st_size > 10_000
    assert Path("tuned.safetensors").is_file()


def test_a_kernel_of_ones_own(place, capsys):
    for _, title, text in section("A kernel"):
        if title:
            Path(title).write_text(text)
        else:
            follow(text, {})
    printed = capsys.readouterr().out
    assert printed.count("good") >= 3
    assert "mine" in printed
    assert next(Path("measured").rglob("ops.json")).is_file()
    assert Path("runs/with-mine/run.json").is_file()


def without_pages(text):
    """A block without pages that stay until somebody ends them: tests/test_own_data.py follows one."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("s2vfast live"))


def test_the_readme_and_the_page_of_evaluation_end_as_they_say(place, recordings, capsys):
    names = {"PATH/TO/nw_ucla": recordings, "FOLDER": recordings, "NEW_FILES": recordings / "a01_s01_e00_v03.json"}
    readme = [
        text
        for (_, _, text), entry in zip(blocks(ROOT / "README.md"), BLOCKS["README.md"], strict=True)
        if entry == HERE
    ]
    for text in readme:
        follow(without_pages(text), names)
    printed = capsys.readouterr().out
    assert Path("nwucla.safetensors").is_file()
    assert json.loads(printed.splitlines()[-1])["top"]
    results = Path("results/nwucla/results.json").read_text("utf-8")
    for number, name in enumerate(
        ("runs/a/results.json", "runs/b/results.json", "a.json", "b.json", "c.json", "results/results.json")
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(results.replace("runs/nwucla", f"runs/nwucla-{number}"))
    Path("results/tuned.json").write_text(results)
    names = {
        "runs/*/results.json": "runs/a/results.json runs/b/results.json",
        "runs/tuned": "runs/actions",
        " FILES": f" {names['NEW_FILES']}",
    }
    for (_, _, text), entry in zip(blocks(ROOT / "docs/evaluation.md"), BLOCKS["evaluation.md"], strict=True):
        if entry == HERE:
            follow(without_pages(text), names)


def test_the_notebook_runs_and_learns(place, monkeypatch):
    notebook = json.loads((ROOT / "docs/loop.ipynb").read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    names = {}
    for cell in notebook["cells"]:
        assert set(cell) >= {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            code = "".join(cell["source"]).replace("PEOPLE = 60, 4", "PEOPLE = 15, 2")
            exec(compile(code, "loop.ipynb", "exec"), names)
    assert np.mean(names["losses"][-3:]) < np.mean(names["losses"][:3])
    assert names["tokens"].shape[-1] == names["config"].model.dim
    assert Path("encoder.pth").is_file()
