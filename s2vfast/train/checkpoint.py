"""Checkpoints: a folder of safetensors files and a manifest of hashes, there whole or not at all.

``RUN/checkpoints/step-00000100/`` holds ``manifest.json`` and one ``<group>.safetensors`` a group of tensors. A
checkpoint is a `s2vfast.files.NewFolder`, flushed to the disk and renamed, so that a kill or a full disk at any moment
leaves the older ones as they were. Equal tensors and meta give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import s2vfast.errors as errors
from s2vfast import files
from s2vfast.train import packed

if TYPE_CHECKING:
    import torch

FORMAT = 1
MANIFEST = "manifest.json"
_STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,15})")  # as `_path` writes them, and no other


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found intact."""

    step: int
    """Steps that were finished when it was saved."""
    tensors: dict[str, dict[str, torch.Tensor]]
    """Tensors on the CPU by group and name."""
    meta: dict[str, Any]
    """Plain values that were saved with the tensors."""
    path: Path
    """Its folder."""


def folder(run_dir: str | Path) -> Path:
    """Where the checkpoints of a run are."""
    return Path(run_dir) / "checkpoints"


def steps(run_dir: str | Path) -> list[int]:
    """Steps of the checkpoints that are there, ascending; whether they are intact is not looked at."""
    checkpoints = folder(run_dir)
    if not checkpoints.is_dir():
        return []
    matches = (_STEP.fullmatch(entry.name) for entry in checkpoints.iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def clean(run_dir: str | Path) -> None:
    """Remove what an interrupted save left behind. Only while no other process writes to the run."""
    for path in (Path(run_dir), folder(run_dir)):
        files.remove_temporaries(path)


def save(
    run_dir: str | Path,
    step: int,
    groups: Mapping[str, Mapping[str, torch.Tensor]],
    meta: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint of ``step``, then remove all but the last ``keep``.

    Args:
        run_dir: The run's folder; its ``checkpoints`` folder is made where it is missing.
        step: Finished steps.
        groups: Tensors by group and name; a group becomes one file.
        meta: Anything JSON holds.
        keep: Checkpoints that stay, 1 or more.

    Returns:
        The checkpoint's folder.

    Raises:
        TrainingError: It could not be written (no space left, read-only ...); older checkpoints are as they were.
    """
    final = _path(run_dir, step)
    new = files.NewFolder(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        new.make()
        _write(new.path, step, groups, meta)
        new.commit()  # It replaces a damaged one that training came past again.
    except BaseException as error:
        new.abandon()
        if isinstance(error, OSError):
            raise errors.TrainingError(
                f"{final}: the checkpoint of step {step} could not be written: {error.strerror or error}; "
                f"older checkpoints are as they were. Mend that and go on with --resume"
            ) from error
        raise
    prune(run_dir, step, keep)
    return final


def load_latest(
    run_dir: str | Path, log: Callable[[str], Any] = print, groups: tuple[str, ...] | None = None
) -> Checkpoint:
    """Read the newest intact checkpoint; of each damaged one ``log`` is told the reason.

    Args:
        run_dir: The run's folder, or a packed run, which has the group ``model``.
        log: Called with one line for each checkpoint that is passed over.
        groups: Groups to read and verify; all where None.

    Raises:
        CheckpointError: There is none, or none is intact.
    """
    if Path(run_dir).is_file():
        held = packed.read(run_dir)
        return Checkpoint(held.step, {"model": packed.read_tensors(run_dir)}, held.meta, Path(run_dir))
    saved_steps = steps(run_dir)
    if not saved_steps:
        raise errors.CheckpointError(
            f"{run_dir}: no checkpoint here; a run folder of `s2vfast pretrain` that has been saved at least once "
            f"is expected"
        )
    for step in reversed(saved_steps):
        path = _path(run_dir, step)
        try:
            return _read(path, step, groups)
        except _Damaged as damage:
            log(f"{path}: damaged ({damage}); the checkpoint before it is used")
    raise errors.CheckpointError(
        f"{folder(run_dir)}: none of its {len(saved_steps)} checkpoints is intact; begin the run anew in another folder"
    )


def prune(run_dir: str | Path, step: int, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints up to ``step``, as far as the file system lets us."""
    older = [other for other in steps(run_dir) if other <= step]
    for other in older[:-keep]:
        files.remove_folder(_path(run_dir, other))


def set_aside(run_dir: str | Path, after: int) -> list[Path]:
    """Rename checkpoints of steps above ``after`` (those that `load_latest` passed over) to ``damaged-step-…``."""
    moved = []
    for step in steps(run_dir):
        if step > after:
            target = folder(run_dir) / f"damaged-step-{step:08d}"
            files.remove(target)
            os.rename(_path(run_dir, step), target)
            moved.append(target)
    return moved


class _Damaged(Exception):
    """The reason why a checkpoint cannot be used."""


def _path(run_dir: str | Path, step: int) -> Path:
    return folder(run_dir) / f"step-{step:08d}"


def _write(path: Path, step: int, groups: Mapping, meta: Mapping) -> None:
    import safetensors.torch

    entries = {}
    for group, tensors in groups.items():
        # Bytes first, so that the file is written by us: errors keep their errno, and the hash needs no second read.
        content = safetensors.torch.save({name: _plain(tensor) for name, tensor in tensors.items()})
        name = f"{group}.safetensors"
        files.write_into(path, name, content)
        entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = {"format": FORMAT, "step": step, "files": entries, "meta": dict(meta)}
    manifest["sha256"] = _digest(manifest)
    files.write_into(path, MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU: views of one storage become tensors of their own, as safetensors asks."""
    import torch

    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path, step: int, groups: tuple[str, ...] | None) -> Checkpoint:
    import safetensors.torch

    manifest = _read_manifest(path, step)
    tensors = {}
    for name, entry in manifest["files"].items():
        group = name.removesuffix(".safetensors")
        if groups is None or group in groups:
            content = _read_bytes(path / name)
            if len(content) != entry["bytes"]:
                raise _Damaged(f"{name} has {len(content)} bytes, {entry['bytes']} are expected")
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                raise _Damaged(f"{name} is not what was written: its SHA-256 differs")
            try:
                tensors[group] = safetensors.torch.load(content)
            except Exception as error:  # what a damaged header raises has no common class
                raise _Damaged(f"{name} is no safetensors file ({error})") from error
    return Checkpoint(step, tensors, manifest["meta"], path)


def _read_manifest(path: Path, step: int) -> dict[str, Any]:
    content = _read_bytes(path / MANIFEST)
    if not content:
        raise _Damaged(f"{MANIFEST} is empty")
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{MANIFEST} is no JSON") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != _digest(manifest):
        raise _Damaged(f"{MANIFEST} is not what was written: its SHA-256 differs")
    if not _is_manifest(manifest):
        raise _Damaged(f"{MANIFEST} is no manifest")
    if manifest["format"] != FORMAT:
        raise errors.CheckpointError(
            f"{path}: format {manifest['format']}, this version of s2vfast reads format {FORMAT}"
        )
    if manifest["step"] != step:
        raise _Damaged(f"{MANIFEST} is of step {manifest['step']}")
    return manifest


def _is_manifest(manifest: Mapping[str, Any]) -> bool:
    entries, meta = manifest.get("files"), manifest.get("meta")
    if not isinstance(entries, dict) or not isinstance(meta, dict) or not {"format", "step"} <= manifest.keys():
        return False
    return all(
        re.fullmatch(r"\w+\.safetensors", name) and isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
        for name, entry in entries.items()
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _Damaged(f"{path.name} is missing") from error
    except OSError as error:
        raise _Damaged(f"{path.name} cannot be read: {error.strerror or error}") from error
