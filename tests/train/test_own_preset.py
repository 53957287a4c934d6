"""The preset that is chosen from a store: for every skeleton, with labels or without."""

import numpy as np
import pytest

from s2vfast import presets
from s2vfast.cli import main
from s2vfast.config import Config
from s2vfast.data.clips import clip_spec
from s2vfast.data.layout import LAYOUTS, Layout
from s2vfast.data.store import Body, Sequence, Store
from s2vfast.data.store_writer import write_store
from s2vfast.errors import DataError
from s2vfast.objectives import build_objective
from s2vfast.train import own_preset

LINE = Layout("line", ("a", "b"), (-1, 0), 0, (0, 1), (0, 1), up=(0.6, 0.8, 0.0))


def make(folder, layout, *, sequences=6, frames=40, bodies=1, labels=True, dimensions=3, splits=None, unit="m"):
    rng = np.random.default_rng(0)

    def body(length):
        joints = rng.uniform(0.1, 1, (length, layout.num_joints, 3)).astype(np.float32)
        joints[..., dimensions:] = 0
        return Body("1", np.arange(length, dtype=np.int32), joints)

    recordings = (
        Sequence(f"s{n}", n % 2 if labels else -1, frames, [body(frames) for _ in range(bodies)], subject=n % 3)
        for n in range(sequences)
    )
    write_store(folder, recordings, layout=layout, classes=["x", "y"] if labels else [], splits=splits or {}, source={},
                dropped=[], dimensions=dimensions, unit=unit)  # fmt: skip
    return Store.open(folder)


def chosen(store, **options):
    tree, reasons = own_preset.tree(store, **options)
    return Config.from_dict(tree), reasons


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), LINE], ids=lambda layout: layout.name)
def test_it_fits_every_layout_with_and_without_labels(tmp_path, layout):
    for labels in (True, False):
        for dimensions in (2, 3):
            store = make(tmp_path / f"{labels}{dimensions}", layout, labels=labels, dimensions=dimensions)
            config, reasons = chosen(store)
            config.validate(store.layout)
            clip_spec(config.data, store.layout)
            build_objective(config, store.layout)
            assert config.data.split == "all"
            assert 1 <= config.mask.keep < layout.num_joints
            assert all(len(reason) > 10 for reason in reasons)


@pytest.mark.parametrize(
    ("frames", "expected"), [(5, (16, 4)), (31, (16, 4)), (32, (32, 8)), (63, (32, 8)), (64, (64, 8)), (900, (64, 8))]
)
def test_frames_follow_the_lengths(tmp_path, frames, expected):
    config, reasons = chosen(make(tmp_path / "store", LINE, frames=frames))
    assert (config.data.frames, config.model.segment_frames) == expected
    assert any(f"half of the main bodies have {frames} frames or more" in reason for reason in reasons)


def test_bodies_split_batch_and_length_follow_the_store(tmp_path):
    halves = {"halves": {"train": ["s0", "s1", "s2", "s3"], "test": ["s4", "s5"]}}
    pairs = make(tmp_path / "pairs", LAYOUTS["kinect_v2"], bodies=2, splits=halves)
    config, reasons = chosen(pairs)
    assert (config.data.bodies, config.data.split, config.train.batch, config.train.epochs) == (2, "halves", 4, 4000)
    assert config.optim.warmup_epochs == 160
    assert config.data.rotate == (0.1, 0.52, 0.1)
    assert reasons[0] == "split halves: 4 sequences to learn from (other splits: all)"
    everything, _ = chosen(pairs, split="all")
    assert (everything.data.split, everything.train.batch) == ("all", 6)
    flat, _ = chosen(make(tmp_path / "flat", LINE, dimensions=2, unit="px"))
    assert (flat.data.bodies, flat.data.align, flat.data.rotate) == (1, "none", (0.0, 0.0, 0.3))
    with pytest.raises(DataError, match="no split 'mine'"):
        chosen(pairs, split="mine")


@pytest.mark.parametrize(("sequences", "size"), [(4_999, (64, 32)), (5_000, (128, 64)), (20_000, (256, 128))])
def test_networks_grow_with_the_data(sequences, size):
    changes = {section: {} for section in ("model", "objective", "optim", "train")}
    reasons = []
    own_preset._size(sequences, changes, reasons)
    assert (changes["model"]["dim"], changes["train"]["batch"]) == size
    assert changes["model"]["dim"] % changes["model"]["heads"] == 0
    assert f"{sequences:,} sequences" in reasons[0]


def test_what_was_chosen_is_said_and_written_as_numbers(tmp_path, capsys):
    make(tmp_path / "store", LINE, labels=False)
    words = [
        "pretrain",
        "--config",
        "own",
        "--data",
        f"{tmp_path}/store",
        "--train.steps",
        "2",
        "--train.device",
        "cpu",
    ]
    assert main([*words, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "# own: mask.keep 1: a fifth of the 2 joints of line" in printed
    assert "as given" not in printed
    assert main([*words, "--train.batch", "4", "--data.frames", "32", "--print_config"]) == 0
    given = [line for line in capsys.readouterr().out.splitlines() if "as given" in line]
    assert given == ["# own: train.batch 4, as given, in place of 6"]
    assert Config.from_dict(presets.parse(printed, "printed")).mask.keep == 1
    assert main([*words, "--out", f"{tmp_path}/run"]) == 0
    tree = presets.read(tmp_path / "run/config.yaml")
    assert (tree["data"]["frames"], tree["mask"]["keep"], tree["train"]["batch"]) == (32, 1, 6)
    capsys.readouterr()
    for objective in ("mamp", "skeletonmae"):
        assert main([*words, "--objective", objective, "--out", f"{tmp_path}/{objective}"]) == 0
    assert main(["pretrain", "--config", "own", "--print_config"]) == 0, "without a store the preset as it is"
