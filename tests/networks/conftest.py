"""What tests of networks share: a store of moving people, and a folder for the runs of each file."""

import pytest

from s2vfast.data.synth import generate


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "store"
    generate(path, subjects=2, views=1, repetitions=1)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process runs several files of tests, and their runs have the same names."""
    return tmp_path_factory.mktemp("runs")
