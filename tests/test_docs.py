"""What README and docs say: their Python runs as it stands, their links lead somewhere, their commands exist."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from s2vfast import cli
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.inputs import OPS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_readmes_python_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert blocks
    for code in blocks:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            path, _, anchor = target.partition("#")
            assert (page.parent / path).exists(), target
            if anchor and path.endswith(".md"):
                titles = re.findall(r"^#+ (.*)$", (page.parent / path).read_text("utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
                assert anchor in anchors, target


def test_the_layouts_page_has_every_layout_and_an_example_that_is_one():
    text = (ROOT / "docs/layouts.md").read_text("utf-8")
    assert re.findall(r"^\| `(\w+)`.* \| (\d+) \| (.*) \| .*\|$", text, re.MULTILINE) == [
        (name, str(layout.num_joints), " or ".join(map(str, layout.dimensions)))
        for name, layout in sorted(LAYOUTS.items(), key=lambda entry: text.index(f"`{entry[0]}`"))
    ]
    (code,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert Layout.from_dict(json.loads(code)).root == (3, 4)
    fields = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]*\|$", text, re.MULTILINE)))
    )
    assert fields == {field.name for field in dataclasses.fields(Layout)}


def test_files_that_the_architecture_names_are_there():
    text = (ROOT / "docs/architecture.md").read_text("utf-8")
    for name in set(re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|md))`", text)):
        assert (ROOT / name).exists() or (ROOT / "s2vfast" / name).exists(), name


@pytest.mark.slow
def test_the_site_has_no_broken_link_and_fetches_nothing(tmp_path):
    """`make docs`, where what it needs is installed."""
    pytest.importorskip("sphinx", reason="`make docs` installs it")
    words = f"-m sphinx -W --keep-going -q -c docs -b html -d {tmp_path}/trees . {tmp_path}/site"
    done = subprocess.run([sys.executable, *words.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        fetched = re.findall(
            r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*", page.read_text("utf-8")
        )
        assert not fetched, f"{page}: {fetched[0]}"
    assert (tmp_path / "site" / "searchindex.js").is_file()
    assert "s2vfast.evaluate.model.Model.encode" in (tmp_path / "site/docs/api.html").read_text("utf-8")


def test_the_reference_has_every_operation():
    listed = re.findall(r"autofunction:: s2vfast\.ops\.(\w+)", (ROOT / "docs/api.rst").read_text("utf-8"))
    assert set(OPS) <= set(listed), sorted(set(OPS) - set(listed))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def commands():
    names = "README evaluation checkpoints presets training pictures formats".split()
    for page in (page for page in PAGES if page.stem in names):
        for line in page.read_text("utf-8").splitlines():
            if match := re.match(r"s2vfast [^#]*", line):
                yield match[0].strip()


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_are_understood(line):
    words = [word.replace("[RUN", "RUN").replace("...]", "RUN") for word in shlex.split(line)[1:]]
    assert cli.parse(words) is not None
