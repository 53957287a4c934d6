"""Fine-tuned runs: a step against plain PyTorch, going on bitwise, ranks, folders."""

import contextlib
import copy
import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import s2vfast.errors as errors
from s2vfast.config.fields import field_texts
from s2vfast.data import Store
from s2vfast.evaluate import features, finetune, finetune_config
from s2vfast.objectives import classify
from s2vfast.objectives.base import Draw
from s2vfast.train import checkpoint, distributed
from s2vfast.train.distributed import Ranks
from s2vfast.train.feed import Recordings, SkeletonRecordings
from s2vfast.train.trainer import Trainer

OPTIONS = {
    "epochs": 3.0,
    "batch": 5,
    "hidden": 8,
    "lr": 1e-2,
    "warmup_epochs": 1.0,
    "checkpoint_every": 2,
    "log_every": 1,
}


def _options(**changes):
    return finetune_config.load(changes={**OPTIONS, **changes})


def _source(encoder, ids, **changes):
    values = {
        "mode": "finetune",
        "run": "somewhere",
        "step": 30,
        "weights": finetune.digest(encoder),
        "pretrained_on": {},
        "split": "halves",
        "part": "train",
        "ids": finetune.digest_ids(ids),
        "objective": "skeleton2vec",
    }
    return finetune.Source(**{**values, **changes})


def _tune(out, run, store, ranks=None, ids=None, data=None, mode="finetune", **changes):
    """Fine-tune ``run`` to the labels of the training part; ``data`` changes how clips are made."""
    encoder, config, _ = features.load_encoder(run[0])
    ids = store.select("halves", "train") if ids is None else ids
    options, source = _options(**changes), _source(encoder, ids, mode=mode)
    made = finetune_config.run_config(config, options, sequences=len(ids), **(data or {}))
    return finetune.tune(out, made, store, ids, options, source, initial=encoder.state_dict(), ranks=ranks)


def _trainer(run, store, **changes):
    encoder, config, _ = features.load_encoder(run[0])
    ids = store.select("halves", "train")
    made = finetune_config.run_config(config, _options(**changes), sequences=len(ids))
    return Trainer(made, store, ids=ids, initial=encoder.state_dict())


def _files(folder):
    """Bytes of all that a fine-tuned run is made of, but for what says when and where."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def test_a_step_is_plain_pytorchs(run, store):
    """Loss, and all weights after the first step; the batch norm of the head sees the whole batch."""
    trainer = _trainer(run, store)
    assert trainer.feed.micro_batches == 1  # whatever the caches are
    start, options = copy.deepcopy(trainer.objective), trainer.config.objective
    ids = trainer.order.sample_ids(0)
    clips = trainer.feed.recordings.clips(ids, epoch=0, seed=1)
    rates = classify.drop_rates(2, 0.3)
    paths = classify.draw_paths(rates, 2, 1, 0, ids, 2)
    dropout = classify.draw_dropout(0.3, 1, 0, ids, start.features)
    assert (options.drop_path, options.dropout, options.label_smoothing) == (0.3, 0.3, 0.1)
    tokens = start.encoder.with_drop_path(clips, paths, rates)
    labels = torch.from_numpy(store.labels)[ids]
    loss = F.cross_entropy(start.head(start.pool(tokens, 2), dropout), labels, label_smoothing=0.1)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(start.parameters(), 5.0)

    result = trainer.run_step()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert (result.step, result.clips, result.epoch) == (1, 5, pytest.approx(1 / 3))
    assert result.lr == pytest.approx(1e-2 / 3)  # a third of the warm-up
    weights = trainer.state()["model"]
    for name, parameter in start.named_parameters():
        # The first step of AdamW: the gradient's sign times the layer's rate, and decay.
        layer = 0 if "embedding" in name else 1 + int(name.split(".")[2]) if "blocks" in name else 3
        rate = result.lr * 0.8 ** (3 - layer)
        decay = 0.05 if parameter.ndim == 2 and name.endswith("weight") else 0.0
        gradient = parameter.grad
        expected = parameter.detach() * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        sure = gradient.abs() > 1e-5
        torch.testing.assert_close(weights[f"student.{name}"][sure], expected[sure], rtol=1e-4, atol=1e-6, msg=name)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(weights[f"student.head.norm.{name}"], getattr(start.head.norm, name))


def test_with_micro_batches_the_head_sees_one_at_a_time(run, store):
    """Its batch norm is over a micro-batch, as is said where they are asked for: other numbers, as good to learn by."""
    text = field_texts(finetune_config.FinetuneConfig)["accumulate"]
    assert "the head's batch norm\nthen sees a micro-batch of all ranks at a time" in text
    whole, parts = _trainer(run, store, accumulate=1), _trainer(run, store, accumulate=2)
    for trainer in (whole, parts):
        trainer.run_step()
    norms = [trainer.objective.head.norm for trainer in (whole, parts)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [1, 2]
    assert (norms[0].running_mean - norms[1].running_mean).abs().max() > 1e-4
    # By hand: the two micro-batches one after the other, weighted by their sequences.
    by_hand, ids = _trainer(run, store).objective, whole.order.sample_ids(0)
    clips = whole.feed.recordings.clips(ids, epoch=0, seed=1)
    inputs = by_hand.prepare((clips,), Draw(1, 0, ids, torch.from_numpy(store.labels)[ids]))
    tokens = by_hand.encoder.with_drop_path(clips, inputs.paths, by_hand.rates)
    pooled, loss = by_hand.pool(tokens, 2), 0.0
    for rows in (slice(0, 3), slice(3, 5)):
        logits = by_hand.head(pooled[rows], inputs.dropout[rows])
        loss = loss + F.cross_entropy(logits, inputs.labels[rows], label_smoothing=0.1) * len(logits) / 5
    again = _trainer(run, store, accumulate=2)
    result = again.run_step()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
    expected = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    assert result.grad_norm == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(by_hand.head.norm.running_var, norms[1].running_var)


def test_without_batch_norm_micro_batches_change_nothing(run, store):
    """Where the head's batch norm goes by what it has seen already, the parts of a batch add up to it."""
    losses = []
    for accumulate in (1, 3):
        trainer = _trainer(run, store, accumulate=accumulate)
        trainer.objective.head.norm.eval()
        losses.append([trainer.run_step().loss for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_length_and_warm_up(run, store):
    trainer = _trainer(run, store)  # 12 sequences, 5 a step
    assert (trainer.order.steps_per_epoch, trainer.total_steps, trainer.warmup_steps) == (3, 9, 3)
    longer = _trainer(run, store, min_steps=90)
    assert (longer.total_steps, longer.warmup_steps) == (90, 30)
    assert _trainer(run, store, batch=100).order.batch == 12


def test_it_starts_from_the_weights_it_was_given(run, store):
    trainer = _trainer(run, store)
    for name, tensor in run[2].state_dict().items():
        assert torch.equal(trainer.objective.encoder.state_dict()[name], tensor), name
    encoder, config, _ = features.load_encoder(run[0])
    made = finetune_config.run_config(config, _options())
    with pytest.raises(errors.CheckpointError, match="the weights to start from are not of this network"):
        Trainer(made, store, initial={"norm.weight": encoder.norm.weight})


def test_it_learns(run, store, tmp_path):
    _tune(tmp_path / "tuned", run, store, epochs=40.0, hidden=64, dropout=0.0, drop_path=0.1, layer_decay=0.9)
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1
    assert lines[-1]["step"] == 120
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    model, config, about = finetune.load_classifier(tmp_path / "tuned")
    ids = store.select("halves", "train")
    clips = Recordings(config, store, torch.device("cpu")).clips(torch.from_numpy(ids))
    right = model(clips.unflatten(0, (-1, 2))).argmax(1).numpy() == store.labels[ids]
    assert right.mean() > 0.8
    assert about["classes"] == ["wave", "nod", "kick"]
    assert about["step"] == 120
    # What the head normalises by at last is what it has seen, not where it began.
    norm = model.head.norm
    assert int(norm.num_batches_tracked) == 120
    assert (norm.running_mean.abs() > 1e-3).any()
    assert (norm.running_var - 1).abs().max() > 1e-2
    assert about["finetune"]["source"]["split"] == "halves"
    # And it is an encoder like any other.
    encoder, _, step = features.load_encoder(tmp_path / "tuned")
    assert step == 120
    assert torch.equal(encoder.norm.weight, model.encoder.norm.weight)


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_going_on_is_bitwise(run, store, tmp_path, monkeypatch, stop_at):
    _tune(tmp_path / "whole", run, store)
    step = Trainer.run_step

    def until(self):
        result = step(self)
        if self.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", until)
        with pytest.raises(finetune.Stopped, match="SIGTERM.*goes on") as stopped:
            _tune(tmp_path / "parts", run, store)
    assert stopped.value.signum == signal.SIGTERM
    assert checkpoint.steps(tmp_path / "parts")[-1] == stop_at
    _tune(tmp_path / "parts", run, store, accumulate=1)
    for name, content in _files(tmp_path / "whole").items():
        if "step-00000009" in name or name in ("metrics.jsonl", "config.yaml"):
            assert content == _files(tmp_path / "parts")[name], name
    before = _files(tmp_path / "parts")
    assert _tune(tmp_path / "parts", run, store) == 0.0  # finished: nothing is done
    assert _files(tmp_path / "parts") == before


def test_a_kill_goes_on_from_the_last_checkpoint(run, store, tmp_path, monkeypatch):
    _tune(tmp_path / "whole", run, store)
    step = Trainer.run_step

    def dies(self):
        if self.step == 5:
            raise MemoryError
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", dies)
        with pytest.raises(MemoryError):
            _tune(tmp_path / "parts", run, store)
    _tune(tmp_path / "parts", run, store)
    whole, parts = _files(tmp_path / "whole"), _files(tmp_path / "parts")
    assert whole["metrics.jsonl"] == parts["metrics.jsonl"]
    assert whole["checkpoints/step-00000009/model.safetensors"] == parts["checkpoints/step-00000009/model.safetensors"]


def test_a_folder_of_other_settings_is_refused(run, store, tmp_path):
    _tune(tmp_path / "tuned", run, store)
    with pytest.raises(errors.CheckpointError, match=r"finetune.lr = 0.01, not 0.02; name another folder"):
        _tune(tmp_path / "tuned", run, store, lr=2e-2)
    with pytest.raises(errors.CheckpointError, match=r"data.sampling = 'bins', not 'crop'"):
        _tune(tmp_path / "tuned", run, store, data={"sampling": "crop"})
    with pytest.raises(errors.CheckpointError, match=r"mode = 'finetune', not 'supervised'"):
        _tune(tmp_path / "tuned", run, store, mode="supervised")
    with pytest.raises(errors.CheckpointError, match="holds a pretrained run"):
        _tune(run[0], run, store)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(errors.CheckpointError, match="not empty"):
        _tune(tmp_path / "full", run, store)
    with pytest.raises(errors.CheckpointError, match="a pretrained run, which has no classes.*--protocol finetune"):
        finetune.load_classifier(run[0])


def test_numbers_that_are_not_finite_end_it(run, store, tmp_path, monkeypatch):
    make = SkeletonRecordings.clips

    def broken(self, ids, *, epoch=None, seed=0):
        clips = make(self, ids, epoch=epoch, seed=seed)
        return clips * float("nan") if epoch == 1 else clips

    monkeypatch.setattr(SkeletonRecordings, "clips", broken)
    with pytest.raises(errors.TrainingError, match=r"step 4: the loss is nan; weights are as they were before.*lr"):
        _tune(tmp_path / "tuned", run, store)
    found = checkpoint.load_latest(tmp_path / "tuned")
    assert found.step == 2
    assert all(tensor.isfinite().all() for tensor in found.tensors["model"].values())


def test_a_step_that_is_not_finite_leaves_what_the_head_has_seen(run, store, monkeypatch):
    trainer, make = _trainer(run, store), SkeletonRecordings.clips
    trainer.run_step()
    before = {name: tensor.clone() for name, tensor in trainer.state()["model"].items()}
    monkeypatch.setattr(
        SkeletonRecordings, "clips", lambda self, *given, **how: make(self, *given, **how) * float("nan")
    )
    with pytest.raises(errors.TrainingError):
        trainer.run_step()
    after = trainer.state()["model"]
    assert {"student.head.norm.running_mean", "student.head.norm.num_batches_tracked"} <= set(after)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_one_sequence_is_too_few(run, store, tmp_path):
    with pytest.raises(errors.DataError, match="1 training sequence"):
        _tune(tmp_path / "t", run, store, ids=np.array([3]))


def _rank(rank, world, folder, run_dir, store_path, sizes):
    """One process of several, with gloo."""
    torch.set_num_threads(1)
    file = f"file://{folder}/meet"
    distributed.make_group("gloo", init_method=file, rank=rank, world_size=world)
    with contextlib.suppress(KeyError):
        del os.environ["RANK"]
    run = (run_dir, None, None)
    for size in sizes:
        store = Store.open(store_path)
        _tune(folder / f"tuned{size}", run, store, Ranks(rank, world, rank), batch=size, epochs=2.0)
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_give_the_numbers_of_one(run, store_path, store, tmp_path):
    """Also where their shares are not equal."""
    torch.multiprocessing.spawn(_rank, (2, tmp_path, run[0], store_path, (5, 6)), nprocs=2)
    for size in (5, 6):
        _tune(tmp_path / f"one{size}", run, store, batch=size, epochs=2.0)
        rows = [
            [json.loads(line) for line in (tmp_path / f"{name}{size}" / "metrics.jsonl").read_text().splitlines()]
            for name in ("one", "tuned")
        ]
        assert len(rows[0]) == len(rows[1]) > 3
        for one, two in zip(*rows, strict=True):
            assert two == pytest.approx(one, rel=2e-4), one["step"]
        weights = [checkpoint.load_latest(tmp_path / f"{name}{size}").tensors["model"] for name in ("one", "tuned")]
        for name, tensor in weights[0].items():
            if name.endswith("qkv.bias"):  # keys' biases have no gradient but rounding, which AdamW makes steps of
                tensor, weights[1][name] = (bias.view(3, -1)[[0, 2]] for bias in (tensor, weights[1][name]))
            torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_progress_says_what_fine_tuning_is_about(capsys):
    from s2vfast.train import progress

    shown = progress.Plain(progress.Meter(3), 1)
    result = {"epoch": 0.5, "loss": 1.0, "lr": 1e-3, "clips": 4, "ema_decay": None, "terms": {"top1": 40.0}}
    shown.update(1, SimpleNamespace(**result))
    said = capsys.readouterr().out
    assert "top1 40" in said
    assert "EMA" not in said
