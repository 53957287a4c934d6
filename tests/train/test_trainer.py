from dataclasses import replace

import numpy as np
import pytest
import torch

from s2vfast import errors
from s2vfast.train.trainer import NonFiniteError, length_notes


def copy_of(trainer):
    return {g: {k: v.clone() for k, v in tensors.items()} for g, tensors in trainer.state().items()}


def equal(a, b):
    return all(torch.equal(a[g][k], b[g][k]) for g in a for k in a[g])


def test_a_run_learns_and_repeats(make):
    first, second = make(train__steps=40, optim__lr=5e-3), make(train__steps=40, optim__lr=5e-3)
    a = [first.run_step() for _ in range(40)]
    b = [second.run_step() for _ in range(40)]
    assert [r.loss for r in a] == [r.loss for r in b]
    assert equal(first.state(), second.state())
    assert np.mean([r.loss for r in a[-8:]]) < np.mean([r.loss for r in a[:8]])
    assert a[-1].step == 40
    assert a[-1].epoch == 20.0
    assert all(r.reported["target_var"] > 0 for r in a)


def test_state_and_load_continue_bitwise(make):
    whole = make()
    for _ in range(5):
        whole.run_step()
    saved, meta = copy_of(whole), whole.meta()
    rest = [whole.run_step().loss for _ in range(4)]
    other = make(train__seed=1)
    other.run_step()
    other.load(saved, meta)
    assert [other.run_step().loss for _ in range(4)] == rest
    assert equal(other.state(), whole.state())


def test_draws_of_torch_go_on_after_a_resume(make):
    """As those of a foreign network's nn.Dropout: whatever has been drawn before, in this process or another."""

    draws = []

    def noisy(trainer):
        loss = trainer.step_fn._loss

        def drawn(*inputs):
            draws.append(torch.rand(()))
            output = loss(*inputs)
            return replace(output, loss=output.loss * draws[-1])

        trainer.step_fn._loss = drawn
        return trainer

    whole = noisy(make())
    for _ in range(3):
        whole.run_step()
    saved, meta = copy_of(whole), whole.meta()
    losses = [whole.run_step().loss for _ in range(3)]
    other = noisy(make())
    other.load(saved, meta)
    torch.rand(7)
    assert [other.run_step().loss for _ in range(3)] == losses
    assert len({float(draw) for draw in draws[: len(draws) // 3 * 2]}) == len(draws) // 3 * 2


def test_workers_change_nothing(make):
    inline, ahead = make(), make(data__workers=2)
    for _ in range(12):
        a, b = inline.run_step(), ahead.run_step()
        assert a.loss == b.loss
        assert a.sample_ids.tolist() == b.sample_ids.tolist()
    assert equal(inline.state(), ahead.state())


def test_implementations_agree(make):
    losses = {}
    for impl in ("reference", "torch", "torch,tube_mask=reference"):
        trainer = make(train__impl=impl)
        losses[impl] = [trainer.run_step().loss for _ in range(6)]
    assert losses["torch"] == losses["torch,tube_mask=reference"]
    np.testing.assert_allclose(losses["torch"], losses["reference"], rtol=1e-4)


@pytest.mark.parametrize("where", ["clips", "weights"])
def test_non_finite_numbers_stop_before_the_update(make, monkeypatch, where):
    trainer = make()
    trainer.run_step()
    if where == "clips":
        batch = trainer.feed.batch(1)
        batch.micro_batches[0].clips[0, 0, 0, 0] = torch.nan
        monkeypatch.setattr(trainer.feed, "batch", lambda step: batch)
    else:  # a finite loss with an infinite gradient
        monkeypatch.setattr(
            type(trainer.optimizer), "step", lambda self, *a, **k: torch.tensor(float("inf")), raising=True
        )
    before = copy_of(trainer)
    with pytest.raises(NonFiniteError) as stopped:
        trainer.run_step()
    assert trainer.step == 1
    assert equal(trainer.state(), before)
    ids = trainer.order.sample_ids(1).tolist()
    assert str(ids[0]) in str(stopped.value)
    assert "step 2" in str(stopped.value)


def test_a_real_infinite_gradient_changes_nothing(make):
    trainer = make()
    trainer.run_step()
    trainer.objective.decoder.head.weight.register_hook(lambda g: g * float("inf"))
    before = copy_of(trainer)
    with pytest.raises(NonFiniteError, match="the gradient's norm is"):
        trainer.run_step()
    assert equal(trainer.state(), before)


def test_the_teacher_follows_the_student(make):
    trainer = make(objective__ema_start=0.5, objective__ema_end=0.5)
    before = {k: v.clone() for k, v in trainer.objective.teacher.state_dict().items()}
    trainer.run_step()
    for k, v in trainer.objective.teacher.state_dict().items():
        torch.testing.assert_close(v, 0.5 * before[k] + 0.5 * trainer.objective.encoder.state_dict()[k])


def test_load_refuses_other_tensors(make):
    trainer = make()
    state, meta = copy_of(trainer), trainer.meta()
    gone = dict(state["model"])
    name = next(iter(gone))
    gone.pop(name)
    with pytest.raises(errors.CheckpointError, match=f"model: {name}: missing"):
        trainer.load({**state, "model": gone}, meta)
    wrong = state["model"] | {name: torch.zeros(3)}
    with pytest.raises(errors.CheckpointError, match="shape"):
        trainer.load({**state, "model": wrong}, meta)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch": 100}, "train.batch: 100 is more than the 8 training sequences"),
        ({"train__impl": "cuda"}, "train.impl: cuda: no implementation"),
        ({"train__device": "cuda:7"}, "train.device: cuda:7: this machine has"),
        ({"train__device": "gpu"}, "train.device: 'gpu' is not"),
        ({"mask__keep": 25}, "mask.keep: 25 leaves 25 of 25"),
        ({"data__split": "xview"}, "xview"),
    ],
)
def test_refuses_what_cannot_be(make, changes, message):
    with pytest.raises(errors.S2vfastError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("train", "warmup", "expected"),
    [
        ({"steps": 12}, 1.0, []),
        ({"steps": 12}, 0.0, []),
        ({"steps": 1}, 0.0, []),
        ({"steps": 12}, 6.0, ["warning: warmup_epochs 6 last as long as the run or longer (12 steps)"]),
        (
            {"steps": None, "epochs": 1.0, "min_steps": 25},
            0.5,
            ["min_steps 25 makes 12.5 epochs where epochs is 1"],
        ),
        ({"steps": None, "epochs": 20.0, "min_steps": 25}, 0.5, []),
    ],
)
def test_an_odd_length_is_said(tiny_config, train, warmup, expected):
    config = tiny_config(**train)
    config.optim.warmup_epochs = warmup
    notes = length_notes(config, steps_per_epoch=2)
    assert len(notes) == len(expected)
    assert all(note.startswith(start) for note, start in zip(notes, expected, strict=True))
