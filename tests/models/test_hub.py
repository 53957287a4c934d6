"""Runs in repositories of the hub, by its own library and against a stand-in on this machine."""

import logging
import sys

import numpy as np
import pytest

import s2vfast
from s2vfast import cli, models
from s2vfast.models import hub

from .hub_server import serving

constants = pytest.importorskip("huggingface_hub.constants", reason="pip install s2vfast[hub]")
NAME = "nwucla-encoder"
NOBODY = "http://127.0.0.1:9"
"""Where no server listens."""


def connect(monkeypatch, address):
    """Let the library speak to this address alone."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )


@pytest.fixture
def server(tmp_path, monkeypatch, caplog):
    """A hub without repositories, a cache without files, and a library that neither waits nor says that it does."""
    caplog.set_level(logging.ERROR, "huggingface_hub")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with serving() as (content, address):
        connect(monkeypatch, address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "a-token")
        yield content


def test_what_is_pushed_is_what_is_loaded(server, capsys, tmp_path):
    # Its config has every field of today, those that are younger than the model too.
    assert cli.main(["pack", NAME, "--out", str(tmp_path / "packed.safetensors")]) == 0
    capsys.readouterr()
    assert cli.main(["pack", NAME, "--push", "me/walks", "--private"]) == 0
    assert capsys.readouterr().out.startswith("hf://me/walks: 0.6 MB, SHA-256")
    assert server.visibility == {"me/walks": "private"}
    files = server.repositories["me/walks"]
    assert files[hub.FILE] == (tmp_path / "packed.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: s2vfast\n")
    assert 's2vfast.load("hf://me/walks")' in card
    arrays = [np.random.default_rng(0).normal(size=(30, 20, 3))]
    expected = s2vfast.load(NAME).encode(arrays)
    for address in ("hf://me/walks", f"hf://me/walks@{server.commit('me/walks')}"):
        np.testing.assert_array_equal(s2vfast.load(address).encode(arrays), expected)
    assert cli.main(["pack", "hf://me/walks", "--card"]) == 0
    assert capsys.readouterr().out == models.packed.read(models.path(NAME)).card


def test_what_was_fetched_is_there_without_a_hub(server, monkeypatch):
    hub.push(models.path(NAME), "me/walks")
    first = hub.fetch("hf://me/walks")
    connect(monkeypatch, NOBODY)
    assert hub.fetch("hf://me/walks") == first


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            "embed hf://me/nothing --out x.npz",
            1,
            "hf://me/nothing: no such repository, or a private one; `hf auth login`",
        ),
        ("embed hf://me/empty --out x.npz", 1, "hf://me/empty: holds no model.safetensors"),
        ("embed hf://me/walks@v2 --out x.npz", 1, "hf://me/walks@v2: the repository has no such revision"),
        ("embed hf://walks --out x.npz", 2, "hf://walks: no address of a repository; hf://OWNER/NAME or"),
        ("pack nwucla-encoder --push walks", 2, "hf://walks: no address of a repository"),
        ("pack nwucla-encoder --push you/walks", 1, "the hub answers 401: Invalid credentials; `hf auth login` with a"),
    ],
)
def test_errors_are_one_line(server, words, code, message, capsys):
    server.repositories |= {"me/empty": {}, "me/walks": {hub.FILE: models.path(NAME).read_bytes()}}
    server.token = "another-token"
    assert cli.main(words.split()) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("words", ["pack hf://me/walks --card", "pack nwucla-encoder --push me/walks"])
def test_no_hub_and_no_library_are_one_line(server, words, monkeypatch, capsys):
    connect(monkeypatch, NOBODY)
    assert cli.main(words.split()) == 1
    printed = capsys.readouterr().err
    assert "the hub cannot be reached" in printed
    assert printed.count("\n") == 1
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert cli.main(words.split()) == 1
    assert "hf://me/walks: needs huggingface_hub; pip install s2vfast[hub]\n" in capsys.readouterr().err
