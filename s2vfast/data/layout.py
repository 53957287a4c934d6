"""Skeleton layouts: which joints a recording has, how bones join them, and which joints clips are aligned by.

The known ones are the JSON files in ``layouts``, in the form in which anyone may write one. A store holds its own
and needs no file. Where a skeleton has no joint for something, the mean of several stands for it: COCO's root is the
mean of its hips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from s2vfast.data.limits import MAX_JOINTS, MAX_NAME, describe, load_json
from s2vfast.errors import DataError

MAX_ANCHOR = 4
"""Joints that an anchor may be the mean of."""

Anchor = int | tuple[int, ...]
"""A joint, or joints whose mean counts; a `Layout` holds a tuple in both cases."""


class UnknownLayout(DataError):
    """The files do not tell which skeleton they hold; the one who imports has to."""


@dataclass(frozen=True)
class Layout:
    """One skeleton. Joints are numbered from 0 in the order in which recordings store them."""

    kind: ClassVar[str] = "skeletons"
    """What is recorded, as of `s2vfast.data.store.Store`."""
    name: str
    """Name of the layout; stores and run folders are compared by it."""
    joints: tuple[str, ...]
    """Joint names, V of them."""
    parents: tuple[int, ...]
    """For every joint the joint it hangs from, -1 for the top of a tree. Gives the bones that are drawn."""
    root: Anchor
    """What clips are centred on. Not always the top of the tree: the Kinects' is the middle of the spine."""
    torso: tuple[Anchor, Anchor]
    """Lower and upper end of the torso, for scaling by its length."""
    sides: tuple[int, int]
    """A left and a right joint (the shoulders), for turning bodies to face one way."""
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)
    """Unit vector that points up in the recordings' coordinates."""
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Body parts by name: left_arm, right_arm, left_leg, right_leg, trunk where there are such. For mask.parts."""
    bone_parents: tuple[int, ...] = ()
    """For every joint the one that its bone is measured from, -1 at the one root: the tree of the recognisers' bone
    stream, which may hang from another joint than ``parents`` does. Empty: ``parents``."""
    graph_centre: int | None = None
    """The joint that graph networks hang the tree of ``bone_parents`` from. None: where that tree hangs already."""
    spine: tuple[Anchor, Anchor] | None = None
    """Lower and upper end of the line that a body's own frame is built on. None: ``torso``."""
    hips: tuple[int, int] | None = None
    """Left and right hip; None where the skeleton has none."""
    mirror: tuple[tuple[int, int], ...] = ()
    """(left, right) joints that a flip exchanges. Empty: the joints whose names differ in left and right alone."""
    bones: tuple[tuple[int, int], ...] = ()
    """Joints that a line joins in pictures, which may be more than a tree. Empty: every joint and its parent."""
    dimensions: tuple[int, ...] = (2, 3)
    """Coordinates a joint that recordings of this skeleton come with: arrays of another number are not taken for it.
    The layout of a store has the one number of its recordings."""
    about: str = ""
    """Whose skeleton it is, in a few words."""

    def __post_init__(self) -> None:
        bone_parents = self.bone_parents or self.parents
        bones = tuple((joint, parent) for joint, parent in enumerate(self.parents) if parent >= 0)
        for name, value in {
            "root": _joints(self.root),
            "torso": tuple(map(_joints, self.torso)),
            "bone_parents": bone_parents,
            "graph_centre": bone_parents.index(-1) if self.graph_centre is None else self.graph_centre,
            "spine": tuple(map(_joints, self.spine or self.torso)),
            "mirror": self.mirror or _mirrored_names(self.joints),
            "bones": self.bones or bones,
        }.items():
            object.__setattr__(self, name, value)

    @property
    def num_joints(self) -> int:
        """V."""
        return len(self.joints)

    @property
    def planar(self) -> bool:
        """Whether joints have 2 coordinates, z being 0: such bodies turn in their plane alone."""
        return self.dimensions == (2,)

    def same_joints(self, other: Layout) -> bool:
        """Whether arrays of one are arrays of the other; an alias of a layout's name counts as the name."""
        names = {ALIASES.get(name, name) for name in (self.name, other.name)}
        return len(names) == 1 and self.joints == other.joints

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; `from_dict` reads it back.

        An optional field is written where `from_dict` would not come to it by itself: what stores hold of a layout
        known by name, and so their fingerprint, does not change when a fact is added to it.
        """
        data = {
            "name": self.name,
            "joints": list(self.joints),
            "parents": list(self.parents),
            "root": _bare(self.root),
            "torso": [_bare(anchor) for anchor in self.torso],
            "sides": list(self.sides),
            "up": list(self.up),
            "parts": {part: list(joints) for part, joints in self.parts.items()},
        }
        plain = Layout.from_dict(data)
        for name in OPTIONAL:
            value = getattr(self, name)
            if value != getattr(plain, name):
                data[name] = [_bare(anchor) for anchor in value] if name == "spine" else _listed(value)
        return data

    @classmethod
    def from_dict(cls, data: Any, where: str = "layout") -> Layout:
        """Build and check a layout. Joints may be given by number or by name.

        Args:
            data: the fields of this class; ``up``, ``parts`` and the fields after it may be left out. A layout with
                the name, joints and parents of one in `LAYOUTS` has that one's of the latter.
            where: what to call the source in messages (a file name).

        Raises:
            DataError: a field is missing, unknown or impossible; the message starts with ``where`` and names it.
        """
        if not isinstance(data, dict):
            raise DataError(f"{where}: expected an object with the fields of a layout, found {type(data).__name__}")
        required = {"name", "joints", "parents", "root", "torso", "sides"}
        fields = required | {"up", "parts", *OPTIONAL}
        if absent := sorted(required - data.keys()):
            raise DataError(f"{where}: missing field(s) {', '.join(absent)}")
        if unknown := sorted(map(str, data.keys() - fields)):
            raise DataError(f"{where}: unknown field(s) {', '.join(unknown)}; known are {', '.join(sorted(fields))}")
        name = data["name"]
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: name: expected a non-empty text")
        joints = _list(data["joints"], f"{where}: joints")
        if not joints or not all(isinstance(joint, str) and joint for joint in joints):
            raise DataError(f"{where}: joints: expected a list of joint names")
        if len(set(joints)) != len(joints):
            twice = sorted({joint for joint in joints if joints.count(joint) > 1})
            raise DataError(f"{where}: joints: {', '.join(twice)} named more than once")
        numbers = {joint: number for number, joint in enumerate(joints)}

        def joint(value: Any, fieldname: str, *, none: bool = False) -> int:
            if isinstance(value, str) and value in numbers:
                return numbers[value]
            if isinstance(value, int) and not isinstance(value, bool) and (-1 if none else 0) <= value < len(joints):
                return value
            allowed = f"0 to {len(joints) - 1}" + (" or -1" if none else "")
            raise DataError(
                f"{where}: {fieldname}: {describe(value)} is no joint; give a name from joints or {allowed}"
            )

        def anchor(value: Any, fieldname: str) -> tuple[int, ...]:
            items = value if isinstance(value, (list, tuple)) else [value]
            if not 1 <= len(items) <= MAX_ANCHOR:
                expected = f"a joint, or 2 to {MAX_ANCHOR} joints whose mean counts"
                raise DataError(f"{where}: {fieldname}: expected {expected}, found {len(items)}")
            members = tuple(joint(item, fieldname) for item in items)
            if len(set(members)) != len(members):
                raise DataError(f"{where}: {fieldname}: a joint stands in it more than once")
            return members

        def pair(value: Any, fieldname: str, read: Callable[[Any, str], Any] = joint) -> tuple[Any, Any]:
            ends = tuple(read(item, fieldname) for item in _list(value, f"{where}: {fieldname}"))
            if len(ends) != 2 or ends[0] == ends[1]:
                raise DataError(f"{where}: {fieldname}: expected two different joints, found {describe(value)}")
            return ends

        def tree(value: Any, fieldname: str) -> tuple[int, ...]:
            parents = tuple(joint(item, fieldname, none=True) for item in _list(value, f"{where}: {fieldname}"))
            if len(parents) != len(joints):
                raise DataError(f"{where}: {fieldname}: {len(parents)} given for {len(joints)} joints")
            for start in range(len(joints)):
                at, steps = start, 0
                while parents[at] >= 0:
                    at, steps = parents[at], steps + 1
                    if steps > len(joints):
                        raise DataError(f"{where}: {fieldname}: joint {joints[start]} never reaches a root (-1)")
            return parents

        parents = tree(data["parents"], "parents")
        up = tuple(_list(data.get("up", (0.0, 1.0, 0.0)), f"{where}: up"))
        if len(up) != 3 or not all(type(x) in (int, float) and abs(x) <= 2 for x in up):
            raise DataError(f"{where}: up: expected three numbers of a vector of length 1")
        length = math.sqrt(sum(x * x for x in up))
        if abs(length - 1.0) > 1e-3:
            raise DataError(f"{where}: up: expected a vector of length 1, found {up!r}")
        parts = data.get("parts", {})
        if not isinstance(parts, dict) or len(parts) > MAX_JOINTS:
            raise DataError(f"{where}: parts: expected an object of body part: joints")
        builtin = LAYOUTS.get(ALIASES.get(name, name))
        facts = {}
        if builtin is not None and (builtin.joints, builtin.parents) == (tuple(joints), parents):
            facts = {name: getattr(builtin, name) for name in OPTIONAL}
        if "bone_parents" in data:
            facts["bone_parents"] = tree(data["bone_parents"], "bone_parents")
        if data.get("graph_centre") is not None:
            facts["graph_centre"] = joint(data["graph_centre"], "graph_centre")
        for ends, read in (("spine", anchor), ("hips", joint)):
            if ends in data:
                facts[ends] = None if data[ends] is None else pair(data[ends], ends, read)
        for pairs in ("mirror", "bones"):
            if pairs in data:
                facts[pairs] = tuple(pair(item, pairs) for item in _list(data[pairs], f"{where}: {pairs}"))
        members = [end for ends in facts.get("mirror", ()) for end in ends]
        if len(set(members)) != len(members):
            raise DataError(f"{where}: mirror: a joint stands in more than one pair")
        if "dimensions" in data:
            facts["dimensions"] = tuple(_list(data["dimensions"], f"{where}: dimensions"))
            if facts["dimensions"] not in ((2,), (3,), (2, 3)):
                raise DataError(f"{where}: dimensions: expected [2], [3] or [2, 3]")
        if "about" in data:
            facts["about"] = data["about"]
            if not isinstance(data["about"], str) or len(data["about"]) > MAX_NAME:
                raise DataError(f"{where}: about: expected a text of {MAX_NAME} characters at most")
        return cls(
            name=name,
            joints=tuple(joints),
            parents=parents,
            root=anchor(data["root"], "root"),
            torso=pair(data["torso"], "torso", anchor),
            sides=pair(data["sides"], "sides"),
            up=(float(up[0]), float(up[1]), float(up[2])),
            parts={
                str(part): tuple(joint(item, f"parts.{part}") for item in _list(members, f"{where}: parts.{part}"))
                for part, members in parts.items()
            },
            **facts,
        )


OPTIONAL = ("bone_parents", "graph_centre", "spine", "hips", "mirror", "bones", "dimensions", "about")
"""Fields of `Layout` that a file may leave out, and that stores do not hold of a known layout."""


def _joints(anchor: Anchor) -> tuple[int, ...]:
    return (anchor,) if isinstance(anchor, int) else tuple(anchor)


def _bare(anchor: tuple[int, ...]) -> int | list[int]:
    """As a file has it: a joint is a number."""
    return anchor[0] if len(anchor) == 1 else list(anchor)


def _listed(value: Any) -> Any:
    """Plain lists of tuples."""
    return list(map(_listed, value)) if isinstance(value, tuple) else value


def _mirrored_names(joints: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """(left, right) of the joints whose names become one another when left is written as right."""
    numbers = {joint: number for number, joint in enumerate(joints)}
    pairs = ((number, numbers.get(joint.replace("left", "right"))) for joint, number in numbers.items())
    return tuple((left, right) for left, right in pairs if right is not None and right != left)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{what}: expected a list, found {describe(value)}")
    if len(value) > MAX_JOINTS:
        raise DataError(f"{what}: a list of {len(value):,}, {MAX_JOINTS:,} at most")
    return list(value)


ALIASES = {"ntu": "kinect_v2", "coco": "coco17"}
"""Other names of known layouts. Stores made when COCO's skeleton was called coco hold its root, the nose."""

LAYOUTS: dict[str, Layout] = {}
"""The layouts known by name."""


def get_layout(name_or_path: str | Path) -> Layout:
    """A layout by its name in `LAYOUTS` or `ALIASES`, or read from a JSON file with the fields of `Layout`.

    Raises:
        DataError: no such name or file, or a file that is no layout.
    """
    name = str(name_or_path)
    if (name := ALIASES.get(name, name)) in LAYOUTS:
        return LAYOUTS[name]
    path = Path(name_or_path)
    if not path.is_file():
        raise DataError(
            f"layout {str(name_or_path)!r}: neither a known layout ({', '.join(sorted([*LAYOUTS, *ALIASES]))}) nor a "
            "JSON file; write a file with name, joints, parents, root, torso and sides"
        )
    return _read(path)


def layout_of_shape(joints: int, dimensions: int, where: str) -> Layout:
    """The one known layout whose recordings are arrays [..., joints, dimensions].

    Args:
        joints: V.
        dimensions: C.
        where: what to call the source in messages.

    Raises:
        UnknownLayout: there is none, or there are several; the message names them.
    """
    fitting = [layout for layout in LAYOUTS.values() if layout.num_joints == joints and dimensions in layout.dimensions]
    if len(fitting) == 1:
        return fitting[0]
    skeletons = f"skeletons of {joints} joints with {dimensions} coordinates each, which the file does not name"
    names = " or ".join(layout.name for layout in fitting) if fitting else f"one of {', '.join(LAYOUTS)}"
    file = "FILE.json (name, joints, parents, root, torso, sides)"
    raise UnknownLayout(f"{where}: {skeletons}; give their layout with --layout, {names}, or {file}")


def _read(path: Path) -> Layout:
    return Layout.from_dict(load_json(path), where=str(path))


for _path in sorted((Path(__file__).parent / "layouts").glob("*.json")):
    LAYOUTS[_path.stem] = _read(_path)
