"""``s2vfast tune``: its options, and what it calls. It imports nothing heavy; the parser is handed in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2vfast import errors

if TYPE_CHECKING:
    from s2vfast.config import Config

NAME = "tune"
TEXT = "check and time all implementations of a config's operations here, and keep the fastest for later runs"
CLASSES = 10
BUDGET = 1800.0
"""Seconds: it was asked for, and a CPU takes longer than a GPU."""


def add(parser: Any) -> None:
    """Give the command its options."""
    from s2vfast import presets

    parser.add_argument("--config", required=True, metavar="NAME|FILE", help=f"{', '.join(presets.names())} or a file")
    parser.add_argument("--data", "--store", dest="store", metavar="STORE", help="recordings; without it, random ones")
    parser.add_argument(
        "--layout", metavar="NAME|FILE", help="the skeleton of random ones; without it kinect_v2, of nwucla* kinect_v1"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; without it train.device")
    parser.add_argument("--again", action="store_true", help="measure what has been measured before, too")


def run(options: Any) -> int:
    """Measure what is not kept yet, print the table, say where it is kept; 1 where something went wrong."""
    from s2vfast import presets
    from s2vfast.config import Config

    settings = options.settings
    if options.device is not None:
        settings.setdefault("train", {})["device"] = options.device
    config = Config.from_dict(presets.merge(presets.read_for(options.config, None), settings))
    layout = options.layout or ("kinect_v1" if options.config.startswith("nwucla") else "kinect_v2")
    return tune(config, store=options.store, layout=layout, again=options.again)


def tune(config: Config, *, store: str | None = None, layout: str = "kinect_v2", again: bool = False) -> int:
    """What the command does.

    Args:
        config: whose step is recorded.
        store: recordings; None: random ones.
        layout: skeleton of random ones.
        again: measure what is kept, too.

    Raises:
        ConfigError: nothing is left to choose, or the network reads no skeletons and there is no store.
    """
    import torch

    from s2vfast.calibrate import cache, measure
    from s2vfast.data.store import Store
    from s2vfast.train import calibration
    from s2vfast.train.trainer import Trainer

    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    messages: list[str] = []

    def say(line: str) -> None:
        messages.append(line)
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="s2vfast-tune-") as folder:
        trainer = Trainer(config, Store.open(store or _random_store(Path(folder, "store"), config, layout)))
        if not calibration.applies(trainer):
            raise errors.ConfigError(
                f"tune: train.impl {config.train.impl} and train.mode {trainer.mode} leave nothing to choose; give "
                f"auto, and do not set S2VFAST_IMPL or S2VFAST_CALIBRATE=0"
            )
        recorder = calibration.record(trainer)
        limits = {"capture": trainer.captures, "measures": True, "again": again, "budget": BUDGET}
        rows = calibration.choose(recorder, trainer.device, say, **limits)
        trainer.close()
    table = measure.best(rows, trainer.device.type)
    print(calibration.summary(table, cache.path(cache.environment(trainer.device))))
    return int(any(line.startswith("warning") for line in messages))


def _random_store(path: Path, config: Config, layout_name: str) -> Path:
    """A store of random walks, as many sequences as a batch has; two bodies in every second one."""
    import numpy as np

    from s2vfast.data.layout import get_layout
    from s2vfast.data.store import Body, Sequence
    from s2vfast.data.store_writer import write_store

    if "skeletons" not in config.network_class.reads:
        raise errors.ConfigError(f"--data: needed, as model.name: {config.model.name} reads no skeletons")
    layout = get_layout(layout_name)
    generator = np.random.default_rng(0)
    frames = int(config.data.frames * 1.5)

    def body(slot: int) -> Body:
        steps = generator.normal(scale=0.02, size=(frames, layout.num_joints, 3))
        joints = (steps.cumsum(0) + generator.normal(size=(layout.num_joints, 3))).astype(np.float32)
        return Body(f"body{slot}", np.arange(frames, dtype=np.int32), joints)

    sequences = [
        Sequence(f"s{number:05d}", number % CLASSES, frames, [body(slot) for slot in range(1 + number % 2)])
        for number in range(config.train.batch)
    ]
    names = [sequence.name for sequence in sequences]
    splits = {} if config.data.split == "all" else {config.data.split: {"train": names, "test": []}}
    classes = [f"class{number}" for number in range(CLASSES)]
    source = {"format": "random"}
    write_store(path, sequences, layout=layout, classes=classes, splits=splits, source=source, dropped=[])
    return path
