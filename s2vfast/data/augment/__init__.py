"""Views as data: the augmentations of published systems, each a step that a config can name.

``Compose([{"name": "crop_resize"}, {"name": "shear", "amplitude": 0.5}], layout)`` is a view. `base` says what a step
is; the steps are in `spatial`, `temporal` and `normalise`. Their plain reference is `s2vfast.reference.augment`.
"""

from s2vfast.data.augment import normalise, spatial, temporal  # noqa: F401 (their steps register themselves)
from s2vfast.data.augment.base import (
    AUGMENTATIONS,
    Augmentation,
    Compose,
    ViewBatch,
    ViewKey,
    augmentation,
    register_augmentation,
    to_data,
)

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Compose",
    "ViewBatch",
    "ViewKey",
    "augmentation",
    "register_augmentation",
    "to_data",
]
