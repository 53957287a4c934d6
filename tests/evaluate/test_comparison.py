"""Tables of several results: means over runs, the floor first, the best in bold, one line for what is none."""

import csv
import io
import json
import statistics

import pytest

from s2vfast import cli, errors
from s2vfast.evaluate import comparison


def result(run, top1, *, objective="mamp", protocol="linear", untrained=False, split="xsub", store="a", **more):
    return {
        "protocol": protocol, "run": run, "objective": objective, "untrained": untrained, "pool": "mean",
        "split": split, "store": f"data/{store}", "store_fingerprint": f"hash {store}", "top1": top1,
        "mean_class": top1 - 1, **more,
    }  # fmt: skip


FLOOR = {
    "rows": [
        {"features": "coordinates", "classifier": "ridge", "copies": 0, "top1": 70.0},
        {"features": "convolutions", "classifier": "1-NN", "copies": 0, "top1": 66.0},
    ]
}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def three(write):
    """Three runs of one method, the last as `--json` prints it after other lines, another method, and a floor."""
    runs = [write(f"{i}.json", result(f"runs/{i}", top1)) for i, top1 in enumerate((80.0, 82.0))]
    runs.append(write("2.txt", "a note\n" + json.dumps(result("runs/2", 87.0)) + "\n"))
    other = write("other.json", result("runs/3", 90.04, objective="skeleton2vec"))
    floor = result("runs/3", 70.0, protocol="floor") | FLOOR
    return [*runs, other, write("floor.json", floor), write("floor2.json", floor)]


def test_runs_are_averaged_and_the_floor_comes_first(three, capsys):
    assert cli.main(["table", *three]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "|  | linear probe (published recipe) | ridge | 1-NN |",
        "| --- | ---: | ---: | ---: |",
        "| floor: coordinates |  | 70.0 |  |",
        "| floor: convolutions |  |  | 66.0 |",
        "| mamp | 83.0 ± 3.6 |  |  |",
        "| skeleton2vec | **90.0** |  |  |",
        "",
        "top-1 in per cent, split xsub; mean ± sample standard deviation over 3 runs, seeds or lists.",
    ]


def test_numbers_for_machines_are_whole(three, tmp_path):
    out = tmp_path / "table.csv"
    assert cli.main(["table", *three, "--format", "csv", "--metric", "mean_class", "--out", str(out)]) == 0
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(out.read_text()))}
    assert list(rows) == ["mamp", "skeleton2vec"]  # the floor of this file has top-1 alone
    assert float(rows["mamp"]["std"]) == statistics.stdev([79, 81, 86])
    assert (rows["mamp"]["runs"], rows["mamp"]["best"], rows["skeleton2vec"]["best"]) == ("3", "0", "1")
    assert float(rows["skeleton2vec"]["mean"]) == 90.04 - 1


def test_latex_is_escaped(write):
    paths = [write("a_1.json", result("a", 50.0)), write("b.json", result("b", 50.04, top1_std=0.26, top1_each=[1, 2]))]
    text = comparison.text_of([f"r_1 & co={paths[0]}", f"other={paths[1]}"], "latex")
    assert "r\\_1 \\& co & \\textbf{50.0} \\\\" in text
    assert "other & \\textbf{50.0} $\\pm$ 0.3 \\\\" in text  # both are the best, as they are printed
    assert text.startswith("\\begin{tabular}{lr}\n\\toprule\n")


def test_splits_and_stores_are_columns_of_their_own(write):
    paths = [
        write("a.json", result("a", 1.0)),
        write("b.json", result("a", 2.0, split="xview")),
        write("c.json", result("a", 3.0, store="b")),
    ]
    table = comparison.compare(list(map(comparison.read, paths)))
    assert [split for split, _ in table.columns] == ["a xsub", "a xview", "b xsub"]
    assert "| mamp | 1.0 | 2.0 | 3.0 |" in comparison.markdown(table)


def test_features_are_part_of_what_a_row_is_called(write):
    read = [{}, {"layers": 2, "pool": "statistics"}, {"layers": 2, "whiten": "performance"}]
    paths = [write(f"{at}.json", result("a", 1.0, **more)) for at, more in enumerate(read)]
    rows = comparison.markdown(comparison.compare(list(map(comparison.read, paths)))).splitlines()[2:5]
    assert [row.split(" |")[0] for row in rows] == [
        "| mamp",
        "| mamp, statistics features of 2 layers",
        "| mamp, mean features of 2 layers whitened by performance",
    ]


def test_what_all_protocols_wrote_is_read(write, tmp_path):
    content = {key: value for key, value in result("a", 0.0).items() if key not in ("protocol", "top1", "mean_class")}
    row = {"measure": "1-NN", "labels": 100, "metric": "top-1", "value": 12.34, "std": None, "of": 1}
    few = row | {"measure": "fine-tuned, 5 lists", "labels": 1, "value": 5.0, "std": 2.0, "of": 5}
    write("all/results.json", content | {"results": {}, "table": [row, few]})
    text = comparison.text_of([tmp_path / "all"])
    assert "|  | 1-NN | fine-tuned, 5 lists, 1 % of labels |" in text
    assert "| mamp | 12.3 | 5.0 ± 2.0 |" in text


WRONG = {
    "text": ("no JSON", "holds no results; a file is expected that"),
    "another": ('{"loss": 1}', "holds no results"),
    "list": ("[1]", "holds no results"),
    "lacking": ('{"store_fingerprint": "x", "protocol": "linear"}', "results that lack something ('"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_holds_no_results_is_one_line(name, write, capsys):
    content, message = WRONG[name]
    path = write(f"{name}.json", content)
    assert cli.main(["table", path]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"s2vfast: error: {path}: {message}")


def test_what_cannot_be_one_table(write, three, capsys):
    again = write("again.json", result("runs/0", 80.0))
    with pytest.raises(errors.DataError, match="linear probe .* of runs/0 is in .*0.json too; name each run's"):
        comparison.text_of([*three, again])
    with pytest.raises(errors.ConfigError, match="--metric: no result has map"):
        comparison.text_of(three, metric="map")
    assert cli.main(["table", "nowhere.json"]) == 1
    assert "nowhere.json: cannot be read: No such file" in capsys.readouterr().err
