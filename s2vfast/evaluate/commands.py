"""The commands about a run that has been trained: from options to calls, to lines and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import s2vfast.errors as errors
from s2vfast import files
from s2vfast.config.fields import refuse_unknown
from s2vfast.evaluate import features, finetune_config, linear, measures, protocols
from s2vfast.evaluate import table as tables
from s2vfast.evaluate.checks import check_choice
from s2vfast.evaluate.comparison import RESULTS
from s2vfast.evaluate.finetune import Stopped
from s2vfast.evaluate.metrics import ACCURACIES
from s2vfast.train import distributed, rundir, torchrun
from s2vfast.train.progress import Counter


class _Showing:
    """Progress of one thing after another, a bar each: fine-tuning, which comes between them, has one of its own."""

    def __init__(self) -> None:
        self._what: str | None = None
        self._stack = contextlib.ExitStack()
        self._counter: Counter | None = None

    def __enter__(self) -> _Showing:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def __call__(self, what: str, done: int, of: int) -> None:
        """``done`` of ``of`` of ``what``."""
        if self._counter is None or what != self._what:
            self._stack.close()
            self._what, self._counter = what, self._stack.enter_context(Counter(what))
        self._counter(done, of)
        if done >= of:
            self._stack.close()
            self._counter = None


def evaluate(options: Any) -> int:
    """``s2vfast evaluate``; under torchrun all ranks do it, and rank 0 speaks."""
    if options.ensemble:
        return _evaluate_ensemble(options)
    if options.run is None:
        raise errors.ConfigError("needed: RUN, the folder of a run, or --ensemble with several")
    if options.weights is not None:
        raise errors.ConfigError("--weights: they are an ensemble's; name its runs with --ensemble")
    protocol = options.protocol or "linear"
    names = list(protocols.PROTOCOLS) if protocol == "all" else protocol.split(",")
    for name in names:
        if name not in protocols.KNOWN:
            raise errors.ConfigError(f"--protocol: {name!r} is not one of {', '.join((*protocols.KNOWN, 'all'))}")
    several = protocol == "all" or len(names) > 1
    results, folder = _output_paths(options.out, names, several)
    if results is not None:
        _check_results_path(results)
    how = _options(options, several) | {"out": folder}
    store = options.store or rundir.store_path(options.run)
    partly: dict[str, Any] = {}
    try:
        with distributed.start() as ranks, _Showing() as showing:
            how |= {"ranks": ranks, "progress": showing if ranks.is_main else None}
            if several:

                def each(result: dict[str, Any]) -> None:
                    partly.update(result)
                    if results is not None:
                        ranks.run_on_main_and_broadcast(lambda: _write(results, result))

                result = protocols.evaluate_all(options.run, store, options.split, names, each=each, **how)
            else:
                confusion = options.confusion or results is not None
                result = protocols.evaluate(options.run, store, options.split, names[0], confusion=confusion, **how)
            if results is not None:
                ranks.run_on_main_and_broadcast(lambda: _write(results, result))
    except errors.S2vfastError:
        if partly and torchrun.is_main_process():  # what one protocol cannot do costs no other
            print(json.dumps(partly) if options.json else tables.text(partly))
        raise
    except Stopped as stopped:
        if torchrun.is_main_process():
            _to_stderr(str(stopped))
        return 128 + stopped.signum
    if torchrun.is_main_process():
        if not options.confusion and not several:
            result = measures.without_details(result)
        print(json.dumps(result) if options.json else tables.text(result) if several else _lines(result))
    return 0


def _evaluate_ensemble(options: Any) -> int:
    """``s2vfast evaluate --ensemble RUN RUN …``."""
    from s2vfast.evaluate import ensemble

    run_dirs = [*([options.run] if options.run else []), *options.ensemble]
    results = None if options.out is None else Path(options.out)
    if results is not None:
        if results.suffix != ".json":
            raise errors.ConfigError(f"--out {options.out}: a FILE.json is expected, as an ensemble makes no run")
        _check_results_path(results)
    with distributed.start() as ranks, _Showing() as showing:
        result = ensemble.evaluate_ensemble(
            run_dirs,
            options.store or rundir.store_path(run_dirs[0]),
            options.split,
            options.protocol or "classify",
            weights=None if options.weights is None else numbers("--weights", options.weights),
            scores=options.scores,
            **_options(options, several=False) | {"ranks": ranks, "progress": showing if ranks.is_main else None},
        )
        if results is not None:
            ranks.run_on_main_and_broadcast(lambda: _write(results, result))
    if torchrun.is_main_process():
        if not options.confusion:
            result = measures.without_details(result)
        print(json.dumps(result) if options.json else ensemble.text(result))
    return 0


def _output_paths(out: str | None, names: list[str], several: bool) -> tuple[Path | None, Path | None]:
    """The file for results, and the folder for what is fine-tuned."""
    if out is None:
        return None, None
    if out.endswith(".json"):
        return Path(out), None
    if not several and names[0] not in ("finetune", "supervised", "semi"):
        raise errors.ConfigError(f"--out {out}: a FILE.json is expected, as {names[0]} makes no run of its own")
    return Path(out) / RESULTS, Path(out)


def _check_results_path(path: Path) -> None:
    """Raise where results could not be written to ``path``, or would replace what is none of their kind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text("utf-8") if path.exists() else None
        writable = os.access(path.parent, os.W_OK)
    except (OSError, UnicodeDecodeError) as error:
        raise errors.DataError(f"--out {path}: {getattr(error, 'strerror', None) or error}") from error
    if not writable:
        raise errors.DataError(f"--out {path}: {path.parent} cannot be written to")
    if text is None:
        return
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        if isinstance(content, dict) and "store_fingerprint" in content:
            return
    raise errors.DataError(f"--out {path}: exists already and holds no results of evaluate; name another file")


def _options(options: Any, several: bool) -> dict[str, Any]:
    refuse_unknown(options.settings, ["finetune"])
    changes = options.settings.get("finetune", {})
    recipe = finetune_config.load(options.recipe, changes)
    check_choice("--probe", options.probe, tuple(linear.RECIPES))
    probe = dict(linear.RECIPES[options.probe])
    probe |= {name: value for name in ("epochs", "lr") if (value := getattr(options, name)) is not None}
    # Whoever names a decay of the learning rate wants it from scratch too.
    supervised = {"supervised": recipe} if "layer_decay" in changes else {}
    return {
        "pool": options.pool,
        "windows": options.windows,
        "whiten": options.whiten,
        "layers": options.layers,
        "untrained": options.untrained,
        "train_part": options.train_part,
        "test_part": options.test_part,
        "device": options.device,
        "cache": options.cache,
        "log": _to_stderr,
        "k": (10 if several else 1) if options.k is None else options.k,
        **({} if options.transform is None else {"transform": options.transform}),
        **probe,
        "seed": options.seed,
        "repeats": options.repeats,
        "draws": options.draws,
        "test_draws": options.test_draws,
        "floor_draws": options.floor_draws,
        "recipe": recipe,
        **supervised,
        "percents": numbers("--percents", options.percents),
        "lists": options.lists,
        "semi": options.semi.split(","),
        "linear": options.linear.split(","),
    }


def numbers(name: str, text: str) -> list[float]:
    """``1,5,10`` as numbers; ``name`` is the option's."""
    try:
        return [float(part) if "." in part else int(part) for part in text.split(",")]
    except ValueError:
        raise errors.ConfigError(f"{name}: {text!r}; numbers with commas between them are expected") from None


def _lines(result: dict[str, Any]) -> str:
    """The result of one protocol as text."""
    protocol = result["protocol"]
    if protocol in ("floor", "order", "retrieval", "semi"):
        return tables.text({**result, "table": tables.rows({protocol: result})})
    name = {
        "linear": f"linear probe on {tables.pooled(result)}",
        "knn": f"{result.get('settings', {}).get('k')}-nearest-neighbour on {tables.pooled(result)}",
        "finetune": "fine-tuned",
        "supervised": "trained from scratch",
        "classify": "its own classes",
    }[protocol]
    encoder = features.called(result["step"], result["untrained"])
    lines = [f"{encoder}, {name}, split {result['split']} ({result['n_train']} to fit, {result['n_test']} to measure)"]
    if accuracies := _accuracies(result):  # none where linear is not the published probe
        lines.append(accuracies)
    for key, solver in {"probe": "L-BFGS", "ridge": "ridge regression"}.items():
        if key in result:
            lines.append(f"by {solver}: {_accuracies(result[key])}")
    for key, part in result.get("averaged", {}).items():
        lines.append(f"{key}, scores of {part['clips']} clips averaged: {_accuracies(part)}")
    for k, part in result.get("by_k", {}).items():
        if len(result["by_k"]) > 1 and k == "1":
            lines.append(f"1-NN: {_accuracies(part)}")
    if folders := result.get("folders"):
        lines.append(f"fine-tuned: {', '.join(folders)}; next: s2vfast predict {folders[0]} FILES")
    return "\n".join(lines)


def _accuracies(result: dict[str, Any]) -> str:
    values = {name: f"{result[key]:.2f}" for key, name in ACCURACIES.items() if key in result}
    deviations = {name: f" ± {result[f'{key}_std']:.2f}" for key, name in ACCURACIES.items() if f"{key}_std" in result}
    return "   ".join(f"{name} {value}{deviations.get(name, '')} %" for name, value in values.items())


def embed(options: Any) -> int:
    """``s2vfast embed``."""
    from s2vfast.evaluate.npz import embed

    summary = embed(
        options.run,
        options.store or rundir.store_path(options.run),
        options.out,
        options.split,
        pool=options.pool,
        layers=options.layers,
        untrained=options.untrained,
        device=options.device,
        overwrite=options.overwrite,
        log=_to_stderr,
    )
    print(f"{summary['out']}: features of {summary['n']} sequences, {summary['features']} numbers each")
    return 0


def subset(options: Any) -> int:
    """``s2vfast data subset``."""
    from s2vfast.data.store import Store
    from s2vfast.evaluate import subsets
    from s2vfast.evaluate.checks import check_counts

    check_counts(lists=options.lists)
    store = Store.open(options.store)
    subset_table = subsets.table(
        store, options.split, numbers("--percents", options.percents), seed=options.seed, lists=options.lists
    )
    _write(Path(options.out), subset_table)
    counts = ", ".join(f"{percent} %: {len(lists[0])}" for percent, lists in subset_table["lists"].items())
    print(f"{options.out}: {options.lists} lists of each share ({counts} sequences), SHA-256 {subset_table['sha256']}")
    return 0


def table(options: Any) -> int:
    """``s2vfast table``."""
    from s2vfast.evaluate import comparison

    text = comparison.text_of(options.results, options.format, options.metric)
    if options.out is None:
        print(text, end="")
    else:
        with files.disk_errors(Path(options.out), errors.DataError):
            files.write_text(Path(options.out), text)
        print(options.out)
    return 0


def pack(options: Any) -> int:
    """``s2vfast pack``."""
    from s2vfast.evaluate import sharing
    from s2vfast.models import hub

    if options.out is None and options.push is None and not options.card:
        raise errors.ConfigError(
            "--out: needed, the FILE.safetensors to write; or --push, to upload it; or --card, to print the card alone"
        )
    if options.push is not None:
        hub.parse(hub.SCHEME + options.push)  # before anything is written
    if options.card:
        print(sharing.card(options.run, options.results), end="")
    if options.out is None and options.push is None:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / hub.FILE
        how = {name: getattr(options, name) for name in ("results", "everything", "overwrite")}
        summary = sharing.pack(options.run, out, log=_to_stderr, **how)
        size = f"{summary['bytes'] / 1e6:.1f} MB, SHA-256 of its content {summary['sha256']}"
        if options.out is not None:
            print(f"{options.out}: {size}")
        if options.push is not None:
            print(f"{hub.push(out, options.push, options.private)}: {size}")
    return 0


def export(options: Any) -> int:
    """``s2vfast export``."""
    from s2vfast.evaluate.export import export

    summary = export(options.run, options.to, options.out, overwrite=options.overwrite, log=_to_stderr)
    print(
        f"{summary['out']}: {', '.join(summary['outputs'])} of clips {summary['input']}; differs from PyTorch by "
        f"{summary['error']:.1e} at most ({summary['checked_by']})"
    )
    return 0


def predict(options: Any) -> int:
    """``s2vfast predict``: 1 where a file or a line was broken, 0 otherwise."""
    from s2vfast.evaluate.arguments import PREDICT_FORMAT_OPTIONS
    from s2vfast.evaluate.lines import lines_as_they_come, predict_lines
    from s2vfast.evaluate.model import Model
    from s2vfast.evaluate.predict import predict

    if options.model is not None:
        options.run, options.files = options.model, [options.run, *options.files]
    if not options.files:
        raise errors.ConfigError("needed: FILES; `s2vfast predict --help` lists the options")
    sliding = {"window": options.window, "step": options.step, "smooth": options.smooth, "top": options.top}
    if options.files == ["-"]:
        stream = Model(options.run, options.device, _to_stderr).stream(**sliding)
        predictions = predict_lines(stream, lines_as_they_come(sys.stdin.buffer.read1))
    else:
        predictions = predict(
            options.run,
            options.files,
            format=options.format,
            layout=options.layout,
            device=options.device,
            log=_to_stderr,
            **sliding,
            **{name: getattr(options, name) for name in PREDICT_FORMAT_OPTIONS},
        )
    code = 0
    for prediction in predictions:
        if options.json:
            print(json.dumps(prediction), flush=True)
        elif "error" in prediction:
            _to_stderr(f"skipped: {prediction['error']}")
        else:
            print(f"{_named(prediction)}   {_ranking(prediction['top'])}", flush=True)
        code = max(code, int("error" in prediction))
    return code


def _named(prediction: dict[str, Any]) -> str:
    """Which file, sequence and frames a prediction is of."""
    if "frame" in prediction:
        return f"frame {prediction['frame']}"
    sequence = "" if prediction["sequence"] is None else f":{prediction['sequence']}"
    frames = (
        "" if "frames" not in prediction else f"   frames {prediction['frames'][0]} to {prediction['frames'][1] - 1}"
    )
    return f"{prediction['file']}{sequence}{frames}"


def _ranking(top: list[list[Any]]) -> str:
    return "   ".join(f"{name} {100 * value:.1f} %" for name, value in top)


def _write(path: Path, content: dict[str, Any]) -> None:
    with files.disk_errors(path, errors.DataError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)
