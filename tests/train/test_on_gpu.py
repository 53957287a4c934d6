"""The trainer on a GPU: a captured step is the step, and recordings may lie on either side."""

import dataclasses

import pytest
import torch

from s2vfast import ops
from s2vfast.data.store import Store
from s2vfast.train.trainer import Trainer

pytestmark = pytest.mark.gpu
STEPS = 14


def train(config, store, **changes):
    """Results and weights of some steps."""
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, device="cuda", steps=STEPS, threads=None)
    )
    for path, value in changes.items():
        section, name = path.split("__")
        setattr(getattr(config, section), name, value)
    trainer = Trainer(config, Store.open(store))
    results = [trainer.run_step() for _ in range(STEPS)]
    results = [*filter(None, results), *trainer.drain()]
    return results, {name: tensor.clone() for name, tensor in trainer.state()["model"].items()}, trainer


def assert_equal(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        assert (a.step, a.loss, a.grad_norm, a.target_var) == (b.step, b.loss, b.grad_norm, b.target_var)
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("how", ["compute", "share", "drop"])
def test_a_captured_step_is_the_step(tiny_config, tiny_store, impl, how):
    if reasons := ops.operation("attention").why_not(impl, "cuda"):
        pytest.skip("; ".join(reasons))
    options = {"train__impl": impl, "objective__empty_bodies": how}
    graph = train(tiny_config(), tiny_store, train__mode="graph", **options)
    eager = train(tiny_config(), tiny_store, train__mode="eager", **options)
    assert graph[2]._advance._graphs
    # PyTorch's own backward passes may add in any order; ours never do.
    if impl == "triton":
        assert_equal(graph, eager)
    for a, b in zip(graph[0], eager[0], strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-3)


def test_recordings_on_the_host_give_the_same(tiny_config, tiny_store):
    options = {"train__impl": "torch,clip_sample=torch,tube_mask=torch", "train__mode": "eager"}
    device = train(tiny_config(), tiny_store, data__resident="device", **options)
    host = train(tiny_config(), tiny_store, data__resident="host", **options)
    for a, b in zip(device[0], host[0], strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-3)


def test_low_precision_is_near_the_cpu(tiny_config, tiny_store):
    results, _, _ = train(tiny_config(), tiny_store, train__mode="graph")
    cpu = Trainer(tiny_config(steps=STEPS), Store.open(tiny_store))
    for result in results:
        assert result.loss == pytest.approx(cpu.run_step().loss, rel=2e-2)
