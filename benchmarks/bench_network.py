"""Training steps of a network against those of its plain PyTorch class: CPU time in turns, and peak memory.

    python -m benchmarks.bench_network infogcn --json

Both compute forward, loss and backward of the same weights and clips, at NW-UCLA's size. The losses must agree first.
CPU seconds count all threads; the smallest of several turns is taken, as other programs can only add to it. Memory is
the growth of a process of its own while it does two steps, on Linux.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._program import add_matmul_precision
from s2vfast import ops
from s2vfast.data.layout import get_layout
from s2vfast.networks import graph
from s2vfast.objectives import MicroBatch

Step = Callable[[], Tensor]
"""Does forward and backward; returns the loss."""
_AGREE = 1e-4


@dataclass(frozen=True)
class Size:
    """Of the clips."""

    batch: int = 16
    bodies: int = 1
    frames: int = 52
    layout: str = "kinect_v1"
    classes: int = 10


def infogcn(size: Size) -> tuple[Step, Step]:
    """InfoGCN with its loss, as published, and ours."""
    from s2vfast.compat.infogcn import from_infogcn
    from s2vfast.networks.infogcn import InfoGCN, InfoGCNConfig
    from s2vfast.objectives.infogcn import BottleneckInputs, InfoGCNLoss, InfoGCNLossConfig
    from s2vfast.reference import infogcn as reference

    layout = get_layout(size.layout)
    mode = graph.mode(layout, 1)
    plain = reference.InfoGCN(mode, size.classes, bodies=size.bodies)
    reference.initialise(plain, heads=3)
    for block in (getattr(plain, name) for name in plain.layers):
        # What graph attention gives is to count, and rounding is not to be blown up by a softmax of large numbers.
        torch.nn.init.ones_(block.agcn.bn.weight)
        block.agcn.attn.to_qk.weight.data.mul_(0.1)
    network = InfoGCN(InfoGCNConfig(), mode, size.frames, size.bodies)
    options = InfoGCNLossConfig()
    model = InfoGCNLoss(network, options, size.bodies, range(size.classes))
    state = {name: value for name, value in plain.state_dict().items() if "num_batches" not in name}
    model.load_state_dict(from_infogcn(state), strict=False)
    clips = _clips(size)
    labels = torch.arange(size.batch) % size.classes
    noise = torch.randn(size.batch, network.width)
    batch = MicroBatch((clips.flatten(0, 1),), BottleneckInputs(labels, noise))
    x = clips.permute(0, 4, 2, 3, 1).contiguous()

    def published() -> Tensor:
        losses = reference.losses(
            plain(x, noise), labels, model.prior, options.lambda_l2, options.lambda_mmd, options.label_smoothing
        )
        return losses["loss"]

    return _step(plain, published), _step(model, lambda: model.step_loss(batch).loss)


def freqmixformer(size: Size) -> tuple[Step, Step]:
    """FreqMixFormer with cross entropy, as published, and ours."""
    from s2vfast.compat.freqmixformer import from_freqmixformer
    from s2vfast.networks.freqmixformer import FreqMixFormer, FreqMixFormerConfig
    from s2vfast.objectives.classify import Classify, ClassifyConfig
    from s2vfast.reference import freqmixformer as reference

    layout = get_layout(size.layout)
    mode, graphs = graph.mode(layout, 1), graph.in_out_graph(layout)
    plain = reference.FreqMixFormer(mode, graphs, size.frames, size.bodies, size.classes)
    torch.nn.init.normal_(plain.fc.weight, std=0.01)
    network = FreqMixFormer(FreqMixFormerConfig(split=13), mode, graphs, size.frames, 3, size.bodies)
    options = ClassifyConfig(head="linear", dropout=0.0, drop_path=0.0, label_smoothing=0.0)
    model = Classify(network, options, size.bodies, range(size.classes))
    weights = from_freqmixformer(plain.state_dict())
    head = {name: weights.pop(f"fc.{name}") for name in ("weight", "bias")}
    network.load_state_dict(weights, strict=False)
    model.head.load_state_dict(head)
    clips, labels = _clips(size), torch.arange(size.batch) % size.classes
    x = clips.permute(0, 4, 2, 3, 1).contiguous()

    def loss_of(module: torch.nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
        return lambda: torch.nn.functional.cross_entropy(module(inputs), labels)

    return _step(plain, loss_of(plain, x)), _step(model, loss_of(model, clips))


def skeattnclr(size: Size) -> tuple[Step, Step]:
    """SkeAttnCLR's step with ST-GCN at half the published widths, as published, and ours; without dropout."""
    from s2vfast.compat.skeattnclr import from_skeattnclr
    from s2vfast.networks.stgcn import STGCN, STGCNConfig
    from s2vfast.objectives.skeattnclr import SkeAttnCLR, SkeAttnCLRConfig
    from s2vfast.reference import skeattnclr as reference

    layout = get_layout(size.layout)
    channels = (32,) * 4 + (64,) * 3 + (128,) * 3
    options = SkeAttnCLRConfig(queue=8 * size.batch)
    state = reference.random_state(graph.spatial_graph(layout.bone_parents), channels, queue=options.queue)
    model = SkeAttnCLR(STGCN(STGCNConfig(channels=channels), layout, size.frames, 3), options, size.bodies, layout)
    model.load_state_dict(from_skeattnclr(state))
    query, key = _clips(size), _clips(size)
    views = [clips.flatten(0, 1) for clips in (query, query.roll(1, 0), key)]
    statistics = ("running_mean", "running_var", "num_batches_tracked", ".A")
    parameters = {name: value for name, value in state.items() if not name.endswith(statistics) and "queue" not in name}
    trained = torch.nn.ParameterList(value for name, value in parameters.items() if not name.startswith("encoder_k"))
    state.update(zip((name for name in parameters if not name.startswith("encoder_k")), trained, strict=True))
    settings = {"heads": options.heads, "temperature": options.temperature, "mu": options.mu}

    def published() -> Tensor:
        return reference.step(state, query, query.roll(1, 0), key, **settings).losses["total"]

    def fused() -> Tensor:
        queries, keys, _ = model.embed(*views)
        return model.contrast(queries.normalised(), keys.normalised()).loss

    return _step(trained, published), _step(model, fused)


_NWUCLA_LENGTHS = (20, 21, 21, 24, 26, 28, 31, 32, 35, 38, 42, 49, 56, 65, 84, 120)
"""Frames of NW-UCLA's sequences of 19 or more: middles of 16 equal parts of them."""


def hitrs(size: Size) -> tuple[Step, Step]:
    """Hi-TRS with its four losses, as published, and ours, at the lengths of NW-UCLA's sequences; without
    dropout."""
    from s2vfast.compat.hitrs import to_hitrs
    from s2vfast.networks.hitrs import HiTRS, HiTRSConfig
    from s2vfast.networks.windows import offsets
    from s2vfast.objectives import Draw
    from s2vfast.objectives.hitrs import HiTRSLoss, HiTRSLossConfig
    from s2vfast.reference import hitrs as reference

    lengths = [_NWUCLA_LENGTHS[i * len(_NWUCLA_LENGTHS) // size.batch % 16] for i in range(size.batch)]
    clips = _clips(dataclasses.replace(size, bodies=1, frames=max(lengths)))[:, 0]
    for clip, length in zip(clips, lengths, strict=True):
        clip[length:] = 0.0
    model = HiTRSLoss(HiTRS(HiTRSConfig(), clips.shape[2], 1), HiTRSLossConfig())
    section, pad = model.encoder.section, model.encoder.pad
    after = offsets(section, clips.device)
    draw = Draw(0, 0, torch.arange(size.batch))
    drawn = model.drawn(clips, draw)
    batch = MicroBatch((clips,), model.arrange(clips, **drawn))
    state = {n: p.detach().clone() for n, p in to_hitrs(dict(model.named_parameters())).items()}
    plain = torch.nn.ParameterDict({name.replace(".", "/"): value for name, value in state.items()})

    def padded(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (*[0] * 2 * (values.ndim - 2), pad, pad))

    counts = torch.tensor(list(drawn["counts"].values()))
    starts = torch.arange(int(counts.max()) - 1)
    permutation, pairs = starts.repeat(size.batch, 1), torch.zeros(size.batch, 2, section.window, dtype=torch.int64)
    for row, (one, two) in zip(permutation, drawn["exchanges"], strict=True):
        row[one], row[two] = row[two].item(), row[one].item()
    for track, first, one, two in drawn["pairs"]:
        pairs[track] = first + after
        pairs[track, 1, [one, two]] = pairs[track, 0, [two, one]]
    collated = reference.Batch(
        padded(drawn["masked"]),
        padded(clips),
        padded(drawn["selected"]),
        starts[:, None] * section.stride + after,
        starts >= counts[:, None] - 1,
        (counts - 1)[:, None] * section.stride + after,
        pairs,
        torch.isin(torch.arange(size.batch), torch.tensor([track for track, *_ in drawn["pairs"]])),
        permutation,
    )

    def published() -> Tensor:
        parameters = {name.replace("/", "."): value for name, value in plain.items()}
        return sum(reference.losses(parameters, collated, section.heads).values())

    return _step(plain, published), _step(model, lambda: model.step_loss(batch).loss)


NETWORKS: dict[str, Callable[[Size], tuple[Step, Step]]] = {
    "infogcn": infogcn,
    "freqmixformer": freqmixformer,
    "hitrs": hitrs,
    "skeattnclr": skeattnclr,
}
"""By name: makes (the plain class's step, ours) of a size, with the same weights."""


def measure(name: str, size: Size, turns: int = 5, impl: str = "auto") -> dict[str, float]:
    """CPU seconds a step and megabytes of both, and their ratios: how many times less ours needs."""
    torch.manual_seed(0)
    plain, fast = NETWORKS[name](size)
    seconds: dict[str, list[float]] = {"reference": [], "ours": []}
    with ops.use_impl(impl):
        losses = [float(step()) for step in (plain, fast)]
        if not abs(losses[0] - losses[1]) <= _AGREE * abs(losses[0]):
            raise SystemExit(f"{name}: the losses differ, {losses[0]:.6g} and {losses[1]:.6g}: nothing is measured")
        for _ in range(turns):
            for kind, step in (("reference", plain), ("ours", fast)):
                start = time.process_time()
                step()
                seconds[kind].append(time.process_time() - start)
    best = {kind: min(values) for kind, values in seconds.items()}
    megabytes = {kind: _memory_of(name, size, kind, impl) for kind in best}
    return {
        "ratio": best["reference"] / best["ours"],
        "memory_ratio": megabytes["reference"] / megabytes["ours"],
        **{f"{kind}_cpu_seconds": value for kind, value in best.items()},
        **{f"{kind}_megabytes": value for kind, value in megabytes.items()},
    }


def _clips(size: Size) -> Tensor:
    """[n, M, T, V, 3]."""
    return torch.randn(size.batch, size.bodies, size.frames, get_layout(size.layout).num_joints, 3)


def _step(module: torch.nn.Module, loss_of: Callable[[], Tensor]) -> Step:
    module.train()

    def step() -> Tensor:
        module.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss.detach()

    return step


def _memory_of(name: str, size: Size, kind: str, impl: str) -> float:
    options = [f"--{key}={value}" for key, value in dataclasses.asdict(size).items()]
    words = [sys.executable, "-m", "benchmarks.bench_network", name, *options, f"--impl={impl}", f"--memory-of={kind}"]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def _growth(name: str, size: Size, kind: str, impl: str) -> float:
    """Megabytes that this process grows by in two steps."""
    steps = NETWORKS[name](size)
    before = _megabytes("VmRSS")
    with ops.use_impl(impl):
        for _ in range(2):
            steps[kind == "ours"]()
    return _megabytes("VmHWM") - before


def _megabytes(field: str) -> float:
    """Of this process, as Linux counts them: now (VmRSS), or at most since it began (VmHWM)."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main(words: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_network", description=__doc__)
    parser.add_argument("network", choices=sorted(NETWORKS))
    for field in dataclasses.fields(Size):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--impl", default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--memory-of", choices=("reference", "ours"), help=argparse.SUPPRESS)
    add_matmul_precision(parser)
    options = parser.parse_args(words)
    torch.set_float32_matmul_precision(options.matmul_precision)
    size = Size(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Size)})
    if options.memory_of:
        print(_growth(options.network, size, options.memory_of, options.impl))
        return 0
    result = measure(options.network, size, options.turns, options.impl)
    if options.json:
        sizes = {**dataclasses.asdict(size), "matmul_precision": options.matmul_precision}
        print(json.dumps({"network": options.network, **sizes, **result}))
    else:
        print("\n".join(f"{key}: {value:.4g}" for key, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
