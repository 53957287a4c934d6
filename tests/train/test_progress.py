"""What one sees of a run while it goes."""

import functools
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from s2vfast.train import progress
from s2vfast.train.loop import train


def test_plain_lines_first_last_and_seldom_between(capsys):
    now = [0.0]
    meter = progress.Meter(100, clock=lambda: now[0])
    plain = progress.Plain(meter, every=2)
    for step in range(1, 101):
        now[0] += 0.5
        meter.add(4)
        plain.update(step, SimpleNamespace(epoch=step / 10, loss=1 / step, lr=1e-3, ema_decay=0.99, terms={}))
    lines = capsys.readouterr().out.splitlines()
    shown = [int(line.split()[1].split("/")[0]) for line in lines]
    assert shown == [1, 12, 22, 32, 42, 52, 62, 72, 82, 92, 100]
    assert lines[1] == "step 12/100  epoch 1.20  loss 0.0833  lr 1.00e-03  EMA 0.990000  8 clips/s  ETA 44 s"


def test_the_bar_is_drawn_on_a_terminal(tmp_path, tiny_store, tiny_config, fake_trainer, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=150)
    monkeypatch.setattr(progress, "make", lambda meter, every, stream=None: progress.Bar(meter, console))
    trainer = functools.partial(fake_trainer, target_var=0.0)
    train(tiny_config(), tiny_store, tmp_path, make_trainer=trainer)
    assert "step 12/12" in screen.getvalue()
    assert "clips/s  ETA 0 s" in screen.getvalue()
    assert "the teacher has collapsed" in screen.getvalue()


def test_tensorboard_on_request(tmp_path, tiny_store, tiny_config, fake_trainer):
    pytest.importorskip("tensorboard")
    train(tiny_config(), tiny_store, tmp_path, tensorboard=True, make_trainer=fake_trainer)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (58.2, "59 s"), (64.5, "1:05"), (7384, "2:03:04")])
def test_duration(seconds, text):
    assert progress.duration(seconds) == text
