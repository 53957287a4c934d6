"""What tests of networks share: a store of moving people."""

import pytest

from s2vfast.data.synth import generate


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "store"
    generate(path, subjects=2, views=1, repetitions=1)
    return path
