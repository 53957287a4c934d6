"""What the methods reach on real recordings: which commands are run, what becomes of them, and the page."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import _results, accuracy
from benchmarks._program import replaced
from s2vfast import errors

PAGE = _results.ROOT / "docs/nwucla.md"


def write(method, seed, what, out, rows):
    folder = out / "evaluated" / f"{method}-{seed}-{what}"
    folder.mkdir(parents=True)
    made = {"table": [{"measure": name, "metric": "top-1", "value": value} for name, value in rows.items()]}
    made["table"].append({"measure": "1-NN", "metric": "top-5", "value": 99.0})
    if what == accuracy.TUNED:  # one protocol alone has no table
        made = {"protocol": "supervised" if method == "supervised" else "finetune", "top1": rows["tuned"], "top5": 99.0}
    (folder / "results.json").write_text(json.dumps(made))


def stub(out, name, after=None, code="pass"):
    """A task that writes its name to a file, then does something else."""
    script = f"open({str(out / 'order')!r}, 'a').write({name + ' '!r}); {code}"

    class Stub(accuracy.Task):
        command = property(lambda self: [sys.executable, "-c", script])

    return Stub(name, [name], after)


def test_every_command_is_one_that_there_is(tmp_path):
    from s2vfast import cli

    made = accuracy.tasks(tmp_path / "store", tmp_path / "runs", "nwucla", 2)
    assert len(made) == 2 * (4 * 3 + 3) + 1
    assert len({task.name for task in made}) == len(made)
    for task in made:
        cli.parse(task.words)
        assert task.after is None or task.after in {other.name for other in made}
    floor = made.pop()
    assert floor.words[-1].endswith("evaluated/floor.json")
    places = [task.words[-1] for task in made if task.after]
    assert places == [str(tmp_path / "runs/evaluated" / task.name) for task in made if task.after]


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_is_needed_comes_first_and_what_is_done_is_not_done_again(tmp_path, jobs):
    made = [stub(tmp_path, "c", after="a"), stub(tmp_path, "a"), stub(tmp_path, "b")]
    accuracy.Runner(tmp_path, jobs).run(made)
    order = (tmp_path / "order").read_text().split()
    assert sorted(order) == ["a", "b", "c"]
    assert order.index("a") < order.index("c")
    runner = accuracy.Runner(tmp_path, jobs)
    runner.run([*made, stub(tmp_path, "d")])
    assert runner.origins(made)["commits"] == [_results.origin()[0]]
    assert (tmp_path / "order").read_text().split() == [*order, "d"]


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path):
    bad = stub(tmp_path, "bad", code="raise SystemExit('no store there')")
    with pytest.raises(errors.TrainingError, match=r"bad: exit code 1: no store there \(.*bad.log\)"):
        accuracy.Runner(tmp_path, 1).run([bad, stub(tmp_path, "next", after="bad")])
    assert (tmp_path / "order").read_text() == "bad "


def test_numbers_of_all_seeds_are_collected(tmp_path):
    for seed in (1, 2):
        for number, pool in enumerate(accuracy.POOLS):
            write("untrained", seed, pool, tmp_path, {"1-NN": 50.0 + seed + number, "10-NN": 0.0})
            for method in accuracy.OBJECTIVES:
                write(method, seed, pool, tmp_path, {"linear probe (published recipe)": 70.0 + 2 * seed})
        for method in ("supervised", *accuracy.OBJECTIVES):
            write(method, seed, accuracy.TUNED, tmp_path, {"tuned": 80.0})
    found = accuracy.collected(tmp_path, 2)
    assert found["untrained"] == {"1-NN, mean": [51.0, 52.0], "1-NN, joint_time": [52.0, 53.0]}
    assert found["supervised"] == {"fine-tuned": [80.0, 80.0]}
    assert found["mamp"] == {
        "linear, mean": [72.0, 74.0], "linear, joint_time": [72.0, 74.0], "fine-tuned": [80.0, 80.0]
    }  # fmt: skip
    text = accuracy.table(found)
    assert "| mamp | 73.0 ± 1.4 | 73.0 ± 1.4 | – | – | – | – | 80.0 ± 0.0 |" in text
    assert "| supervised, from scratch | – | – | – | – | – | – | 80.0 ± 0.0 |" in text
    (tmp_path / "evaluated/mamp-2-mean/results.json").unlink()
    with pytest.raises(errors.DataError, match="mamp-2-mean/results.json: cannot be read"):
        accuracy.collected(tmp_path, 2)


def test_the_floor_is_read(tmp_path):
    rows = [
        {"features": "coordinates", "classifier": "1-NN", "copies": 0, "top1": 70.0},
        {
            "features": "random convolutions",
            "classifier": "ridge",
            "copies": 5,
            "top1": 91.0,
            "top1_each": [90.0, 92.0],
        },
    ]
    (tmp_path / "evaluated").mkdir()
    (tmp_path / "evaluated/floor.json").write_text(json.dumps({"rows": rows}))
    assert accuracy.floor_rows(tmp_path) == {
        "floor: coordinates, 1-NN": [70.0],
        "floor: random convolutions, ridge, 5 drawn copies": [90.0, 92.0],
    }
    (tmp_path / "evaluated/floor.json").write_text("{}")
    with pytest.raises(errors.DataError, match="floor.json: cannot be read"):
        accuracy.floor_rows(tmp_path)


def test_a_page_without_marks_is_an_error(tmp_path):
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(errors.DataError, match="a.md: needs one line <!-- accuracy -->"):
        replaced(tmp_path / "a.md", "accuracy", "table")


def test_the_committed_page_is_what_was_measured():
    made = json.loads(Path(PAGE).with_suffix(".json").read_text())
    assert replaced(PAGE, "accuracy", accuracy.section(made)) == PAGE.read_text()
    for columns in made["top1"].values():
        assert all(len(values) == made["seeds"] for values in columns.values())
