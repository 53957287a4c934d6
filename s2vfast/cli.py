"""The command line: it parses, calls, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 something that can be mended (the line says what), 2 a wrong option or config, 128 + n stopped by
signal n. ``S2VFAST_DEBUG=1`` shows tracebacks. Modules are imported when their command runs, so that help is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import re
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jsonargparse

import s2vfast
import s2vfast.errors as errors
from s2vfast import presets
from s2vfast.compat import commands as foreign
from s2vfast.config import Config
from s2vfast.evaluate import arguments, finetune_config
from s2vfast.train import torchrun
from s2vfast.view import commands as view

Handler = Callable[[Any], int]

# Errors come to us, options are written out, and --print_config is our own: it prints what a run would use.
_STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "print_config": None}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("stopped", 128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except errors.ConfigError as error:
        return _fail(f"error: {error}", 2, error)
    except errors.S2vfastError as error:
        return _fail(f"error: {error}", 1, error)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(f"error: {name}{error.strerror or error}", 1)


def _fail(message: str, code: int, error: errors.S2vfastError | None = None) -> int:
    # All ranks find the same fault in a config, and only one of them need say it.
    if error is not None and (error.elsewhere or (isinstance(error, errors.ConfigError) and not torchrun.speaks())):
        return code
    if os.environ.get("S2VFAST_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(f"s2vfast: {' '.join(message.split())}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    _check_paths(arguments)
    parser, handlers = _build()
    try:
        options = parser.parse_args(arguments)
        command: list[str] = []
        while name := options.get("subcommand"):
            command.append(name)
            options = options[name]
        if " ".join(command) not in handlers:  # `s2vfast` or `s2vfast data` alone: what can follow
            parser.parse_args([*command, "--help"])
    except SystemExit as end:  # --help and --version have printed
        return int(end.code or 0)
    except argparse.ArgumentError as error:
        raise errors.ConfigError(_explain(str(error), arguments)) from error
    return handlers[" ".join(command)](options)


def _check_paths(arguments: list[str]) -> None:
    """Refuse unknown ``--section.field`` as a config file would; the parser's own words are of no help there."""
    for argument in arguments:
        if found := re.match(r"--(\w+)\.([\w.]+)", argument):
            section, field = found.groups()
            if section == "finetune":
                finetune_config.refuse_unknown([field])
            elif f"{section}.{field}" not in presets.documentation():
                Config.from_dict({section: {field: None}})


def _explain(message: str, arguments: list[str]) -> str:
    """The parser's complaint in one line; of a config field, what the config itself has to say."""
    if found := re.match(r'Parser key "settings\.(\w+)\.(\w+)"', message):
        option = "--{}.{}".format(*found.groups())
        given = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{option}=")]
        given += [after for before, after in itertools.pairwise(arguments) if before == option]
        section, field = found.groups()
        Config.from_dict({section: {field: presets.value(given[-1])}})
    message = " ".join(message.split())
    message = re.sub(r'Parser key "(?:\w+\.)*(\w+)":', r"--\1:", message)
    message = re.sub(r"Expected a typing.Literal\[(.*?)\]\.", r"one of \1 is expected.", message)
    message = re.sub(r"Expected a <class '(\w+)'>", r"a value of type \1 is expected", message)
    if found := re.match(r"the following arguments are required: (.*)", message):
        names = [name.rpartition(".")[2] for name in found[1].split(", ")]
        message = "needed: " + ", ".join(f"--{name}" if name == "out" else name.upper() for name in names)
    return f"{message}; `s2vfast COMMAND --help` lists the options"


def _build() -> tuple[jsonargparse.ArgumentParser, dict[str, Handler]]:
    root = jsonargparse.ArgumentParser(
        prog="s2vfast",
        description="Self-supervised pretraining on 3D skeleton sequences (Skeleton2vec, SkeletonMAE, MAMP).",
        version=s2vfast.__version__,
        **_STRICT,
    )
    handlers: dict[str, Handler] = {}
    groups: dict[int, str] = {}
    top = root.add_subcommands(required=False, title="commands", metavar="COMMAND", description="")

    def command(group: Any, name: str, handler: Handler | None, text: str) -> jsonargparse.ArgumentParser:
        parser = jsonargparse.ArgumentParser(description=text, **_STRICT)
        group.add_subcommand(name, parser, help=text)
        if handler is not None:
            handlers[f"{groups.get(id(group), '')}{name}"] = handler
        return parser

    def commands_of(name: str, text: str) -> Any:
        group = command(top, name, None, text).add_subcommands(
            required=False, title="commands", metavar="COMMAND", description=""
        )
        groups[id(group)] = f"{name} "
        return group

    demo = command(top, "demo", _demo, "synthetic data, pretraining and evaluation in one go, in minutes")
    demo.add_argument("--out", type=str, default="runs/demo", metavar="DIR", help="folder for all it makes")
    demo.add_argument("--fresh", action="store_true", help="throw away what an earlier demo made there")

    _add_pretrain(command(top, "pretrain", _pretrain, "pretrain an encoder on a store"))

    for name, text in arguments.COMMANDS.items():
        arguments.add(name, command(top, name, functools.partial(_evaluation, name), text))

    foreign.add(command(top, foreign.NAME, foreign.run, foreign.TEXT))

    _add_data(commands_of("data", "make and look at stores"), command)
    view.add(functools.partial(command, commands_of("view", "pages and pictures of data, masks, features and runs")))

    command(top, "doctor", _doctor, "versions, devices, implementations: to paste into a bug report")
    return root, handlers


def _add_pretrain(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=str, metavar="NAME|FILE", help=f"{', '.join(presets.names())} or a YAML file")
    # Sections of the config are called objective and data too; keys of their own keep them apart.
    text = "skeleton2vec, skeletonmae, mamp: the preset for it (ntu60, mamp: ntu60_mamp), else --config under this name"
    parser.add_argument("--objective", dest="variant", type=str, metavar="NAME", help=text)
    parser.add_argument("--data", "--store", dest="store", type=str, metavar="STORE", help="folder of a store")
    parser.add_argument("--out", type=str, metavar="RUN", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, from its newest checkpoint")
    parser.add_argument("--tensorboard", action="store_true", help="write scalars for TensorBoard to RUN/tensorboard")
    parser.add_argument(
        "--profile",
        type=int,
        nargs="?",
        const=10,
        metavar="STEPS",
        help="measure and trace so many steps (10) before the run's own, into RUN/profile",
    )
    parser.add_argument("--print_config", action="store_true", help="print the whole config, documented, and exit")
    for section in dataclasses.fields(Config):
        group = parser.add_argument_group(section.name)
        hints = typing.get_type_hints(section.default_factory)
        for field in dataclasses.fields(section.default_factory):
            path = f"{section.name}.{field.name}"
            text = " ".join(presets.documentation()[path].replace("``", "").split())
            # No default here: only what is given on the command line may override the preset.
            group.add_argument(
                f"--{path}",
                dest=f"settings.{path}",
                type=hints[field.name],
                default=argparse.SUPPRESS,
                help=f"{text} [{field.default}]".replace("%", "%%"),
            )


def _add_data(group: Any, command: Callable[..., jsonargparse.ArgumentParser]) -> None:
    read = command(group, "import", _import, "make a store from a dataset's own files")
    read.add_argument("src", type=str, help="a file or folder")
    read.add_argument("--format", type=str, help="ntu, pyskl, ctrgcn, nwucla or pkummd; without it detected")
    read.add_argument("--layout", type=str, help="name or JSON file of the skeleton, for formats without one")
    read.add_argument(
        "--on_error", "--on-error", type=typing.Literal["skip", "fail"], default="skip", help="on a broken recording"
    )
    read.add_argument("--workers", type=int | None, help="processes that read; without it chosen")

    synth = command(group, "synth", _synth, "make a store of synthetic people")
    synth.add_argument("--subjects", type=int, default=10, help="people, 2 or more")
    synth.add_argument("--views", type=int, default=3, help="cameras, 1 to 3")
    synth.add_argument("--repetitions", type=int, default=3, help="times that everyone does every action")
    synth.add_argument("--seed", type=int, default=1, help="the same seed makes the same store")
    synth.add_argument("--workers", type=int, default=0, help="processes beside this one")

    for parser in (read, synth):
        parser.add_argument("--out", type=str, required=True, metavar="STORE", help="folder of the store to make")
        parser.add_argument("--dtype", type=typing.Literal["float32", "float16"], default="float32", help="on the disk")
        parser.add_argument("--overwrite", action="store_true", help="replace an existing store")

    subset = command(
        group, "subset", functools.partial(_evaluation, "subset"), "write lists of a share of the labels of every class"
    )
    subset.add_argument("store", type=str, help="folder of a store")
    subset.add_argument("--split", type=str, required=True, help="split whose training part is chosen from")
    subset.add_argument("--percents", type=str, default="1,5,10,20", help="shares, with commas between them")
    subset.add_argument("--lists", type=int, default=5, help="lists of each share")
    subset.add_argument("--seed", type=int, default=0, help="of the lists")
    subset.add_argument("--out", type=str, required=True, metavar="FILE.json", help="the file to write")

    for name, handler, text in (
        ("check", _check, "prove a store intact: compare every file with its hash"),
        ("show", _show, "print what is in a store"),
    ):
        command(group, name, handler, text).add_argument("store", type=str, help="folder of a store")


def _pretrain(options: Any) -> int:
    from s2vfast.objectives import objective_class
    from s2vfast.train import rundir
    from s2vfast.train.loop import pretrain
    from s2vfast.train.progress import duration

    resume = options.resume or torchrun.attempt() > 0
    resumed = resume and options.out is not None and rundir.begun(options.out)
    if resumed:
        tree = presets.read(os.path.join(options.out, rundir.CONFIG))
        tree = presets.merge(tree, {"objective": {"name": options.variant}} if options.variant else {})
        if options.config is not None and torchrun.speaks():
            print(f"--config {options.config} is left aside: --resume takes {options.out}/{rundir.CONFIG}")
    elif options.config is None:
        raise errors.ConfigError(f"--config: needed, a YAML file or one of {', '.join(presets.names())}")
    else:
        tree = presets.read_for(options.config, options.variant)
    given = options.get("settings")
    config = Config.from_dict(presets.merge(tree, given.as_dict() if given else {}))
    objective_class(config.objective.name)
    if options.print_config:
        print(presets.dump(config, documented=True), end="")
        return 0
    for name, value in (("--data", options.store or resumed), ("--out", options.out)):
        if not value:
            raise errors.ConfigError(f"{name}: needed")
    if options.profile is not None and options.profile < 1:
        raise errors.ConfigError(f"--profile: {options.profile}; 1 step or more is expected")
    summary = pretrain(
        config,
        options.store,
        options.out,
        resume=resume,
        tensorboard=options.tensorboard,
        profile=options.profile,
    )
    if summary.signal is not None:
        return 128 + summary.signal
    if not torchrun.speaks():
        return 0
    if summary.loss is not None:
        print(
            f"done: {summary.total_steps} steps, these in {duration(summary.seconds)} "
            f"({summary.clips_per_second:.0f} clips/s), loss {summary.loss:.4f}"
        )
    print(f"next: s2vfast evaluate {options.out} --protocol linear")
    return 0


def _evaluation(name: str, options: Any) -> int:
    from s2vfast.evaluate import commands

    return getattr(commands, name)(options)


def _demo(options: Any) -> int:
    from s2vfast.demo import demo

    stopped = demo(options.out, fresh=options.fresh)
    return 0 if stopped is None else 128 + stopped


def _import(options: Any) -> int:
    from s2vfast.data import report
    from s2vfast.data.importer import import_dataset
    from s2vfast.train.progress import Counter

    with Counter("reading") as counter:
        made = import_dataset(
            options.src,
            options.out,
            format=options.format,
            layout=options.layout,
            on_error=options.on_error,
            workers=options.workers,
            dtype=options.dtype,
            overwrite=options.overwrite,
            progress=counter,
        )
    print(report.imported(made))
    return 0


def _synth(options: Any) -> int:
    from s2vfast.data.synth import generate
    from s2vfast.train.progress import Counter

    with Counter("making sequences") as counter:
        store = generate(
            options.out,
            subjects=options.subjects,
            views=options.views,
            repetitions=options.repetitions,
            seed=options.seed,
            dtype=options.dtype,
            overwrite=options.overwrite,
            workers=options.workers,
            progress=counter,
        )
    print(f"{options.out}: {len(store)} sequences, {len(store.frames)} frames, {len(store.classes)} classes")
    return 0


def _check(options: Any) -> int:
    from s2vfast.data import report

    print(report.check(options.store))
    return 0


def _show(options: Any) -> int:
    from s2vfast.data import report

    print(report.show(options.store))
    return 0


def _doctor(options: Any) -> int:
    from s2vfast import doctor

    print(doctor.report())
    return 0
