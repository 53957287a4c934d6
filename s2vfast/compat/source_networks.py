"""Where in a checkpoint file the weights are: containers in containers, prefixes, students beside teachers."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from s2vfast import errors
from s2vfast.compat.namings import NAMINGS, Naming
from s2vfast.compat.reader import Beside, shown

PARTS = ("auto", "teacher", "student")
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What data parallelism and torch.compile put into names."""
_TEACHERS = {"teacher", "ema", "momentum", "target"}
"""Words in the names around weights which say that these are a moving average."""
_STUDENTS = {"student", "online"}
_HEADS = ("num_heads", "n_heads", "nhead", "heads")
_DEEPEST = 8  # containers in containers


@dataclass(frozen=True)
class LeftOut:
    """Something in the file that is not taken."""

    theirs: str
    """Its name in the file."""
    shape: tuple[int, ...] | None
    """None: no single tensor."""
    why: str


@dataclass
class Part:
    """The weights of one network in the file."""

    place: str
    """What stands before the names: containers, and a prefix."""
    label: str
    """``teacher``, ``student``, or nothing where the file does not say."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """By published name."""
    names: dict[str, str] = field(default_factory=dict)
    """Published name → whole name in the file."""


def find(tree: Any, naming: str, leave_out: Sequence[str]) -> tuple[Naming, list[Part], list[LeftOut]]:
    """All networks of a naming in what a file holds, and what lies beside them.

    Args:
        tree: what `s2vfast.compat.reader.read_file` gave.
        naming: name of one, or ``auto``.
        leave_out: patterns of names that are not taken.

    Raises:
        CheckpointError: no weights of such a naming, tensors beside them that have no place in a network, or a pattern
            that nothing matches.
    """
    if not isinstance(tree, dict):
        raise errors.CheckpointError(f"holds a {type(tree).__name__}, not a state dict or a container of one")
    containers = list(_containers(tree))
    kind = _tell(containers, naming)
    parts: list[Part] = []
    left_out: list[LeftOut] = []
    unused = set(leave_out)
    homes = []
    for place, container in containers:
        names = _plain(container)
        prefixes = _prefixes(kind, names)
        if not prefixes:
            continue
        homes.append(place)
        if len(set(names.values())) < len(names):
            twice = next(key for key, plain in names.items() if list(names.values()).count(plain) > 1)
            raise errors.CheckpointError(f"{shown(place + twice)}: there twice, with and without a wrapper's prefix")
        here = {prefix: Part(shown(place + whole), _label(place + whole)) for prefix, whole in prefixes.items()}
        for key, plain in names.items():
            prefix = max((prefix for prefix in prefixes if plain.startswith(prefix)), key=len, default=None)
            name = plain if prefix is None else plain[len(prefix) :]
            whole = shown(place + key)
            fitting = {
                pattern
                for pattern in leave_out
                if any(fnmatch.fnmatchcase(one, pattern) for one in (whole, place + plain, plain, name))
            }
            unused -= fitting
            if fitting:
                left_out.append(LeftOut(whole, tuple(container[key].shape), "as asked"))
            elif prefix is None:
                raise unknown(kind, whole, plain)
            else:
                here[prefix].state[name], here[prefix].names[name] = container[key], whole
        parts += [part for part in here.values() if part.state]
    if unused:
        raise errors.CheckpointError(f"nothing in it is called {sorted(unused)[0]!r}, which is to be left out")
    return kind, parts, left_out + list(_beside(tree, homes))


def choose(parts: list[Part], kind: Naming, part: str) -> Part:
    """The network that is evaluated.

    Args:
        parts: all there are.
        kind: their naming.
        part: one of `PARTS`.

    Raises:
        CheckpointError: it is not there, or there are two of it.
    """
    if not parts:
        raise errors.CheckpointError("all of its weights are left out")
    if len(parts) == 1 and not parts[0].label:
        return parts[0]  # nothing says that it is not what was asked for
    found: dict[str, Part] = {}
    for one in parts:
        # What lies beside a teacher without a name of its own is the student.
        one.label = one.label or "student"
        if found.setdefault(one.label, one) is not one:
            raise errors.CheckpointError(
                f"two networks of {kind.published}, at {found[one.label].place or 'the top'!r} and {one.place!r}; "
                f"leave one of them out: --leave-out '{one.place}*'"
            )
    wanted = kind.evaluated if part == "auto" else part
    if wanted not in found and part != "auto":
        (there,) = found
        raise errors.CheckpointError(f"no {part} in it, only a {there}, at {found[there].place!r}; give --part {there}")
    return found.get(wanted) or parts[0]


def unknown(kind: Naming, whole: str, name: str) -> errors.CheckpointError:
    """What to raise of a tensor, called ``whole`` in the file and ``name`` in its network, that has no place."""
    stem = name.split(".")[0]
    return errors.CheckpointError(
        f"{whole}: no parameter of the published {kind.published} has this name; if encoder and decoder do without it, "
        f"leave it out: --leave-out '{shown(stem)}{'.*' if '.' in name else ''}'"
    )


def heads(tree: Any) -> int | None:
    """Attention heads, where settings beside the weights say it, and all of them the same."""
    said = set()
    for _, container in _containers(tree, objects=True):
        said |= {container[name] for name in _HEADS if type(container.get(name)) is int}
    return said.pop() if len(said) == 1 else None


def _containers(tree: Any, objects: bool = False) -> Iterator[tuple[str, dict]]:
    """Every dict with its path, which ends in a dot; ``objects``: also the fields of what a stand-in stands for."""
    seen, todo = set(), [("", tree, 0)]
    while todo:
        place, value, depth = todo.pop(0)
        if objects and isinstance(value, Beside):
            value = value.state
        if isinstance(value, dict) and id(value) not in seen and depth <= _DEEPEST:
            seen.add(id(value))
            yield place, value
            todo += [(f"{place}{shown(key)}.", item, depth + 1) for key, item in value.items()]


def _plain(container: dict) -> dict[str, str]:
    """Name of each tensor → the name without wrappers."""
    return {
        key: ".".join(word for word in key.split(".") if word not in _WRAPPERS)
        for key, value in container.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _prefixes(kind: Naming, names: dict[str, str]) -> dict[str, str]:
    """What stands before the names of each published network there is: without wrappers → as in the file."""
    return {
        plain.removesuffix(mark): key.removesuffix(mark)
        for key, plain in names.items()
        for mark in kind.marks
        if plain == mark or plain.endswith(f".{mark}")
    }


def _tell(containers: list[tuple[str, dict]], naming: str) -> Naming:
    """The naming of the weights."""
    names = [_plain(container) for _, container in containers]
    fitting = [name for name, kind in NAMINGS.items() if any(_prefixes(kind, some) for some in names)]
    if naming in fitting or (naming == "auto" and len(fitting) == 1):
        return NAMINGS[fitting[0] if naming == "auto" else naming]
    if naming == "auto" and fitting:
        raise errors.CheckpointError(f"holds weights of {' and of '.join(fitting)}; name one of them with --from")
    if fitting:
        raise errors.CheckpointError(f"holds weights of {fitting[0]}, not of {naming}; leave --from out")
    wanted = [NAMINGS[naming]] if naming != "auto" else list(NAMINGS.values())
    known = " or ".join(f"{kind.marks[0]} ({kind.published})" for kind in wanted)
    most = max(names, key=len, default={})
    there = f"the names begin with {', '.join(map(shown, list(most)[:3]))}" if most else "it holds no tensor by name"
    raise errors.CheckpointError(f"no weights in a naming that is known, which have {known}; {there}")


def _label(place: str) -> str:
    words = set(re.split(r"[^a-z]+", place.lower()))
    return "teacher" if words & _TEACHERS else "student" if words & _STUDENTS else ""


def _beside(tree: dict, homes: list[str]) -> Iterator[LeftOut]:
    """What lies in the containers on the way to the weights and is none."""
    for place, container in _containers(tree):
        if any(home.startswith(place) for home in homes):
            for key, value in container.items():
                inside = f"{place}{shown(key)}."
                taken = place in homes and isinstance(key, str) and isinstance(value, Tensor)
                if not taken and not (isinstance(value, dict) and any(home.startswith(inside) for home in homes)):
                    shape = tuple(value.shape) if isinstance(value, Tensor) else None
                    yield LeftOut(inside[:-1], shape, _describe(value))


def _describe(value: Any) -> str:
    """What something beside the weights is."""
    if isinstance(value, (dict, list, tuple)):
        count, todo, seen = 0, [value], set()
        while todo:
            one = todo.pop()
            if isinstance(one, (dict, list, tuple)) and id(one) not in seen:
                seen.add(id(one))
                todo += one.values() if isinstance(one, dict) else one
            count += isinstance(one, Tensor)
        return f"beside the weights: {count} tensor(s)" if count else "beside the weights: settings"
    if isinstance(value, Tensor):
        return "beside the weights"
    if isinstance(value, Beside):
        return f"beside the weights: {type(value).__module__}.{type(value).__name__}"
    return f"beside the weights: {shown(repr(value)[:60])}"
