"""The pages of what an encoder makes of sequences: similarity and attention, neighbours, the map."""

import sys

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from s2vfast import ops, presets
from s2vfast.data.layout import LAYOUTS
from s2vfast.errors import CheckpointError, ConfigError, DataError
from s2vfast.evaluate import features, knn
from s2vfast.reference.attention import attention as reference_attention
from s2vfast.view import attention, neighbours, page, source
from s2vfast.view import map as maps

QUIET = {"log": lambda line: None}


def clips_of(place, index):
    return source.make_clips(place.opened, place.config, np.array([index]))


def test_similarities_are_numpys(place, tmp_path, read_page, is_picture):
    shown = attention.collect(place.run, place.store, place.evil, **QUIET)
    data = read_page(attention.write(shown, tmp_path / "a.html"))
    with torch.no_grad():
        tokens = place.teacher(clips_of(place, 21)).double().numpy()  # [2, L, D]
    tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
    expected = tokens @ tokens.swapaxes(1, 2)
    L = expected.shape[-1]
    above = page.unpacked(data["similarity"])
    for body in range(2):
        for i, j in [(0, 1), (0, L - 1), (3, 11), (L - 2, L - 1)]:
            at = i * (2 * L - i - 1) // 2 + j - i - 1  # as the page's script looks it up
            assert abs(above[body, at] - expected[body, i, j]) < 0.01
    np.testing.assert_allclose(shown.similarity, expected, atol=1e-5)
    is_picture(attention.draw(shown, tmp_path / "a.png"))


def test_attention_is_what_mixes_the_values(place, tmp_path, read_page):
    x = place.teacher.embedding(clips_of(place, 21))
    shown = attention.collect(place.run, place.store, place.evil, **QUIET)
    data = read_page(attention.write(shown, tmp_path / "a.html"))
    assert [(e["block"], e["head"]) for e in data["attention"]] == [(b, h) for b in range(3) for h in (None, 0, 1)]
    with torch.no_grad():
        for number, block in enumerate(place.teacher.blocks):
            weights = block.attention_weights(x)
            qkv = ops.norm_linear(x, block.norm1.weight, block.norm1.bias, block.qkv.weight, block.qkv.bias, 1e-6)
            qkv = qkv.view(2, -1, 3, 2, 8)
            torch.testing.assert_close(
                (weights @ qkv[:, :, 2].transpose(1, 2)).transpose(1, 2), reference_attention(qkv)[0]
            )
            for h in range(2):
                np.testing.assert_allclose(shown.attention[number, h], weights[:, h], atol=1e-6)
            np.testing.assert_allclose(shown.attention[number, None], weights.mean(1), atol=1e-6)
            x = block(x)
    for entry in data["attention"]:
        weights = page.unpacked(entry["weights"]) / 255 * page.unpacked(entry["largest"])[..., None]
        whole = shown.attention[entry["block"], entry["head"]]
        np.testing.assert_allclose(weights, whole, atol=float(whole.max()) / 500)


def test_attention_shows_what_was_asked_for_and_what_there_is_room_for():
    assert attention.shown_layers(3, 2, 10, 1000)[1] == [(b, h) for b in range(3) for h in (None, 0, 1)]
    assert attention.shown_layers(8, 8, 10, 40) == ((7, None), [(4, None), (5, None), (6, None), (7, None)])
    assert attention.shown_layers(8, 8, 10, 25, block=1, head=3) == ((1, 3), [(1, 3), (7, None)])
    assert attention.shown_layers(8, 8, 100, 1, block=2) == ((2, None), [(2, None)])
    with pytest.raises(ConfigError, match="--block: 9; this encoder has blocks 1 to 8"):
        attention.shown_layers(8, 8, 1, block=8)
    with pytest.raises(ConfigError, match="--head: 0; this encoder has heads 1 to 8"):
        attention.shown_layers(8, 8, 1, head=-1)


def test_a_page_of_the_published_size_stays_small(tmp_path):
    L, S, V = 750, 30, 25
    size = 2 * L * L
    _, layers = attention.shown_layers(8, 8, size, attention.BUDGET - size // 2)
    rng = np.random.default_rng(0)
    table = rng.random((2, L, L), dtype=np.float32)
    shown = attention.Content(
        *("name", "class", LAYOUTS["kinect_v2"], presets.load("ntu60"), 3, "encoder of step 1"),
        rng.normal(size=(2, 90, 25, 3)).astype(np.float32),
        np.ones((2, 90, 25), bool),
        table,
        dict.fromkeys(layers, table),
        layers[-1],
        0,
        0,
    )
    assert S * V == L
    assert attention.write(shown, tmp_path / "a.html").stat().st_size < 3_000_000


def test_the_first_token_is_the_one_asked_for(place):
    shown = attention.collect(place.run, place.store, "s001", joint="head", segment=3, **QUIET)
    assert (shown.token, shown.body) == (3 * 5 + 2, 0)
    assert attention.collect(place.run, place.store, "s001", joint="4", **QUIET).token % 5 == 4
    # Joint 2 + label swings, all others shiver.
    assert attention.collect(place.run, place.store, "s001", **QUIET).token % 5 == 3
    assert not attention.collect(place.run, place.store, "single", **QUIET).token
    with pytest.raises(ConfigError, match="--joint: 'tail' is no joint of stick: hip, neck"):
        attention.collect(place.run, place.store, "s001", joint="tail", **QUIET)
    with pytest.raises(ConfigError, match="--segment: 5; a clip has segments 1 to 4"):
        attention.collect(place.run, place.store, "s001", segment=4, **QUIET)


def test_neighbours_are_those_of_knn(place, tmp_path, read_page, is_picture):
    shown = neighbours.collect(place.run, place.store, "s003", k=4, **QUIET)
    ids = place.opened.select("halves", "train")
    table = features.extract(place.teacher, place.config, place.opened, np.append(ids, 3)).double().numpy()
    table = table - table[:-1].mean(0)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    similarity = table[:-1] @ table[-1]
    order = np.argsort(-similarity)[:4]
    assert [item.name for item in shown.neighbours] == [place.opened.names[ids[i]] for i in order]
    np.testing.assert_allclose([item.similarity for item in shown.neighbours], similarity[order], atol=1e-5)
    labels = place.opened.labels
    assert [item.right for item in shown.neighbours] == [bool(labels[ids[i]] == labels[3]) for i in order]
    ranked = knn.rank(
        *(torch.from_numpy(part) for part in (table[:-1], labels[ids], table[-1:])), classes=3, transform="none"
    )
    assert shown.neighbours[0].class_name == place.opened.classes[ranked[0, 0]]
    data = read_page(neighbours.write(shown, tmp_path / "a.html"))
    assert [item["name"] for item in data["items"]] == ["s003", *(item.name for item in shown.neighbours)]
    assert data["items"][0]["similarity"] is None
    clip, _ = place.opened.sequence(ids[order[0]])
    np.testing.assert_allclose(page.unpacked(data["items"][1]["scene"]["places"])[0], clip[0], atol=5e-4)
    is_picture(neighbours.draw(shown, tmp_path / "a.png"))


def test_a_query_is_not_its_own_neighbour_and_long_sequences_are_thinned(place, monkeypatch):
    monkeypatch.setattr(neighbours, "FRAMES", 4)
    shown = neighbours.collect(place.run, place.store, "s002", k=50, **QUIET)
    names = [item.name for item in shown.neighbours]
    assert len(names) == len(place.opened.select("halves", "train")) - 1
    assert "s002" not in names
    clip, _ = place.opened.sequence(2)
    assert (shown.query.every, shown.query.coordinates.shape[1]) == (3, 4)
    np.testing.assert_array_equal(shown.query.coordinates, clip[:, ::3])


@pytest.mark.parametrize("method", maps.METHODS)
def test_a_map_has_every_sequence_of_the_parts(place, tmp_path, read_page, is_picture, method):
    shown = maps.collect(place.run, place.store, method=method, **QUIET)
    data = read_page(maps.write(shown, tmp_path / "a.html"))
    ids = np.concatenate([place.opened.select("halves", part) for part in ("train", "test")])
    assert data["names"] == [place.opened.names[i] for i in ids]
    np.testing.assert_array_equal(page.unpacked(data["labels"]), place.opened.labels[ids])
    np.testing.assert_array_equal(page.unpacked(data["parts"]), [0] * 12 + [1] * 12)
    np.testing.assert_allclose(page.unpacked(data["places"]), shown.points, rtol=1e-6)
    clips = data["clips"]
    stored = page.unpacked(clips["stored"])
    low, step = (page.unpacked(clips[key])[:, None, None, None] for key in ("low", "step"))
    frames = np.where(stored == 0, 0.0, low + (stored - 1.0) * step)
    holes = data["names"].index("holes")
    recorded, _ = place.opened.sequence(23)
    at = ((np.arange(24) + 0.5) / 24 * 14).astype(int)
    np.testing.assert_allclose(frames[holes], recorded[0][at], atol=0.6 * float(step[holes].max()))
    is_picture(maps.draw(shown, tmp_path / "a.png"))


def test_split_all_has_every_sequence_once(place, tmp_path, is_picture):
    shown = maps.collect(place.run, place.store, method="pca", split="all", **QUIET)
    assert shown.names == place.opened.names
    assert (shown.part_names, set(shown.parts)) == (("all",), {0})
    assert shown.about.endswith(", 24 sequences of all")
    is_picture(maps.draw(shown, tmp_path / "a.png"))


def test_pca_is_scikit_learns(place):
    shown = maps.collect(place.run, place.store, method="pca", parts=("test",), **QUIET)
    ids = place.opened.select("halves", "test")
    table = features.extract(place.teacher, place.config, place.opened, ids).double().numpy()
    table -= table.mean(0)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    model = PCA(2).fit(table)
    np.testing.assert_allclose(np.abs(shown.points), np.abs(model.transform(table)), atol=1e-4)
    assert shown.axes[0] == f"component 1 ({100 * model.explained_variance_ratio_[0]:.0f} % of variance)"


def test_a_map_draws_from_too_many_and_leaves_out_what_has_no_room(place, tmp_path, read_page):
    said = []
    options = {"method": "pca", "limit": 9, "budget": 9 * 5 * 3 - 1}
    shown = maps.collect(place.run, place.store, **options, log=said.append)
    assert said == ["9 of 24 sequences are mapped, drawn at random; --limit takes more"]
    assert len(set(shown.names)) == 9
    assert shown.clips is None
    assert read_page(maps.write(shown, tmp_path / "a.html"))["clips"] is None
    assert shown.names == maps.collect(place.run, place.store, **options, **QUIET).names
    assert shown.names != maps.collect(place.run, place.store, **options, seed=1, **QUIET).names


def test_sixty_classes_can_be_told_apart():
    assert len({maps.style(label) for label in range(160)}) == 160
    assert len({maps.COLOURS[maps.style(label)[0]] for label in range(20)}) == 20
    assert len({maps.style(label)[1] for label in range(8)}) == 8


def test_what_cannot_be_shown_is_said(place, other_run, monkeypatch):
    for collect in (
        lambda: attention.collect(other_run, place.store, "s000", **QUIET),
        lambda: neighbours.collect(other_run, place.store, "s000", **QUIET),
        lambda: maps.collect(other_run, place.store, **QUIET),
    ):
        with pytest.raises(CheckpointError, match=r"its layout is stick .* was made with stork"):
            collect()
    with pytest.raises(ConfigError, match="--k: 0"):
        neighbours.collect(place.run, place.store, "s000", k=0)
    with pytest.raises(DataError, match="has no part 'val', only train, test"):
        maps.collect(place.run, place.store, parts=("val",))
    with pytest.raises(ConfigError, match="--limit: 2"):
        maps.collect(place.run, place.store, limit=2)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ConfigError, match="--method tsne: needs scikit-learn"):
        maps.collect(place.run, place.store)
