"""A published checkpoint under our names, and what became of each of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.compat import source_networks
from s2vfast.compat.namings import NAMINGS, Naming, Sizes
from s2vfast.compat.reader import read_file
from s2vfast.compat.skeleton2vec import QKV
from s2vfast.compat.source_networks import ROLES, SkippedTensor, SourceNetwork
from s2vfast.config.registry import OBJECTIVES
from s2vfast.data.store import hash_file

_HOW = {
    "same": "as it is",
    "flat": "flattened",
    "rows": "positions: axes of size 1 dropped",
    "columns": "positions: transposed, one row each",
    "convolution": "the kernel as a matrix, frame by frame",
    "queries": "queries, keys and values stacked",
}


@dataclass(frozen=True)
class MappedTensor:
    """One parameter of ours, and the tensors that it is made of."""

    name: str
    """As a run's checkpoint calls it."""
    shape: tuple[int, ...]
    source_names: tuple[str, ...]
    """In the file."""
    source_shape: tuple[int, ...]
    """Of each of them."""
    how: str


@dataclass(frozen=True)
class PublishedCheckpoint:
    """The weights of a published network. Make one with `read_checkpoint`."""

    path: Path
    sha256: str
    """Of the file."""
    format: str
    """Of the file: one of `s2vfast.compat.reader.FORMATS`."""
    naming: Naming
    role: str
    """Of the evaluated encoder: ``teacher``, ``student``, or ``unnamed`` where the file does not say; of a method
    without a teacher ``trained``, unless it is an average."""
    prefix: str
    """What its names begin with in the file."""
    student_prefix: str | None
    """The same of the student that is taken with its teacher; None: there is none."""
    sizes: Sizes
    tensors: dict[str, Tensor]
    """Under the names of a run's checkpoint (``student.encoder…``, ``student.decoder…``, ``teacher…``), in the file's
    dtype."""
    heads: int | None
    """The number of attention heads, if the file holds settings that name it; weights do not show it."""
    mapped: list[MappedTensor]
    skipped: list[SkippedTensor]
    missing: dict[str, str]
    """Modules of ours that the file does not have → what that means."""

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The evaluated encoder's parameters, as `s2vfast.networks.Network.load_state_dict` takes them."""
        prefix = OBJECTIVES.get(self.naming.name).checkpoint_prefix()
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def read_checkpoint(
    path: str | Path, naming: str = "auto", *, role: str = "auto", leave_out: Sequence[str] = ()
) -> PublishedCheckpoint:
    """Read a published checkpoint of Skeleton2vec or MAMP; nothing in the file is run.

    Weights are found in whatever containers and under whatever prefixes they lie (``model``, ``state_dict``, ``sd``,
    ``teacher``, ``module.``, ``_orig_mod.`` …). Each tensor of a network must be a parameter of it or be named in
    ``leave_out``. Exact: values are moved, never computed.

    Args:
        path: a file of torch.save (zip or legacy) or safetensors.
        naming: ``skeleton2vec``, ``mamp`` or ``auto``.
        role: ``teacher``, ``student`` or, with ``auto``, what is published to be evaluated: Skeleton2vec's teacher,
            MAMP's trained network.
        leave_out: patterns (``head.*``) of names that are not taken.

    Raises:
        ConfigError: no such naming or role.
        CheckpointError: a file that cannot be read or asks to run something; no such weights in it, or weights that are
            missing, unknown or of a wrong shape.
    """
    for name, value, choices in (("--part", role, ROLES), ("--from", naming, ("auto", *NAMINGS))):
        if value not in choices:
            raise errors.ConfigError(f"{name}: {value!r} is not one of {', '.join(choices)}")
    path = Path(path)
    form, tree = read_file(path)
    try:
        kind, networks, skipped = source_networks.find(tree, naming, leave_out)
        if not isinstance(kind, Naming):
            raise errors.CheckpointError(
                f"holds weights of {kind.published} with its classifier; `s2vfast import-checkpoint` takes them"
            )
        evaluated = source_networks.choose(networks, kind, role)
        averaged = kind.evaluated == "teacher"
        # A teacher is taken with its student; a student that was asked for is taken alone.
        student = None
        for other in networks:
            if averaged and other is not evaluated and evaluated.role == "teacher":
                student = other
            elif other is not evaluated:
                skipped += _skip_all(other, f"the {evaluated.role} is taken")
        if averaged and evaluated.role == "teacher":
            skipped += _drop_decoder(evaluated)
        sizes = _checked(evaluated, kind)
        if student is not None:
            student_sizes = _checked(student, kind)
            if replace(student_sizes, decoder_depth=0) != sizes:
                raise errors.CheckpointError(f"{student.prefix}: a network of other sizes than {evaluated.prefix}")
            sizes = student_sizes
    except errors.CheckpointError as error:
        raise errors.CheckpointError(f"{path}: {error}") from None
    tensors: dict[str, Tensor] = {}
    mapped: list[MappedTensor] = []
    source = student if student is not None else None if averaged and evaluated.role == "teacher" else evaluated
    # A student without a teacher becomes the teacher, and is not stored twice.
    first = [(evaluated, "encoder.", "teacher.")] if averaged else []
    second = [] if averaged and source is evaluated else [(source, "encoder.", "student.encoder.")]
    for network, own_prefix, prefix in [*first, *second, (source, "decoder.", "student.decoder.")]:
        if network is not None:
            _move(kind, network, own_prefix, prefix, tensors, mapped)
    return PublishedCheckpoint(
        path=path,
        sha256=hash_file(path),
        format=form,
        naming=kind,
        role="trained" if not averaged and evaluated.role != "teacher" else evaluated.role or "unnamed",
        prefix=evaluated.prefix,
        student_prefix=None if student is None else student.prefix,
        sizes=sizes,
        tensors=tensors,
        heads=source_networks.heads(tree),
        mapped=mapped,
        skipped=skipped,
        missing=_missing(evaluated, source, sizes, averaged),
    )


def _skip_all(network: SourceNetwork, why: str) -> list[SkippedTensor]:
    return [
        SkippedTensor(source_name, tuple(network.state[name].shape), why) for name, source_name in network.names.items()
    ]


def _drop_decoder(teacher: SourceNetwork) -> list[SkippedTensor]:
    """Take the decoder out of a teacher: an average of it is of no use."""
    names = [name for name in teacher.names if name.startswith(("decoder", "mask_token"))]
    decoder = SourceNetwork(teacher.prefix, teacher.role, {name: teacher.state.pop(name) for name in names})
    decoder.names = {name: teacher.names.pop(name) for name in names}
    return _skip_all(decoder, "a teacher has no decoder here")


def _checked(network: SourceNetwork, kind: Naming) -> Sizes:
    """The sizes of a network, after a check that it is complete.

    Raises:
        CheckpointError: a parameter that is unknown, missing, of a wrong shape, or not of plain finite numbers.
    """
    sizes = kind.sizes(network.state)
    expected = kind.expected(sizes)
    targets = {name: kind.target_of(name) for name in network.state}
    decoder = [name for name, target in targets.items() if target and target[0].startswith("decoder.")]
    if decoder and not sizes.decoder_depth:
        raise errors.CheckpointError(
            f"{network.prefix}{kind.stacks[1]}0: missing beside {network.names[decoder[0]]}; leave the rest of the "
            f"decoder out too: --leave-out 'decoder*' 'mask_token*'"
        )
    for name in network.state:
        if name not in expected:
            raise source_networks.unknown(kind, network.names[name], name)
    if missing := [name for name in expected if name not in network.state]:
        raise errors.CheckpointError(
            f"{network.prefix}{missing[0]}: missing ({len(missing)} of {len(expected)} parameters are); a whole "
            f"network is expected, or an encoder alone (--leave-out 'decoder*' 'mask_token*')"
        )
    for name, value in network.state.items():
        check_plain(network.names[name], value)
        if tuple(value.shape) != expected[name]:
            clip = f"{sizes.joints} joints, {sizes.segments} segments of {sizes.segment_frames} frames"
            raise errors.CheckpointError(
                f"{network.names[name]}: shape {list(value.shape)}; {list(expected[name])} is expected, as the others "
                f"are of width {sizes.dim}, {clip} and an MLP of {sizes.hidden}"
            )
    return sizes


def check_plain(name: str, value: Tensor) -> None:
    """Raise `CheckpointError` unless these are finite numbers that are all in the file."""
    odd = None
    if value.layout != torch.strided or value.is_quantized or value.is_meta or not value.is_floating_point():
        odd = f"a tensor of {value.dtype} ({value.layout}, {value.device}); plain floating-point numbers are expected"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        odd = "more numbers than the file holds"
    elif not value.isfinite().all():
        odd = "holds numbers that are not finite"
    if odd:
        raise errors.CheckpointError(f"{name}: {odd}")


def _move(
    kind: Naming,
    network: SourceNetwork,
    own_prefix: str,
    prefix: str,
    tensors: dict[str, Tensor],
    mapped: list[MappedTensor],
) -> None:
    """Move parameters whose names of ours begin with ``own_prefix`` under ``prefix``, and note their sources."""
    moving = {name: value for name, value in network.state.items() if kind.target_of(name)[0].startswith(own_prefix)}
    sources: dict[str, list[str]] = {}
    for name in moving:
        sources.setdefault(kind.target_of(name)[0], []).append(name)
    moved = kind.from_published({name: value.detach() for name, value in moving.items()})
    for name, source_names in sources.items():
        here = prefix + name.removeprefix(own_prefix)
        order = sorted(source_names, key=lambda one: QKV.index(kind.target_of(one)[1]) if len(source_names) > 1 else 0)
        tensors[here] = moved[name]
        mapped.append(
            MappedTensor(
                here,
                tuple(moved[name].shape),
                tuple(network.names[one] for one in order),
                tuple(moving[order[0]].shape),
                _HOW[kind.target_of(order[0])[1]],
            )
        )


def _missing(evaluated: SourceNetwork, source: SourceNetwork | None, sizes: Sizes, averaged: bool) -> dict[str, str]:
    """Modules of a run of ours that are not in the file."""
    missing = {}
    if averaged and source is evaluated:
        missing["teacher"] = f"the {evaluated.role or 'only'} encoder of the file stands in its place and is evaluated"
    if averaged and source is None:
        missing["student.encoder"] = "none is in the run; it is the teacher that is evaluated"
    if source is None or not sizes.decoder_depth:
        missing["student.decoder"] = "none is in the run; what can be done with it needs the encoder alone"
    return missing | {"optimizer": "none is in the run; its pretraining cannot go on"}
