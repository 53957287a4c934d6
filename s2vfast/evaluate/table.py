"""The table of a paper: results of several protocols as rows, and as text."""

from __future__ import annotations

from typing import Any

from s2vfast.evaluate.metrics import ACCURACIES

SOLVERS = ("probe", "ridge")
"""What the published linear probe is measured beside: `s2vfast.evaluate.probe` and `s2vfast.evaluate.ridge`."""
LINEAR_MEASURES = ("published", *SOLVERS)
"""What "linear" measures."""
NAMES = {
    "linear": "linear probe (published recipe)",
    "probe": "linear probe (L-BFGS)",
    "ridge": "linear probe (ridge)",
    "finetune": "fine-tuned",
    "supervised": "supervised from scratch",
    "classify": "as fine-tuned",
    "knn": "1-NN",
}
"""What a table calls a protocol's measure."""


def rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a measure: ``measure``, ``labels`` (per cent), ``metric``, ``value``, ``std`` (or None), ``of`` (runs).

    Args:
        results: of `s2vfast.evaluate.protocols.evaluate_all`, by protocol.
    """
    table_rows: list[dict[str, Any]] = []
    several = ""  # said of measures on lists of labels, which may be all of them too

    def row(
        measure: str, metric: str, value: float, std: float | None = None, of: int = 1, labels: float = 100
    ) -> None:
        table_rows.append(
            {"measure": measure + several, "labels": labels, "metric": metric, "value": value, "std": std, "of": of}
        )

    def accuracies(measure: str, result: dict[str, Any], labels: float = 100) -> None:
        for key, metric in ACCURACIES.items():
            if key not in result:  # top-5 of few classes, the mean over classes in older results
                continue
            each = result.get(f"{key}_each", [0.0])
            row(measure, metric, result[key], result.get(f"{key}_std"), len(each), labels)

    for protocol, result in results.items():
        if protocol == "retrieval":
            for name in ("test_to_test", "test_to_train", "clip_to_clip"):
                for key, value in result.get(name, {}).items():
                    if key == "map" or key.startswith("recall"):
                        row(f"retrieval, {name.replace('_', ' ')}", {"map": "mAP"}.get(key, key), value)
        elif protocol == "order":
            for gap, value in result["by_gap"].items():
                row(f"order of clips, gap {gap}", "top-1", value)
            for name, part in result["by_length"].items():
                if part["sequences"]:
                    row(f"order of clips, {part['sequences']} sequences {name}", "top-1", part["top1"])
        elif protocol == "floor":
            for part in result["rows"]:
                accuracies(floor_name(part), part)
        elif protocol == "semi":
            several = f", {result['lists']} list{'s' * (result['lists'] > 1)}"
            for part in result["rows"]:
                accuracies(NAMES[part["measure"]], part, part["percent"])
            several = ""
        elif protocol == "knn":
            for k, part in result["by_k"].items():
                accuracies(f"{k}-NN", part)
        else:
            accuracies(NAMES[protocol], result)
            for solver in SOLVERS:
                if solver in result:
                    accuracies(NAMES[solver], result[solver])
            for solver, part in result.get("averaged", {}).items():
                accuracies(f"{NAMES[solver]}, {part['clips']} clips of a test sequence averaged", part)
    return table_rows


def floor_name(row: dict[str, Any]) -> str:
    """What to call a row of `s2vfast.evaluate.floor.measure`."""
    copies = f", {row['copies']} drawn copies" if row["copies"] else ""
    return f"floor: {row['features']}, {row['classifier']}{copies}"


def pooled(result: dict[str, Any]) -> str:
    """How the features of a result were read.

    What results do not say is as by default: ensembles of classes read no features, and earlier versions said less.
    """
    pool, layers, whiten = result.get("pool", "mean"), result.get("layers", 1), result.get("whiten", "none")
    text = f"{pool} features" + ("" if layers == 1 else f" of {layers} layers")
    return text + ("" if whiten == "none" else f" whitened by {whiten}")


def text(result: dict[str, Any]) -> str:
    """What `s2vfast.evaluate.protocols.evaluate_all` found, to read: a line a measure."""
    trained = f"{result['objective']}, " + (f"step {result['step']}" if result["step"] else "imported")
    encoder = "untrained encoder" if result["untrained"] else trained
    if "finetuned" in result:
        encoder = f"fine-tuned run ({result['finetuned']['source']['mode']}) of {encoder}"
    lines = [
        f"{encoder}, {pooled(result)}, split {result['split']} ({result['n_train']} to fit, {result['n_test']} to "
        f"measure)"
    ]
    if result["transfer"]:
        lines.append(f"pretrained on {result['pretrained_on']['path']}, measured on {result['store']}")
    table: dict[tuple[str, float], dict[str, str]] = {}
    for part in result["table"]:
        value = f"{part['value']:.1f}" + ("" if part["std"] is None else f" ± {part['std']:.1f}")
        table.setdefault((part["measure"], part["labels"]), {})[part["metric"]] = value
    width = max(len(name) for name, _ in table)
    lines += ["", f"{'':{width}}  labels  per cent"]
    for (name, labels), values in table.items():
        cells = "   ".join(f"{metric} {value}" for metric, value in values.items())
        lines.append(f"{name:{width}}  {labels:>4g} %  {cells}")
    return "\n".join(lines)
