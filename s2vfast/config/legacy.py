"""Configs as version 0.1 wrote them: one section ``model`` and one ``objective`` for everything that there was."""

from __future__ import annotations

import dataclasses
from typing import Any

from s2vfast.config.registry import OBJECTIVES

_OBJECTIVE_FIELDS = (
    "auxiliary auxiliary_weight top_k target_norm ema_start ema_end ema_steps placement empty_bodies"
).split()
"""Of every objective, whether it used them or not."""


def upgrade(tree: dict[str, Any]) -> dict[str, Any]:
    """A config of version 0.1, which has ``model.decoder_depth``, as this version has it; any other as it is."""
    model, objective = tree.get("model"), tree.get("objective")
    if not isinstance(model, dict) or "decoder_depth" not in model:
        return tree
    model, objective = dict(model), dict(objective) if isinstance(objective, dict) else {}
    objective["decoder_depth"] = model.pop("decoder_depth")
    name = objective.get("name", "skeleton2vec")
    if isinstance(name, str) and name in OBJECTIVES.names():
        fields = {leaf.name for leaf in dataclasses.fields(OBJECTIVES.get(name).Section)}
        for unused in set(_OBJECTIVE_FIELDS) - fields:
            objective.pop(unused, None)
    return {**tree, "model": model, "objective": objective}
