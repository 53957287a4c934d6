"""What a training step costs, counted from its plan: operations, exponentials, bytes, launches.

    python -m s2vfast.train.cost_model --config ntu60 [--tracks 128] [--empty 0.41] [--device h200] [--json]

It counts Skeleton2vec's step with tube masks, and refuses others. Nothing is run.
A matrix product of [m, k] and [k, n] is 2 m k n operations. Attention is two products of a head's
scores forward, and five backward, as scores are recomputed. Bytes are what must cross the device's memory once, as the
fused kernels have it: bfloat16 operands, float32 residual stream, everything that fits on the chip staying there.
Launches are kernels of the ``triton`` implementation. ``dense`` leaves out all savings and is the published arithmetic;
``step`` is what s2vfast does; each saving's own row says what it takes off.

With ``--device`` every row gets a time: of norm_linear, attention, add_norm and mlp from the model of their compiled
kernels (`s2vfast.kernels.model`), of the rest from bytes over the memory's rate and a least time a launch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from s2vfast import errors, presets
from s2vfast.config import Config
from s2vfast.objectives.masks import TUBE_KINDS, visible_joints
from s2vfast.train.launches import LAUNCHES, LAUNCHES_BACKWARD

PARTS = ("data", "teacher", "target", "student", "decoder forward", "decoder backward", "update")
"""Student: forward and backward. Data: clips, masks. Update: loss, clipping, AdamW, EMA, operands."""
SAVINGS = {
    "visible": "the student embeds visible tokens only",
    "masked": "the last decoder block's projection and MLP, and the head, at masked tokens only",
    "norm": "no final norm of the teacher, whose target does not use it",
    "share": "one teacher pass for all empty bodies",
}
OPERAND, STREAM = 2, 4  # bytes of a number: matrix operands, residual stream


@dataclass(frozen=True)
class Line:
    """One kind of work in a part of the step."""

    part: str
    what: str
    gemm: float = 0.0  # operations of matrix products with weights
    attention: float = 0.0  # operations of products of queries, keys, values
    exps: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    op: str = ""  # the operation whose kernels `model_step` models; empty: bound by bytes and launches
    rows: float = 0.0  # rows of that operation, as many of its usual width as are this work
    tokens: int = 0  # of a track, there


@dataclass(frozen=True)
class Plan:
    """The sizes a step's cost depends on.

    Args:
        config: the run.
        joints: V.
        tracks: N, bodies of all clips of the step on one device.
        empty: tracks among these that hold no body.
        savings: which of `SAVINGS` are made.
    """

    config: Config
    joints: int
    tracks: int
    empty: int = 0
    savings: frozenset[str] = frozenset(SAVINGS)
    L: int = field(init=False)
    K: int = field(init=False)

    def __post_init__(self) -> None:
        refuse_others(self.config)
        segments = self.config.network_class.segments(self.config)
        object.__setattr__(self, "L", segments * self.joints)
        object.__setattr__(self, "K", segments * visible_joints(self.config.mask, self.joints))

    def lines(self) -> list[Line]:
        """All work of a step."""
        return [*self._data(), *self._teacher(), *self._student(), *self._decoder(), *self._update()]

    def _data(self) -> Iterable[Line]:
        clip = self.config.data.frames * self.joints * self.config.channels
        yield Line("data", "clip_sample", bytes=self.tracks * clip * (2 + 4), launches=1)
        yield Line("data", "tube_mask", bytes=self._masks() * (clip * 4 + self.L * 4), launches=1)

    def _masks(self) -> int:
        return self.tracks * self.config.mask.masks_per_clip

    def _teacher(self) -> Iterable[Line]:
        model, D = self.config.model, self.config.model.dim
        shared = "share" in self.savings and self.empty > 1
        tracks = self.tracks - self.empty + 1 if shared else self.tracks
        rows, target_rows = tracks * self.L, self._masks() * (self.L - self.K)
        yield self._embed("teacher", rows, tracks)
        yield from self._blocks("teacher", tracks, self.L, model.depth)
        if "norm" not in self.savings:
            yield Line("teacher", "final norm", bytes=rows * D * (STREAM + STREAM), launches=1)
        if shared:
            yield Line("teacher", "tracks with a body", bytes=2 * self._clip() * tracks, launches=LAUNCHES["share"])
            yield Line("target", "rows of tracks", bytes=2 * target_rows * D * STREAM, launches=LAUNCHES["share"])
        # Each state, and their mean, written and read (layer norms and tracks above 1,024 tokens: less, more).
        moved = ((self.config.objective.top_k + 1) * rows + 2 * target_rows) * D * STREAM
        yield Line("target", "teacher_target", bytes=moved, launches=LAUNCHES["teacher_target"])

    def _student(self) -> Iterable[Line]:
        depth, tracks = self.config.model.depth, self._masks()
        embedded = tracks * (self.K if "visible" in self.savings else self.L)
        for backward in (False, True):
            yield self._embed("student", embedded, tracks, backward)
            yield from self._blocks("student", tracks, self.K, depth, backward)

    def _embed(self, part: str, rows: int, tracks: int, backward: bool = False) -> Line:
        width, D = self.config.model.segment_frames * self.config.channels, self.config.model.dim
        moved = rows * D * STREAM + tracks * self._clip()
        count = (LAUNCHES_BACKWARD if backward else LAUNCHES)["embed_gather"]
        name = f"embed_gather{_label(backward)}"
        return Line(part, name, gemm=2.0 * rows * width * D, bytes=moved, launches=count)

    def _clip(self) -> int:
        """Bytes of a track's clip."""
        return self.L * self.config.model.segment_frames * self.config.channels * 4

    def _blocks(
        self, part: str, tracks: int, L: int, depth: int, backward: bool = False, last: int | None = None
    ) -> Iterable[Line]:
        """``last``: tokens that are still wanted after the last block's attention."""
        model, D = self.config.model, self.config.model.dim
        times, label = 2 if backward else 1, _label(backward)
        rows = tracks * L * depth
        after = rows - (tracks * (L - last) if last is not None else 0)
        cost = LAUNCHES_BACKWARD if backward else LAUNCHES
        if backward:
            yield Line(part, "residual, backward", bytes=rows * D * 3 * STREAM, launches=depth * cost["residual"])
        # Stream, its norm, queries, keys and values; back: gradients of these twice, stream and norm, whose own twice.
        moved = rows * D * ((9 * OPERAND + 2 * STREAM) if backward else (STREAM + 4 * OPERAND))
        yield Line(
            part,
            f"norm_linear{label}",
            gemm=times * 6.0 * rows * D * D,
            bytes=moved,
            launches=depth * cost["norm_linear"],
            op="norm_linear",
            rows=rows,
            tokens=L,
        )
        scores = 4.0 * tracks * depth * L * L * D
        moved = rows * D * OPERAND * ((3 + 1 + 1 + 3) if backward else (3 + 1))
        yield Line(
            part,
            f"attention{label}",
            attention=scores * (2.5 if backward else 1),
            exps=tracks * depth * model.heads * L * L,
            bytes=moved,
            launches=depth * cost["attention"],
            op="attention",
            rows=rows,
            tokens=L,
        )
        yield from self._branches(part, after, L, depth, backward)

    def _branches(self, part: str, after: int, L: int, depth: int, backward: bool) -> Iterable[Line]:
        """What blocks do after attention, of as many rows; ``L`` tokens of a track."""
        model, D = self.config.model, self.config.model.dim
        E, times, label = round(D * model.mlp_ratio), 2 if backward else 1, _label(backward)
        cost = LAUNCHES_BACKWARD if backward else LAUNCHES
        moved = after * D * ((STREAM + 4 * OPERAND) if backward else (OPERAND + 2 * STREAM))
        yield Line(
            part,
            f"add_norm with projection{label}",
            gemm=times * 2.0 * after * D * D,
            bytes=moved,
            launches=depth * cost["add_norm"],
            op="add_norm",
            rows=after,
            tokens=L,
        )
        # Back: the stream, its gradient twice, and what is written of it; its gradient as an operand, written and read,
        # and the norm's; the rows that the forward pass left; what GELU is of, twice; its gradient, written and read
        # twice. Forward: the stream, read and written; the rows; and what GELU is of, where a backward pass follows.
        moved = after * D * ((4 * STREAM + 5 * OPERAND) if backward else (2 * STREAM + OPERAND))
        if part != "teacher":
            moved += after * E * (5 if backward else 1) * OPERAND
        yield Line(
            part,
            f"mlp{label}",
            gemm=times * 4.0 * after * D * E,
            bytes=moved,
            launches=depth * cost["mlp"],
            op="mlp",
            rows=after,
            tokens=L,
        )

    def _decoder(self) -> Iterable[Line]:
        objective, D, tracks, K, L = self.config.objective, self.config.model.dim, self._masks(), self.K, self.L
        depth, cross = objective.decoder_depth, objective.decoder == "cross"
        last = L - K if "masked" in self.savings or cross else None
        predicted_rows = tracks * (L if last is None else last)
        for backward in (False, True):
            part, label = "decoder backward" if backward else "decoder forward", _label(backward)
            cost = LAUNCHES_BACKWARD if backward else LAUNCHES
            if not cross:
                yield self._map("norm and embed", part, tracks * K, backward)
            yield self._map("head", part, predicted_rows, backward)
            if cross:
                yield from self._cross_blocks(part, predicted_rows, backward)
                continue
            moved = tracks * K * D * (OPERAND + STREAM)
            yield Line(part, f"embedded latents{label}", bytes=moved, launches=cost["convert"])
            yield Line(part, f"mask_fill{label}", bytes=tracks * L * D * STREAM, launches=cost["mask_fill"])
            yield from self._blocks(part, tracks, L, depth, backward, last)
            if last is not None:
                moved = 2 * predicted_rows * D * (STREAM + OPERAND)
                yield Line(part, f"rows of masked tokens{label}", bytes=moved, launches=cost["gather"])

    def _map(self, what: str, part: str, rows: int, backward: bool, maps: int = 1, depth: int = 1) -> Line:
        """``depth`` maps of rows from D numbers to ``maps`` times D, with a norm before."""
        D, cost = self.config.model.dim, LAUNCHES_BACKWARD if backward else LAUNCHES
        numbers = ((1 + 2 * maps) * OPERAND + 2 * STREAM) if backward else (STREAM + (1 + maps) * OPERAND)
        return Line(
            part,
            f"{what}{_label(backward)}",
            gemm=(2 if backward else 1) * 2.0 * depth * rows * maps * D * D,
            bytes=depth * rows * D * numbers,
            launches=depth * cost["norm_linear"],
            op="norm_linear",
            rows=depth * rows * maps / 3,  # a block's map is to 3 D numbers
            tokens=self.L,
        )

    def _cross_blocks(self, part: str, rows: int, backward: bool) -> Iterable[Line]:
        """Queries of ``rows`` mask tokens; keys and values of the latents, in every block."""
        depth, D, label = self.config.objective.decoder_depth, self.config.model.dim, _label(backward)
        latents, cost = self._masks() * self.K, LAUNCHES_BACKWARD if backward else LAUNCHES
        yield Line(part, f"mask tokens{label}", bytes=2 * rows * D * STREAM, launches=cost["queries"])
        yield self._map("queries", part, rows, backward, depth=depth)
        yield self._map("keys and values", part, latents, backward, maps=2, depth=depth)
        yield Line(
            part,
            f"attention to latents{label}",
            attention=4.0 * depth * rows * self.K * D * (2.5 if backward else 1),
            exps=depth * rows * self.config.model.heads * self.K,
            bytes=depth * 2 * (rows + latents) * D * OPERAND * (2 if backward else 1),
            launches=depth * cost["cross"],
        )
        if backward:
            # Two ways through a block; between blocks, what comes to the latents and to their norm's weight and bias.
            sums, moved = depth + 3 * (depth - 1), depth * (rows + latents) * D * 3 * STREAM
            yield Line(part, "residual, backward", bytes=moved, launches=sums * cost["residual"])
        yield from self._branches(part, depth * rows, self.L, depth, backward)

    def _update(self) -> Iterable[Line]:
        numbers = self._masks() * (self.L - self.K) * self.config.model.dim
        student, teacher = parameters(self.config, self.joints)
        # Norm; gradient, parameter, two moments: read, and the last three written; the teacher; operands of both.
        moved = student * (4 + 4 * 4 + 3 * 4) + teacher * 2 * 4 + (student + teacher) * (4 + OPERAND)
        for what, name, number in (
            ("masked_mse", "masked_mse", numbers * (3 * OPERAND + STREAM + OPERAND)),
            ("variances", "variances", numbers * (OPERAND + STREAM)),
            ("gradients into one buffer", "collect", student * (OPERAND + 4)),
            ("clip, AdamW, EMA, operands", "update", moved),
            ("report", "report", 0),
        ):
            yield Line("update", what, bytes=number, launches=LAUNCHES[name])


def refuse_others(config: Config) -> None:
    """Raise `ConfigError` for a step whose work is not counted here."""
    for path, value, counted in (
        ("model.name", config.model.name, ("transformer",)),
        ("objective.name", config.objective.name, ("skeleton2vec",)),
        ("objective.auxiliary", config.objective.auxiliary, ("none",)),
        ("objective.motion_loss", config.objective.motion_loss, (0.0,)),
        ("mask.kind", config.mask.kind, ("auto", *TUBE_KINDS)),
    ):
        if value not in counted:
            raise errors.ConfigError(f"{path}: {value}: the cost model counts {' and '.join(map(str, counted))} alone")
    if config.model.layer_scale is None:
        raise errors.ConfigError("model.layer_scale: null: the cost model counts LayerScale alone; give a number")


def _label(backward: bool) -> str:
    return ", backward" if backward else ""


def parameters(config: Config, joints: int) -> tuple[int, int]:
    """Numbers that the student and the teacher learn."""
    model = config.model
    D, E = model.dim, round(model.dim * model.mlp_ratio)
    block = 4 * D * D + 2 * D * E + 11 * D + E - 2 * D + 2 * D  # matrices; biases, norms, gammas
    positions = (joints + config.network_class.segments(config)) * D
    encoder = model.segment_frames * config.channels * D + D + positions + model.depth * block + 2 * D
    embed = D * D + D if config.objective.decoder == "self" else 0  # blocks of both kinds have as many
    decoder = embed + D + positions + config.objective.decoder_depth * block + 2 * D + D * D + D
    return encoder + decoder, encoder


def summary(lines: Iterable[Line]) -> dict[str, dict[str, float]]:
    """Sums by part, and of all as ``sum``."""
    names = ("gemm", "attention", "exps", "bytes", "launches")
    sums = {part: dict.fromkeys(names, 0.0) for part in (*PARTS, "sum")}
    for line in lines:
        for part in (line.part, "sum"):
            for name in names:
                sums[part][name] += getattr(line, name)
    return sums


def step_costs(config: Config, joints: int, tracks: int, empty: int) -> dict:
    """The costs of a step: ``dense``, as published; ``step``, as it is done; ``savings``, each off the dense one.

    Args:
        config: the run.
        joints: V.
        tracks: bodies of all clips on one device.
        empty: tracks among these without a body.
    """
    none, every = frozenset(), frozenset(SAVINGS)
    dense = summary(Plan(config, joints, tracks, empty, none).lines())
    savings = {}
    for name in SAVINGS:
        alone = summary(Plan(config, joints, tracks, empty, frozenset({name})).lines())
        savings[name] = {key: dense["sum"][key] - alone["sum"][key] for key in ("gemm", "attention", "bytes")}
    step = summary(Plan(config, joints, tracks, empty, every).lines())
    return {"tracks": tracks, "empty": empty, "dense": dense, "step": step, "savings": savings}


_LEAST_SECONDS = 2e-6  # a launch that does next to nothing


def model_step(config: Config, joints: int, tracks: int, empty: int, device_name: str) -> dict:
    """A step's modelled time on a device: ``modelled_ms``; ``rows``, one for each `Line`; ``kernels``, ``passes``.

    Every body is computed, as published, but for what ``objective.empty_bodies`` saves: ``share`` or ``drop``.

    Args:
        config: the run.
        joints: V.
        tracks: bodies of all clips on one device.
        empty: tracks among these without a body.
        device_name: h200, h100 or a100.
    """
    from s2vfast.inputs import Shape
    from s2vfast.kernels import aot, model

    bodies = config.objective.empty_bodies
    if bodies == "drop":
        tracks, empty = tracks - empty, 0
    savings = frozenset(SAVINGS) - (frozenset() if bodies == "share" else {"share"})
    plan, section, device = Plan(config, joints, tracks, empty, savings), config.model, model.device(device_name)
    lines = plan.lines()
    shapes = {
        str(tokens): Shape(
            N=tracks,
            S=plan.L // joints,
            V=joints,
            s=section.segment_frames,
            C=config.channels,
            D=section.dim,
            H=section.heads,
            E=round(section.dim * section.mlp_ratio),
            tokens=tokens,
        )
        for tokens in sorted({line.tokens for line in lines if line.op})
    }
    # A block's add_norm has no norm: its products' operations bring their own.
    changes = {"add_norm": {"weight": None, "bias": None}}
    launches = aot.model_kernels(sorted({line.op for line in lines if line.op}), device_name, shapes, changes=changes)
    passes = aot.passes(launches, shapes)
    times = {(row["op"], row["shape"], row["pass"]): row["ms"] for row in passes}
    rows = []
    for line in lines:
        if line.op:
            name = "backward" if "backward" in line.what else "forward"
            ms = times[line.op, str(line.tokens), name]
            if line.part == "teacher":
                ms = times.get((line.op, str(line.tokens), "inference"), ms)
            ms *= line.rows / (tracks * line.tokens)
        else:
            ms = max(line.bytes / device.hbm, line.launches * _LEAST_SECONDS) * 1e3
        rows.append({"part": line.part, "what": line.what, "launches": line.launches, "modelled_ms": round(ms, 4)})
    total = round(sum(row["modelled_ms"] for row in rows), 3)
    result = {"device": device.name, "empty_bodies": bodies, "modelled_ms": total, "rows": rows}
    return result | {"kernels": launches, "passes": passes}


def show(costs: dict) -> str:
    """The costs as a table."""
    out = [f"{costs['tracks']} tracks, {costs['empty']} of them empty"]
    for name in ("dense", "step"):
        title = {"dense": "dense, as published", "step": "the step as it is done"}[name]
        out.append(f"\n{title:24}{'GEMM GFLOP':>12}{'attention GFLOP':>17}{'exp M':>9}{'GB':>8}{'launches':>10}")
        for part, row in costs[name].items():
            launches = f"{row['launches']:10.0f}" if name == "step" else f"{'':10}"
            out.append(
                f"  {part:22}{row['gemm'] / 1e9:12.0f}{row['attention'] / 1e9:17.0f}{row['exps'] / 1e6:9.0f}"
                f"{row['bytes'] / 1e9:8.2f}{launches}"
            )
    total = sum(costs["dense"]["sum"][key] for key in ("gemm", "attention"))
    out.append("\nsavings, each alone")
    for name, row in costs["savings"].items():
        off = row["gemm"] + row["attention"]
        out.append(f"  {SAVINGS[name]:84}{off / 1e9:8.1f} GFLOP ({off / total:5.1%}){row['bytes'] / 1e9:7.2f} GB")
    done = sum(costs["step"]["sum"][key] for key in ("gemm", "attention"))
    out.append(f"  {'all':84}{(total - done) / 1e9:8.1f} GFLOP ({(total - done) / total:5.1%})")
    if "modelled_ms" in costs:
        out.append(f"\nmodelled, {costs['device']}, empty bodies: {costs['empty_bodies']}{'ms':>12}")
        out += [f"  {row['part']:18}{row['what']:40}{row['modelled_ms']:9.3f}" for row in costs["rows"]]
        out.append(f"  {'sum':58}{costs['modelled_ms']:9.3f}")
    return "\n".join(out)


def main() -> None:
    """Print the costs of a config's step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ntu60", help="a preset or a YAML file")
    parser.add_argument("--joints", type=int, default=25, help="V")
    parser.add_argument("--tracks", type=int, default=128, help="bodies of all clips of a step on one device")
    parser.add_argument("--empty", type=float, default=0.41, help="share of tracks without a body (NTU 60: 0.41)")
    parser.add_argument("--device", choices=("h200", "h100", "a100"), help="model the time of a step")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    try:
        config = presets.load(arguments.config)
        refuse_others(config)
    except errors.ConfigError as error:
        parser.error(str(error))
    empty = round(arguments.tracks * arguments.empty) if config.data.bodies > 1 else 0
    costs = step_costs(config, arguments.joints, arguments.tracks, empty)
    if arguments.device:
        costs |= model_step(config, arguments.joints, arguments.tracks, empty, arguments.device)
    print(json.dumps(costs) if arguments.json else show(costs))


if __name__ == "__main__":
    main()
