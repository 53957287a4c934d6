from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast.train.order import Order, shuffle


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.data())
def test_every_epoch_shows_every_sequence(n, data):
    batch = data.draw(st.integers(1, n))
    order = Order(torch.arange(100, 100 + n), batch, seed=data.draw(st.integers(0, 2**40)))
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = torch.cat([order.sample_ids(step) for step in steps])
        assert len(seen) == batch * order.steps_per_epoch
        assert set(seen.tolist()) == set(range(100, 100 + n))
        assert len(set(seen[:n].tolist())) == n
        assert torch.equal(seen[n:], seen[: len(seen) - n])
        assert {order.epoch(step) for step in steps} == {epoch}


def test_epochs_and_seeds_differ_and_any_step_can_be_asked_for():
    ids = torch.arange(50)
    assert not torch.equal(shuffle(ids, 1, 0), shuffle(ids, 1, 1))
    assert not torch.equal(shuffle(ids, 1, 0), shuffle(ids, 2, 0))
    forwards = Order(ids, 7, 1)
    expected = {step: forwards.sample_ids(step) for step in range(20)}
    backwards = Order(ids, 7, 1)
    for step in reversed(range(20)):
        assert torch.equal(backwards.sample_ids(step), expected[step])


def test_a_sequence_keeps_its_place_among_fewer():
    ids = torch.arange(50)
    some = ids[::3]
    order = [i for i in shuffle(ids, 1, 4).tolist() if i % 3 == 0]
    assert shuffle(some, 1, 4).tolist() == order


def test_threads_that_ask_for_different_epochs():
    order = Order(torch.arange(40), 5, 1)
    expected = {step: order.sample_ids(step).tolist() for step in range(400)}
    with ThreadPoolExecutor(4) as pool:
        steps = [step for k in range(8) for step in range(k, 400, 8)]
        found = list(pool.map(lambda step: order.sample_ids(step).tolist(), steps))
    assert found == [expected[step] for step in steps]
