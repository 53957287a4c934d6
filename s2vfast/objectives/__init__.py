"""What is predicted, and the loss: one objective a file."""

from torch import nn

from s2vfast.config import Config
from s2vfast.objectives.skeleton2vec import Bodies, Losses, Skeleton2vec, build_skeleton2vec

__all__ = ["OBJECTIVES", "Bodies", "Losses", "Skeleton2vec", "build_objective", "build_skeleton2vec"]

OBJECTIVES = {"skeleton2vec": build_skeleton2vec}
"""Name in a config → builder (config, joints) → module with ``encoder``, ``decoder`` and ``teacher``."""


def build_objective(config: Config, joints: int) -> nn.Module:
    """The objective named by ``config``, as it stands before the first step."""
    return OBJECTIVES[config.objective.name](config, joints)
