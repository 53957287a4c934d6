"""Ways to do a step that must not change what it computes, or change it as they say."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2vfast import errors, ops, presets
from s2vfast.data.store import Store
from s2vfast.objectives import build_objective
from s2vfast.train.feed import Recordings, micro_batches_for
from s2vfast.train.loop import train
from s2vfast.train.step import CUDAGraphStep
from s2vfast.train.trainer import Trainer, _mode

from ..skeletons import chain


def numbers(trainer, steps=6):
    results = [trainer.run_step() for _ in range(steps)]
    return np.array([[r.loss, r.grad_norm, r.reported["target_var"], r.reported["pred_var"]] for r in results])


@pytest.mark.parametrize("how", ["compute", "share", "drop"])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_micro_batches_change_nothing(make, how, parts):
    whole = numbers(make(objective__empty_bodies=how))
    assert np.allclose(numbers(make(objective__empty_bodies=how, train__accumulate=parts)), whole, rtol=2e-6)


def test_several_masks_in_parts(make):
    whole = numbers(make(mask__masks_per_clip=3))
    assert np.allclose(numbers(make(mask__masks_per_clip=3, train__accumulate=2)), whole, rtol=2e-6)


def test_shared_empty_bodies_change_nothing(make):
    shared, computed = make(objective__empty_bodies="share"), make(objective__empty_bodies="compute")
    filled = min(shared.feed.batch(step).micro_batches[0].bodies.capacity for step in range(2))
    assert filled < 7, "two of the eight tracks and more are empty"
    assert np.allclose(numbers(shared), numbers(computed), rtol=2e-6)


@pytest.mark.parametrize("how", ["share", "drop"])
def test_room_for_more_bodies_than_there_are_changes_nothing(make, how):
    """As on a GPU, where the number of rows is rounded up so that shapes repeat."""
    exact, roomy = make(objective__empty_bodies=how), make(objective__empty_bodies=how)
    roomy.feed._repeats = True
    real = roomy.feed._capacity
    roomy.feed._capacity = lambda ids: real(ids) + 1
    assert roomy.feed.batch(0).micro_batches[0].bodies.capacity > exact.feed.batch(0).micro_batches[0].bodies.capacity
    assert np.allclose(numbers(roomy), numbers(exact), rtol=2e-6)


def test_low_precision_is_close_and_keeps_float32_weights(make):
    low = make(train__precision="bfloat16")
    assert low.objective.encoder.blocks[0].qkv.weight.dtype == torch.bfloat16
    assert low.objective.encoder.embedding.weight.dtype == torch.float32
    found, exact = numbers(low), numbers(make())
    assert np.allclose(found[:, 0], exact[:, 0], rtol=2e-3)
    assert not np.array_equal(found, exact)
    assert all(tensor.dtype == torch.float32 for tensor in low.state()["model"].values())
    weight = low.state()["model"]["student.encoder.blocks.0.qkv.weight"]
    assert torch.equal(low.objective.encoder.blocks[0].qkv.weight, weight.to(torch.bfloat16))
    teacher = low.state()["model"]["teacher.blocks.0.qkv.weight"]
    assert torch.equal(low.objective.teacher.blocks[0].qkv.weight, teacher.to(torch.bfloat16))


def test_a_checkpoint_fits_any_precision(make):
    low, other = make(train__precision="bfloat16"), make(train__precision="bfloat16")
    numbers(low, 3)
    other.load(low.state(), low.meta())
    assert np.array_equal(numbers(low, 3), numbers(other, 3))
    single = make()
    single.load(low.state(), low.meta())
    assert np.isfinite(numbers(single, 2)).all()


def test_precision_of_products_is_pytorchs(make):
    before = torch.get_float32_matmul_precision()
    try:
        make()
        assert torch.get_float32_matmul_precision() == before
        make(train__matmul_precision="high")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.slow
def test_compiled(make):
    options = {"objective__empty_bodies": "compute", "train__impl": "torch"}
    with sdpa_kernel(SDPBackend.MATH):  # what flash attention on CPUs compiles to takes minutes
        compiled = numbers(make(train__mode="compile", **options), 3)
    assert np.allclose(compiled, numbers(make(**options), 3), rtol=1e-5)


def test_a_graph_needs_a_gpu(make):
    with pytest.raises(errors.ConfigError, match="train.mode: graph needs a GPU"):
        make(train__mode="graph")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__accumulate": 5}, "train.batch: 4 is less than 5, which is 1 ranks times train.accumulate = 5"),
        ({"train__accumulate": 0}, "train.accumulate: 0; 1 or more"),
        ({"train__precision": "float16"}, "train.precision: 'float16' is not one of"),
        ({"train__mode": "fast"}, "train.mode: 'fast' is not one of"),
        ({"data__resident": "disk"}, "data.resident: 'disk' is not one of"),
    ],
)
def test_refuses(make, changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        make(**changes)


class LateTrainer(Trainer):
    """Reads its results as late as on a GPU."""

    def __init__(self, *args):
        super().__init__(*args)
        self.lag = 2
        self._inputs = torch.zeros(4, 4, dtype=torch.float64)
        self._reports = torch.zeros(4, self.step_fn.report.numel())


def late(config, store):
    return LateTrainer(config, Store.open(store))


def test_results_that_come_late_are_the_same(make, tiny_store, tiny_config):
    plain = make()
    expected = [plain.run_step() for _ in range(8)]
    trainer = late(tiny_config(), tiny_store)
    started = [trainer.run_step() for _ in range(8)]
    assert started[:2] == [None, None]
    found = [*started[2:], *trainer.drain()]
    assert [r.step for r in found] == list(range(1, 9))
    assert [(r.loss, r.grad_norm, r.lr, r.ema_decay) for r in found] == [
        (r.loss, r.grad_norm, r.lr, r.ema_decay) for r in expected
    ]
    assert not list(trainer.drain())


def test_after_a_number_that_is_not_finite_nothing_changes_until_it_is_read(tiny_store, tiny_config):
    """Two more steps are under way when the host hears of it; they have left no trace, and the run can go on."""
    trainer, other = late(tiny_config(), tiny_store), late(tiny_config(), tiny_store)
    for _ in range(3):
        trainer.run_step()
        other.run_step()
    before = {name: tensor.clone() for group in other.state().values() for name, tensor in group.items()}
    real = trainer.feed.batch

    def spoilt(step):
        batch = real(step)
        if step == 3:
            batch.micro_batches[0].clips[0] = torch.nan
        return batch

    trainer.feed.batch = spoilt
    assert [trainer.run_step().step for _ in range(2)] == [2, 3]
    with pytest.raises(errors.TrainingError, match="step 4: the loss is nan"):
        trainer.run_step()
    assert trainer.step == 3
    after = {name: tensor for group in trainer.state().values() for name, tensor in group.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    trainer.feed.batch = real
    list(other.drain())
    found, expected = [[*(e.run_step() for _ in range(3)), *e.drain()] for e in (trainer, other)]
    assert [r.loss for r in found if r] == [r.loss for r in expected if r]


def test_a_captured_step_reads_what_lies_at_fixed_places(make, monkeypatch):
    """The bookkeeping around CUDA graphs, with a graph that calls again what it has seen."""
    trainer, plain = make(), make()

    class Graph:
        def __init__(self):
            self.calls = []

        def replay(self):
            for call in self.calls:
                call()

        def pool(self):
            return "pool"

    def capture(self, batches):
        captured = [batch.map(torch.clone) for batch in batches]
        graph = Graph()
        graph.calls.append(lambda: self.step(captured))
        return graph, captured

    monkeypatch.setattr(CUDAGraphStep, "_capture", capture)
    trainer._advance = CUDAGraphStep(trainer.step_fn)
    assert np.array_equal(numbers(trainer, 10), numbers(plain, 10))
    assert trainer._advance._graphs, "something was captured"


def test_threads_that_send_batches_ahead(make, monkeypatch):
    """The way of recordings that do not fit on the device; here the device is the host itself."""
    trainer, plain = make(data__workers=2), make()
    monkeypatch.setattr(Recordings, "sends", property(lambda self: self is trainer.feed.recordings))
    trainer.feed._send = lambda tensor: tensor.clone()
    assert np.array_equal(numbers(trainer), numbers(plain))


def test_good_results_before_a_bad_one_are_kept(tiny_store, tiny_config, tmp_path):
    """The bad step is among those that a checkpoint waits for: the lines of the good ones before it are written."""
    config = tiny_config(log_every=1)
    config.checkpoint.every = 5

    def trainer(config, store):
        made = LateTrainer(config, store)
        real = made.feed.batch

        def spoilt(step):
            batch = real(step)
            if step == 4:
                batch.micro_batches[0].clips[0] = torch.nan
            return batch

        made.feed.batch = spoilt
        return made

    with pytest.raises(errors.TrainingError, match="step 5: the loss is nan"):
        train(config, tiny_store, tmp_path / "run", make_trainer=trainer)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4


def test_all_parts_have_room_for_as_many_bodies(make):
    """What is captured or compiled depends on it, and ranks must agree."""
    trainer = make(objective__empty_bodies="share", train__accumulate=2)
    trainer.feed._repeats = True
    for step in range(4):
        batches = trainer.feed.batch(step).micro_batches
        assert len({batch.bodies.capacity for batch in batches}) == 1
        assert all(batch.bodies.capacity >= int((batch.clips != 0).flatten(1).any(1).sum()) for batch in batches)


def test_a_graph_refuses_what_asks_the_device(tiny_config):
    config = tiny_config(mode="graph", impl="torch,adamw_ema=reference")
    with pytest.raises(errors.ConfigError, match="graph cannot capture train.impl"):
        _mode(config, True, ops.parse_choice(config.train.impl))
    config.train.mode = "auto"
    assert _mode(config, True, ops.parse_choice(config.train.impl)) == "eager"
    assert _mode(config, True, {}) == "auto"


@pytest.mark.parametrize(
    ("preset", "joints", "clips", "device", "parts"),
    [
        ("ntu60", 25, 1, "cpu", 1),
        ("ntu60", 25, 2, "cpu", 1),
        ("ntu60", 25, 8, "cpu", 4),
        ("ntu60", 25, 7, "cpu", 7),  # parts are alike
        ("ntu60", 25, 128, "cuda", 1),
        ("nwucla", 20, 32, "cpu", 1),
    ],
)
def test_parts_fit_a_cache(preset, joints, clips, device, parts):
    config = presets.load(preset)
    objective = build_objective(config, chain(joints))
    assert micro_batches_for(config, objective, clips, torch.device(device)) == parts
