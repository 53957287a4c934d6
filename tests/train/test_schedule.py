import math

import pytest

from s2vfast.train.schedule import learning_rate


def test_learning_rate():
    rate = [learning_rate(step, 110, 10, 1e-3, 1e-5) for step in range(110)]
    assert rate[0] == pytest.approx(1e-4)
    assert rate[9] == pytest.approx(1e-3)
    assert max(rate) == rate[10] == pytest.approx(1e-3)
    assert rate[60] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 2)
    assert rate[109] == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 0.99)))
    assert rate[10:] == sorted(rate[10:], reverse=True)


def test_learning_rate_of_a_run_that_is_all_warm_up():
    assert [learning_rate(s, 4, 4, 4.0, 0.0) for s in range(4)] == [1.0, 2.0, 3.0, 4.0]
    assert learning_rate(0, 1, 0, 1.0, 0.0) == 1.0


def test_steps_and_a_straight_line():
    steps = {"schedule": "steps", "milestones": (4.0, 6.5), "gamma": 0.1}
    rates = [learning_rate(step, 8, 2, 1.0, 0.0, **steps) for step in range(8)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01])
    line = [learning_rate(step, 6, 2, 1.0, 0.2, "linear") for step in range(6)]
    assert line == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4])
