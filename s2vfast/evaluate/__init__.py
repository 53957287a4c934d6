"""How good is an encoder: features of its teacher, a linear probe, nearest neighbours."""

from s2vfast.evaluate.protocols import PROTOCOLS, embed, evaluate

__all__ = ["PROTOCOLS", "embed", "evaluate"]
