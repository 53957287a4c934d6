"""What every section of a config is made of: plain dataclasses, one type check, one range check, one refusal.

A section is a dataclass of scalars, choices and tuples. The text under a field documents it; `option` states its range:

    @dataclass
    class MyConfig:
        temperature: float = option(0.1, gt=0)
        \"\"\"Of the softmax.\"\"\"

``s2vfast pretrain --help``, ``--print_config`` and all errors are made from these.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import field
from typing import Any, ClassVar, Literal, TypeVar

from s2vfast.errors import ConfigError

S = TypeVar("S")

_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}
_NAMES |= {list: "a list", dict: "a mapping"}


class Section:
    """A config's section: it takes no attribute but its fields, so that a slip of the pen is refused where it is made.

    Dataclasses of this package derive from it; those of a plugin do once they are registered.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_unknown([name], self.__dataclass_fields__, type(self).__name__)
        object.__setattr__(self, name, value)


def option(
    default: Any, *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
) -> Any:
    """A field with a range: at least ``ge`` or above ``gt``, at most ``le`` or below ``lt``; null is in any range."""
    limits = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    return field(default=default, metadata=limits)


def section_from_tree(section: type[S], values: Any, path: str) -> S:
    """The section of plain values by field, checked; fields that are not given have their defaults.

    Args:
        section: a dataclass.
        values: a mapping, or None for none.
        path: the section's name, for messages.

    Raises:
        ConfigError: no mapping, an unknown field, or a value of another type or out of range.
    """
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a section of fields is expected, not {values!r}")
    refuse_unknown(values, [leaf.name for leaf in _leaves(section)], path)
    hints = _hints(section)  # type: ignore[arg-type]  # a class can be hashed
    result = section(**{name: _with_tuples(value, hints[name]) for name, value in values.items()})
    check_section(result, path)
    return result


def tree_of(section: Any) -> dict[str, Any]:
    """Plain values by field, in their order."""
    return {leaf.name: _with_lists(getattr(section, leaf.name)) for leaf in _leaves(section)}


def check_section(section: Any, path: str) -> None:
    """Raise `ConfigError` for the first field whose value has another type or is out of its range."""
    hints = _hints(type(section))  # type: ignore[arg-type]  # a class can be hashed
    leaves = [(leaf, getattr(section, leaf.name)) for leaf in _leaves(section)]
    for leaf, value in leaves:
        _check_type(f"{path}.{leaf.name}", value, hints[leaf.name])
    for leaf, value in leaves:
        if value is not None:
            _check_range(f"{path}.{leaf.name}", value, leaf.metadata)


def refuse_unknown(names: Iterable[Any], allowed: Iterable[str], path: str = "") -> None:
    """Raise `ConfigError` for the first name that is not known, with the nearest that is."""
    allowed, prefix = list(allowed), f"{path}." if path else ""
    for name in names:
        if name not in allowed:
            close = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(allowed) or 'none'}"
            raise ConfigError(f"{prefix}{name}: no such field; {hint}")


@functools.cache
def field_texts(section: type) -> dict[str, str]:
    """The text under each field's definition, by the field's name; those of base classes too."""
    texts: dict[str, str] = {}
    for base in reversed(section.__mro__):
        texts |= dict(_texts_in_source(base))
    return {leaf.name: texts.get(leaf.name, "") for leaf in dataclasses.fields(section)}


def _texts_in_source(section: type) -> Iterator[tuple[str, str]]:
    if not dataclasses.is_dataclass(section) or "__annotations__" not in vars(section):
        return
    try:
        source = inspect.getsource(sys.modules[section.__module__])
    except (OSError, TypeError, KeyError):  # made at a prompt: no source to read
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == section.__name__:
            for definition, text in itertools.pairwise(node.body):
                match definition, text:
                    case (
                        ast.AnnAssign(target=ast.Name(id=name)),
                        ast.Expr(value=ast.Constant(value=str() as documentation)),
                    ):
                        yield name, inspect.cleandoc(documentation)


def _leaves(section: Any) -> list[dataclasses.Field]:
    """The fields that a config can set."""
    return [leaf for leaf in dataclasses.fields(section) if leaf.init]


def _with_tuples(value: Any, hint: Any) -> Any:
    """Lists of plain data as the tuples that the field's type has."""
    if not isinstance(value, list) or typing.get_origin(hint) is not tuple:
        return value
    inner = typing.get_args(hint)[0]
    return tuple(_with_tuples(entry, inner) for entry in value)


def _with_lists(value: Any) -> Any:
    return [_with_lists(entry) for entry in value] if isinstance(value, tuple) else value


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def _check_type(path: str, value: Any, hint: Any) -> None:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if union else (hint,)
    if any(_is_of(value, choice) for choice in choices):
        return
    if typing.get_origin(hint) is Literal:
        raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
    expected = " or ".join(_expected(choice) for choice in choices)
    verb = "are" if expected.endswith(("numbers", "texts", "mappings")) else "is"
    raise ConfigError(f"{path}: {value!r}; {expected} {verb} expected")


def _is_of(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if arguments[-1] is Ellipsis:
            return all(_is_of(entry, arguments[0]) for entry in value)
        return len(value) == len(arguments) and all(map(_is_of, value, arguments))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _expected(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        kind = {str: "texts", dict: "mappings"}.get(typing.get_origin(arguments[0]) or arguments[0], "numbers")
        return kind if arguments[-1] is Ellipsis else f"{len(arguments)} {kind}"
    return _NAMES.get(origin or hint, str(hint))


def _check_range(path: str, value: Any, limits: typing.Mapping[str, float]) -> None:
    tests = {"ge": lambda bound: value >= bound, "gt": lambda bound: value > bound}
    tests |= {"le": lambda bound: value <= bound, "lt": lambda bound: value < bound}
    if all(tests[name](bound) for name, bound in limits.items()):
        return
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    huge = high is not None and high >= 2**31
    if high is None or (huge and value < low):
        expected = "a positive number" if limits.get("gt") == 0 else f"{low:g} or more"
    elif huge:
        expected = f"a number below 2**{math.log2(high):g}"
    else:
        interval = f"{'[' if 'ge' in limits else '('}{low:g}, {high:g}{']' if 'le' in limits else ')'}"
        expected = f"a number in {interval}"
    raise ConfigError(f"{path}: {value}; {expected} is expected")
