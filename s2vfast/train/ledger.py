"""What a training step costs, counted from its plan: operations, exponentials, bytes, launches.

    python -m s2vfast.train.ledger --config ntu60 [--tracks 128] [--empty 0.41] [--json]

Nothing is run. A matrix product of [m, k] and [k, n] is 2 m k n operations. Attention is two products of a head's
scores forward, and five backward, as scores are recomputed. Bytes are what must cross the device's memory once, as the
fused kernels have it: bfloat16 operands, float32 residual stream, everything that fits on the chip staying there.
Launches are kernels of the ``triton`` implementation. ``dense`` leaves out all savings and is the published arithmetic;
``step`` is what s2vfast does; each saving's own row says what it takes off.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from s2vfast import presets
from s2vfast.config import Config

PARTS = ("data", "teacher", "target", "student", "decoder forward", "decoder backward", "update")
"""Student: forward and backward. Data: clips, masks. Update: loss, clipping, AdamW, EMA, operands."""
SAVINGS = {
    "visible": "the student embeds visible tokens only",
    "masked": "the last decoder block's projection and MLP, and the head, at masked tokens only",
    "norm": "no final norm of the teacher, whose target does not use it",
    "share": "one teacher pass for all empty bodies",
}
OPERAND, STREAM = 2, 4  # bytes of a number: matrix operands, residual stream

LAUNCHES = {
    "norm_linear": 1,
    "attention": 1,
    "add_norm": 1,
    "mlp": 1,
    "embed": 3,
    "mask_fill": 1,
    "gather": 2,
    "target": 2,
    "masked_mse": 2,
    "variances": 4,
    "collect": 4,
    "update": 3,
}
LAUNCHES_BACKWARD = {
    "norm_linear": 3,
    "attention": 2,
    "add_norm": 3,
    "mlp": 3,
    "embed": 3,
    "mask_fill": 2,
    "gather": 4,
}


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
        object.__setattr__(self, "L", self.config.segments * self.joints)
        object.__setattr__(self, "K", self.config.segments * self.config.keep(self.joints))

    def lines(self) -> list[Line]:
        """All work of a step."""
        return [*self._data(), *self._teacher(), *self._student(), *self._decoder(), *self._update()]

    def _data(self) -> Iterable[Line]:
        data = self.config.data
        clip = self.tracks * data.frames * self.joints * self.config.channels
        yield Line("data", "clip_sample", bytes=clip * (2 + 4), launches=1)
        yield Line("data", "tube_mask", bytes=self._masks() * (clip / self.tracks * 4 + self.L * 4), launches=1)

    def _masks(self) -> int:
        return self.tracks * self.config.mask.masks_per_clip

    def _teacher(self) -> Iterable[Line]:
        model, D = self.config.model, self.config.model.dim
        shared = "share" in self.savings and self.empty > 1
        tracks = self.tracks - self.empty + 1 if shared else self.tracks
        rows = tracks * self.L
        yield self._embed("teacher", rows, tracks, launches=1)
        yield from self._blocks("teacher", tracks, self.L, model.depth)
        if "norm" not in self.savings:
            yield Line("teacher", "final norm", bytes=rows * D * (STREAM + STREAM), launches=1)
        masked = self._masks() * (self.L - self.K)
        wanted = masked * D * STREAM
        yield Line(
            "target",
            "teacher_target",
            bytes=2 * self.config.objective.top_k * rows * D * STREAM + wanted,
            launches=LAUNCHES["target"],
        )

    def _student(self) -> Iterable[Line]:
        model, D = self.config.model, self.config.model.dim
        tracks = self._masks()
        rows = tracks * self.K
        embedded = rows if "visible" in self.savings else tracks * self.L
        yield self._embed("student", embedded, tracks, launches=1)
        yield from self._blocks("student", tracks, self.K, model.depth)
        yield Line("student", "final norm", bytes=rows * D * (STREAM + STREAM), launches=1)
        yield from self._blocks("student", tracks, self.K, model.depth, backward=True)
        yield Line("student", "final norm, backward", bytes=rows * D * 3 * STREAM, launches=2)
        yield self._embed("student", embedded, tracks, launches=3, backward=True)

    def _embed(self, part: str, rows: int, tracks: int, launches: int, backward: bool = False) -> Line:
        width = self.config.model.segment_frames * self.config.channels
        D = self.config.model.dim
        moved = rows * D * STREAM + tracks * self.L * width * 4
        name = "embed_gather, backward" if backward else "embed_gather"
        return Line(part, name, gemm=2.0 * rows * width * D, bytes=moved, launches=launches)

    def _blocks(
        self, part: str, tracks: int, L: int, depth: int, backward: bool = False, last: int | None = None
    ) -> Iterable[Line]:
        """``last``: tokens that are still wanted after the last block's attention."""
        model, D = self.config.model, self.config.model.dim
        E, times = round(D * model.mlp_ratio), 2 if backward else 1
        label = ", backward" if backward else ""
        rows = tracks * L * depth
        after = rows - (tracks * (L - last) if last is not None else 0)
        cost = LAUNCHES_BACKWARD if backward else LAUNCHES
        # Read the stream, write queries, keys, values; back: read their gradients and the stream, twice, write one.
        moved = rows * D * ((2 * (3 * OPERAND + STREAM) + STREAM) if backward else (STREAM + 3 * OPERAND))
        yield Line(
            part,
            f"norm_linear{label}",
            gemm=times * 6.0 * rows * D * D,
            bytes=moved,
            launches=depth * cost["norm_linear"],
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
        )
        moved = after * D * ((STREAM + 4 * OPERAND) if backward else (OPERAND + 2 * STREAM))
        yield Line(
            part,
            f"add_norm with projection{label}",
            gemm=times * 2.0 * after * D * D,
            bytes=moved,
            launches=depth * cost["add_norm"],
        )
        moved = after * D * ((3 * STREAM + 6 * OPERAND) if backward else 2 * STREAM)
        yield Line(part, f"mlp{label}", gemm=times * 4.0 * after * D * E, bytes=moved, launches=depth * cost["mlp"])

    def _decoder(self) -> Iterable[Line]:
        model, D = self.config.model, self.config.model.dim
        tracks, K, L = self._masks(), self.K, self.L
        last = L - K if "masked" in self.savings else None
        wanted = tracks * (L if last is None else last)
        for backward in (False, True):
            part, times = ("decoder backward", 2) if backward else ("decoder forward", 1)
            label = ", backward" if backward else ""
            count = LAUNCHES_BACKWARD if backward else LAUNCHES
            yield Line(
                part,
                f"embed{label}",
                gemm=times * 2.0 * tracks * K * D * D,
                bytes=times * 2 * tracks * K * D * STREAM,
                launches=count["embed"],
            )
            yield Line(part, f"mask_fill{label}", bytes=tracks * L * D * STREAM, launches=count["mask_fill"])
            yield from self._blocks(part, tracks, L, model.decoder_depth, backward, last)
            if last is not None:
                yield Line(
                    part,
                    f"rows of masked tokens{label}",
                    bytes=2 * wanted * D * (STREAM + OPERAND),
                    launches=count["gather"],
                )
            moved = wanted * D * ((2 * (OPERAND + STREAM) + STREAM) if backward else (STREAM + OPERAND))
            yield Line(
                part, f"head{label}", gemm=times * 2.0 * wanted * D * D, bytes=moved, launches=count["norm_linear"]
            )

    def _update(self) -> Iterable[Line]:
        D, masked = self.config.model.dim, self._masks() * (self.L - self.K)
        yield Line(
            "update", "masked_mse", bytes=masked * D * (OPERAND + STREAM + OPERAND), launches=LAUNCHES["masked_mse"]
        )
        yield Line("update", "variances", bytes=masked * D * (OPERAND + STREAM), launches=LAUNCHES["variances"])
        student, teacher = parameters(self.config, self.joints)
        yield Line("update", "gradients into one buffer", bytes=student * (OPERAND + 4), launches=LAUNCHES["collect"])
        # Norm; gradient, parameter, two moments: read, and the last three written; the teacher; operands of both.
        moved = student * (4 + 4 * 4 + 3 * 4) + teacher * 2 * 4 + (student + teacher) * (4 + OPERAND)
        yield Line("update", "clip, AdamW, EMA, operands", bytes=moved, launches=LAUNCHES["update"])


def parameters(config: Config, joints: int) -> tuple[int, int]:
    """Numbers that the student and the teacher learn."""
    model = config.model
    D, E = model.dim, round(model.dim * model.mlp_ratio)
    block = 4 * D * D + 2 * D * E + 11 * D + E - 2 * D + 2 * D  # matrices; biases, norms, gammas
    positions = (joints + config.segments) * D
    encoder = model.segment_frames * config.channels * D + D + positions + model.depth * block + 2 * D
    decoder = D * D + D + D + positions + model.decoder_depth * block + 2 * D + D * D + D
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


def ledger(config: Config, joints: int, tracks: int, empty: int) -> dict:
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


def show(found: dict) -> str:
    """The ledger as a table."""
    out = [f"{found['tracks']} tracks, {found['empty']} of them empty"]
    for name in ("dense", "step"):
        title = {"dense": "dense, as published", "step": "the step as it is done"}[name]
        out.append(f"\n{title:24}{'GEMM GFLOP':>12}{'attention GFLOP':>17}{'exp M':>9}{'GB':>8}{'launches':>10}")
        for part, row in found[name].items():
            launches = f"{row['launches']:10.0f}" if name == "step" else f"{'':10}"
            out.append(
                f"  {part:22}{row['gemm'] / 1e9:12.0f}{row['attention'] / 1e9:17.0f}{row['exps'] / 1e6:9.0f}"
                f"{row['bytes'] / 1e9:8.2f}{launches}"
            )
    total = sum(found["dense"]["sum"][key] for key in ("gemm", "attention"))
    out.append("\nsavings, each alone")
    for name, row in found["savings"].items():
        off = row["gemm"] + row["attention"]
        out.append(f"  {SAVINGS[name]:84}{off / 1e9:8.1f} GFLOP ({off / total:5.1%}){row['bytes'] / 1e9:7.2f} GB")
    done = sum(found["step"]["sum"][key] for key in ("gemm", "attention"))
    out.append(f"  {'all':84}{(total - done) / 1e9:8.1f} GFLOP ({(total - done) / total:5.1%})")
    return "\n".join(out)


def main() -> None:
    """Print the ledger of a config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="ntu60", help="a preset or a YAML file")
    parser.add_argument("--joints", type=int, default=25, help="V")
    parser.add_argument("--tracks", type=int, default=128, help="bodies of all clips of a step on one device")
    parser.add_argument("--empty", type=float, default=0.41, help="share of tracks without a body (NTU 60: 0.41)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    config = presets.load(given.config)
    empty = round(given.tracks * given.empty) if config.data.bodies > 1 else 0
    found = ledger(config, given.joints, given.tracks, empty)
    print(json.dumps(found) if given.json else show(found))


if __name__ == "__main__":
    main()
