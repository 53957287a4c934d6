"""What is predicted, and the loss: one objective a file, which registers itself (`s2vfast.objectives.base`)."""

import importlib
import pkgutil

from s2vfast.config import Config
from s2vfast.objectives.base import OBJECTIVES, Bodies, Losses, Objective, objective_class, register
from s2vfast.objectives.masks import Masking, Masks

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "OBJECTIVES",
    "Bodies",
    "Losses",
    "Masking",
    "Masks",
    "Objective",
    "build_objective",
    "objective_class",
    "register",
]


def build_objective(config: Config, joints: int, parts: dict[str, tuple[int, ...]] | None = None) -> Objective:
    """The objective named by ``config``, as it stands before the first step.

    Args:
        config: the run.
        joints: V.
        parts: body parts of the skeleton's layout (`s2vfast.data.layout.Layout.parts`); mask.parts needs them.

    Raises:
        ConfigError: no such objective, or values that it or its masks cannot have.
    """
    return objective_class(config.objective.name).build(config, joints, parts)
