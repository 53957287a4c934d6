"""Raw files to classes: the numbers of an evaluation, and broken files named."""

import io
import json
import pickle
import types
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

import s2vfast
import s2vfast.errors as errors
from s2vfast import cli
from s2vfast.config import Config
from s2vfast.data import Store
from s2vfast.data.formats.lines import Reader
from s2vfast.data.importer import import_dataset
from s2vfast.data.layout import Layout, get_layout
from s2vfast.evaluate import features, finetune, finetune_config, protocols
from s2vfast.evaluate import predict as prediction
from s2vfast.evaluate.predict import predict
from s2vfast.networks import build_network
from s2vfast.train import checkpoint, rundir
from s2vfast.train.feed import Recordings

CONFIG = {
    "data": {"frames": 8, "bodies": 1, "split": "xview", "center": "frame", "velocity": 1.0},
    "model": {"segment_frames": 4, "dim": 8, "heads": 2, "depth": 2, "layer_scale": 0.5},
    "mask": {"ratio": 0.8, "tube_len": 1},
    "objective": {"decoder_depth": 1, "top_k": 2},
}
RECIPE = finetune_config.load(changes={"epochs": 2.0, "batch": 4, "hidden": 8})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with raw NW-UCLA files ``raw``, their ``store`` and a fine-tuned run ``tuned``."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "raw").mkdir()
    rng = np.random.default_rng(0)
    for action, label in ((1, 1), (8, 7), (12, 10)):
        for view in (1, 2, 3):
            for repetition in range(2):
                name = f"a{action:02d}_s01_e{repetition:02d}_v{view:02d}"
                frames = int(rng.integers(5, 20))
                data = {"file_name": name, "label": label}
                data["skeletons"] = rng.uniform(0.1, 3, (frames, 20, 3)).round(5).tolist()
                (folder / "raw" / f"{name}.json").write_text(json.dumps(data))
    import_dataset(folder / "raw", folder / "store")
    store, config = Store.open(folder / "store"), Config.from_dict(CONFIG)
    encoder = build_network(config, store.layout)
    rundir.create(folder / "run", config, store)
    tensors = {f"teacher.{name}": tensor for name, tensor in encoder.state_dict().items()}
    checkpoint.save(folder / "run", 1, {"model": tensors}, {}, keep=1)
    protocols.evaluate(folder / "run", folder / "store", protocol="finetune", recipe=RECIPE, out=folder / "tuned")
    return folder


def test_probabilities_are_those_of_an_evaluation(place):
    store = Store.open(place / "store")
    model, config, about = finetune.load_classifier(place / "tuned")
    clips = Recordings(config, store, torch.device("cpu")).clips(torch.arange(len(store)))
    expected = torch.softmax(model(clips.unflatten(0, (-1, 1))), dim=1)
    files = [place / "raw" / f"{name}.json" for name in reversed(store.names)]
    found = list(predict(place / "tuned", files, top=4))
    assert [entry["file"] for entry in found] == [str(file) for file in files]
    for entry, row in zip(found, expected.flip(0), strict=True):
        values, order = row.sort(descending=True)
        assert [name for name, _ in entry["top"]] == [about["classes"][i] for i in order[:4]]
        assert [value for _, value in entry["top"]] == pytest.approx(values[:4].tolist(), abs=1e-6)


def test_broken_files_are_named_and_skipped(place, tmp_path, capfd):
    from s2vfast.cli import main

    good = sorted((place / "raw").iterdir())[0]
    half, other = tmp_path / "a01_s01_e00_v01.json", tmp_path / "a12_s01_e00_v01.json"
    half.write_text(good.read_text()[:500])
    other.write_text(json.dumps({"file_name": other.stem, "label": 10, "skeletons": [[[float("nan")] * 3] * 20] * 3}))
    (tmp_path / "letter.txt").write_text("hello")
    files = [half, good, other, tmp_path / "letter.txt", tmp_path / "nothing.json"]
    found = list(predict(place / "tuned", files))
    assert [("error" in entry) for entry in found] == [True, False, True, True, True]
    assert "not JSON" in found[0]["error"]
    assert str(half) in found[0]["error"]
    assert "no body in any frame" in found[2]["error"]
    assert "of no known format" in found[3]["error"]
    assert "no such file" in found[4]["error"]

    words = ["predict", str(place / "tuned"), *map(str, files)]
    assert main(words) == 1
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 1
    assert out.startswith(str(good))
    assert len(err.splitlines()) == 4
    assert all(line.startswith("skipped: ") for line in err.splitlines())
    assert main([*words, "--json"]) == 1
    lines = [json.loads(line) for line in capfd.readouterr()[0].splitlines()]
    assert [sorted(line) for line in lines][1] == ["file", "sequence", "top"]
    assert len(lines) == 5
    assert main(["predict", str(place / "tuned"), str(good)]) == 0


def test_a_file_of_several_sequences_names_them(place, tmp_path):
    rng = np.random.default_rng(1)
    annotations = [
        {"frame_dir": f"clip{i}", "label": 90, "total_frames": 9, "keypoint": rng.uniform(0.1, 2, (1, 9, 20, 3))}
        for i in range(3)
    ]
    file = tmp_path / "mine.pkl"
    file.write_bytes(pickle.dumps({"split": {"train": ["clip0"], "test": ["clip1"]}, "annotations": annotations}))
    found = list(predict(place / "tuned", [file], layout="kinect_v1"))
    assert [entry["sequence"] for entry in found] == ["clip0", "clip1", "clip2"]
    assert all(len(entry["top"]) == 5 for entry in found)


def test_neither_labels_nor_names_are_needed(place, tmp_path):
    good = sorted((place / "raw").iterdir())[0]
    skeletons = json.loads(good.read_text())["skeletons"]
    (tmp_path / "clip.json").write_text(good.read_text())
    (tmp_path / "a99_s01_e00_v01.json").write_text(json.dumps({"file_name": "x", "skeletons": skeletons}))
    keypoint = np.array(skeletons)[None]
    annotation = {"frame_dir": "mine", "label": None, "total_frames": len(skeletons), "keypoint": keypoint}
    (tmp_path / "mine.pkl").write_bytes(pickle.dumps({"annotations": [annotation], "split": 7, "classes": 7}))
    files = [good, *(tmp_path / name for name in ("clip.json", "a99_s01_e00_v01.json", "mine.pkl"))]
    first, *others = predict(place / "tuned", files)
    for found in others:
        assert found["top"] == first["top"]
    renamed = [entry["sequence"] for entry in predict(place / "tuned", [tmp_path], format="nwucla")]
    assert renamed == ["a99_s01_e00_v01", "clip"]


def test_answers_come_while_files_are_read(place, monkeypatch):
    read = []
    monkeypatch.setattr(prediction, "_AT_ONCE", 3)
    one_by_one = prediction.read_checked
    monkeypatch.setattr(
        prediction, "read_checked", lambda source, item, *more: read.append(item) or one_by_one(source, item, *more)
    )
    found = predict(place / "tuned", [place / "raw"])
    next(found)
    assert len(read) == 3
    assert len(list(found)) == 17
    assert len(read) == 18


def test_numbers_that_are_not_finite_name_the_file(place, tmp_path, monkeypatch):
    files = sorted((place / "raw").iterdir())[:3]
    expected = list(predict(place / "tuned", files))
    far = tmp_path / "far.json"
    far.write_text(json.dumps({"skeletons": (np.array(json.loads(files[0].read_text())["skeletons"]) * 5).tolist()}))
    load = finetune.load_classifier

    def loaded(*args, **options):
        model, config, about = load(*args, **options)

        def overflow(_, inputs, output):
            return torch.where((inputs[0].abs() > 5).flatten(1).any(1)[:, None, None], torch.inf, output)

        model.encoder.register_forward_hook(overflow)
        return model, config, about

    monkeypatch.setattr(finetune, "load_classifier", loaded)
    found = list(predict(place / "tuned", [files[0], far, *files[1:]]))
    odd = found.pop(1)
    assert sorted(odd) == ["error", "file"]
    assert odd["error"].startswith(f"{far}: the network's numbers of it are not finite; check its coordinates")
    assert [entry["top"] for entry in found] == [
        [[name, pytest.approx(value, abs=1e-6)] for name, value in entry["top"]] for entry in expected
    ]


def test_what_cannot_be_asked(place, tmp_path):
    good = sorted((place / "raw").iterdir())[0]
    with pytest.raises(errors.CheckpointError, match="a pretrained run, which has no classes"):
        list(predict(place / "run", [good]))
    with pytest.raises(errors.ConfigError, match="top: 0"):
        list(predict(place / "tuned", [good], top=0))
    with pytest.raises(errors.ConfigError, match="--format: 'bvh' is not one of ntu"):
        list(predict(place / "tuned", [good], format="bvh"))


def test_another_skeleton_is_an_error_of_the_file(place, tmp_path):
    rng = np.random.default_rng(1)
    annotations = [{"frame_dir": "a", "label": 0, "total_frames": 5, "keypoint": rng.uniform(0.1, 2, (1, 5, 25, 3))}]
    file = tmp_path / "ntu.pkl"
    file.write_bytes(pickle.dumps({"split": {"train": ["a"], "test": []}, "annotations": annotations}))
    (found,) = predict(place / "tuned", [file], layout="kinect_v2")
    assert "its layout is kinect_v2; the run was made with kinect_v1 (20 joints)" in found["error"]


def arrays(store):
    return [store.sequence(number)[0] for number in range(len(store))]


def test_arrays_have_the_features_and_classes_of_an_evaluation(place):
    store = Store.open(place / "store")
    ids = np.arange(len(store))
    for run in ("run", "tuned"):
        encoder, config, _ = features.load_encoder(place / run)
        model = s2vfast.load(place / run)
        expected = features.extract(encoder, config, store, ids, pool="joint_time").numpy()
        np.testing.assert_array_equal(model.encode(arrays(store), pool="joint_time"), expected)
    found = [entry["top"] for entry in predict(place / "tuned", [place / "raw" / f"{n}.json" for n in store.names])]
    rankings = model.predict(map(torch.from_numpy, arrays(store)))
    assert [[list(pair) for pair in ranking] for ranking in rankings] == found
    np.testing.assert_allclose(model.probabilities(arrays(store)).sum(1), 1.0, rtol=1e-6)
    assert model.classes == store.classes

    unseen = arrays(store)[0].copy()
    unseen[0, :, 5] = 0.0
    as_nan = np.where(unseen == 0.0, np.nan, unseen)
    np.testing.assert_array_equal(model.encode([unseen]), model.encode([as_nan]))
    assert (model.encode([unseen]) != model.encode(arrays(store)[:1])).any()


WRONG_ARRAYS = {
    "joints": (np.ones((4, 19, 3)), "a sequence: numbers [frames, 20, 3] or [bodies, frames, 20, 3] are expected"),
    "text": (np.full((4, 20, 3), "x"), "a sequence: numbers"),
    "nobody": (np.zeros((4, 20, 3)), "a sequence: no body in any frame"),
    "infinite": (np.full((4, 20, 3), np.inf), "a sequence: body 0, frame 0, joint 0: x is inf, not a finite number"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_arrays_are_named(place, name):
    array, message = WRONG_ARRAYS[name]
    with pytest.raises(errors.DataError) as caught:
        s2vfast.load(place / "tuned").encode([array])
    assert str(caught.value).startswith(message)


def test_a_window_slides_over_a_sequence(place):
    """Each window is what it is by itself, smoothed by the one before it; the last one ends with the sequence."""
    store = Store.open(place / "store")
    number = int(np.argmax(store.total_frames))
    total, file = int(store.total_frames[number]), place / "raw" / f"{store.names[number]}.json"
    found = list(predict(place / "tuned", [file, file], window=8, step=3, smooth=0.5, top=10))
    starts = [*range(0, total - 8, 3), total - 8]
    assert [entry["frames"] for entry in found] == 2 * [[start, start + 8] for start in starts]
    array = store.sequence(number)[0]
    each = s2vfast.load(place / "tuned").probabilities([array[:, start : start + 8] for start in starts])
    before = each[0]
    for entry, probabilities in zip(found[: len(starts)], each, strict=True):
        before = 0.5 * before + 0.5 * probabilities
        assert dict(entry["top"]) == pytest.approx(dict(zip(store.classes, before, strict=True)), abs=1e-6)
    assert [entry["top"] for entry in found[: len(starts)]] == [entry["top"] for entry in found[len(starts) :]]
    short = list(predict(place / "tuned", [file], window=1000))
    assert short[0]["frames"] == [0, total]
    assert short[0]["top"] == next(predict(place / "tuned", [file]))["top"]


class Arriving(io.BytesIO):
    """A pipe: what has been written is read piece by piece, as it arrived."""

    def __init__(self, pieces: list[str | bytes]) -> None:
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]

    def read1(self, size: int | None = -1) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def arrives(monkeypatch, *pieces: str | bytes) -> None:
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=Arriving(list(pieces))))


def test_frames_that_wait_are_looked_at_together(place, capsys, monkeypatch):
    """However lines arrive, in pieces or many at once, the answers are the same."""
    store = Store.open(place / "store")
    frames = store.sequence(0)[0][0]
    text = "".join(f"{json.dumps(frame.tolist())}\n" for frame in np.concatenate([frames] * 5)[:80]).encode()
    text = text.replace(b"\n", b"\r\n", 3) + b"\xff\xfe 1 2\n" + json.dumps(frames[0].tolist()).encode()
    command = f"predict {place}/tuned - --window 8 --smooth 0.5 --json".split()
    model = s2vfast.load(place / "tuned")
    counts, answers = [], []
    probabilities_of = type(model).probabilities_of

    def counted(self, recordings, *args, **options):
        counts.append(len(recordings))
        return probabilities_of(self, recordings, *args, **options)

    monkeypatch.setattr(type(model), "probabilities_of", counted)
    for pieces in ([text], text.splitlines(keepends=True), [text[at : at + 1000] for at in range(0, len(text), 1000)]):
        arrives(monkeypatch, *pieces)
        assert cli.main(command) == 1
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
        if len(answers) == 1:
            assert counts == [0, 32, 32, 16, 1]
    for answer in answers:
        assert [entry["frame"] for entry in answer if "frame" in entry] == [*range(1, 81), 82]
        [wrong] = [entry["error"] for entry in answer if "error" in entry]
        assert wrong.startswith("standard input:81: not the numbers of a frame")
        for entry, first in zip(answer, answers[0], strict=True):
            assert dict(entry.get("top", ())) == pytest.approx(dict(first.get("top", ())), abs=1e-6)


def test_frames_come_on_standard_input(place, capsys, monkeypatch):
    store = Store.open(place / "store")
    array = store.sequence(0)[0]
    frames = [np.array2string(frame.ravel(), max_line_width=10**6, separator=" ")[1:-1] for frame in array[0][:3]]
    frames += [json.dumps(frame.tolist()) for frame in array[0][3:5]]
    lines = ["", *frames[:2], "1 2 3", "[1, [2", *frames[2:], "nan " * 60, "inf " * 60, "1_0 " * 60]
    lines += [str([1] * 59 + [value]) for value in ('"1"', "true", 10**400, 21)]
    lines += [json.dumps(np.ones((3, 20, 2)).tolist()), "[]"]
    arrives(monkeypatch, *(f"{line}\n" for line in lines))
    assert cli.main(f"predict {place}/tuned - --window 4 --step 2 --json".split()) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wrong = [entry["error"] for entry in found if "error" in entry]
    expected = "60 numbers a body are expected (20 joints, x y z each)"
    no_numbers, no_metres = f"not the numbers of a frame; {expected}", "the run was trained on coordinates in m"
    assert wrong == [
        f"standard input:4: 3 numbers; {expected}",
        f"standard input:5: not JSON: Expecting ',' delimiter at character 7 (cut off?); {expected}",
        f"standard input:10: a frame: body 0, joint 0: x is inf, not a finite number; {no_metres}",
        f"standard input:11: {no_numbers}",
        *(f"standard input:{number}: not JSON: Expecting value at character 179; {expected}" for number in (12, 13)),
        f"standard input:14: {no_numbers}",
        f"standard input:15: a frame: body 0, joint 19: z is 21, absurd (more than 20 from the camera); {no_metres}",
        f"standard input:16: lists of the shape [3, 20, 2]; {expected}",
    ]
    looks = [entry for entry in found if "top" in entry]
    assert [entry["frame"] for entry in looks] == [2, 6, 8, 17]
    whole = np.concatenate([np.zeros_like(array[:1, :1]), array[:1, :5], np.zeros_like(array[:1, :2])], axis=1)
    model = s2vfast.load(place / "tuned")
    for entry, stop in zip(looks, (2, 4, 6, 8), strict=True):
        ranking = model.predict([whole[:, max(stop - 4, 0) : stop]])[0]
        assert [name for name, _ in entry["top"]] == [name for name, _ in ranking]
        assert dict(entry["top"]) == pytest.approx(dict(ranking), abs=1e-5)


def test_a_stream_refuses(place):
    with pytest.raises(errors.CheckpointError, match="a pretrained run, which has no classes"):
        s2vfast.load(place / "run").stream()
    model = s2vfast.load(place / "tuned")
    for options, message in (({"smooth": 1.0}, "smooth: 1.0; a number in"), ({"window": 0}, "window: 0; 1 or more")):
        with pytest.raises(errors.ConfigError, match=message):
            model.stream(**options)
    stream = model.stream(step=1)
    assert stream.push(None) is None
    assert stream.push(np.full((20, 3), np.nan)) is None
    assert len(stream.push(np.ones((20, 3)))) == 5
    with pytest.raises(errors.DataError, match=r"a frame: numbers \[20, 3\] or \[bodies, 20, 3\] are expected"):
        stream.push(np.ones((19, 3)))


def test_a_joint_with_a_nan_was_not_seen(place):
    """All of it: what is left of its coordinates is no place."""
    model, rng = s2vfast.load(place / "tuned"), np.random.default_rng(1)
    full = rng.uniform(0.5, 2, (12, 20, 3))
    unseen, partly = full.copy(), full.copy()
    unseen[3, 5], partly[3, 5, 1] = 0.0, np.nan
    expected = model.probabilities([unseen])
    np.testing.assert_array_equal(model.probabilities([partly]), expected)
    assert np.abs(model.probabilities([full]) - expected).max() > 1e-6


def test_a_run_of_two_coordinates_takes_two(place):
    """A score in the place of z is no coordinate."""
    model = s2vfast.load(place / "tuned")
    model.layout, model.unit = replace(model.layout, dimensions=(2,)), "px"
    flat = np.random.default_rng(0).uniform(100, 300, (4, 20, 2))
    padded = np.pad(flat, ((0, 0), (0, 0), (0, 1)))
    for values in (flat, padded):
        np.testing.assert_array_equal(model.checked(values, ("bodies", "frames")), padded[None])
    with pytest.raises(errors.DataError, match="a sequence: a third coordinate that is not 0; the run's recordings"):
        model.checked(padded + 0.5, ("bodies", "frames"))
    np.testing.assert_array_equal(Reader(model.layout).read(" ".join(map(str, flat[:2].ravel()))), flat[:2])


def test_any_container_of_the_runs_skeleton_is_read(place, tmp_path):
    """Arrays that name no layout have the run's; the same numbers give the same classes."""
    good = sorted((place / "raw").iterdir())[0]
    body = np.array(json.loads(good.read_text())["skeletons"])
    np.save(tmp_path / "a.npy", body)
    np.save(tmp_path / "b.npy", body.transpose(2, 0, 1)[None, ..., None])  # [N, C, T, V, M]
    np.savez(tmp_path / "c.npz", keypoints=body[:, None])
    (tmp_path / "d.csv").write_text("\n".join(",".join(map(str, row.reshape(-1))) for row in body))
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.write(good, f"x/{good.name}")
    names = ("a.npy", "b.npy", "c.npz", "d.csv", "e.zip")
    first, *others = predict(place / "tuned", [good, *(tmp_path / name for name in names)], axes=None)
    assert [entry["file"] for entry in others] == [str(tmp_path / name) for name in names]
    for entry in others:
        assert entry["top"] == first["top"], entry["file"]
    np.save(tmp_path / "f.npy", body.transpose(2, 0, 1))
    (turned,) = predict(place / "tuned", [tmp_path / "f.npy"], axes="CTV")
    assert turned["top"] == first["top"]
    (refused,) = predict(place / "tuned", [good], axes="CTV")
    assert "format nwucla says itself how its numbers are laid out" in refused["error"]


def test_another_unit_is_said(place, tmp_path):
    good = sorted((place / "raw").iterdir())[0]
    np.save(tmp_path / "a.npy", 1000 * np.array(json.loads(good.read_text())["skeletons"]))
    said = []
    assert len(list(predict(place / "tuned", [tmp_path / "a.npy", good], log=said.append))) == 2
    assert len(said) == 1
    assert f"{tmp_path / 'a.npy'}: its unit is mm (bodies measure" in said[0]
    assert said[0].endswith("the run was trained on m")


def test_a_guessed_layout_gives_way_to_the_runs(tmp_path):
    layout = Layout.from_dict({**get_layout("coco17").to_dict(), "name": "mine"})
    file = tmp_path / "a.json"
    body = np.random.default_rng(0).uniform(0, 300, (4, 17, 2)).tolist()
    file.write_text(json.dumps([[{"keypoints": pose, "scores": [1.0] * 17}] for pose in body]))
    assert prediction._open(file, None, None, layout, {}).layout.name == "mine"
    assert prediction._open(file, None, None, get_layout("halpe26"), {}).layout.name == "coco17"
    assert prediction._open(file, None, get_layout("coco17"), layout, {}).layout.name == "coco17"
