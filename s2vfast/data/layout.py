"""Skeleton layouts: which joints a recording has, how bones join them, and which joints clips are aligned by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2vfast.data.limits import MAX_JOINTS, MAX_LIST_BYTES, NotJson, describe, parse_json, read_plain
from s2vfast.errors import DataError


@dataclass(frozen=True)
class Layout:
    """One skeleton. Joints are numbered from 0 in the order in which recordings store them."""

    name: str
    """Name of the layout; stores and run folders are compared by it."""
    joints: tuple[str, ...]
    """Joint names, V of them."""
    parents: tuple[int, ...]
    """For every joint the joint it hangs from, -1 for the top of a tree. Gives the bones that are drawn."""
    root: int
    """The joint that clips are centred on. Not always the top of the tree: the Kinects' is the middle of the spine."""
    torso: tuple[int, int]
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
    spine: tuple[int, int] | None = None
    """Lower and upper joint of the line that a body's own frame is built on. None: ``torso``."""
    hips: tuple[int, int] | None = None
    """Left and right hip; None where the skeleton has none."""
    mirror: tuple[tuple[int, int], ...] = ()
    """(left, right) joints that a flip exchanges. Empty: the joints whose names differ in left and right alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bone_parents", self.bone_parents or self.parents)
        object.__setattr__(self, "spine", self.spine or self.torso)
        object.__setattr__(self, "mirror", self.mirror or _mirrored_names(self.joints))

    @property
    def num_joints(self) -> int:
        """V."""
        return len(self.joints)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(joint, parent) for every joint that has a parent."""
        return tuple((joint, parent) for joint, parent in enumerate(self.parents) if parent >= 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; `from_dict` reads it back.

        An optional field is written where `from_dict` would not come to it by itself: what stores hold of a layout
        known by name, and so their fingerprint, does not change when a fact is added to it.
        """
        data = {
            "name": self.name,
            "joints": list(self.joints),
            "parents": list(self.parents),
            "root": self.root,
            "torso": list(self.torso),
            "sides": list(self.sides),
            "up": list(self.up),
            "parts": {part: list(joints) for part, joints in self.parts.items()},
        }
        plain = Layout.from_dict(data)
        for name in OPTIONAL:
            value = getattr(self, name)
            if value != getattr(plain, name):
                data[name] = None if value is None else [list(v) if isinstance(v, tuple) else v for v in value]
        return data

    @classmethod
    def from_dict(cls, data: Any, where: str = "layout") -> Layout:
        """Build and check a layout. Joints may be given by number or by name.

        Args:
            data: the fields of this class; ``up``, ``parts`` and the fields after it may be left out. A layout with
                the name, joints and parents of one in `LAYOUTS` has that one's.
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

        def pair(value: Any, fieldname: str) -> tuple[int, int]:
            ends = tuple(joint(item, fieldname) for item in _list(value, f"{where}: {fieldname}"))
            if len(ends) != 2 or ends[0] == ends[1]:
                raise DataError(f"{where}: {fieldname}: expected two different joints, found {describe(value)}")
            return ends  # type: ignore[return-value]

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
        builtin = LAYOUTS.get(name)
        facts = {}
        if builtin is not None and (builtin.joints, builtin.parents) == (tuple(joints), parents):
            facts = {name: getattr(builtin, name) for name in OPTIONAL}
        if "bone_parents" in data:
            facts["bone_parents"] = tree(data["bone_parents"], "bone_parents")
        for ends in ("spine", "hips"):
            if ends in data:
                facts[ends] = None if data[ends] is None else pair(data[ends], ends)
        if "mirror" in data:
            mirror = tuple(pair(item, "mirror") for item in _list(data["mirror"], f"{where}: mirror"))
            members = [end for ends in mirror for end in ends]
            if len(set(members)) != len(members):
                raise DataError(f"{where}: mirror: a joint stands in more than one pair")
            facts["mirror"] = mirror
        return cls(
            name=name,
            joints=tuple(joints),
            parents=parents,
            root=joint(data["root"], "root"),
            torso=pair(data["torso"], "torso"),
            sides=pair(data["sides"], "sides"),
            up=(float(up[0]), float(up[1]), float(up[2])),
            parts={
                str(part): tuple(joint(item, f"parts.{part}") for item in _list(members, f"{where}: parts.{part}"))
                for part, members in parts.items()
            },
            **facts,
        )


OPTIONAL = ("bone_parents", "spine", "hips", "mirror")
"""Fields of `Layout` that views and streams ask for and that a file may leave out."""


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


_KINECT_V2 = Layout(
    name="kinect_v2",
    joints=(
        *("spine_base", "spine_mid", "neck", "head"),
        *("left_shoulder", "left_elbow", "left_wrist", "left_hand"),
        *("right_shoulder", "right_elbow", "right_wrist", "right_hand"),
        *("left_hip", "left_knee", "left_ankle", "left_foot"),
        *("right_hip", "right_knee", "right_ankle", "right_foot"),
        *("spine_shoulder", "left_hand_tip", "left_thumb", "right_hand_tip", "right_thumb"),
    ),
    parents=(-1, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 1, 7, 7, 11, 11),
    root=1,
    torso=(0, 20),
    sides=(4, 8),
    # The recognisers' tree hangs from the joint between the shoulders, and thumbs come after finger tips in it.
    bone_parents=(1, 20, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, -1, 22, 7, 24, 11),
    spine=(0, 1),
    hips=(12, 16),
    parts={
        "left_arm": (4, 5, 6, 7, 21, 22),
        "right_arm": (8, 9, 10, 11, 23, 24),
        "left_leg": (12, 13, 14, 15),
        "right_leg": (16, 17, 18, 19),
        "trunk": (0, 1, 2, 3, 20),
    },
)

_KINECT_V1 = Layout(
    name="kinect_v1",
    joints=(
        *("hip_center", "spine", "shoulder_center", "head"),
        *("left_shoulder", "left_elbow", "left_wrist", "left_hand"),
        *("right_shoulder", "right_elbow", "right_wrist", "right_hand"),
        *("left_hip", "left_knee", "left_ankle", "left_foot"),
        *("right_hip", "right_knee", "right_ankle", "right_foot"),
    ),
    parents=(-1, 0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    root=1,
    torso=(0, 2),
    sides=(4, 8),
    bone_parents=(1, 2, -1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    spine=(0, 1),
    hips=(12, 16),
    parts={
        "left_arm": (4, 5, 6, 7),
        "right_arm": (8, 9, 10, 11),
        "left_leg": (12, 13, 14, 15),
        "right_leg": (16, 17, 18, 19),
        "trunk": (0, 1, 2, 3),
    },
)

# COCO has no joint on the spine: the nose is the only one on the midline, so the tree and the centre start there.
# Image coordinates: y grows downwards.
_COCO = Layout(
    name="coco",
    joints=(
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ),
    parents=(-1, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
    root=0,
    torso=(11, 5),
    sides=(5, 6),
    hips=(11, 12),
    up=(0.0, -1.0, 0.0),
    parts={
        "left_arm": (5, 7, 9),
        "right_arm": (6, 8, 10),
        "left_leg": (11, 13, 15),
        "right_leg": (12, 14, 16),
        "trunk": (0, 1, 2, 3, 4),
    },
)

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (_KINECT_V2, _KINECT_V1, _COCO)}
"""The layouts known by name: NTU RGB+D and PKU-MMD, NW-UCLA, and 2D poses in COCO's order."""


def get_layout(name_or_path: str | Path) -> Layout:
    """A layout by its name in `LAYOUTS`, or read from a JSON file with the fields of `Layout`.

    Raises:
        DataError: no such name or file, or a file that is no layout.
    """
    if str(name_or_path) in LAYOUTS:
        return LAYOUTS[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise DataError(
            f"layout {str(name_or_path)!r}: neither a known layout ({', '.join(sorted(LAYOUTS))}) nor a JSON file; "
            "write a file with name, joints, parents, root, torso and sides"
        )
    try:
        data = parse_json(read_plain(path, MAX_LIST_BYTES))
    except (OSError, NotJson) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    return Layout.from_dict(data, where=str(path))
