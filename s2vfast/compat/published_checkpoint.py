"""Checkpoints as others publish them, under our names, and what became of each of their tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from s2vfast import errors
from s2vfast.compat import parts as parts_of
from s2vfast.compat.namings import NAMINGS, Naming, Sizes
from s2vfast.compat.parts import PARTS, LeftOut, Part
from s2vfast.compat.reader import read_file
from s2vfast.compat.skeleton2vec import PARTS as PARTS_OF_QKV
from s2vfast.config.registry import OBJECTIVES

_HOW = {
    "same": "as it is",
    "flat": "flattened",
    "rows": "positions: axes of size 1 dropped",
    "columns": "positions: transposed, one row each",
    "convolution": "the kernel as a matrix, frame by frame",
    "queries": "queries, keys and values stacked",
}


@dataclass(frozen=True)
class Mapped:
    """One parameter of ours, and what it is made of."""

    ours: str
    """As a run's checkpoint calls it."""
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    """Names in the file."""
    their_shape: tuple[int, ...]
    """Of each of them."""
    how: str


@dataclass(frozen=True)
class Foreign:
    """The weights of a published network. Make one with `read_checkpoint`."""

    path: Path
    sha256: str
    """Of the file."""
    format: str
    """Of the file: one of `s2vfast.compat.reader.FORMATS`."""
    naming: Naming
    part: str
    """What the evaluated encoder was: ``teacher``, ``student``, or ``unnamed`` where the file does not say; of a method
    without a teacher ``trained``, unless it is an average."""
    place: str
    """What stands before its names in the file."""
    student_place: str | None
    """The same of the student that goes along with a teacher; None: there is none."""
    sizes: Sizes
    tensors: dict[str, Tensor]
    """Under the names of a run's checkpoint (``student.encoder…``, ``student.decoder…``, ``teacher…``), in the file's
    dtype."""
    heads: int | None
    """Attention heads, where settings beside the weights say it; weights do not."""
    mapped: list[Mapped]
    left_out: list[LeftOut]
    missing: dict[str, str]
    """Parts of ours that the file does not have → what that means."""

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The evaluated encoder's parameters, as `s2vfast.networks.Network.load_state_dict` takes them."""
        prefix = OBJECTIVES.get(self.naming.name).checkpoint_prefix()
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def read_checkpoint(
    path: str | Path, naming: str = "auto", *, part: str = "auto", leave_out: Sequence[str] = ()
) -> Foreign:
    """Read a published checkpoint of Skeleton2vec or MAMP; nothing in the file is run.

    Weights are found in whatever containers and under whatever prefixes they lie (``model``, ``state_dict``, ``sd``,
    ``teacher``, ``module.``, ``_orig_mod.`` …). Each tensor of a network must have its place or be named in
    ``leave_out``. Exact: values are moved, never computed.

    Args:
        path: a file of torch.save (zip or legacy) or safetensors.
        naming: ``skeleton2vec``, ``mamp`` or ``auto``.
        part: ``teacher``, ``student`` or, with ``auto``, what is published to be evaluated: Skeleton2vec's teacher,
            MAMP's trained network.
        leave_out: patterns (``head.*``) of names that are not taken.

    Raises:
        ConfigError: no such naming or part.
        CheckpointError: a file that cannot be read or asks to run something; no such weights in it, or weights that are
            missing, unknown or of a wrong shape.
    """
    for name, value, known in (("--part", part, PARTS), ("--from", naming, ("auto", *NAMINGS))):
        if value not in known:
            raise errors.ConfigError(f"{name}: {value!r} is not one of {', '.join(known)}")
    path = Path(path)
    form, tree = read_file(path)
    try:
        kind, found, left_out = parts_of.find(tree, naming, leave_out)
        taken = parts_of.choose(found, kind, part)
        averaged = kind.evaluated == "teacher"
        # A student goes along with its teacher, unless it is the student itself that was asked for.
        student = None
        for other in found:
            if averaged and other is not taken and taken.label == "teacher":
                student = other
            elif other is not taken:
                left_out += _all(other, f"the {taken.label} is taken")
        if averaged and taken.label == "teacher":
            left_out += _drop_decoder(taken)
        sizes = _checked(taken, kind)
        if student is not None:
            whole = _checked(student, kind)
            if replace(whole, decoder_depth=0) != sizes:
                raise errors.CheckpointError(f"{student.place}: a network of other sizes than {taken.place}")
            sizes = whole
    except errors.CheckpointError as error:
        raise errors.CheckpointError(f"{path}: {error}") from None
    tensors: dict[str, Tensor] = {}
    mapped: list[Mapped] = []
    source = student if student is not None else None if averaged and taken.label == "teacher" else taken
    # A student without a teacher beside it stands in the teacher's place, and need not be there twice.
    first = [(taken, "encoder.", "teacher.")] if averaged else []
    second = [] if averaged and source is taken else [(source, "encoder.", "student.encoder.")]
    for whose, ours, prefix in [*first, *second, (source, "decoder.", "student.decoder.")]:
        if whose is not None:
            _move(kind, whose, ours, prefix, tensors, mapped)
    return Foreign(
        path=path,
        sha256=_digest(path),
        format=form,
        naming=kind,
        part="trained" if not averaged and taken.label != "teacher" else taken.label or "unnamed",
        place=taken.place,
        student_place=None if student is None else student.place,
        sizes=sizes,
        tensors=tensors,
        heads=parts_of.heads(tree),
        mapped=mapped,
        left_out=left_out,
        missing=_missing(taken, source, sizes, averaged),
    )


def _all(part: Part, why: str) -> list[LeftOut]:
    return [LeftOut(whole, tuple(part.state[name].shape), why) for name, whole in part.names.items()]


def _drop_decoder(teacher: Part) -> list[LeftOut]:
    """Take the decoder out of a teacher: an average of it is of no use."""
    names = [name for name in teacher.names if name.startswith(("decoder", "mask_token"))]
    decoder = Part(teacher.place, teacher.label, {name: teacher.state.pop(name) for name in names})
    decoder.names = {name: teacher.names.pop(name) for name in names}
    return _all(decoder, "a teacher has no decoder here")


def _checked(part: Part, kind: Naming) -> Sizes:
    """A network's sizes, once it is known to be whole.

    Raises:
        CheckpointError: a parameter that is unknown, missing, of a wrong shape, or not of plain finite numbers.
    """
    sizes = kind.sizes(part.state)
    expected = kind.expected(sizes)
    places = {name: kind.place(name) for name in part.state}
    decoder = [name for name, place in places.items() if place and place[0].startswith("decoder.")]
    if decoder and not sizes.decoder_depth:
        raise errors.CheckpointError(
            f"{part.place}{kind.stacks[1]}0: missing beside {part.names[decoder[0]]}; leave the rest of the decoder "
            f"out too: --leave-out 'decoder*' 'mask_token*'"
        )
    for name in part.state:
        if name not in expected:
            raise parts_of.unknown(kind, part.names[name], name)
    if missing := [name for name in expected if name not in part.state]:
        raise errors.CheckpointError(
            f"{part.place}{missing[0]}: missing ({len(missing)} of {len(expected)} parameters are); a whole network is "
            f"expected, or an encoder alone (--leave-out 'decoder*' 'mask_token*')"
        )
    for name, value in part.state.items():
        _check_plain(part.names[name], value)
        if tuple(value.shape) != expected[name]:
            clip = f"{sizes.joints} joints, {sizes.segments} segments of {sizes.segment_frames} frames"
            raise errors.CheckpointError(
                f"{part.names[name]}: shape {list(value.shape)}; {list(expected[name])} is expected, as the others are "
                f"of width {sizes.dim}, {clip} and an MLP of {sizes.hidden}"
            )
    return sizes


def _check_plain(name: str, value: Tensor) -> None:
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


def _move(kind: Naming, part: Part, ours: str, prefix: str, tensors: dict[str, Tensor], mapped: list[Mapped]) -> None:
    """Put a network's parameters that begin with ``ours`` under ``prefix``, and note where they are from."""
    chosen = {name: value for name, value in part.state.items() if kind.place(name)[0].startswith(ours)}
    sources: dict[str, list[str]] = {}
    for name in chosen:
        sources.setdefault(kind.place(name)[0], []).append(name)
    moved = kind.to_ours({name: value.detach() for name, value in chosen.items()})
    for name, theirs in sources.items():
        here = prefix + name.removeprefix(ours)
        order = sorted(theirs, key=lambda one: PARTS_OF_QKV.index(kind.place(one)[1]) if len(theirs) > 1 else 0)
        tensors[here] = moved[name]
        mapped.append(
            Mapped(
                here,
                tuple(moved[name].shape),
                tuple(part.names[one] for one in order),
                tuple(chosen[order[0]].shape),
                _HOW[kind.place(order[0])[1]],
            )
        )


def _missing(taken: Part, source: Part | None, sizes: Sizes, averaged: bool) -> dict[str, str]:
    """Parts of a run of ours that are not in the file."""
    found = {}
    if averaged and source is taken:
        found["teacher"] = f"the {taken.label or 'only'} encoder of the file stands in its place and is evaluated"
    if averaged and source is None:
        found["student.encoder"] = "none is in the run; it is the teacher that is evaluated"
    if source is None or not sizes.decoder_depth:
        found["student.decoder"] = "none is in the run; what can be done with it needs the encoder alone"
    return found | {"optimizer": "none is in the run; its pretraining cannot go on"}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
