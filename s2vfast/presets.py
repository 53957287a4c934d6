"""Configs as files: the presets that come with the package, and the YAML a run keeps."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.resources
import re
from pathlib import Path
from typing import Any

import s2vfast.errors as errors
from s2vfast.config import DEFAULT_NETWORK, DEFAULT_OBJECTIVE, Config, MaskConfig
from s2vfast.config.fields import field_texts
from s2vfast.config.legacy import upgrade
from s2vfast.config.registry import NETWORKS, OBJECTIVES


def folder() -> Any:
    """Where the presets are: in the installed package, or ``configs/`` of the repository."""
    try:
        package = importlib.resources.files("s2vfast.configs")
        if any(entry.name.endswith(".yaml") for entry in package.iterdir()):
            return package
    except (ModuleNotFoundError, FileNotFoundError):
        pass
    return Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """Names of the presets."""
    return sorted(entry.name.removesuffix(".yaml") for entry in folder().iterdir() if entry.name.endswith(".yaml"))


def read(name_or_file: str | Path) -> dict[str, Any]:
    """The tree of sections and fields of a preset or of a YAML file.

    Raises:
        ConfigError: No such preset or file, no YAML, or no mapping of sections.
    """
    text = str(name_or_file)
    if text in names():
        return parse((folder() / f"{text}.yaml").read_text("utf-8"), f"preset {text}")
    path = Path(text)
    if not path.is_file():
        close = difflib.get_close_matches(text, names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise errors.ConfigError(f"--config {text}: neither a preset nor a file; {hint}presets: {', '.join(names())}")
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse(content, str(path))


def read_for(name_or_file: str | Path, objective: str | None) -> dict[str, Any]:
    """The tree of a preset's variant for an objective (``ntu60`` and ``mamp``: ``ntu60_mamp``), where there is one.

    Of any other preset, of one that differs from the family's first in more than the objective (``ntu60_fast``), and of
    a file, the tree `with_names`. None: the tree as it is.
    """
    tree, name, presets = read(name_or_file), str(name_or_file), names()
    if objective is None or _objective_of(tree) == objective:
        return tree
    family = name.partition("_")[0]
    same = name != family and family in presets and _objective_of(tree) == _objective_of(read(family))
    for variant in (f"{family}_{objective}", family):
        if name in presets and variant in presets and not same and _objective_of(read(variant)) == objective:
            return read(variant)
    return with_names(tree, objective=objective)


def _objective_of(tree: dict[str, Any]) -> str:
    return (tree.get("objective") or {}).get("name", DEFAULT_OBJECTIVE)


def with_names(tree: dict[str, Any], *, objective: str | None = None, model: str | None = None) -> dict[str, Any]:
    """A tree with another objective or network, and what that has of the fields of the one before."""
    for section, registry, name in (("objective", OBJECTIVES, objective), ("model", NETWORKS, model)):
        if name is None:
            continue
        fields = {"name", *(leaf.name for leaf in dataclasses.fields(registry.get(name).Section))}
        values = {key: value for key, value in (tree.get(section) or {}).items() if key in fields}
        tree = {**tree, section: {**values, "name": name}}
        if section == "objective" and not registry.get(name).masks_tokens:
            tree.pop("mask", None)
    return tree


def load(name_or_file: str | Path, changes: dict[str, dict[str, Any]] | None = None) -> Config:
    """The config of a preset or of a YAML file, with ``changes`` as of `merge`, checked."""
    return Config.from_dict(merge(read(name_or_file), changes or {}))


def parse(text: str, source: str) -> dict[str, Any]:
    """The tree in a YAML text; ``source`` names it in errors."""
    import yaml

    try:
        tree = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise errors.ConfigError(f"{source}{where}: no valid YAML: {problem}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise errors.ConfigError(f"{source}: a mapping of sections is expected, not {type(tree).__name__}")
    return upgrade(tree)


def value(text: str) -> Any:
    """One value as YAML reads it: ``3``, ``1e-3``, ``null``, ``[0.3, 0.3, 0.3]``, ``bins``."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, RecursionError):
        return text  # Whatever it is, the check of the field will say what was expected instead.


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``tree`` with single fields replaced: ``{"train": {"steps": 10}}``."""
    merged = {name: dict(fields) if isinstance(fields, dict) else fields for name, fields in tree.items()}
    for name, fields in changes.items():
        section = merged.get(name)
        merged[name] = {**section, **fields} if isinstance(section, dict) else dict(fields)
    return merged


def dump(config: Config, documented: bool = False) -> str:
    """A config as YAML that `parse` reads back; ``documented`` puts each field's text above it."""
    import yaml

    lines = []
    for name, fields in config.to_dict().items():
        lines.append(f"{name}:")
        texts = field_texts(type(getattr(config, name)))  # type: ignore[arg-type]  # a class can be hashed
        for key, entry in fields.items():
            if documented:
                lines += [f"  # {line}" for line in texts.get(key, "").splitlines()]
            lines.append(f"  {key}: {yaml.safe_dump([entry], default_flow_style=True, width=1000).strip()[1:-1]}")
    return "\n".join(lines) + "\n"


def documentation() -> dict[str, dict[str, tuple[str, dict[str, Any]]]]:
    """Section → field → its text, and its default by the network or objective that has it ("": all)."""
    sections: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {}
    registries = {"model": NETWORKS, "objective": OBJECTIVES}
    for leaf in dataclasses.fields(Config):
        classes: dict[str, Any] = {"": MaskConfig if leaf.name == "mask" else leaf.default_factory}
        if leaf.name in registries:
            classes = {name: registries[leaf.name].get(name).Section for name in registries[leaf.name].names()}
            names = f"{', '.join(classes)}, or one of a plugin."
            sections[leaf.name] = {"name": (names, {"": {"model": DEFAULT_NETWORK}.get(leaf.name, DEFAULT_OBJECTIVE)})}
        fields = sections.setdefault(leaf.name, {})
        texts: dict[str, dict[str, list[str]]] = {}  # field → text → owners
        for owner, section in classes.items():
            for option in dataclasses.fields(section):
                texts.setdefault(option.name, {}).setdefault(field_texts(section)[option.name], []).append(owner)
                fields.setdefault(option.name, ("", {}))[1][owner] = option.default
        for name, owners in texts.items():
            several = [f"{', '.join(names)}: {text}" for text, names in owners.items()]
            fields[name] = (" ".join(several) if len(several) > 1 else next(iter(owners)), fields[name][1])
    return sections


@functools.cache
def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's floats: PyYAML reads 1e-3, without a point, as text. No key twice: PyYAML takes the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            for number, (key, _) in enumerate(node.value):
                if key.value in keys[:number]:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} twice", key.start_mark)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )
    return Loader
