"""`s2vfast view` as one types it."""

import subprocess
import sys

import pytest

from s2vfast.view import map as maps

KINDS = {
    "sequence": "{store} {name}",
    "mask": "{store} {name} --run {run} --draws 2",
    "attention": "{run} {store} {name} --block 1 --head 2 --joint head --segment 2",
    "neighbours": "{run} {store} {name} --k 3 --pool joint_time",
    "map": "{run} {store} --method pca --parts test,train",
    "curves": "{run} --log",
    "results": "{results}",
}


@pytest.fixture
def cli(capfd, monkeypatch, tmp_path):
    """cli(words) -> (exit code, lines of standard output, lines of standard error), in an empty folder."""
    monkeypatch.delenv("S2VFAST_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*words):
        capfd.readouterr()
        from s2vfast.cli import main

        code = main(["view", *map(str, words)])
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_has_a_command_and_a_picture(cli, place, tmp_path, read_page, is_picture, kind):
    words = [
        word.format(store=place.store, run=place.run, name=place.evil, results=place.results)
        for word in KINDS[kind].split()
    ]
    code, out, err = cli(kind, *words, "--png", "p.png", "--out", "p.html")
    assert (code, out, err) == (0, ["p.png", "p.html"], [])
    read_page(tmp_path / "p.html")
    is_picture(tmp_path / "p.png")


def test_without_a_name_the_page_gets_one_that_is_a_files(cli, place, tmp_path):
    code, out, _ = cli("sequence", place.store, place.evil)
    assert (code, out) == (0, ["view-sequence-_script_img_src_x_onerror_alert_1_quoted_so_frac_.html"])
    assert [path.name for path in tmp_path.iterdir()] == out
    assert cli("curves", place.run)[1] == ["view-curves.html"]


def test_the_options_reach_the_page(cli, place, tmp_path, read_page):
    assert (
        cli("attention", place.run, place.store, "s001", "--joint", "head", "--segment", 2, "--out", "a.html")[0] == 0
    )
    assert read_page(tmp_path / "a.html")["token"] == 5 + 2
    assert (
        cli("map", place.run, place.store, "--method", "pca", "--parts", "test", "--limit", 5, "--out", "m.html")[0]
        == 0
    )
    data = read_page(tmp_path / "m.html")
    assert (data["part_names"], len(data["names"])) == (["test"], 5)
    assert maps.collect(place.run, place.store, method="pca", parts=("test",), limit=5, log=str).names == data["names"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("sequence {store} s00", 1, "no sequence 's00'; the nearest names are"),
        ("sequence {run} s000", 1, "no store here"),
        ("mask {store} s000", 2, "--config, --run: one of the two is needed"),
        ("attention {other} {store} s000", 1, "its layout is stick"),
        ("attention {run} {store} s000 --block 4", 2, "--block: 4; this encoder has blocks 1 to 3"),
        ("neighbours {store} {store} s000", 1, "no run here"),
        ("map {run} {store} --method umap", 2, "--method"),
        ("map {run} {store} --parts ,", 2, "--parts: no part of the split is named"),
        ("map {run} {store} --parts train,train", 2, "--parts: 'train' is named twice"),
        ("map {run} {store} --seed -1", 2, "--seed: -1; a number from 0 to 4294967295"),
        ("map {run} {store} --seed 4294967296 --method pca", 2, "--seed: 4294967296; a number from 0"),
        ("mask {store} s000 --run {run} --epoch 99999999999999999999", 2, "--epoch 99999999999999999999, --draws 8: e"),
        ("mask {store} s000 --run {run} --epoch 4294967295 --draws 2", 2, "epochs go up to 4294967295"),
        ("curves {store}", 1, "no run here"),
        ("curves", 2, "needed: RUN;"),
        ("sequence {store} s000 --out a --png ./a", 2, "--png: ./a is the file of the page too"),
        ("sequence {store} s000 --out no/a.html", 1, "no/a.html: cannot be written: No such file"),
    ],
)
def test_what_is_wrong_is_one_line(cli, place, other_run, tmp_path, words, code, message):
    words = words.format(store=place.store, run=place.run, other=other_run).split()
    found, out, err = cli(*words)
    assert (found, out, len(err)) == (code, [], 1), (out, err)
    assert err[0].startswith("s2vfast: error: ")
    assert message in err[0]
    assert not list(tmp_path.iterdir())


def test_help_of_the_commands_imports_nothing_heavy():
    slow = "torch numpy matplotlib sklearn".split()
    script = f"import sys, s2vfast.cli as c; c.main(['view', '--help']); print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(f"    {kind} " in done.stdout for kind in KINDS)
    assert done.stdout.endswith("[]\n")
