"""How good is an encoder: every protocol of the papers, features of its teacher, fine-tuning, export."""

from __future__ import annotations

from typing import Any

__all__ = ["PROTOCOLS", "embed", "evaluate", "evaluate_all"]


def __getattr__(name: str) -> Any:
    # On demand: the command line's help reads `arguments` and `finetune_config`, and need not wait for torch.
    if name == "embed":
        from s2vfast.evaluate.npz import embed

        return embed
    if name in __all__:
        from s2vfast.evaluate import protocols

        return getattr(protocols, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
