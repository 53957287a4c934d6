"""Fine-tuned runs: a step against plain PyTorch, going on bitwise, ranks, folders."""

import contextlib
import copy
import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import s2vfast.errors as errors
from s2vfast.data import Store
from s2vfast.evaluate import classifier, features, finetune, finetune_config
from s2vfast.evaluate.tuner import Tuner
from s2vfast.train import checkpoint, distributed
from s2vfast.train.distributed import Ranks

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
    }
    return finetune.Source(**{**values, **changes})


def _tune(out, run, store, ranks=None, **changes):
    encoder, config, _ = features.load_encoder(run[0])
    ids = store.select("halves", "train")
    source = _source(encoder, ids)
    return finetune.tune(out, encoder, config, store, ids, _options(**changes), source, ranks=ranks)


def _tuner(run, store, **changes):
    encoder, config, _ = features.load_encoder(run[0])
    ids = torch.from_numpy(store.select("halves", "train"))
    return Tuner(encoder, config, _options(**changes), store, ids, torch.device("cpu"))


def _files(folder):
    """Bytes of all that a fine-tuned run is made of, but for what says when and where."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def test_a_step_is_plain_pytorchs(run, store):
    """Loss, and all weights after the first step, without and with parts."""
    mine = _tuner(run, store)
    start = copy.deepcopy(mine.model)
    ids = mine.order.sample_ids(0)
    clips = mine.clips.make(ids, epoch=0, seed=1)
    paths = classifier.draw_paths(mine.rates, 1, 0, ids, 2)
    kept = classifier.draw_dropout(0.3, 1, 0, ids, mine.width)
    tokens = classifier.encode(start.encoder, clips, paths, mine.rates)
    loss = F.cross_entropy(start.head(start.pool(tokens, 2), kept), mine.labels[ids], label_smoothing=0.1)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(start.parameters(), 5.0)

    mine.run_step()
    (result,) = mine.drain()
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert (result.step, result.clips, result.epoch) == (1, 5, pytest.approx(1 / 3))
    assert result.lr == pytest.approx(1e-2 / 3)  # a third of the warm-up
    weights = mine.state()["model"]
    for name, parameter in start.named_parameters():
        # The first step of AdamW: the gradient's sign times the layer's rate, and decay.
        layer = 0 if "embedding" in name else 1 + int(name.split(".")[2]) if "blocks" in name else 3
        rate = result.lr * 0.8 ** (3 - layer)
        decay = 0.05 if parameter.ndim == 2 and name.endswith("weight") else 0.0
        gradient = parameter.grad
        expected = parameter.detach() * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        sure = gradient.abs() > 1e-5
        torch.testing.assert_close(weights[name][sure], expected[sure], rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(mine.model.head.norm.running_mean, start.head.norm.running_mean)

    parts = _tuner(run, store, accumulate=3)
    for _ in range(3):
        parts.run_step()
    mine.run_step()
    mine.run_step()
    assert [r.loss for r in parts.drain()][1:] == pytest.approx([r.loss for r in mine.drain()], rel=1e-4)


def test_length_and_warm_up(run, store):
    tuner = _tuner(run, store)  # 12 sequences, 5 a step
    assert (tuner.order.steps_per_epoch, tuner.total_steps, tuner.warmup_steps) == (3, 9, 3)
    longer = _tuner(run, store, min_steps=90)
    assert (longer.total_steps, longer.warmup_steps) == (90, 30)
    assert _tuner(run, store, batch=100).order.batch == 12


def test_it_learns(run, store, tmp_path):
    _tune(tmp_path / "tuned", run, store, epochs=40.0, hidden=64, dropout=0.0, drop_path=0.1, layer_decay=0.9)
    lines = [json.loads(line) for line in (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1
    assert lines[-1]["step"] == 120
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    model, config, about = finetune.load_classifier(tmp_path / "tuned")
    ids = store.select("halves", "train")
    clips = features.Clips(config, store, "cpu").make(torch.from_numpy(ids))
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
    step = Tuner.run_step

    def until(self):
        step(self)
        if self.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "run_step", until)
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
    step = Tuner.run_step

    def dies(self):
        if self.step == 5:
            raise MemoryError
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "run_step", dies)
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
    encoder, config, _ = features.load_encoder(run[0])
    ids = store.select("halves", "train")
    other = replace(config, data=replace(config.data, sampling="crop"))
    with pytest.raises(errors.CheckpointError, match=r"data.sampling = 'bins', not 'crop'"):
        finetune.tune(tmp_path / "tuned", encoder, other, store, ids, _options(), _source(encoder, ids))
    source = _source(encoder, ids, mode="supervised")
    with pytest.raises(errors.CheckpointError, match=r"mode = 'finetune', not 'supervised'"):
        finetune.tune(tmp_path / "tuned", encoder, config, store, ids, _options(), source)
    with pytest.raises(errors.CheckpointError, match="holds a pretrained run"):
        _tune(run[0], run, store)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(errors.CheckpointError, match="not empty"):
        _tune(tmp_path / "full", run, store)
    with pytest.raises(errors.CheckpointError, match="a pretrained run, which has no classes.*--protocol finetune"):
        finetune.load_classifier(run[0])


def test_numbers_that_are_not_finite_end_it(run, store, tmp_path, monkeypatch):
    make = features.Clips.make

    def broken(self, ids, *, epoch=None, seed=0):
        clips = make(self, ids, epoch=epoch, seed=seed)
        return clips * float("nan") if epoch == 1 else clips

    monkeypatch.setattr(features.Clips, "make", broken)
    with pytest.raises(errors.TrainingError, match=r"step 4: loss nan.*finetune.lr"):
        _tune(tmp_path / "tuned", run, store)
    found = checkpoint.load_latest(tmp_path / "tuned")
    assert found.step == 2
    assert all(tensor.isfinite().all() for tensor in found.tensors["model"].values())


def test_one_sequence_is_too_few(run, store, tmp_path):
    encoder, config, _ = features.load_encoder(run[0])
    ids = np.array([3])
    with pytest.raises(errors.DataError, match="1 training sequence"):
        finetune.tune(tmp_path / "t", encoder, config, store, ids, _options(), _source(encoder, ids))


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
            torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_progress_says_what_fine_tuning_is_about(capsys):
    from s2vfast.train import progress

    shown = progress.Plain(progress.Meter(3), 1)
    shown.update(1, SimpleNamespace(epoch=0.5, loss=1.0, lr=1e-3, top1=40.0, clips=4))
    assert "top-1 of the batch 40 %" in capsys.readouterr().out
