"""The command line: it parses, calls, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 something that can be mended (the line says what), 2 a wrong option or config, 128 + n stopped by
signal n. ``S2VFAST_DEBUG=1`` shows tracebacks. Modules are imported when their command runs, so that help is quick.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import s2vfast
import s2vfast.errors as errors
from s2vfast import completion, signals
from s2vfast.compat import commands as import_checkpoint
from s2vfast.data import commands as data
from s2vfast.evaluate import arguments
from s2vfast.live import commands as live
from s2vfast.train import torchrun, tune
from s2vfast.view import commands as view


@dataclass(frozen=True)
class Command:
    """What follows ``s2vfast``."""

    text: str
    """What it does, in a line."""
    run: Callable[[Any], int]
    """Options to exit code. ``options.settings`` holds what was given as ``--section.field value``."""
    add: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    """Gives a parser its options."""
    sections: Callable[[argparse.ArgumentParser], None] | None = None
    """Adds ``--section.field`` to the help of a command that takes such settings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that cannot show a name shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with signals.cleaning_up():
            code = _run(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail("stopped", 128 + signal.SIGINT)
    except signals.Signalled as signalled:
        return _fail(f"stopped by {signal.Signals(signalled.number).name}", 128 + signalled.number)
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
    # All ranks meet the same fault in a config, and only one of them need say it.
    by_other = error is not None and error.reported_by_other_rank
    if by_other or (isinstance(error, errors.ConfigError) and not torchrun.is_main_process()):
        return code
    if os.environ.get("S2VFAST_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    from s2vfast.data.limits import printable

    print(f"s2vfast: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Errors come to us, and options are written out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        if match := re.match(r"the following arguments are required: (.*)", message):
            names = (name if name.startswith("-") else name.upper() for name in match[1].split(", "))
            message = f"needed: {', '.join(names)}"
        raise errors.ConfigError(f"{message}; `{self.prog} --help` lists the options")


def _run(words: list[str]) -> int:
    try:
        parsed = parse(_load_plugins(words))
    except SystemExit as end:  # --help has printed
        return int(end.code or 0)
    if parsed is None:
        return 0
    command, options = parsed
    _locate_runs(options)
    return command.run(options)


def _locate_runs(options: argparse.Namespace) -> None:
    """Put folder or file in place of the name of a run, which may be one of the package or of the hub."""
    named = {
        name: value for name in ("run", "model", "init", "runs", "ensemble") if (value := getattr(options, name, None))
    }
    if named:
        from s2vfast import models

        locate = functools.partial(models.locate, log=functools.partial(print, file=sys.stderr))
        for name, value in named.items():
            setattr(options, name, list(map(locate, value)) if isinstance(value, list) else locate(value))


def parse(words: list[str]) -> tuple[Command, argparse.Namespace] | None:
    """The command that a command line names, and its options; None where a list of commands has been printed.

    Raises:
        ConfigError: no such command or option, or a value that is missing.
        SystemExit: a command's help has been printed.
    """
    commands = _commands()
    name, arguments_of_command = _command_of(words, commands)
    if name is None:
        return None
    command, settings = commands[name], {}
    if command.sections is not None:
        settings, arguments_of_command = take_settings(arguments_of_command)
    parser = _Parser(prog=f"s2vfast {name}", description=command.text)
    parser.add_argument("--plugin", metavar="FILE.py", help="register networks, objectives, implementations of a file")
    command.add(parser)
    if command.sections is not None and {"-h", "--help"} & set(arguments_of_command):
        command.sections(parser)
    options = parser.parse_args(arguments_of_command)
    options.settings = settings
    return command, options


def _load_plugins(words: list[str]) -> list[str]:
    """The words without ``--plugin FILE``, which any command takes."""
    remaining, files = [], []
    for word in words:
        if remaining and remaining[-1] == "--plugin":
            remaining.pop()
            files.append(word)
        elif word.startswith("--plugin="):
            files.append(word.partition("=")[2])
        else:
            remaining.append(word)
    if files:
        from s2vfast.config.registry import load_plugin

        for file in files:
            load_plugin(file)
    return remaining


def _command_of(words: list[str], commands: dict[str, Command]) -> tuple[str | None, list[str]]:
    """The command that the first words name, and what follows; None where help or the version has been printed."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in commands:
            return name, words[length:]
    groups = sorted({name.partition(" ")[0] for name in commands if " " in name})
    group = words[0] if words and words[0] in groups else None
    after = words[1:] if group else words
    if after == ["--version"] and group is None:
        print(f"s2vfast {s2vfast.__version__}")
        return None, []
    if after and after[0] not in ("-h", "--help"):
        names = sorted({name.removeprefix(f"{group} ").partition(" ")[0] for name in _below(group, commands)})
        raise errors.ConfigError(f"{after[0]}: no such command; commands: {', '.join(names)}")
    _print_commands(group, commands)
    return None, []


def _below(group: str | None, commands: dict[str, Command]) -> list[str]:
    return [name for name in commands if group is None or name.startswith(f"{group} ")]


def _print_commands(group: str | None, commands: dict[str, Command]) -> None:
    texts: dict[str, str] = {}
    for name in _below(group, commands):
        first, _, second = name.removeprefix(f"{group} ").partition(" ")
        texts[first] = _GROUPS[first] if second else commands[name].text
    about = _GROUPS[group] if group else "Self-supervised pretraining on 3D skeleton sequences."
    print(f"usage: s2vfast{f' {group}' if group else ''} COMMAND [options]\n\n{about}\n\ncommands:")
    for name, text in texts.items():
        print(f"    {name:18} {text}")
    print(f"\n`s2vfast {f'{group} ' if group else ''}COMMAND --help` lists a command's options.")


def take_settings(words: list[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Values of ``--section.field value`` and ``--section.field=value``, as YAML reads them, and the other words."""
    from s2vfast import presets

    settings: dict[str, dict[str, Any]] = {}
    other_words: list[str] = []
    remaining = iter(words)
    for word in remaining:
        match = re.fullmatch(r"--(\w+)\.([\w.]+)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            other_words.append(word)
            continue
        section, name, value = match.groups()
        if value is None:
            value = next(remaining, "")
        if not value or value.startswith("--"):
            raise errors.ConfigError(f"argument --{section}.{name}: expected one argument")
        settings.setdefault(section, {})[name] = presets.value(value)
    return settings, other_words


_GROUPS = {"data": "make and look at stores", "view": "pages and pictures of data, masks, features and runs"}


def _commands() -> dict[str, Command]:
    commands = {
        "demo": Command("synthetic data, pretraining and evaluation in one go, in minutes", _demo, _add_demo),
        "pretrain": Command("train a network on a store, without labels or with them", _pretrain, _add_pretrain,
                            _add_sections),
    }  # fmt: skip
    for name, text in arguments.COMMANDS.items():
        sections = arguments.add_finetune if name == "evaluate" else None
        commands[name] = Command(
            text, functools.partial(_evaluation, name), functools.partial(arguments.add, name), sections
        )
    commands[live.NAME] = Command(live.TEXT, live.run, live.add)
    commands[import_checkpoint.NAME] = Command(import_checkpoint.TEXT, import_checkpoint.run, import_checkpoint.add)
    commands["data subset"] = Command(
        "write lists of a share of the labels of every class",
        functools.partial(_evaluation, "subset"),
        arguments.add_subset,
    )
    for group, members in (("data", data.COMMANDS), ("view", view.COMMANDS)):
        for name, (text, run, add) in members.items():
            commands[f"{group} {name}"] = Command(text, run, add)
    commands[tune.NAME] = Command(tune.TEXT, tune.run, tune.add, _add_sections)
    commands["models"] = Command("list the models that come with the package, or describe one", _models, _add_models)
    commands[completion.NAME] = Command(completion.TEXT, _completion, completion.add)
    commands["doctor"] = Command("versions, devices, implementations: to paste into a bug report", _doctor)
    return commands


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder for all it makes")
    parser.add_argument("--fresh", action="store_true", help="throw away what an earlier demo made there")


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    from s2vfast import presets

    parser.add_argument("--config", metavar="NAME|FILE", help=f"{', '.join(presets.names())} or a YAML file")
    text = "the preset for this objective (ntu60, mamp: ntu60_mamp), else --config under this name"
    parser.add_argument("--objective", metavar="NAME", help=text)
    parser.add_argument("--data", "--store", dest="store", metavar="STORE", help="folder of a store")
    parser.add_argument("--out", metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--init",
        metavar="RUN|FILE",
        help="begin with the encoder of a run, or of a .pth or .safetensors file; its sections data and model must fit",
    )
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


def _add_sections(parser: argparse.ArgumentParser) -> None:
    """Every field of every section for the help; values are taken from the command line before it is parsed."""
    from s2vfast import presets

    for section, fields in presets.documentation().items():
        group = parser.add_argument_group(section)
        for name, (text, defaults) in fields.items():
            of = ", ".join(f"{owner}: {value}" if owner else f"{value}" for owner, value in defaults.items())
            text = " ".join(text.replace("``", "").split())
            group.add_argument(f"--{section}.{name}", metavar="VALUE", help=f"{text} [{of}]".replace("%", "%%"))


def _pretrain(options: Any) -> int:
    from s2vfast import presets
    from s2vfast.config import Config
    from s2vfast.data.store import Store
    from s2vfast.train import own_preset, rundir
    from s2vfast.train.loop import train
    from s2vfast.train.progress import duration

    resume = options.resume or torchrun.restart_count() > 0
    resumed = resume and options.out is not None and rundir.begun(options.out)
    settings = options.settings
    named = settings.get("objective", {}).get("name")
    objective = options.objective or named
    if named not in (None, objective):
        raise errors.ConfigError(f"--objective {objective} and --objective.name {named}: give one of them")
    network = settings.get("model", {}).get("name")
    if options.resume and options.out is None:
        raise errors.ConfigError("--out: needed with --resume, the folder of the run to go on with")
    if resumed:
        tree = presets.read(os.path.join(options.out, rundir.CONFIG))
        if options.config is not None and torchrun.is_main_process():
            print(f"--config {options.config} is left aside: --resume takes {options.out}/{rundir.CONFIG}")
    elif options.config is None:
        raise errors.ConfigError(f"--config: needed, a YAML file or one of {', '.join(presets.names())}")
    elif options.config == own_preset.NAME and options.store:
        tree, reasons = own_preset.tree(Store.open(options.store), settings.get("data", {}).get("split"))
        if torchrun.is_main_process():
            print("\n".join(f"# own: {reason}" for reason in [*reasons, *own_preset.replaced(tree, settings)]))
        tree = presets.with_names(tree, objective=objective)
    else:
        tree = presets.read_for(options.config, objective)
    tree = presets.with_names(tree, objective=objective, model=network)
    config = Config.from_dict(presets.merge(tree, settings))
    if options.print_config:
        print(presets.dump(config, documented=True), end="")
        return 0
    for name, value in (("--data", options.store or resumed), ("--out", options.out)):
        if not value:
            raise errors.ConfigError(f"{name}: needed")
    if options.profile is not None and options.profile < 1:
        raise errors.ConfigError(f"--profile: {options.profile}; 1 step or more is expected")
    init = None
    if options.init is not None:
        from s2vfast.compat.initial import read_initial

        init = functools.partial(read_initial, options.init)
        if resumed and torchrun.is_main_process():
            print(f"--init {options.init} is left aside: --resume goes on with the weights that the run has saved")
    summary = train(
        config,
        options.store,
        options.out,
        resume=resume,
        tensorboard=options.tensorboard,
        profile=options.profile,
        init=init,
    )
    if summary.signal is not None:
        return 128 + summary.signal
    if not torchrun.is_main_process():
        return 0
    if summary.loss is not None:
        print(
            f"done: {summary.total_steps} steps, these in {duration(summary.seconds)} "
            f"({summary.clips_per_second:.0f} clips/s), loss {summary.loss:.4f}"
        )
    from s2vfast.evaluate import finetune

    if rundir.read(options.out)["classes"]:
        protocol = "classify" if finetune.has_classes(config) else "linear"
        print(f"next: s2vfast evaluate {options.out} --protocol {protocol}")
    else:  # there are no labels to measure with
        print(f"next: s2vfast embed {options.out} --out features.npz")
    return 0


def _evaluation(name: str, options: Any) -> int:
    from s2vfast.evaluate import commands

    return getattr(commands, name)(options)


def _demo(options: Any) -> int:
    from s2vfast.demo import demo

    stopped = demo(options.out, fresh=options.fresh)
    return 0 if stopped is None else 128 + stopped


def _completion(options: Any) -> int:
    print("\n".join(completion.following(options.line, _commands())) if options.line is not None else completion.SCRIPT)
    return 0


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="print its card, and the commands that made it")


def _models(options: Any) -> int:
    from s2vfast import models

    print(models.table() if options.name is None else models.description(options.name), end="")
    return 0


def _doctor(options: Any) -> int:
    from s2vfast import doctor

    print(doctor.report())
    return 0
