"""What compiled code must hold, and the exceptions, each with its number and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_EXECUTED = 1.1  # executed over needed
SLACK = 0.02  # an exception's number may be above what is so by this part of it


@dataclass(frozen=True)
class Allowance:
    """What a kernel may have that does not meet a gate.

    Args:
        number: what it may have at most; it is lowered when the kernel gets better.
        reason: why.
    """

    number: float
    reason: str


MOST_STEP_MS = 15.2
"""What a step of ntu60 on an H200 may be modelled at, all 128 tracks computed; lowered when kernels get better."""
_TILES = "60 tokens fill a tile of 64, 750 fill 12"
_SCORES_TWICE = f"the two kernels of the backward pass both make the scores; {_TILES}"
_GELU_TWICE = "GELU for weight2 and its derivative are made in two kernels: to write one of them would take longer"
EXCEPTIONS = {
    ("attention", "forward", "flop"): Allowance(1.14, _TILES),
    ("attention", "forward", "exps"): Allowance(1.14, _TILES),
    ("attention", "backward", "flop"): Allowance(1.6, _SCORES_TWICE),
    ("attention", "backward", "exps"): Allowance(2.28, _SCORES_TWICE),
    ("attention", "grad_keys", "narrow copies"): Allowance(2, "log-sum-exp and delta of a tile: 32 or 64 numbers each"),
    ("mlp", "backward", "exps"): Allowance(2.07, _GELU_TWICE),
}
"""(operation, kernel or pass, gate) → what it may have, on sm_90 with Triton 3.7.1."""


def failures(
    rows: list[dict[str, Any]], totals: list[dict[str, Any]], exceptions: dict[tuple[str, str, str], Allowance]
) -> list[str]:
    """What is wrong with modelled launches, a line each; an exception that is not needed, or too high, is wrong too.

    Args:
        rows: of `s2vfast.kernels.aot.model_kernels`.
        totals: of `s2vfast.kernels.aot.passes`.
        exceptions: (operation, kernel or pass, gate) → what it may have.
    """
    measured: dict[tuple[str, str, str], tuple[float, float]] = {}

    def gate(key: tuple[str, str, str], value: float, most: float) -> None:
        before, _ = measured.get(key, (value, most))
        measured[key] = max(before, value), most

    for total in totals:
        for name in ("flop", "exps"):
            if total[f"{name}_over_needed"] is not None:
                gate((total["op"], total["pass"], name), total[f"{name}_over_needed"], MOST_EXECUTED)
    for row in rows:
        key = (row["op"], row["kernel"])
        gate((*key, "spills"), row["stack"] + row["local"], 0)
        if row["flop"]:
            gate((*key, "narrow copies"), row["narrow_copies"], 0)
            overlaps = row["resident"] >= 2 or (row["ahead"] or 0.0) >= 1.0
            gate((*key, "overlap"), 0 if overlaps else 1, 0)
    wrong = []
    for key, (value, most) in measured.items():
        name = f"{key[0]} {key[1]}: {key[2]}"
        exception = exceptions.get(key)
        if exception is None:
            if value > most:
                wrong.append(f"{name}: {value:g}, at most {most:g} is allowed")
        elif value > exception.number:
            wrong.append(f"{name}: {value:g}, the exception allows {exception.number:g}: {exception.reason}")
        elif value <= most:
            wrong.append(f"{name}: {value:g} meets the gate: remove the exception")
        elif value < exception.number * (1 - SLACK):
            wrong.append(f"{name}: {value:g}: lower the exception's {exception.number:g} to it")
    wrong += [f"{' '.join(key)}: an exception for what is not there" for key in exceptions if key not in measured]
    return wrong
