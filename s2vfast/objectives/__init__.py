"""Losses and what they need: one objective a file, which registers itself (`s2vfast.objectives.base`)."""

import importlib
import pkgutil

from s2vfast.objectives.base import Draw, Loss, MicroBatch, Objective, build_objective, register
from s2vfast.objectives.bodies import Bodies

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Bodies", "Draw", "Loss", "MicroBatch", "Objective", "build_objective", "register"]
