"""Raw files to classes, by a fine-tuned run: the same reading, checks and clips as an import and an evaluation.

What a file says of classes is not looked at: neither labels nor names that tell them need to be there.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import s2vfast.errors as errors
from s2vfast.data.formats import FORMATS, detect_format
from s2vfast.data.formats.base import UnknownLayout
from s2vfast.data.importer import read_checked
from s2vfast.data.layout import Layout, get_layout
from s2vfast.data.store import Sequence as Recording
from s2vfast.data.store import Store
from s2vfast.data.store_writer import write_store
from s2vfast.evaluate import features, finetune
from s2vfast.evaluate.checks import check_counts
from s2vfast.train.feed import Recordings

_AT_ONCE = 256
"""Sequences that are read before they go through the network."""


def predict(
    run_dir: str | Path,
    files: Sequence[str | Path],
    *,
    format: str | None = None,
    layout: str | Path | None = None,
    top: int = 5,
    device: str = "auto",
    log: Callable[[str], object] = print,
) -> Iterator[dict[str, Any]]:
    """The most probable classes of every sequence in some files, in their order.

    Args:
        run_dir: a fine-tuned run's folder.
        files: raw files of one of the known formats.
        format: a name in `s2vfast.data.formats.FORMATS`; None: detected for each file.
        layout: name or JSON file of the skeleton, for formats that have none of their own.
        top: classes a sequence.
        device: auto, cpu, cuda or cuda:N.
        log: told of what is odd.

    Yields:
        ``file``, ``sequence`` (its name, where a file holds several) and ``top``, a list of [class, probability], the
        most probable first; or ``file`` and ``error`` for what cannot be read, or is not finite in the network. They
        come as the files are read, so many at a time that memory holds them.

    Raises:
        CheckpointError: no fine-tuned run.
        ConfigError: an impossible option.
    """
    check_counts(top=top)
    if format is not None and format not in FORMATS:
        raise errors.ConfigError(f"--format: {format!r} is not one of {', '.join(FORMATS)}")
    where = features.resolve_device(device)
    model, config, about = finetune.load_classifier(run_dir, log=log)
    model.to(where)
    skeleton = Layout.from_dict(about["layout"])
    source_layout = None if layout is None else get_layout(layout)

    def predictions(waiting: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        readable = [entry for entry in waiting if "recording" in entry]
        probabilities = iter(_probabilities(model, config, skeleton, [entry["recording"] for entry in readable], where))
        for entry in waiting:
            if "recording" in entry:
                recording = entry.pop("recording")
                values = next(probabilities).sort(descending=True, stable=True)
                names = [about["classes"][i] for i in values.indices.tolist()[:top]]
                entry["sequence"] = recording.name if entry.pop("several") else None
                entry["top"] = [list(pair) for pair in zip(names, values.values.tolist(), strict=False)]
                if not values.values.isfinite().all():
                    name = "" if entry["sequence"] is None else f" {entry['sequence']}:"
                    reason = (
                        f"the network's numbers of it are not finite; check its coordinates, and the loss of {run_dir}"
                    )
                    entry = {"file": entry["file"], "error": f"{entry['file']}:{name} {reason}"}
            yield entry

    waiting: list[dict[str, Any]] = []
    for file in files:
        for entry in _read(Path(file), format, source_layout, skeleton):
            waiting.append(entry)
            if len(waiting) == _AT_ONCE:
                yield from predictions(waiting)
                waiting = []
    yield from predictions(waiting)


def _read(path: Path, format: str | None, layout: Layout | None, skeleton: Layout) -> Iterator[dict[str, Any]]:
    """The recordings of a file one by one, and what is wrong with it."""
    try:
        module = FORMATS[format or detect_format(path)]
        try:
            source = module.open_source(path, layout, labelled=False)
        except UnknownLayout:  # the run knows
            source = module.open_source(path, skeleton, labelled=False)
        if (source.layout.name, source.layout.joints) != (skeleton.name, skeleton.joints):
            raise errors.DataError(
                f"{path}: its layout is {source.layout.name}; the run was made with {skeleton.name} "
                f"({skeleton.num_joints} joints)"
            )
        entries = (entry for item in source.items for entry in read_checked(source, item))
        first = list(itertools.islice(entries, 2))
        if not first:
            yield {"file": str(path), "error": f"{path}: no recording in it"}
        for entry in itertools.chain(first, entries):
            if isinstance(entry, Recording):
                yield {"file": str(path), "recording": entry, "several": len(first) > 1}
            else:
                where = f":{entry['line']}" if "line" in entry else ""
                name = f" {entry['name']}:" if len(first) > 1 else ""
                yield {"file": str(path), "error": f"{path}{where}:{name} {entry['reason']}"}
    except (errors.DataError, OSError) as error:
        text = str(error) if isinstance(error, errors.DataError) else f"{path}: {error.strerror or error}"
        yield {"file": str(path), "error": text}


def _probabilities(model: Any, config: Any, skeleton: Layout, recordings: list[Recording], device: torch.device) -> Any:
    """float32 [n, classes] on the CPU; a row of what is not finite in the network is not finite."""
    if not recordings:
        return []
    with tempfile.TemporaryDirectory(prefix="s2vfast-") as folder:
        # Names may come twice, and labels of raw files are not those of the run.
        plain = [
            Recording(name=f"{number}", label=0, total_frames=recording.total_frames, bodies=recording.bodies)
            for number, recording in enumerate(recordings)
        ]
        path = write_store(
            Path(folder) / "store", plain, layout=skeleton, classes=["unknown"], splits={}, source={}, dropped=[]
        )
        store = Store.open(path)
        recordings = Recordings(config, store, torch.device(device))

        pool = features.head_pool(model.encoder)

        def extract(ids: np.ndarray) -> torch.Tensor:
            try:
                return features.extract(
                    model.encoder, config, store, ids, pool=pool, device=device, recordings=recordings
                )
            except errors.DataError:  # some are not finite; the others are to have their classes
                if len(ids) > 1:
                    return torch.cat([extract(one) for one in np.split(ids, len(ids))])
                return torch.full((1, features.feature_width(model.encoder, pool)), torch.nan)

        pooled = extract(np.arange(len(store), dtype=np.int64))
        with torch.no_grad():
            return torch.softmax(model.head(pooled.to(device)), dim=1).cpu()
