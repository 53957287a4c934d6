"""The folder of a run: its config, what it was made from, and its lines of numbers.

``run.json`` is written last when a run begins, so a folder without it holds no run, whatever a kill left in it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import platform
from pathlib import Path
from typing import IO, Any

import s2vfast.errors as errors
from s2vfast import files, presets
from s2vfast.config import Config
from s2vfast.train import checkpoint, packed
from s2vfast.train.resume import RESUME_INEXACT, RESUME_SAFE

CONFIG = "config.yaml"
RUN = "run.json"
LOCK = ".lock"
BEGINNING = "beginning"
"""What a checkpoint's meta calls what its run began with."""
METRICS = "metrics.jsonl"
THROUGHPUT = "throughput.jsonl"
CALIBRATION = "calibration.json"
"""Implementations that the run's operations take, where it was calibrated."""
IMPORTED = "imported"
"""What run.json calls the file whose weights a run holds, where it was not trained here."""
SPLIT = "split_sha256"
"""What run.json calls the hash of its split, where that was made by `s2vfast data split`."""
FINETUNE = "finetune"
"""What run.json calls recipe and source of a fine-tuned run."""
INIT = "init"
"""What run.json calls the weights that a run began with, where they were another's (`s2vfast.compat.initial`)."""
FORMAT = 1


def begun(run_dir: str | Path) -> bool:
    """Whether a run has begun in this folder."""
    return (Path(run_dir) / RUN).is_file()


def check_free(run_dir: str | Path) -> None:
    """Raise `CheckpointError` unless a new run can begin in this folder."""
    path = Path(run_dir)
    if begun(path):
        raise errors.CheckpointError(
            f"{path}: holds a run already; go on with it by --resume, or name another folder with --out"
        )
    if path.exists() and not path.is_dir():
        raise errors.CheckpointError(f"{path}: is a file; a folder is expected for --out")
    if path.is_dir():
        names = sorted(e.name for e in path.iterdir() if not _leftover(e.name))
        if names:
            raise errors.CheckpointError(
                f"{path}: is not empty (it holds {names[0]}) and is no run; name an empty or new folder with --out"
            )


def create(run_dir: str | Path, config: Config, store: Any, description: dict[str, Any] | None = None) -> IO:
    """Make the folder with ``config.yaml`` and ``run.json``; where that fails, nothing of it stays.

    Args:
        run_dir: A folder that `check_free` admits; it and its parents are made where missing.
        config: The run's config.
        store: The `s2vfast.data.store.Store` it trains on. For imported weights also what has a layout alone, with
            None for path and fingerprint.
        description: What else ``run.json`` is to hold.

    Returns:
        What `lock` returns: the folder is this process's own before anything is written.

    Raises:
        CheckpointError: Another process has begun a run there meanwhile.
        TrainingError: The folder cannot be written.
    """
    path = Path(run_dir)
    new_folders: list[Path] = []
    claim, free = None, False
    try:
        for parent in [*reversed(path.parents), path]:
            if not parent.exists():
                with contextlib.suppress(FileExistsError):  # another process was faster
                    parent.mkdir()
                    new_folders.append(parent)
        claim = lock(path)
        check_free(path)
        free = True
        checkpoint.clean(path)
        write_config(path, config)
        files.write_json(path / RUN, _description(config, store) | (description or {}))
        return claim
    except BaseException as error:
        for name in (RUN, CONFIG, LOCK) if free else ():
            files.remove(path / name)
        if claim is not None:
            claim.close()
        for parent in reversed(new_folders):
            with contextlib.suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def withdraw(run_dir: str | Path) -> None:
    """Remove what `create` and a run that never finished a step wrote; the folder too, where nothing else is in it."""
    path = Path(run_dir)
    for name in (RUN, CONFIG, METRICS, THROUGHPUT, CALIBRATION, LOCK):
        files.remove(path / name)
    files.remove(checkpoint.folder(path))
    with contextlib.suppress(OSError):
        path.rmdir()


def check_beginning(run_dir: str | Path, config: Config, meta: dict[str, Any]) -> None:
    """Raise `CheckpointError` where config.yaml or run.json is not what a checkpoint's run began with.

    Args:
        run_dir: A run's folder.
        config: What its config.yaml says.
        meta: Of the checkpoint; one of version 0.1 does not say what its run began with.
    """
    if (beginning := meta.get(BEGINNING)) is None:
        return
    current = describe_beginning(config, read(run_dir)["store"]["fingerprint"])
    changes = [
        f"{name} is {current['config'][name]!r} and was {value!r}"
        for name, value in beginning["config"].items()
        if name in current["config"] and current["config"][name] != value
    ]
    if changes:
        raise errors.CheckpointError(
            f"{Path(run_dir) / CONFIG}: edited since the run began: {'; '.join(changes)}. Its weights depend on that: "
            f"put it back, or begin another run"
        )
    if current["store"] != beginning["store"]:
        raise errors.CheckpointError(
            f"{Path(run_dir) / RUN}: edited since the run began: the store's fingerprint is {current['store']} and was "
            f"{beginning['store']}; put it back"
        )


def describe_beginning(config: Config, fingerprint: str | None) -> dict[str, Any]:
    """What a checkpoint says of its run's beginning: all that its bits depend on, as JSON reads it back."""
    tree = json.loads(json.dumps(config.to_dict()))
    fields = {f"{section}.{name}": value for section, content in tree.items() for name, value in content.items()}
    changeable = (*RESUME_SAFE, *RESUME_INEXACT)
    return {"config": {name: fields[name] for name in fields if name not in changeable}, "store": fingerprint}


def read_config(run_dir: str | Path) -> Config:
    """The config a run was begun with; of a folder or a packed run, as all that reads runs."""
    path = Path(run_dir) / CONFIG
    if Path(run_dir).is_file():
        return Config.from_dict(presets.parse(packed.read(run_dir).config, str(run_dir)))
    if not begun(run_dir):
        raise errors.CheckpointError(f"{run_dir}: no run here; a folder made by `s2vfast pretrain` is expected")
    try:
        return presets.load(path)
    except errors.ConfigError as error:
        raise errors.CheckpointError(f"{path}: of another version of s2vfast: {error}") from None


def write_config(run_dir: str | Path, config: Config) -> None:
    """Write ``config.yaml``."""
    files.write_text(Path(run_dir) / CONFIG, presets.dump(config))


def read(run_dir: str | Path) -> dict[str, Any]:
    """What ``run.json`` says: the store's path, fingerprint and layout, the classes, the versions."""
    path = Path(run_dir) / RUN
    try:
        described = packed.read(run_dir).about if Path(run_dir).is_file() else json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise errors.CheckpointError(
            f"{run_dir}: no run here; a folder made by `s2vfast pretrain` is expected"
        ) from error
    except (OSError, ValueError) as error:
        raise errors.CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise errors.CheckpointError(f"{path}: not of a run that this version of s2vfast reads (format {FORMAT})")
    return described


def store_path(run_dir: str | Path) -> str:
    """Where the store is that the run was made with; `CheckpointError` where there was none."""
    path = read(run_dir)["store"]["path"]
    if path is None:
        raise errors.CheckpointError(f"{run_dir}: made without a store; name one with --data")
    return path


def pretrained_on(described: dict[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says that a run's weights are from: a store, or (`IMPORTED`) a published checkpoint."""
    return described.get(IMPORTED) or described["store"]


def learned_from(run_dir: str | Path) -> list[dict[str, Any]]:
    """Which sequences a run's weights have seen: path and fingerprint of a store, split, part, and with labels or not.

    What it began with counts too. Of imported weights, nobody knows.
    """
    config, about = read_config(run_dir), read(run_dir)
    entries = list(about.get(INIT, {}).get("seen", ()))
    if FINETUNE in about:
        source = about[FINETUNE]["source"]
        entries.append({**about["store"], "split": source["split"], "part": source["part"], "labels": True})
        if (before := source["pretrained_on"]) is not None:
            entries += before.get("seen", ())
            entries.append({"part": "train", "labels": False, **before})
    elif IMPORTED not in about:
        labels = config.objective_class.needs_labels
        entries.append({**about["store"], "split": config.data.split, "part": "train", "labels": labels})
    return [entry for entry in entries if entry.get("fingerprint") is not None]


def check_store(run_dir: str | Path, store: Any, store_path: str | Path, exact: bool) -> None:
    """Raise `CheckpointError` unless ``store`` fits the run.

    Args:
        run_dir: A run's folder.
        store: An open `s2vfast.data.store.Store`.
        store_path: Where it is, for the message.
        exact: Whether it must be the very store the run began with, or only have the same joints.
    """
    described = read(run_dir)
    expected, layout = described["layout"], store.layout
    if (expected["name"], expected["joints"]) != (layout.name, list(layout.joints)):
        raise errors.CheckpointError(
            f"{store_path}: its layout is {layout.name} ({len(layout.joints)} joints); the run {run_dir} was made with "
            f"{expected['name']} ({len(expected['joints'])} joints). Name a store of that layout"
        )
    if "dimensions" in expected and tuple(expected["dimensions"]) != layout.dimensions:
        raise errors.CheckpointError(
            f"{store_path}: its joints have {layout.dimensions[0]} coordinates, those of the run {run_dir} "
            f"{expected['dimensions'][0]}. Name a store like the run's"
        )
    if exact and store.fingerprint != described["store"]["fingerprint"]:
        raise errors.CheckpointError(
            f"{store_path}: not the store that the run {run_dir} began with, which was {described['store']['path']} "
            f"(fingerprint {described['store']['fingerprint'][:12]}, this one has {store.fingerprint[:12]}). Name that "
            f"store with --data, or begin another run"
        )
    if exact and store.split_digest(split := read_config(run_dir).data.split) != described["store"].get(SPLIT):
        raise errors.CheckpointError(
            f"{store_path}: its split {split} is not the one that the run {run_dir} began with; make that again with "
            f"`s2vfast data split`, or begin another run"
        )


def lock(run_dir: str | Path) -> IO:
    """Keep other processes from training in this folder until the returned file is closed.

    What is locked is a file of its own, which nothing replaces: run.json is a new file whenever it is written.

    Raises:
        CheckpointError: another process holds it.
        TrainingError: the folder cannot be written.
    """
    path = Path(run_dir) / LOCK
    try:
        while True:
            file = open(path, "ab")  # noqa: SIM115 - it stays open for as long as the run lasts
            if _locked(file, run_dir) and _is_open(file, path):
                return file
            file.close()
    except OSError as error:
        raise _unwritable(Path(run_dir), error) from error


def _locked(file: IO, run_dir: str | Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; only a lock that is held is a reason to stop.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            file.close()
            raise errors.CheckpointError(f"{run_dir}: another process is training in this folder") from error
    return True


def _is_open(file: IO, path: Path) -> bool:
    """Whether ``path`` is still the file that is open: who failed to begin a run may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _unwritable(path: Path, error: OSError) -> errors.TrainingError:
    return errors.TrainingError(
        f"{path}: the run's folder cannot be written: {error.strerror or error}; correct that or name another "
        f"folder with --out"
    )


class JsonLines:
    """A file of JSON objects, one a line, that never ends in half a line.

    Args:
        path: The file; it is made where missing.
        size: Bytes to keep of what is there; None keeps all whole lines.

    Raises:
        TrainingError: The file cannot be written.
    """

    def __init__(self, path: str | Path, size: int | None = None) -> None:
        self.path = Path(path)
        try:
            # Unbuffered: what `write` accepted is in the file, and what it did not accept can be taken back.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            present = self._file.tell()
            self.size = self._whole_lines() if size is None else min(size, present)
            self.missing = max(0, (size or 0) - present)
            """Bytes that were expected before ``size`` and are not there."""
            self._file.truncate(self.size)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, **values: Any) -> None:
        """Append one object."""
        line = (json.dumps(values) + "\n").encode()
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError as error:
            self._file.truncate(self.size)
            raise self._failed(error) from error
        self.size += len(line)

    def sync(self) -> int:
        """Flush to the disk; returns the file's size in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        return self.size

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _whole_lines(self) -> int:
        return self.path.read_bytes().rfind(b"\n") + 1

    def _failed(self, error: OSError) -> errors.TrainingError:
        return errors.TrainingError(
            f"{self.path}: cannot be written: {error.strerror or error}; checkpoints are as they were. Mend that and "
            f"go on with --resume"
        )


def _leftover(name: str) -> bool:
    return name in (CONFIG, LOCK) or name.startswith(files.TEMPORARY)


def _description(config: Config, store: Any) -> dict[str, Any]:
    import numpy
    import torch

    import s2vfast

    # Imported weights have no store. Of an imported split the fingerprint says all.
    digest = None if store.fingerprint is None else store.split_digest(config.data.split)
    return {
        "format": FORMAT,
        "begun": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "store": {
            "path": None if store.path is None else str(Path(store.path).resolve()),
            "fingerprint": store.fingerprint,
            **({} if digest is None else {SPLIT: digest}),
        },
        "unit": getattr(store, "unit", None),  # imported weights come without recordings
        "min_confidence": getattr(store, "meta", {}).get("source", {}).get("min_confidence", 0.0),
        "layout": store.layout.to_dict(),
        "classes": list(store.classes),
        "versions": {
            "s2vfast": getattr(s2vfast, "__version__", "unknown"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
    }
