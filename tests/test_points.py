"""Runs on point clouds from one command to the next: a kill, ranks, every protocol, export, predictions."""

import json

import numpy as np
import pytest
import torch

import s2vfast
from s2vfast import cli, errors
from s2vfast.data.point_layout import PointLayout
from s2vfast.data.point_store import PointSequence
from s2vfast.data.store_writer import write_store
from s2vfast.evaluate import point_floor, protocols, ridge

from .calls import call, check_same_run, metrics, pretrain, pretrain_on_ranks, pretrain_with_a_kill, weights

STEPS = 6
COMMON = (
    f"--config msr_order --data.split halves --data.points 24 --train.steps {STEPS} --train.batch 8 "
    "--optim.warmup_epochs 0 --checkpoint.every 2 --train.log_every 1 --train.threads 1 --train.device cpu "
    "--optim.lr 0.001 --objective.hidden 8 --objective.dropout 0.2 --data.shift 0.1"
)
NETWORKS = {
    "sparse4d": "--model.channels [4,6,8] --model.voxel 0.3 --model.kernel cross",
    "point_tubes": "--model.name point_tubes --model.segment_frames 4 "
    "--model.dim 16 --model.heads 2 --model.depth 2 --model.tubes 6 --model.neighbors 4",
}
RECIPE = "--recipe msr_finetune --finetune.epochs 2 --finetune.warmup_epochs 0 --device cpu"


def person(number, frames=24):
    """A cloud that drifts away from where it began, along x or along y."""
    rng = np.random.default_rng(number)
    path = np.linspace(0, 1.5, frames)[:, None] * np.eye(3)[number % 2] + [0, 0, 2.5]
    counts = rng.integers(20, 40, frames)
    points = [centre + rng.normal(0, 0.2, (count, 3)) for centre, count in zip(path, counts, strict=True)]
    return PointSequence(
        f"r{number:02d}", number % 2, frames, np.concatenate(points).astype(np.float32), counts, subject=number // 8
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points") / "store"
    people = [person(number, 24 + number % 3) for number in range(16)]
    names = [one.name for one in people]
    splits = {"halves": {"train": names[:8] + names[8:10], "test": names[10:]}}
    write_store(folder, people, layout=PointLayout(), classes=["across", "up"], splits=splits, source={}, dropped=[])
    return folder


def options(network, store, out):
    return f"{COMMON} {NETWORKS[network]} --data {store} --out {out}"


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, store):
    out = store.parent / request.param
    pretrain(options(request.param, store, out))
    return request.param, out


@pytest.fixture(scope="module")
def tuned(store):
    """A fine-tuned run."""
    run, out = store.parent / "source", store.parent / "tuned"
    pretrain(options("sparse4d", store, run))
    assert cli.main(["evaluate", str(run), "--protocol", "finetune", *RECIPE.split(), "--out", str(out)]) == 0
    return out


def test_a_killed_run_ends_at_the_same_bytes(trained, store):
    network, out = trained
    killed = out.with_name(f"{network}-killed")
    pretrain_with_a_kill(options(network, store, killed), killed)
    check_same_run(out, killed)


def test_two_ranks_are_one(trained, store):
    network, out = trained
    ranks = out.with_name(f"{network}-ranks")
    pretrain_on_ranks(options(network, store, ranks), 2)
    for one, two in zip(metrics(out), metrics(ranks), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    one, two = weights(out), weights(ranks)
    # What has no gradient but rounding goes wherever Adam's quotient leads it: at most a step of the rate.
    assert max(float((one[name].double() - two[name].double()).abs().mean()) for name in one) < 1e-3


def test_every_protocol_measures_it(trained, capsys):
    _, out = trained
    options = "--lists 1 --percents 50 --epochs 2 --windows 3 --json --pool segment --semi linear,knn".split()
    result = json.loads(call(capsys, "evaluate", out, "--protocol", "all", *options, *RECIPE.split()).splitlines()[-1])
    assert set(result["results"]) == {"floor", "linear", "knn", "retrieval", "finetune", "supervised", "semi"}
    assert result["windows"] == 3
    retrieval = result["results"]["retrieval"]
    assert (retrieval["test_to_train"]["queries"], retrieval["clip_to_clip"]["queries"]) == (6, 18)
    assert "recall@20" in retrieval["clip_to_clip"]


def test_orders_are_measured_by_gap_and_length(trained, capsys):
    _, out = trained
    result = json.loads(call(capsys, "evaluate", out, "--protocol", "order", "--json").splitlines()[-1])
    assert set(result["by_gap"]) == {"0", "4", "8"}
    assert result["top1"] == result["by_gap"]["4"]
    assert result["chance"] == pytest.approx(100 / 6)
    assert sum(part["sequences"] for part in result["by_length"].values()) == 6
    assert result["by_length"]["stretched"]["sequences"] == 6, "a tuple takes 31 frames"
    text = call(capsys, "evaluate", out, "--protocol", "order")
    assert "order of clips, gap 8" in text


def test_orders_of_another_run_are_refused(tuned, capsys):
    assert cli.main(["evaluate", str(tuned), "--protocol", "order", "--split", "halves"]) == 2
    assert "is a run of objective.name: classify; clip_order is expected" in capsys.readouterr().err


def test_a_fine_tuned_run_has_clips_of_the_whole_recording(tuned):
    text = (tuned / "config.yaml").read_text()
    assert "frames: 24" in text
    assert "sampling: bins" in text
    assert "head: segments" in text


def test_windows_and_frames_that_cannot_be_are_refused(trained, tuned, store, capsys):
    run = str(trained[1])
    for words in (["evaluate", run, "--protocol", "knn"], ["embed", run, "--out", str(trained[1] / "f.npz")]):
        assert cli.main([*words, "--pool", "statistics"]) == 2
        error = "--pool: statistics; clips of a run whose data.sampling is window are one segment"
        assert error in capsys.readouterr().err
    assert cli.main(["evaluate", str(tuned), "--protocol", "classify", "--windows", "2"]) == 2
    assert "--windows: 2; the run's data.sampling is bins" in capsys.readouterr().err


@pytest.mark.parametrize("pool", ["mean", "segment"])
def test_features_of_several_clips_are_their_mean_or_all_of_them(trained, store, pool):
    _, out = trained
    options = {"windows": 3, "pool": pool, "log": lambda line: None, "device": "cpu"}
    context, _ = protocols.opened(out, store, None, ["knn"], options)
    each = context.clip_features(1)
    assert each.shape == (6, 3, context.encoder.width)
    assert torch.equal(context.features(1), each.mean(1) if pool == "mean" else each.flatten(1))
    assert not torch.equal(each[:, 0], each[:, 2]), "from the beginning and from the end"


def test_it_is_exported(tuned, capsys, tmp_path):
    call(capsys, "export", tuned, "--to", "torch", "--out", tmp_path / "network.pt2")
    extra = {"s2vfast.json": ""}
    program = torch.export.load(tmp_path / "network.pt2", extra_files=extra).module()
    clips = torch.randn(5, 1, 24, 24, 3)
    logits, _ = program(clips)
    assert logits.shape == (5, 2)
    assert "take 24 points of every frame" in extra["s2vfast.json"]
    assert cli.main(["export", str(tuned), "--to", "onnx", "--out", str(tmp_path / "network.onnx")]) == 1
    error = "--to onnx: this network has an operation that ONNX does not have (aten.sort); export with --to torch"
    assert error in capsys.readouterr().err


def test_it_is_packed(tuned, tmp_path, capsys):
    call(capsys, "pack", tuned, "--out", tmp_path / "it.safetensors")
    people = [person(number) for number in range(2)]
    one, other = (
        s2vfast.load(path, device="cpu").probabilities(people) for path in (tuned, tmp_path / "it.safetensors")
    )
    assert np.array_equal(one, other)
    assert "24 frames × 24 points × 3 coordinates, in metres" in call(capsys, "pack", tuned, "--card")


def test_recordings_are_classified_one_by_one(tuned, store):
    """From arrays as from the store: the same points, the same clip."""
    model, people = s2vfast.load(tuned, device="cpu"), [person(number, 24 + number % 3) for number in range(16)]
    frames = [np.split(one.points, np.cumsum(one.counts)[:-1]) for one in people]
    probabilities = model.probabilities(frames)
    expected = model.probabilities(people)
    np.testing.assert_array_equal(probabilities, expected)
    assert probabilities.shape == (16, 2)
    with pytest.raises(errors.DataError, match="a sequence of points: numbers"):
        model.predict([[np.zeros((4, 2))]])
    with pytest.raises(errors.ConfigError, match="takes whole recordings"):
        model.stream()


def test_depth_files_are_classified(tuned, tmp_path, capsys):
    """A folder with depth as an array."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    pictures = np.zeros((14, 48, 64), np.uint16)  # [frames, height, width]
    for number, picture in enumerate(pictures):
        picture[10:30, 10 + number : 30 + number] = 2500
    np.save(folder / "somebody.npy", pictures)
    lines = call(capsys, "predict", tuned, folder, "--format", "depth", "--camera", "f280", "--json").splitlines()
    assert {name for name, _ in json.loads(lines[-1])["top"]} == {"across", "up"}


def test_occupancy_in_plain_loops():
    clips = torch.randn(2, 6, 15, 3) * 0.5
    side, reach = 2 * point_floor.REACH, point_floor.REACH
    shares = np.zeros((2, 6, side, side, side))
    for n, t, p in np.ndindex(2, 6, 15):
        cell = np.clip(np.floor(clips[n, t, p].numpy() / np.float32(point_floor.CELL)).astype(int) + reach, 0, side - 1)
        shares[(n, t, *cell)] += 1 / 15
    changes = np.abs(np.diff(shares, axis=1))
    expected = [part.mean(1).reshape(2, -1) for table in (shares, changes) for part in np.array_split(table, 3, axis=1)]
    np.testing.assert_allclose(point_floor.occupancy(clips), np.sqrt(np.concatenate(expected, 1)), atol=1e-6)


def test_ridge_by_one_number_for_all_features():
    """A feature that hardly changes counts little where features are not standardised."""
    rng = np.random.default_rng(0)
    labels = torch.arange(40) % 2
    loud, faint = labels.numpy() * 2.0 - 1 + rng.normal(0, 0.1, 40), rng.normal(0, 1e-3, 40)
    features = torch.tensor(np.stack([loud, faint], 1), dtype=torch.float32)
    fits = [ridge.fit(features, labels, classes=2, standardize=flag) for flag in (True, False)]
    assert fits[1].deviation[0] == fits[1].deviation[1]
    weights = [(fit.weight / fit.deviation).abs() for fit in fits]
    assert weights[1][0, 1] < weights[0][0, 1]
    for fit in fits:
        assert (fit.scores(features).argmax(1) == labels).all()
