"""What the sum of gradients costs on many GPUs, by a model: efficiency by number of GPUs.

    python -m s2vfast.train.scaling --config ntu60 --step_ms 18 [--json]

Nothing is run or measured here. A step takes ``step_ms`` on one GPU, which is given, and every GPU's part of the batch
is as large on many. Then gradients and statistics, 4 bytes a trained weight, are added up in three passes: within a
machine every GPU gets its part of the sum, parts are added up between machines by rings, and go back:

    2 (g - 1) / g * B / nvlink  +  2 (n - 1) / n * B / g / network  +  latencies

for g GPUs a machine, n machines and B bytes, with a latency for each of the 2 log2 g and 2 log2 n rounds of a tree. The
rates are vendors' numbers times 0.8. ``overlapped`` lets the sum run along with the backward pass but for its last
tenth.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from s2vfast import errors, presets
from s2vfast.config import Config
from s2vfast.data.layout import get_layout
from s2vfast.objectives import build_objective

GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Links:
    """What GPUs are connected by. NVLink 4 of an H100 or H200: 450 GB/s each way; InfiniBand NDR, a card a GPU: 50."""

    gpus: int = 8
    """g: of a machine."""
    nvlink: float = 0.8 * 450e9
    """Bytes a second, of a GPU, within a machine."""
    network: float = 0.8 * 50e9
    """Bytes a second, of a GPU, between machines."""
    nvlink_latency: float = 5e-6
    """Seconds of a round within a machine."""
    network_latency: float = 15e-6
    """Seconds of a round between machines."""


def trained_bytes(config: Config, layout: str) -> int:
    """B: bytes that a step adds up, 4 for every weight that has a gradient."""
    with torch.device("meta"):
        objective = build_objective(config, get_layout(layout), ["class"])
    return 4 * sum(weight.numel() for weight in objective.parameters() if weight.requires_grad)


def seconds_of_sum(size: int, gpus: int, links: Links) -> float:
    """Of ``size`` bytes over ``gpus`` GPUs."""
    g = min(gpus, links.gpus)
    n = math.ceil(gpus / links.gpus)
    within = 2 * (g - 1) / g * size / links.nvlink + 2 * math.log2(g) * links.nvlink_latency
    between = 2 * (n - 1) / n * size / g / links.network + 2 * math.log2(n) * links.network_latency
    return within + between


def rows(size: int, step_ms: float, links: Links | None = None, backward: float = 0.6) -> list[dict[str, Any]]:
    """A row a number of GPUs: ``sum_ms``, ``efficiency`` and ``overlapped`` (shares of as many single GPUs' speed)."""
    result = []
    for gpus in GPUS:
        added = seconds_of_sum(size, gpus, links or Links()) * 1e3
        hidden = min(0.9 * added, backward * step_ms)
        result.append(
            {
                "gpus": gpus,
                "sum_ms": added,
                "efficiency": step_ms / (step_ms + added),
                "overlapped": step_ms / (step_ms + added - hidden),
            }
        )
    return result


def main(words: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ntu60", help="a preset or a YAML file")
    parser.add_argument("--layout", default="kinect_v2", help="skeleton of the recordings")
    parser.add_argument("--step_ms", type=float, required=True, help="of a step on one GPU, measured or modelled")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args(words)
    if not 0 < options.step_ms < math.inf:
        parser.error(f"--step_ms: {options.step_ms}; milliseconds above 0 are expected")
    try:
        size = trained_bytes(presets.load(options.config), options.layout)
    except errors.S2vfastError as error:
        parser.error(str(error))
    table = rows(size, options.step_ms)
    if options.json:
        print(json.dumps({"modelled": True, "bytes": size, "step_ms": options.step_ms, "rows": table}))
        return 0
    print(f"modelled: {size / 1e6:.1f} MB a step, {options.step_ms:g} ms a step on one GPU")
    print("| GPUs | sum, ms | efficiency | overlapped |")
    print("| ---: | ---: | ---: | ---: |")
    for row in table:
        print(f"| {row['gpus']:,} | {row['sum_ms']:.2f} | {row['efficiency']:.1%} | {row['overlapped']:.1%} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
