"""Skeletons of which only the number of joints matters."""

from s2vfast.data.layout import LAYOUTS, Layout


def chain(joints, parts=None):
    """Joints that hang from each other, with the known layout's facts where one has so many."""
    names = {25: "kinect_v2", 20: "kinect_v1"}
    if parts is None and joints in names:
        return LAYOUTS[names[joints]]
    parents = tuple(range(-1, joints - 1))
    return Layout("chain", tuple(f"joint{i}" for i in range(joints)), parents, 0, (0, 1), (0, 1), parts=parts or {})
