"""What `s2vfast evaluate` does: features of a split's parts, one protocol or several, a dictionary of results."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import s2vfast.errors as errors
from s2vfast.data.point_layout import PointLayout
from s2vfast.evaluate import (
    finetune,
    finetune_protocols,
    floor,
    knn,
    measures,
    order,
    point_floor,
    ridge,
    subsets,
    table,
)
from s2vfast.evaluate.checks import check_choice, check_counts
from s2vfast.evaluate.context import EvalContext
from s2vfast.evaluate.finetune_config import FinetuneConfig

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOLS: tuple[str, ...] = ("floor", "linear", "knn", "retrieval", "finetune", "supervised", "semi")
"""What "all" is made of. "classify" measures a fine-tuned run as it is, "order" a run that orders clips."""
HEADINGS = {
    "floor": "the floor, without an encoder",
    "linear": "linear probes of frozen features",
    "knn": "nearest neighbours of frozen features",
    "retrieval": "retrieval by frozen features",
    "finetune": "fine-tuning the whole encoder",
    "supervised": "supervised training from scratch",
    "semi": "a few labels: probes, neighbours and fine-tuning",
    "classify": "the classes of a run as it is",
    "order": "the order of shuffled clips",
}
"""What several protocols say before each of them."""
KNOWN = tuple(HEADINGS)
WHITENED = ("linear", "knn", "retrieval")
"""Those that read features, and may read whitened ones."""


_PROBE = ("epochs", "lr", "batch", "weight_decay", "norm", "optimizer", "milestones")


@dataclass(frozen=True)
class Options:
    """How the protocols are done."""

    k: int = 1
    """Neighbours of "knn"; one is measured as well."""
    transform: knn.Transform = knn.DEFAULT_TRANSFORM
    """Of features before "knn"."""
    epochs: int = 100
    """Of the published linear probe; so are lr, batch and weight_decay."""
    lr: float = 0.1
    """First learning rate."""
    batch: int = 128
    """Rows a step."""
    weight_decay: float = 0.0
    """L2 penalty."""
    norm: bool = True
    """A batch norm before its linear map."""
    optimizer: str = "sgd"
    """Its optimizer: "sgd" or "adamw"."""
    milestones: Sequence[float] = ()
    """Epochs at which its rate falls to a tenth, in place of a cosine."""
    linear: Sequence[str] = table.LINEAR_MEASURES
    """What "linear" measures: the "published" probe, "probe" (L-BFGS), "ridge"."""
    seed: int = 0
    """Of first weights, order and draws, and of the lists of "semi"."""
    repeats: int = 1
    """Seeds of "floor", "linear", "finetune" and "supervised", counted up from ``seed`` or the recipe's; results are
    then mean and sample standard deviation."""
    draws: int = 0
    """Features of this many randomly drawn clips of every training sequence, as pretraining makes them, on top of the
    deterministic one. "linear" shows one of them an epoch, in turn; "knn" has them all as neighbours."""
    test_draws: int = 0
    """Drawn clips of every test sequence, over which and over the deterministic one "linear" averages scores too, as a
    measure of its own."""
    floor_draws: int = floor.COPIES
    """Drawn clips of every training sequence that "floor" fits ridge regression to a second time, with the one that is
    not drawn; 0: no second time. Of point clouds there are none."""
    recipe: FinetuneConfig = field(default_factory=FinetuneConfig)
    """Of fine-tuning."""
    supervised: FinetuneConfig | None = None
    """Of "supervised"; None: ``recipe`` without decay of the learning rate by layer, as there is nothing below to
    keep."""
    out: str | Path | None = None
    """Folder of the fine-tuned run or runs; None: under the run."""
    percents: Sequence[float] = subsets.PERCENTS
    """Shares of the labels for "semi"."""
    lists: int = subsets.LISTS
    """Lists of each share."""
    semi: Sequence[str] = finetune_protocols.SEMI_MEASURES
    """What "semi" measures."""

    def check(self) -> None:
        """Raise `ConfigError` unless every value is possible."""
        check_choice("transform", self.transform, knn.TRANSFORMS)
        check_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        for name in self.semi:
            check_choice("semi", name, finetune_protocols.SEMI_MEASURES)
        for name in self.linear or ("",):
            check_choice("linear", name, table.LINEAR_MEASURES)
        if self.test_draws and "ridge" not in self.linear:
            raise errors.ConfigError(
                f"test_draws: {self.test_draws}; scores of ridge regression are averaged, and linear is "
                f"{', '.join(self.linear)} without ridge"
            )
        check_counts(k=self.k, repeats=self.repeats, lists=self.lists, epochs=self.epochs, batch=self.batch)
        if not 0 <= self.seed < 2**63:
            raise errors.ConfigError(f"seed: {self.seed}; a number from 0 to 2**63 - 1 is expected")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not (0 <= value < math.inf and (value or name != "lr")):
                raise errors.ConfigError(f"{name}: {value}; a positive number is expected")
        for name in ("draws", "test_draws", "floor_draws"):
            if getattr(self, name) < 0:
                raise errors.ConfigError(f"{name}: {getattr(self, name)}; 0 or more is expected")
        for percent in self.percents:
            if not 0 < percent <= 100:
                raise errors.ConfigError(f"percents: {percent}; numbers in (0, 100] are expected")

    @property
    def probe(self) -> dict[str, Any]:
        """Settings of the published linear probe."""
        return {name: getattr(self, name) for name in _PROBE} | {"milestones": list(self.milestones)}


def evaluate(
    run_dir: str | Path,
    store_path: str | Path,
    split: str | None = None,
    protocol: str = "linear",
    *,
    confusion: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a run's encoder (the teacher, or what was fine-tuned): fit on one part of a split, measure on the other.

    Args:
        run_dir: a run's folder, pretrained or fine-tuned.
        store_path: a store of the run's layout; not necessarily the one it was pretrained on (transfer).
        split: named split of the store; None: the one of the run.
        protocol: "floor" (what no learning is needed for: `s2vfast.evaluate.floor`, of point clouds
            `s2vfast.evaluate.point_floor`), "linear"
            (`s2vfast.evaluate.linear`, and with it `s2vfast.evaluate.probe`), "knn" (`s2vfast.evaluate.knn`),
            "retrieval" (`s2vfast.evaluate.retrieval`), "finetune", "supervised" or "semi"
            (`s2vfast.evaluate.finetune_protocols`), "classify": a fine-tuned run as it is, or "order":
            `s2vfast.evaluate.order`.
        confusion: add the confusion matrix, rows are true classes, and the class predicted for each sequence.
        options: arguments of `EvalContext.open`, and fields of `Options`.

    Returns:
        Plain values for JSON. ``top1``, ``top5`` (of six classes and more) and ``mean_class`` in per cent,
        ``n_train``, ``n_test``, ``protocol``, ``pool``, ``split``, ``untrained``, ``step`` of the checkpoint,
        ``per_class`` (class name to per cent; None without test sample), ``missing_classes`` (in the test part but
        not in the training part), ``settings`` and where everything came from. "linear" adds ``probe``,
        ``ridge`` and ``averaged``, and has no accuracies of its own where the published probe is not measured; "knn"
        adds ``by_k``; "retrieval" has ``test_to_test`` and ``test_to_train`` instead of accuracies, "semi" ``rows``.

    Raises:
        S2vfastError: a run, store, split or option that cannot be used.
        Stopped: a signal stopped fine-tuning (`s2vfast.evaluate.finetune.Stopped`); the same call goes on.
    """
    check_choice("protocol", protocol, KNOWN)
    began = time.perf_counter()
    context, how = opened(run_dir, store_path, split, [protocol], options)
    result = {**context.describe(), **_measure(context, protocol, how)}
    return _finished({"protocol": protocol, **result}, began, confusion)


def evaluate_all(
    run_dir: str | Path,
    store_path: str | Path,
    split: str | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    *,
    each: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Several protocols on the same features; arguments as of `evaluate`.

    ``each`` is called after each protocol but the last with what there is so far, as it is returned.

    Returns:
        Plain values for JSON: where everything came from, as in `evaluate`, ``results`` by protocol (with confusion
        matrices and predictions), and ``table``, the rows that `s2vfast.evaluate.table.text` prints.
    """
    for protocol in protocols:
        check_choice("protocol", protocol, KNOWN)
    began = time.perf_counter()
    context, how = opened(run_dir, store_path, split, protocols, options)
    results: dict[str, dict[str, Any]] = {}

    def so_far() -> dict[str, Any]:
        about = {**context.describe(), "results": dict(results), "table": table.rows(results)}
        return _finished(about, began, confusion=True)

    for number, protocol in enumerate(protocols):
        started = time.perf_counter()
        if len(protocols) > 1:
            context.log(f"— {number + 1} of {len(protocols)}: {HEADINGS[protocol]} —")
        folder = None if how.out is None else Path(how.out) / protocol
        result = _measure(context, protocol, how, folder)
        results[protocol] = _finished(result, started, confusion=True)
        if each is not None and number + 1 < len(protocols):
            each(so_far())
    return so_far()


def opened(
    run_dir: str | Path, store_path: str | Path, split: str | None, protocols: Sequence[str], options: dict[str, Any]
) -> tuple[EvalContext, Options]:
    """What is measured, and how; raises where a protocol cannot be done with such a run, before any is."""
    own = {leaf.name for leaf in dataclasses.fields(Options)} & options.keys()
    how = Options(**{name: options[name] for name in own})
    how.check()
    context_options = {name: value for name, value in options.items() if name not in own}
    context = EvalContext.open(run_dir, store_path, split, seed=how.seed, **context_options)
    if context.whiten != "none" and (unsuited := [name for name in protocols if name not in WHITENED]):
        raise errors.ConfigError(
            f"--whiten {context.whiten}: {', '.join(unsuited)} reads no whitened features; {', '.join(WHITENED)} do"
        )
    if "classify" in protocols:
        if context.untrained:
            raise errors.ConfigError("--untrained: classify measures a fine-tuned run as it is; leave one of them out")
        finetune.require(context.run)
    return context, how


def _measure(context: EvalContext, protocol: str, how: Options, folder: Path | None = None) -> dict[str, Any]:
    """Scores of one protocol, and its settings; ``folder`` is taken instead of the one in the options."""
    folder = folder or (None if how.out is None else Path(how.out))
    if protocol in ("linear", "knn"):
        train, test = measures.drawn_features(context, 0, how.draws), context.features(1)  # [1 + draws, n, F], [m, F]
        labels, test_labels = context.labels
        settings: dict[str, Any] = {"k": how.k, "transform": how.transform}
        if protocol == "knn":
            neighbours = (train.flatten(0, 1), labels.repeat(1 + how.draws), test, test_labels, context)
            result = measures.neighbours(*neighbours, **settings)
        else:
            settings, seeds, result = how.probe, range(how.seed, how.seed + how.repeats), {}
            if "published" in how.linear:
                result = measures.linear_probe(train, labels, test, test_labels, context, seeds=seeds, **settings)
            if "probe" in how.linear:
                result["probe"] = measures.fast_probe(train[0], labels, test, test_labels, context)
            if "ridge" in how.linear:
                result |= _ridge(context, train, how.test_draws, alone=not result)
            settings |= {
                "linear": list(how.linear),
                "test_draws": how.test_draws,
                **({"repeats": how.repeats} if how.repeats > 1 else {}),
            }
        return result | {"settings": settings | {"draws": how.draws, "seed": how.seed}, "features": test.shape[1]}
    if protocol == "floor" and context.store.layout.kind == PointLayout.kind:
        settings = {"cell": point_floor.CELL, "frames": point_floor.FRAMES, "points": point_floor.POINTS}
        return point_floor.measure(context) | {"settings": settings}
    if protocol == "floor":
        result = floor.measure(context, range(how.seed, how.seed + how.repeats), how.floor_draws)
        settings = {"kernels": floor.KERNELS, "frames": floor.FRAMES, "copies": how.floor_draws, "seed": how.seed}
        return result | {"settings": settings | ({"repeats": how.repeats} if how.repeats > 1 else {})}
    if protocol == "retrieval":
        return measures.retrieval_scores(context)
    if protocol == "classify":
        return finetune_protocols.measure(context, context.run)
    if protocol == "order":
        return order.measure(context)
    if protocol == "semi":
        result = finetune_protocols.semi(
            context,
            how.recipe,
            percents=how.percents,
            lists=how.lists,
            seed=how.seed,
            measure_names=how.semi,
            out=folder,
            linear=how.probe,
            transform=how.transform,
        )
        return result | {"settings": {"linear": how.probe, "recipe": how.recipe.to_dict()}}
    recipe = how.recipe
    if protocol == "supervised":
        recipe = how.supervised or finetune_protocols.from_scratch(recipe)
    result = finetune_protocols.tuned(
        context, recipe, mode=protocol, seeds=range(recipe.seed, recipe.seed + how.repeats), out=folder
    )
    return result | {"settings": {"recipe": result.pop("recipe")}}


def check_ridge(train: Tensor) -> None:
    """Raise `ConfigError` where ridge regression on features [A, n, F] is too large a system to solve."""
    if (unknowns := ridge.unknowns(train)) > ridge.LARGEST:
        raise errors.ConfigError(
            f"--linear ridge: no ridge regression: a system of {unknowns} unknowns; {ridge.LARGEST} are solved for at "
            f"most; name another measure, or read fewer --layers or --draws"
        )


def _ridge(context: EvalContext, train: Tensor, test_draws: int, alone: bool) -> dict[str, Any]:
    """Ridge regression of "linear": ``ridge``, and ``averaged`` over drawn clips of test sequences.

    A system too large to solve is left out; where nothing else is measured (``alone``), it is an error.
    """
    try:
        check_ridge(train)
    except errors.ConfigError as error:
        if alone:
            raise
        context.log(str(error))
        return {}
    copies = measures.drawn_features(context, 1, test_draws)  # [1 + test_draws, m, F]
    single, averaged = measures.ridge_probe(train, context.labels[0], copies, context.labels[1], context)
    return {"ridge": single} | ({"averaged": {"ridge": averaged}} if test_draws else {})


def _finished(result: dict[str, Any], began: float, confusion: bool) -> dict[str, Any]:
    result = result if confusion else measures.without_details(result)
    return result | {"seconds": round(time.perf_counter() - began, 2)}
