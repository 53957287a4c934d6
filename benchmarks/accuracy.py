"""What the methods reach on real recordings: several seeds, the protocols of the papers, every command.

    python -m benchmarks.accuracy --store STORE --out DIR [--methods objectives skeattnclr …]
        [--config nwucla] [--seeds 3] [--jobs 2] [--docs docs]

``objectives`` pretrains each objective of a preset with each seed, evaluates every run, the untrained encoder and the
same network trained from scratch. So do ``skeattnclr``, ``hitrs`` and ``vicreg``, each with its own preset,
CONFIG_skeattnclr and so on, and network. Each recogniser trains its preset, CONFIG_infogcn or CONFIG_freqmixformer,
joints with each seed and other streams with seed 1, and adds the streams' scores. Each of the methods writes its part
of docs/CONFIG.md and docs/CONFIG.json. It says every command that it runs, so that each can be run by hand. ``--jobs``
run side by side, each on one thread. What is stopped goes on where it was when the same command is given again; what
is done is left alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import _results
from benchmarks._commands import Runner, Task
from benchmarks._program import replaced
from s2vfast import errors
from s2vfast.evaluate import table as evaluation

OBJECTIVES = ("skeletonmae", "mamp", "skeleton2vec")
POOLS = {
    "mean": "--pool mean",
    "joint_time": "--pool joint_time",
    "statistics": "--pool statistics --layers 2",
    "whitened_mean": "--pool mean --whiten performance --linear ridge",
    "whitened": "--pool statistics --layers 2 --whiten performance --linear ridge",
}
"""How features are read, by what their columns are called."""
TUNED, FLOOR = "tuned", "floor"
PROBES = {
    "linear probe (published recipe)": "linear",
    "linear probe (L-BFGS)": "L-BFGS",
    "linear probe (ridge)": "ridge",
    "1-NN": "1-NN",
}
"""Rows of an evaluation of features, and what their columns are called; of each there is one for each pooling."""
FULL = ("fine-tuned", "supervised from scratch")
"""Rows of one column: training from scratch is fine-tuning of first weights."""
COLUMNS = (*(f"{name}, {pool}" for name in PROBES.values() for pool in POOLS), FULL[0])
STREAMS = {"infogcn": ("joint", "bone", "motion", "bone_motion"), "freqmixformer": ("joint",)}
"""Recognisers, and their streams; the first is trained with every seed, the others with the first seed."""
OWN = {"skeattnclr": ("mean",), "hitrs": ("mean",), "vicreg": ("mean", "statistics", "whitened_mean", "whitened")}
"""Objectives with a preset and a network of their own, and how their features are read."""
SINGLE = {"vicreg": ("joint", "bone", "motion", "bone_motion")}
"""Objectives whose network makes its own streams, which are then also trained one by one, and their scores added."""
SUMMED = {"first weights": "--untrained ", "trained": ""}
"""Of which weights these are added, and the option that says so."""
RECIPES = {"vicreg": "convolutions"}
"""Recipes of fine-tuning; of others it is nwucla."""
METHODS = ("objectives", *OWN, *STREAMS)
ENSEMBLES = {"equal": "equal weights", "folds": "weights of folds"}


def objectives_of(method: str) -> dict[str, tuple[str, ...]]:
    """Which objectives are trained, and how their features are read, by their names; first weights are the last's."""
    return {method: OWN[method]} if method in OWN else dict.fromkeys(OBJECTIVES, ("mean", "joint_time"))


def baseline(name: str, method: str) -> str:
    """What ``untrained`` and ``supervised`` of a method's network are called."""
    return f"{name}-{method}" if method in OWN else name


def tasks(store: Path, out: Path, config: str, seeds: int, method: str = "objectives") -> list[Task]:
    """All that has to be done, in order."""
    todo: list[Task] = []
    for seed in range(1, seeds + 1):
        tune = f"--recipe {RECIPES.get(method, 'nwucla')} --finetune.seed {seed}"

        def evaluate(name: str, run: str, what: str, words: str, seed: int = seed) -> None:
            folder = out / "evaluated" / f"{name}-{seed}-{what}"
            command = ["evaluate", str(out / run), *words.split(), "--seed", f"{seed}", "--out", str(folder)]
            todo.append(Task(folder.name, command, after=(run,)))

        for objective, pools in objectives_of(method).items():
            run = f"{objective}-{seed}"
            preset = f"{config}_{objective}" if method in OWN else f"{config} --objective {objective}"
            train = f"pretrain --config {preset} --train.seed {seed} --train.threads 1 --resume"
            todo.append(Task(run, [*train.split(), "--data", str(store), "--out", str(out / run)]))
            for pool in pools:
                evaluate(objective, run, pool, f"--protocol linear,knn {POOLS[pool]}")
            evaluate(objective, run, TUNED, f"--protocol finetune {tune}")
        for pool in pools:
            name = baseline("untrained", method)
            evaluate(name, run, pool, f"--untrained --protocol linear,knn {POOLS[pool]}")
        evaluate(baseline("supervised", method), run, TUNED, f"--protocol supervised {tune}")
        runs = tuple(f"{method}-{stream}-{seed}" for stream in SINGLE.get(method, ()))
        for single, stream in zip(runs, SINGLE.get(method, ()), strict=True):
            words = [*train.split(), "--model.streams", f"[{stream}]"]
            todo.append(Task(single, [*words, "--data", str(store), "--out", str(out / single)]))
        for what, words in SUMMED.items() if runs else ():
            path = summed(out, method, what, seed)
            how = f"{words}--protocol linear {POOLS['whitened']} --out {path}".split()
            todo.append(Task(path.stem, ["evaluate", "--ensemble", *(str(out / run) for run in runs), *how], runs))
    if method not in OWN:
        run = f"{OBJECTIVES[-1]}-1"
        todo.append(Task(FLOOR, floor_words(out / run, out, seeds), after=(run,)))
    return todo


def summed(out: Path, method: str, what: str, seed: int) -> Path:
    """Results of the streams of a method, one by one and added; ``what`` is one of `SUMMED`."""
    name = method if what == "trained" else baseline("untrained", method)
    return out / "evaluated" / f"{name}-summed-{seed}.json"


def recogniser_tasks(method: str, store: Path, out: Path, config: str, seeds: int) -> list[Task]:
    """The same of a recogniser."""
    todo: list[Task] = []
    for run, (stream, seed) in recogniser_runs(method, seeds).items():
        words = f"pretrain --config {config}_{method} --data.stream {stream} --train.seed {seed} --train.threads 1"
        todo.append(Task(run, [*words.split(), "--resume", "--data", str(store), "--out", str(out / run)]))
        results = out / "evaluated" / f"{run}.json"
        command = ["evaluate", str(out / run), "--protocol", "classify", "--out", str(results)]
        todo.append(Task(f"{run}-evaluated", command, after=(run,)))
    runs = tuple(f"{method}-{stream}-1" for stream in STREAMS[method])
    for name in ENSEMBLES if len(runs) > 1 else ():
        command = ["evaluate", "--ensemble", *(str(out / run) for run in runs)]
        command += ["--weights", ",".join("1" * len(runs))] if name == "equal" else []
        results = out / "evaluated" / f"{method}-{name}.json"
        todo.append(Task(f"{method}-{name}", [*command, "--out", str(results)], after=runs))
    return todo


def recogniser_runs(method: str, seeds: int) -> dict[str, tuple[str, int]]:
    """Stream and seed of a recogniser's runs, by name."""
    first, *more_streams = STREAMS[method]
    runs = [*((first, seed) for seed in range(1, seeds + 1)), *((stream, 1) for stream in more_streams)]
    return {f"{method}-{stream}-{seed}": (stream, seed) for stream, seed in runs}


def floor_words(run: Path, out: Path, seeds: int) -> list[str]:
    """The command that measures the floor; of the run the store and the split count alone."""
    results = out / "evaluated" / f"{FLOOR}.json"
    return ["evaluate", str(run), *f"--protocol floor --seed 1 --repeats {seeds} --out".split(), str(results)]


def read(path: Path, select: Callable[[dict[str, Any]], Any]) -> Any:
    """What ``select`` takes of an evaluation's results."""
    try:
        return select(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise errors.DataError(f"{path}: cannot be read as an evaluation's results: {error!r}") from None


def collected(out: Path, seeds: int, method: str = "objectives") -> dict[str, dict[str, list[float]]]:
    """Top-1 in per cent of every seed, by row and column."""
    top1: dict[str, dict[str, list[float]]] = {}
    pools_of = objectives_of(method)
    pools = next(iter(pools_of.values()))
    whats_of = {"untrained": pools, "supervised": (TUNED,), **dict.fromkeys(pools_of, (*pools, TUNED))}
    for name, whats in whats_of.items():
        columns = top1.setdefault(name, {})
        folder = name if name in pools_of else baseline(name, method)
        for seed, what in itertools.product(range(1, seeds + 1), whats):
            path = out / "evaluated" / f"{folder}-{seed}-{what}" / "results.json"
            for row in read(path, lambda one: one.get("table") or evaluation.rows({one["protocol"]: one})):
                column = f"{PROBES.get(row['measure'])}, {what}" if row["measure"] not in FULL else FULL[0]
                if row["metric"] == "top-1" and column in COLUMNS:
                    columns.setdefault(column, []).append(round(row["value"], 2))
    return top1


def stream_rows(out: Path, seeds: int, method: str) -> dict[str, dict[str, list[float]]]:
    """Top-1 in per cent of every seed, by stream and of their sum, and by `SUMMED`."""
    rows: dict[str, dict[str, list[float]]] = {}
    for seed, what in itertools.product(range(1, seeds + 1), SUMMED):
        runs, top1 = read(summed(out, method, what, seed), lambda results: (results["runs"], results["top1"]))
        for one in [*runs, {"stream": "scores added", "top1": top1}]:
            rows.setdefault(one["stream"], {}).setdefault(what, []).append(round(one["top1"], 2))
    return rows


def floor_rows(out: Path) -> dict[str, list[float]]:
    """Top-1 in per cent of every seed, by what was measured without learning."""
    rows = read(out / "evaluated" / f"{FLOOR}.json", lambda results: results["rows"])
    return {
        evaluation.floor_name(row): [round(value, 2) for value in row.get("top1_each", [row["top1"]])] for row in rows
    }


def recogniser_rows(method: str, out: Path, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Of streams and ensembles: ``top1`` of every seed, ``cpu_minutes`` of every run."""
    rows: dict[str, dict[str, list[float]]] = {}
    for run, (stream, _) in recogniser_runs(method, seeds).items():
        row = rows.setdefault(f"{method}, {stream}", {"top1": [], "cpu_minutes": []})
        row["top1"].append(round(read(out / "evaluated" / f"{run}.json", lambda results: results["top1"]), 2))
        seconds = read(out / "logs" / f"{run}.done", lambda mark: mark["cpu_seconds"])
        row["cpu_minutes"].append(round(seconds / 60, 1))
    for name, title in ENSEMBLES.items() if len(STREAMS[method]) > 1 else ():
        top1 = read(out / "evaluated" / f"{method}-{name}.json", lambda results: results["top1"])
        rows[f"{method}, {len(STREAMS[method])} streams, {title}"] = {"top1": [round(top1, 2)], "cpu_minutes": []}
    return rows


def mean_and_std(values: Sequence[float] | None) -> str:
    """Mean ± sample standard deviation, in per cent."""
    if not values:
        return "–"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def table(top1: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown table of methods and columns."""
    columns = [name for name in COLUMNS if any(name in row for row in top1.values())]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    names = {"supervised": "supervised, from scratch"}
    for method, row in top1.items():
        cells = " | ".join(mean_and_std(row.get(column)) for column in columns)
        lines.append(f"| {names.get(method, method)} | {cells} |")
    return "\n".join(lines)


def section(method: str, records: dict[str, Any]) -> str:
    """What stands between the marks of a method on the page: the tables, and where they are from.

    Args:
        method: one of `METHODS`.
        records: those of the methods that were measured. A recogniser stands beside the floor and the transformer.
    """
    record, objectives = records[method], records.get("objectives", {"floor": {}, "top1": {}})
    if "rows" not in record:
        floor = "".join(f"| {name} | {mean_and_std(values)} |\n" for name, values in record.get("floor", {}).items())
        floor = f"| no learning | top-1 |\n|---|---|\n{floor}\n" if floor else ""
        streams = "".join(
            f"| {name} | {' | '.join(mean_and_std(row[what]) for what in SUMMED)} |\n"
            for name, row in record.get("streams", {}).items()
        )
        head = f"| ridge, whitened: a stream, an encoder each | {' | '.join(SUMMED)} |\n|---|---|---|\n"
        streams = f"\n{head}{streams}" if streams else ""
        return f"{floor}{table(record['top1'])}\n{streams}\n{origin_note(record)}"
    first = dict(list(objectives["floor"].items())[:1])
    if supervised := objectives["top1"].get("supervised"):
        first["transformer, from scratch"] = supervised[FULL[0]]
    rows = {name: {"top1": values, "cpu_minutes": []} for name, values in first.items()} | record["rows"]
    lines = ["| | top-1 | of each seed | CPU minutes of each run |", "|---|---|---|---|"]
    for name, row in rows.items():
        each, minutes = (", ".join(f"{value:.1f}" for value in row[key]) or "–" for key in ("top1", "cpu_minutes"))
        lines.append(f"| {name} | {mean_and_std(row['top1'])} | {each} | {minutes} |")
    return "\n".join(lines) + f"\n\n{origin_note(record)}"


def origin_note(record: dict[str, Any]) -> str:
    """Command, commits, date, device and versions."""
    device, versions = record["device"], ", ".join(f"{name} {v}" for name, v in sorted(record["versions"].items()))
    commits = " and ".join(f"`{commit}`" for commit in record["commits"])
    return (
        f"<sub>Top-1 in per cent, mean ± sample standard deviation over {record['seeds']} seeds. "
        f"`{record['command']}`, commit {commits}, {record['date']}, {device['name']}, {versions}.</sub>"
    )


def origin(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """The command that makes a record, without its folders, and on what it ran."""
    command = f"python -m benchmarks.accuracy --store STORE --out DIR --config {options.config} --methods {method}"
    device = _results.device_facts(torch.device("cpu"))
    seeds, versions = options.seeds, _results.versions(device)
    return {"command": f"{command} --seeds {seeds}", "seeds": seeds, "versions": versions, "device": device}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, collect, write; 1 where a command failed, 130 where it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True, help="folder of a store")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and what they reach")
    parser.add_argument("--config", default="nwucla", help="a preset with one for each objective")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="which parts of the page")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time, each on one thread")
    parser.add_argument("--docs", type=Path, help="folder of CONFIG.md, whose table is replaced (default: none)")
    options = parser.parse_args(arguments)
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: {getattr(options, name)}; 1 or more is expected")
    _results.origin()
    store, out = options.store.absolute(), options.out.absolute()
    try:
        runner = Runner(out, options.jobs)
        for method in options.methods:
            about = (store, out, options.config, options.seeds)
            todo = recogniser_tasks(method, *about) if method in STREAMS else tasks(*about, method)
            runner.run(todo)
            record = {**origin(options, method), **runner.origins(todo)}
            if method in STREAMS:
                record["rows"] = recogniser_rows(method, out, options.seeds)
            else:
                record["top1"] = collected(out, options.seeds, method)
            if method in SINGLE:
                record["streams"] = stream_rows(out, options.seeds, method)
            if method == "objectives":
                record["floor"] = floor_rows(out)
            if not options.docs:
                print(section(method, {method: record}))
                continue
            page = options.docs / f"{options.config}.md"
            replaced(page, method, "")  # whether it has marks for what is new
            path = page.with_suffix(".json")
            records = (json.loads(path.read_text("utf-8")) if path.is_file() else {}) | {method: record}
            path.write_text(json.dumps(records, indent=1) + "\n", "utf-8")
            for name in records:
                page.write_text(replaced(page, name, section(name, records)), "utf-8")
            print(f"{section(method, records)}\n{page} written")
    except errors.S2vfastError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
