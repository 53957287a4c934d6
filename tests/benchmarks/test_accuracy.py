"""What the methods reach on real recordings: which commands are run, what becomes of them, and the page."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import _commands, _results, accuracy
from benchmarks._program import replaced
from s2vfast import errors

RECORD = {
    "seeds": 2,
    "command": "c",
    "commits": ["a"],
    "date": "d",
    "device": {"name": "n"},
    "versions": {},
    "rows": {},
}
PAGE = _results.ROOT / "docs/nwucla.md"


def write(method, seed, what, out, rows):
    folder = out / "evaluated" / f"{method}-{seed}-{what}"
    folder.mkdir(parents=True)
    made = {"table": [{"measure": name, "metric": "top-1", "value": value} for name, value in rows.items()]}
    made["table"].append({"measure": "1-NN", "metric": "top-5", "value": 99.0})
    if what == accuracy.TUNED:  # one protocol alone has no table
        made = {
            "protocol": "supervised" if method.startswith("supervised") else "finetune",
            "top1": rows["tuned"],
            "top5": 99.0,
        }
    (folder / "results.json").write_text(json.dumps(made))


def stub(out, name, after=(), code="pass"):
    """A task that writes its name to a file, then does something else."""
    script = f"open({str(out / 'order')!r}, 'a').write({name + ' '!r})\n{code}"

    class Stub(_commands.Task):
        command = property(lambda self: [sys.executable, "-c", script])

    return Stub(name, [name], after)


def test_every_command_is_one_that_there_is(tmp_path):
    from s2vfast import cli

    made = accuracy.tasks(tmp_path / "store", tmp_path / "runs", "nwucla", 2)
    assert len(made) == 2 * (4 * 3 + 3) + 1
    assert len({task.name for task in made}) == len(made)
    for task in made:
        cli.parse(task.words)
        assert {other.name for other in made}.issuperset(task.after)
    floor = made.pop()
    assert floor.words[-1].endswith("evaluated/floor.json")
    places = [task.words[-1] for task in made if task.after]
    assert places == [str(tmp_path / "runs/evaluated" / task.name) for task in made if task.after]


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_is_needed_comes_first_and_what_is_done_is_not_done_again(tmp_path, jobs):
    made = [stub(tmp_path, "c", after=("a",)), stub(tmp_path, "a"), stub(tmp_path, "b")]
    _commands.Runner(tmp_path, jobs).run(made)
    order = (tmp_path / "order").read_text().split()
    assert sorted(order) == ["a", "b", "c"]
    assert order.index("a") < order.index("c")
    runner = _commands.Runner(tmp_path, jobs)
    runner.run([*made, stub(tmp_path, "d")])
    assert runner.origins(made)["commits"] == [_results.origin()[0]]
    assert (tmp_path / "order").read_text().split() == [*order, "d"]
    (runner.logs / "a.done").unlink()
    runner.run(made)
    assert (tmp_path / "order").read_text().split() == [*order, "d", "a", "c"]


def test_a_command_that_fails_is_named_with_what_it_said(tmp_path):
    bad = stub(tmp_path, "bad", code="raise SystemExit('no store there')")
    with pytest.raises(errors.TrainingError, match=r"bad: exit code 1: no store there \(.*bad.log\)"):
        _commands.Runner(tmp_path, 1).run([bad, stub(tmp_path, "next", after=("bad",))])
    assert (tmp_path / "order").read_text() == "bad "


def test_numbers_of_all_seeds_are_collected(tmp_path):
    for seed in (1, 2):
        for number, pool in enumerate(("mean", "joint_time")):
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
    assert "| mamp | 73.0 ± 1.4 | 73.0 ± 1.4 | – | – | 80.0 ± 0.0 |" in text
    assert "| supervised, from scratch | – | – | – | – | 80.0 ± 0.0 |" in text
    (tmp_path / "evaluated/mamp-2-mean/results.json").unlink()
    with pytest.raises(errors.DataError, match="mamp-2-mean/results.json: cannot be read"):
        accuracy.collected(tmp_path, 2)


@pytest.mark.parametrize("method", accuracy.OWN)
def test_an_objective_with_a_network_of_its_own_has_its_own_baselines(tmp_path, method):
    from s2vfast import cli

    made = accuracy.tasks(tmp_path / "store", tmp_path, "nwucla", 2, method)
    single = len(accuracy.SINGLE.get(method, ()))
    commands = 3 + 2 * len(accuracy.OWN[method]) + (single and single + len(accuracy.SUMMED))
    assert len({task.name for task in made}) == len(made) == 2 * commands
    for task in made:
        cli.parse(task.words)
        assert {other.name for other in made}.issuperset(task.after)
        if task.after and "--ensemble" not in task.words:
            what = task.name.rpartition("-")[2]
            name, seed = task.name.removesuffix(f"-{what}").rsplit("-", 1)
            top1 = 50.0 if "--untrained" in task.words else 80.0
            write(name, seed, what, tmp_path, {"1-NN": top1, "tuned": top1})
    top1 = accuracy.collected(tmp_path, 2, method)
    names = [f"1-NN, {pool}" for pool in accuracy.OWN[method]]
    assert top1["untrained"] == {key: [50.0, 50.0] for key in names}
    assert top1[method] == {key: [80.0, 80.0] for key in [*names, "fine-tuned"]}
    cells = " | ".join(["50.0 ± 0.0"] * len(names))
    assert f"| | {' | '.join(names)} | fine-tuned |\n" in accuracy.table(top1)
    assert f"| untrained | {cells} | – |" in accuracy.table(top1)


def test_streams_and_their_sum_are_read(tmp_path):
    made = accuracy.tasks(tmp_path / "store", tmp_path, "nwucla", 2, "vicreg")
    added = [task for task in made if "--ensemble" in task.words]
    assert [len(task.after) for task in added] == [4, 4, 4, 4]
    assert ["--untrained" in task.words for task in added] == [True, False, True, False]
    for task, top1 in zip(added, (80.0, 90.0, 80.0, 92.0), strict=True):
        path = Path(task.words[-1])
        path.parent.mkdir(exist_ok=True)
        runs = [{"stream": "joint", "top1": top1 - 8}, {"stream": "bone", "top1": top1 - 6}]
        path.write_text(json.dumps({"runs": runs, "top1": top1}))
    rows = accuracy.stream_rows(tmp_path, 2, "vicreg")
    assert rows == {
        "joint": {"first weights": [72.0, 72.0], "trained": [82.0, 84.0]},
        "bone": {"first weights": [74.0, 74.0], "trained": [84.0, 86.0]},
        "scores added": {"first weights": [80.0, 80.0], "trained": [90.0, 92.0]},
    }
    record = {name: value for name, value in RECORD.items() if name != "rows"}
    text = accuracy.section("vicreg", {"vicreg": record | {"top1": {}, "streams": rows}})
    assert "| joint | 72.0 ± 0.0 | 83.0 ± 1.4 |\n| bone | 74.0 ± 0.0 | 85.0 ± 1.4 |\n" in text
    assert "| scores added | 80.0 ± 0.0 | 91.0 ± 1.4 |\n" in text


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


@pytest.mark.parametrize("method", accuracy.STREAMS)
def test_the_commands_of_a_recogniser_name_runs_that_there_are(tmp_path, method):
    from s2vfast import cli

    made = accuracy.recogniser_tasks(method, tmp_path / "store", tmp_path / "runs", "nwucla", 3)
    streams = len(accuracy.STREAMS[method])
    ensembles = made[2 * (streams + 2) :]
    assert len({task.name for task in made}) == len(made)
    assert ["--weights" in task.words for task in ensembles] == ([True, False] if streams > 1 else [])
    for task in made:
        cli.parse(task.words)
    assert {task.name for task in made if not task.after} == {run for task in made for run in task.after}


def test_numbers_of_a_recogniser_are_collected(tmp_path):
    (tmp_path / "evaluated").mkdir()
    (tmp_path / "logs").mkdir()
    for number, run in enumerate(accuracy.recogniser_runs("infogcn", 2)):
        (tmp_path / f"evaluated/{run}.json").write_text(json.dumps({"top1": 80.0 + number}))
        (tmp_path / f"logs/{run}.done").write_text(json.dumps({"cpu_seconds": 90.0}))
    for name in accuracy.ENSEMBLES:
        (tmp_path / f"evaluated/infogcn-{name}.json").write_text(json.dumps({"top1": 90.0}))
    rows = accuracy.recogniser_rows("infogcn", tmp_path, 2)
    assert rows["infogcn, joint"] == {"top1": [80.0, 81.0], "cpu_minutes": [1.5, 1.5]}
    assert rows["infogcn, bone"] == {"top1": [82.0], "cpu_minutes": [1.5]}
    text = accuracy.section("infogcn", {"infogcn": RECORD | {"rows": rows}})
    assert "| infogcn, joint | 80.5 ± 0.7 | 80.0, 81.0 | 1.5, 1.5 |" in text
    assert "| infogcn, 4 streams, weights of folds | 90.0 | 90.0 | – |" in text
    (tmp_path / "logs/infogcn-joint-2.done").unlink()
    with pytest.raises(errors.DataError, match=r"infogcn-joint-2.done: cannot be read"):
        accuracy.recogniser_rows("infogcn", tmp_path, 2)


def test_cpu_time_is_that_of_all_tries(tmp_path):
    busy = "import time\nwhile time.process_time() < 0.4: pass\n"
    runner = _commands.Runner(tmp_path, 1)
    with pytest.raises(errors.TrainingError):
        runner.run([stub(tmp_path, "a", code=busy + "raise SystemExit(1)")])
    first = float((runner.logs / "a.cpu").read_text())
    assert first > 0.3
    runner.run([stub(tmp_path, "a", code=busy)])
    assert json.loads((runner.logs / "a.done").read_text())["cpu_seconds"] > first + 0.3


@pytest.mark.parametrize(("option", "name"), [("--config", "nwucla"), ("--recipe", "convolutions")])
def test_what_another_preset_or_recipe_has_made_is_not_done(tmp_path, option, name):
    runner = _commands.Runner(tmp_path, 1)
    task = _commands.Task("a", ["some", option, name])
    mark = runner.logs / "a.done"
    assert not runner.done(task)
    mark.write_text(json.dumps({**task.what, "commit": "c", "date": "d"}))
    assert runner.done(task)
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {option: "000000000000"}))
    assert not runner.done(task)


def test_the_committed_page_is_what_was_measured():
    records = json.loads(Path(PAGE).with_suffix(".json").read_text())
    for method, made in records.items():
        assert replaced(PAGE, method, accuracy.section(method, records)) == PAGE.read_text()
        for columns in made.get("top1", {}).values():
            assert all(len(values) == made["seeds"] for values in columns.values())
    text = accuracy.section("infogcn", records | {"infogcn": RECORD})
    assert "| floor: random convolutions, ridge | 91" in text
    assert "| transformer, from scratch | 85.9 ± 2.0 |" in text
