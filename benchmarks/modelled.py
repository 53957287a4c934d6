"""The modelled step for docs/performance.md: what compiled kernels should take, where nothing has been measured.

    python -m benchmarks.modelled [--config ntu60] [--joints 25] [--tracks 128] [--device h200]
        [--out benchmarks/results/static/modelled.md]

`python -m benchmarks.report` puts the file at the end of docs/performance.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import _results
from s2vfast import presets
from s2vfast.kernels import model
from s2vfast.train import cost_model

_ASSUMPTIONS = """\
- Instructions, registers and shared memory are those of the compiled code. How often loops go round follows from sizes.
- The warps of one of a multiprocessor's four partitions are followed: each issues in order, when operands are there and
  the unit is free. The other partitions and multiprocessors are taken to do the same.
- Every load of a kernel comes from the second-level cache, at that cache's rate and latency; a copy that the compiled
  code turns off moves nothing. Beside it, every tensor of a launch crosses the device's memory once; the longest time
  counts. Bank conflicts, clock changes and power are left out.
- Blocks follow each other on a multiprocessor without a gap. Launches follow each other as in a CUDA graph.
- norm_linear, attention, add_norm and mlp are modelled so. The rest of a step is bytes over the memory's rate, or 2
  microseconds a launch where that is more.
- These times have not been compared with a GPU. An error of 30 % either way would be no surprise."""


def page(config: str, joints: int, tracks: int, name: str) -> str:
    """The section, as Markdown.

    Args:
        config: a preset or a YAML file.
        joints: V.
        tracks: bodies of all clips of a step, all of them computed.
        name: one of `model.NAMES`.
    """
    step = cost_model.model_step(presets.load(config), joints, tracks, 0, name)
    device = model.device(name)
    blocks = [
        "## Modelled, not measured",
        f"What the compiled kernels should take on an {device.name}: config {config}, {tracks} tracks, all of them "
        f"computed. **A step: {step['modelled_ms']:.1f} ms, modelled.** By part, in ms:",
        _table(["part", "what", "launches", "ms, modelled"], [_step_row(row) for row in step["rows"]]),
        "By kernel. Needed is what the pass cannot do without. *ahead*: iterations of products between a copy to "
        "shared memory and the wait for it.",
        _table(
            ["kernel", "tokens", "ms", "bound", "registers", "shared, KiB", "blocks at once", "waves", "ahead"],
            [_kernel_row(row) for row in step["kernels"]],
        ),
        _table(
            ["operation", "tokens", "ms", "products, executed over needed", "exponentials", "TFLOP/s of needed"],
            [_pass_row(row) for row in step["passes"]],
        ),
        "Assumed:",
        _ASSUMPTIONS,
        "Rates, and where they are from:",
        _table(["rate", "value", "source"], [_rate_row(device, name) for name in device.sources]),
        f"<sub>`python -m benchmarks.modelled --config {config} --joints {joints} --tracks {tracks} --device {name}`; "
        f"`python -m s2vfast.train.cost_model --config {config} --device {name}` prints the same.</sub>",
    ]
    return "\n\n".join(blocks) + "\n"


def _table(names: list[str], rows: list[list[Any]]) -> str:
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def _step_row(row: dict[str, Any]) -> list[Any]:
    return [row["part"], row["what"], row["launches"], f"{row['modelled_ms']:.3f}"]


def _kernel_row(row: dict[str, Any]) -> list[Any]:
    ahead = "–" if row["ahead"] is None else row["ahead"]
    sizes = [row["registers"], f"{row['shared'] / 1024:.0f}", row["resident"], row["waves"], ahead]
    name = f"{row['op']} {row['kernel']}" + (", no gradient" if row["pass"] == "inference" else "")
    return [name, row["shape"], f"{row['ms']:.3f}", row["bound"], *sizes]


def _pass_row(row: dict[str, Any]) -> list[Any]:
    over = ["–" if row[name] is None else row[name] for name in ("flop_over_needed", "exps_over_needed", "tflops")]
    name = "forward, no gradient" if row["pass"] == "inference" else row["pass"]
    return [f"{row['op']} {name}", row["shape"], f"{row['ms']:.3f}", *over]


def _rate_row(device: model.Device, name: str) -> list[Any]:
    value = getattr(device, name)
    text = ", ".join(f"{key} {cycles}" for key, cycles in value.items()) if isinstance(value, dict) else f"{value:g}"
    return [name, text, device.sources[name]]


def main(arguments: list[str] | None = None) -> None:
    """Write the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.modelled", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ntu60", help="a preset or a YAML file")
    parser.add_argument("--joints", type=int, default=25, help="V")
    parser.add_argument("--tracks", type=int, default=128, help="bodies of all clips of a step")
    parser.add_argument("--device", choices=model.NAMES, default="h200")
    parser.add_argument("--out", type=Path, default=_results.RESULTS / "static/modelled.md")
    options = parser.parse_args(arguments)
    options.out.write_text(page(options.config, options.joints, options.tracks, options.device), "utf-8")


if __name__ == "__main__":
    main()
