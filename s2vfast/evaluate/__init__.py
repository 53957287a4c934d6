"""How good is an encoder: every protocol of the papers, features of its teacher, fine-tuning, export."""

from s2vfast.evaluate.npz import embed
from s2vfast.evaluate.protocols import PROTOCOLS, evaluate, evaluate_all

__all__ = ["PROTOCOLS", "embed", "evaluate", "evaluate_all"]
