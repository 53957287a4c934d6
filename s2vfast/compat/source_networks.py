"""The networks in a checkpoint file: in which containers, under which prefixes, which is student and which teacher."""

from __future__ import annotations

import fnmatch
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from s2vfast import errors
from s2vfast.compat.namings import NAMINGS, Naming
from s2vfast.compat.reader import OpaqueObject, printable
from s2vfast.compat.recognisers import RECOGNISERS, Recogniser

Kind = Naming | Recogniser
KINDS: dict[str, Kind] = {**NAMINGS, **RECOGNISERS}
"""All namings that can be read, by name."""

ROLES = ("auto", "teacher", "student")
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What data parallelism and torch.compile put into names."""
_TEACHERS = {"teacher", "ema", "momentum", "target"}
"""Words in the names around weights which say that these are a moving average."""
_STUDENTS = {"student", "online"}
_HEADS = ("num_heads", "n_heads", "nhead", "heads")
_DEEPEST = 8  # containers in containers


@dataclass(frozen=True)
class SkippedTensor:
    """Something in the file that does not become a parameter."""

    source_name: str
    """In the file."""
    shape: tuple[int, ...] | None
    """None: no single tensor."""
    why: str


@dataclass
class SourceNetwork:
    """The weights of one network in the file."""

    prefix: str
    """What its names begin with in the file: containers, and a prefix."""
    role: str
    """``teacher``, ``student``, or nothing where the file does not say."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """By published name."""
    names: dict[str, str] = field(default_factory=dict)
    """Published name → full name in the file."""


def find(tree: Any, naming: str, leave_out: Sequence[str]) -> tuple[Kind, list[SourceNetwork], list[SkippedTensor]]:
    """All networks of a naming in a file, and all else that the file holds.

    Args:
        tree: what `s2vfast.compat.reader.read_file` gave.
        naming: name of one, or ``auto``.
        leave_out: patterns of names that are not taken.

    Raises:
        CheckpointError: no weights of such a naming, other tensors in their container, or a pattern
            that nothing matches.
    """
    if not isinstance(tree, dict):
        raise errors.CheckpointError(f"holds a {type(tree).__name__}, not a state dict or a container of one")
    containers = list(_containers(tree))
    kind = _naming_of(containers, naming)
    networks: list[SourceNetwork] = []
    left_out: list[SkippedTensor] = []
    unused = set(leave_out)
    weight_paths = []
    for container_path, container in containers:
        names = _plain(container)
        prefixes = _prefixes(kind, names)
        if not prefixes:
            continue
        weight_paths.append(container_path)
        if len(set(names.values())) < len(names):
            twice = next(key for key, plain in names.items() if list(names.values()).count(plain) > 1)
            raise errors.CheckpointError(
                f"{printable(container_path + twice)}: there twice, with and without a wrapper's prefix"
            )
        by_prefix = {
            prefix: SourceNetwork(printable(container_path + full_prefix), _role(container_path + full_prefix))
            for prefix, full_prefix in prefixes.items()
        }
        for key, plain in names.items():
            prefix = max((prefix for prefix in prefixes if plain.startswith(prefix)), key=len, default=None)
            name = plain if prefix is None else plain[len(prefix) :]
            source_name = printable(container_path + key)
            fitting = {
                pattern
                for pattern in leave_out
                if any(fnmatch.fnmatchcase(one, pattern) for one in (source_name, container_path + plain, plain, name))
            }
            unused -= fitting
            if fitting:
                left_out.append(SkippedTensor(source_name, tuple(container[key].shape), "as asked"))
            elif prefix is None:
                raise unknown(kind, source_name, plain)
            else:
                network = by_prefix[prefix]
                network.state[name], network.names[name] = container[key], source_name
        networks += [network for network in by_prefix.values() if network.state]
    if unused:
        raise errors.CheckpointError(f"nothing in it is called {sorted(unused)[0]!r}, which is to be left out")
    return kind, networks, left_out + list(_skipped(tree, weight_paths))


def choose(networks: list[SourceNetwork], kind: Kind, role: str) -> SourceNetwork:
    """The network that is evaluated.

    Args:
        networks: all there are.
        kind: their naming.
        role: one of `ROLES`.

    Raises:
        CheckpointError: it is not there, or there are two of it.
    """
    if not networks:
        raise errors.CheckpointError("all of its weights are left out")
    if len(networks) == 1 and not networks[0].role:
        return networks[0]  # nothing says that it is not what was asked for
    by_role: dict[str, SourceNetwork] = {}
    for network in networks:
        # A network without a role, in a file that has another, is the student.
        network.role = network.role or "student"
        if by_role.setdefault(network.role, network) is not network:
            raise errors.CheckpointError(
                f"two networks of {kind.published}, at {by_role[network.role].prefix or 'the top'!r} and "
                f"{network.prefix!r}; leave one of them out: --leave-out '{network.prefix}*'"
            )
    wanted_role = kind.evaluated if role == "auto" else role
    if wanted_role not in by_role and role != "auto":
        ((only_role, network),) = by_role.items()
        raise errors.CheckpointError(
            f"no {role} in it, only a {only_role}, at {network.prefix!r}; give --part {only_role}"
        )
    return by_role.get(wanted_role) or networks[0]


def unknown(kind: Kind, source_name: str, name: str) -> errors.CheckpointError:
    """The error of a tensor, ``source_name`` in the file and ``name`` in its network, that is no parameter."""
    first_word = name.split(".")[0]
    return errors.CheckpointError(
        f"{source_name}: no parameter of the published {kind.published} has this name; if encoder and decoder do "
        f"without it, leave it out: --leave-out '{printable(first_word)}{'.*' if '.' in name else ''}'"
    )


def heads(tree: Any) -> int | None:
    """The number of attention heads, if the file holds settings and these name one number."""
    head_counts = set()
    for _, container in _containers(tree, objects=True):
        head_counts |= {container[name] for name in _HEADS if type(container.get(name)) is int}
    return head_counts.pop() if len(head_counts) == 1 else None


def _containers(tree: Any, objects: bool = False) -> Iterator[tuple[str, dict]]:
    """Every dict with its path, which ends in a dot; ``objects``: also the fields of an `OpaqueObject`."""
    seen, todo = set(), deque([("", tree, 0)])
    while todo:
        path, value, depth = todo.popleft()
        if objects and isinstance(value, OpaqueObject):
            value = value.state
        if isinstance(value, dict) and id(value) not in seen and depth <= _DEEPEST:
            seen.add(id(value))
            yield path, value
            todo.extend((f"{path}{printable(key)}.", item, depth + 1) for key, item in value.items())


def _plain(container: dict) -> dict[str, str]:
    """Name of each tensor → the name without wrappers."""
    return {
        key: ".".join(word for word in key.split(".") if word not in _WRAPPERS)
        for key, value in container.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _prefixes(kind: Kind, names: dict[str, str]) -> dict[str, str]:
    """What stands before the names of each published network there is: without wrappers → as in the file."""
    return {
        plain.removesuffix(mark): key.removesuffix(mark)
        for key, plain in names.items()
        for mark in kind.marks
        if plain == mark or plain.endswith(f".{mark}")
    }


def _naming_of(containers: list[tuple[str, dict]], naming: str) -> Kind:
    """The naming of the weights."""
    names = [_plain(container) for _, container in containers]
    fitting = [
        name for name, kind in KINDS.items() if any(_prefixes(kind, container_names) for container_names in names)
    ]
    if naming in fitting or (naming == "auto" and len(fitting) == 1):
        return KINDS[fitting[0] if naming == "auto" else naming]
    if naming == "auto" and fitting:
        raise errors.CheckpointError(f"holds weights of {' and of '.join(fitting)}; name one of them with --from")
    if fitting:
        raise errors.CheckpointError(f"holds weights of {fitting[0]}, not of {naming}; leave --from out")
    namings = [KINDS[naming]] if naming != "auto" else list(KINDS.values())
    marks = " or ".join(f"{kind.marks[0]} ({kind.published})" for kind in namings)
    most = max(names, key=len, default={})
    found_names = (
        f"the names begin with {', '.join(map(printable, list(most)[:3]))}" if most else "it holds no tensor by name"
    )
    raise errors.CheckpointError(f"no weights in a naming that is known, which have {marks}; {found_names}")


def _role(prefix: str) -> str:
    words = set(re.split(r"[^a-z]+", prefix.lower()))
    return "teacher" if words & _TEACHERS else "student" if words & _STUDENTS else ""


def _skipped(tree: dict, weight_paths: list[str]) -> Iterator[SkippedTensor]:
    """All else in the containers that hold the weights, and in those around them."""
    for path, container in _containers(tree):
        if any(weight_path.startswith(path) for weight_path in weight_paths):
            for key, value in container.items():
                inside = f"{path}{printable(key)}."
                is_weight = path in weight_paths and isinstance(key, str) and isinstance(value, Tensor)
                if not is_weight and not (
                    isinstance(value, dict) and any(weight_path.startswith(inside) for weight_path in weight_paths)
                ):
                    shape = tuple(value.shape) if isinstance(value, Tensor) else None
                    yield SkippedTensor(inside[:-1], shape, _describe(value))


def _describe(value: Any) -> str:
    """What is said of something that is no weight."""
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
    if isinstance(value, OpaqueObject):
        return f"beside the weights: {type(value).__module__}.{type(value).__name__}"
    return f"beside the weights: {printable(repr(value)[:60])}"
