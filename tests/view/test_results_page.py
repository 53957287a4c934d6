"""The page of an evaluation: its numbers are those of the results, and each cell has its sequences."""

import json

import numpy as np
import pytest

from s2vfast.errors import DataError
from s2vfast.evaluate import protocols
from s2vfast.view import page, results


def changed(place, tmp_path, **values):
    content = json.loads(place.results.read_text()) | values
    path = tmp_path / "results.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_predictions_of_sequences_make_the_matrix(place, tmp_path, read_page):
    content = json.loads(place.results.read_text())
    data = read_page(results.write(results.collect(place.results), tmp_path / "r.html"))
    assert data["classes"] == place.opened.classes
    (measure,) = data["measures"]
    confusion = page.unpacked(measure["confusion"])
    np.testing.assert_array_equal(confusion, content["confusion"])
    ids = place.opened.select("halves", "test")
    assert data["sequences"]["names"] == [place.opened.names[i] for i in ids]
    labels, predicted = page.unpacked(data["sequences"]["labels"]), page.unpacked(measure["predicted"])
    np.testing.assert_array_equal(labels, place.opened.labels[ids])
    again = np.zeros_like(confusion)
    np.add.at(again, (labels, predicted[0]), 1)
    np.testing.assert_array_equal(again, confusion)
    assert measure["accuracies"][0] == ["top-1", content["top1"]]
    assert data["note"] == ""
    assert page.unpacked(data["sequences"]["clips"]["stored"]).shape[0] == len(ids)


def test_seeds_and_several_protocols(place, tmp_path, read_page):
    quick = {"epochs": 1, "repeats": 2, "log": lambda line: None}
    content = protocols.evaluate_all(place.run, place.store, protocols=["retrieval", "linear", "knn"], **quick)
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content))
    data = read_page(results.write(results.collect(path), tmp_path / "r.html"))
    names = [measure["name"] for measure in data["measures"]]
    assert names == ["linear probe (published recipe)", "linear probe (L-BFGS)", "linear probe (ridge)", "1-NN"]
    n = len(data["sequences"]["names"])
    assert [measure["predicted"]["shape"] for measure in data["measures"]] == [[2, n], [1, n], [1, n], [1, n]]


def test_ridge_regression_alone(place, tmp_path, read_page):
    content = protocols.evaluate(place.run, place.store, linear=["ridge"], confusion=True, log=lambda line: None)
    path = tmp_path / "ridge.json"
    path.write_text(json.dumps(content))
    data = read_page(results.write(results.collect(path), tmp_path / "r.html"))
    assert [measure["name"] for measure in data["measures"]] == ["linear probe (ridge)"]
    assert data["classes"] == list(content["ridge"]["per_class"])


@pytest.mark.parametrize("why", ["no store", "another store", "old"])
def test_without_sequences_the_page_says_why(why, place, tmp_path, read_page):
    values, note = {
        "no store": ({"store": "nowhere"}, "the store nowhere is not there: name it with --data"),
        "another store": ({"store_fingerprint": "0"}, "is not the store that was measured (another fingerprint)"),
        "old": ({"predicted": None}, "has no predictions of single sequences: evaluate the run again"),
    }[why]
    data = read_page(results.write(results.collect(changed(place, tmp_path, **values)), tmp_path / "r.html"))
    assert note in data["note"]
    assert data["sequences"] is None
    assert data["measures"][0]["predicted"] is None


def test_what_cannot_be_shown(place, tmp_path):
    with pytest.raises(DataError, match="has no confusion matrix; evaluate with --out"):
        results.collect(changed(place, tmp_path, confusion=None))
    with pytest.raises(DataError, match="is not the store that was measured"):
        results.collect(changed(place, tmp_path, store_fingerprint="0"), place.store)
    with pytest.raises(DataError, match=r"1-NN: 1 predictions, and the part has \d+ sequences"):
        results.collect(changed(place, tmp_path, predicted=[[0]]))
