"""A run made of a published recogniser: network, classifier, running statistics; the report has every tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from s2vfast import errors, presets
from s2vfast.compat import report, source_networks
from s2vfast.compat.imported_run import NoStore, home, write_run
from s2vfast.compat.published_checkpoint import MappedTensor, check_plain
from s2vfast.compat.reader import read_file
from s2vfast.compat.recognisers import RECOGNISERS, Recogniser, RecogniserSizes
from s2vfast.compat.source_networks import SkippedTensor, SourceNetwork
from s2vfast.config import Config
from s2vfast.data.store import Store, hash_file
from s2vfast.objectives import build_objective

_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class RecogniserFile:
    """The weights of a recogniser, as they lie in a file."""

    path: Path
    format: str
    kind: Recogniser
    network: SourceNetwork
    skipped: list[SkippedTensor]


def find(path: str | Path, naming: str, leave_out: Sequence[str]) -> RecogniserFile | None:
    """The weights in a file, or None where it is of a network without classes.

    Raises:
        CheckpointError: a file that cannot be read, or whose weights cannot be told.
    """
    if naming not in ("auto", *RECOGNISERS):
        return None
    path = Path(path)
    form, tree = read_file(path)
    try:
        kind, networks, skipped = source_networks.find(tree, naming, leave_out)
        if not isinstance(kind, Recogniser):
            return None
        network = source_networks.choose(networks, kind, "auto")
    except errors.CheckpointError as error:
        raise errors.CheckpointError(f"{path}: {error}") from None
    for other in networks:
        if other is not network:
            raise errors.CheckpointError(
                f"{path}: two networks of {kind.published}, at {network.prefix!r} and {other.prefix!r}; leave one of "
                f"them out: --leave-out '{other.prefix}*'"
            )
    return RecogniserFile(path, form, kind, network, skipped)


def import_recogniser(
    file: RecogniserFile,
    out: Path,
    *,
    config: str | Path | None,
    store: str | Path | None,
    layout: str | Path | None,
) -> dict[str, Any]:
    """Make the run; arguments, results and errors as of `s2vfast.compat.importer.import_checkpoint`.

    The report has ``classes`` too: the store's, or numbers where there is no store.
    """
    try:
        sizes = file.kind.sizes(file.network.state)
    except errors.CheckpointError as error:
        raise errors.CheckpointError(f"{file.path}: {error}") from None
    where = home(file.path, sizes.joints, "pos_embedding", store, layout)
    if isinstance(where, NoStore):
        where = NoStore(where.layout, [str(number) for number in range(sizes.classes)])
    elif len(where.classes) != sizes.classes:
        raise errors.CheckpointError(
            f"{file.path}: its classifier has {sizes.classes} classes; the store {store} has {len(where.classes)}. "
            f"Name one of these classes, or none"
        )
    run_config, config_source = _config(file, sizes, config)
    run_config.validate(where.layout)
    weights, mapped, skipped, missing = _weights(file, run_config, where)
    tree = run_config.to_dict()
    assumed = {f"model.{name}": {"value": tree["model"][name], "from": config_source} for name in file.kind.assumed}
    if sizes.frames is None:
        assumed["data.frames"] = {"value": run_config.data.frames, "from": config_source}
    dtypes = [str(value.dtype).removeprefix("torch.") for value in file.network.state.values()]
    about = {
        "file": str(file.path.resolve()),
        "sha256": hash_file(file.path),
        "naming": file.kind.name,
        "role": "trained",
        "prefix": file.network.prefix,
    }
    summary = {
        **about,
        "file": str(file.path),
        "format": file.format,
        "student_prefix": None,
        "sizes": asdict(sizes),
        "model": tree["model"],
        "classes": list(where.classes),
        "config": config_source,
        "assumed": assumed,
        "clips": {name: tree["data"][name] for name in report.CLIPS},
        "mapped": [report.mapped(one) for one in mapped],
        "skipped": [report.skipped(one) for one in skipped],
        "missing": [{"name": name, "then": then} for name, then in missing.items()],
        "converted": {name: dtypes.count(name) for name in sorted({"float16", "bfloat16", "float64"} & set(dtypes))},
        "run": str(out),
        "store": None if store is None else str(store),
    }
    write_run(out, run_config, where, about, summary, weights)
    return summary


def _config(file: RecogniserFile, sizes: RecogniserSizes, config: str | Path | None) -> tuple[Config, str]:
    """The run's config, and what to call where it is from."""
    preset = file.kind.preset(sizes)
    tree = presets.read(config or preset)
    source = f"--config {config}" if config else f"preset {preset}"
    data = {"bodies": sizes.bodies} | ({} if sizes.frames is None else {"frames": sizes.frames})
    if config is None:
        tree = presets.merge(tree, {"model": sizes.model, "data": data})
    run_config = Config.from_dict(tree)
    if run_config.model.name != file.kind.name:
        raise errors.ConfigError(f"model.name: {run_config.model.name} in {source}; {file.kind.name} is expected")
    if run_config.channels != sizes.channels:
        raise errors.ConfigError(
            f"data.velocity: {run_config.data.velocity} in {source} makes clips of {run_config.channels} channels; "
            f"{sizes.channels} by to_joint_embedding.weight of {file.path}"
        )
    own = run_config.to_dict()
    for section, values in (("model", sizes.model), ("data", data)):
        for name, value in values.items():
            # Those two are no sizes: a config may say that weights are not of the authors' graph.
            if name not in ("graph", "split") and _plain(own[section][name]) != _plain(value):
                raise errors.ConfigError(
                    f"{section}.{name}: {own[section][name]} in {source}; {value} by the weights of {file.path}; "
                    f"change the config, or leave --config out"
                )
    return run_config, source


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _weights(
    file: RecogniserFile, config: Config, where: Store | NoStore
) -> tuple[dict[str, Tensor], list[MappedTensor], list[SkippedTensor], dict[str, str]]:
    """The run's weights, what they are made of, what is left out of the file, and what is not in it.

    Raises:
        CheckpointError: a tensor that is unknown, missing, of a wrong shape, or not of plain finite numbers.
    """
    kind, state, names = file.kind, file.network.state, file.network.names
    stages = config.model.stages
    own = build_objective(config, where.layout, where.classes).state_dict()
    skipped = list(file.skipped)
    used = {}
    for name, value in state.items():
        if kind.unused(name):
            why = "counts batches" if name.endswith(_COUNTER) else "the published network never uses it"
            skipped.append(SkippedTensor(names[name], tuple(value.shape), why))
        else:
            check_plain(f"{file.path}: {names[name]}", value)
            used[name] = value
    try:
        weights = kind.from_published(used, stages)
    except errors.CheckpointError as error:
        raise errors.CheckpointError(f"{file.path}: {file.network.prefix}{error}") from None
    except (RuntimeError, IndexError) as error:  # tensors that belong together are not of one shape
        raise errors.CheckpointError(
            f"{file.path}: tensors of one layer are of several shapes: {' '.join(str(error).split())}"
        ) from None
    table = dict(kind.table(used, stages))
    mapped = []
    for name, value in own.items():
        if name not in weights:
            if name in table and not name.endswith(_COUNTER):
                first, *_ = table[name]
                raise errors.CheckpointError(
                    f"{file.path}: {file.network.prefix}{first}: missing; all parameters of the network and its "
                    f"classifier are expected"
                )
            continue
        sources = tuple(table[name])
        if weights[name].shape != value.shape:
            shapes = f"{list(used[sources[0]].shape)}"
            raise errors.CheckpointError(
                f"{file.path}: {names[sources[0]]}: shape {shapes}, here {name} {list(weights[name].shape)}; "
                f"{list(value.shape)} is expected, as the others are of base {config.model.base} and stages "
                f"{list(stages)}"
            )
        how = "as it is" if used[sources[0]].shape == value.shape else "axes of size 1 dropped"
        if len(sources) > 1:
            how = "stacked" if value.ndim > used[sources[0]].squeeze().ndim else "one after the other"
        source_shape = tuple(used[sources[0]].shape)
        mapped.append(
            MappedTensor(f"student.{name}", tuple(value.shape), tuple(names[one] for one in sources), source_shape, how)
        )
    if unknown := sorted(set(weights) - set(own)):
        source = table[unknown[0]][0]
        raise errors.CheckpointError(
            f"{file.path}: {names[source]}: a network of stages {list(stages)} has no such layer; the sizes of others "
            f"say that there is none"
        )
    missing = {f"student.{name}": "drawn anew" for name in own if name not in weights and not name.endswith(_COUNTER)}
    missing["optimizer"] = "none is in the run; its training cannot go on"
    return {f"student.{name}": weights.get(name, value) for name, value in own.items()}, mapped, skipped, missing
