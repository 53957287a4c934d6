"""adamw_ema: clipping by the norm, AdamW and the teacher's average, against PyTorch's fused AdamW and a foreach EMA.

    python -m benchmarks.bench_adamw_ema [--device cuda] [--out DIR]

8 million parameters of the published model, 6 million of which the teacher has, in 100 tensors.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks._ops import Baseline, Benchmark, Cost
from benchmarks.run import main
from s2vfast import ops
from s2vfast.inputs import Shape

PARAMETERS, TEACHER, SPANS = 8_000_000, 6_000_000, 100
ALIGN = 128  # numbers
# The factor of a gradient is clip / (norm + 1e-6). With a clip no larger than that 1e-6 a gradient that was clipped in
# place is clipped once more by the next call, so that every call does the same work.
OPTIONS = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.05, "clip": 1e-6}


def cost(shape: Shape, backward: bool) -> Cost:
    """The norm reads the gradient; the update reads it, parameter and two moments, writes three; the teacher."""
    return Cost(bytes=4.0 * (PARAMETERS * (1 + 4 + 3) + 2 * TEACHER))


def buffers(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Flat buffers; every second span decays."""
    generator = torch.Generator().manual_seed(0)
    names = {"param": PARAMETERS, "grad": PARAMETERS, "exp_avg": PARAMETERS, "exp_avg_sq": PARAMETERS}
    made = {name: torch.randn(size, generator=generator) for name, size in {**names, "teacher": TEACHER}.items()}
    made["exp_avg_sq"].square_()
    # As far apart as an allocator would lay tensors, so that theirs can be read by vectors too.
    drawn = torch.randint(PARAMETERS // ALIGN, (SPANS - 2,), generator=generator).unique() * ALIGN
    edges = sorted({0, *drawn.tolist(), TEACHER, PARAMETERS})
    spans = [ops.Span(a, b, i % 2 == 0) for i, (a, b) in enumerate(itertools.pairwise(edges))]
    control: dict[str, Any] = {"step": 5, "lr": 1e-4, "tau": 0.999}
    if device.type == "cuda":  # as the engine has them there: a captured graph reads what they are at each replay
        control = {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in control.items()}
    return {name: tensor.to(device) for name, tensor in made.items()} | {"spans": spans, **control, **OPTIONS}


class _Tensors:
    """The buffers' spans as tensors of their own, their optimizer with the moments that there are, their averages."""

    def __init__(self, given: dict[str, Any]) -> None:
        names, spans = ("param", "grad", "exp_avg", "exp_avg_sq"), given["spans"]
        cut = {name: [given[name][span.start : span.stop] for span in spans] for name in names}
        decays = [[p for p, span in zip(cut["param"], spans, strict=True) if span.decay == on] for on in (True, False)]
        groups = [
            {"params": mine, "weight_decay": decay}
            for mine, decay in zip(decays, (given["weight_decay"], 0.0), strict=True)
        ]
        on_gpu, lr = given["param"].is_cuda, given["lr"]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=lr.float() if isinstance(lr, Tensor) else lr,
            betas=(given["beta1"], given["beta2"]),
            eps=given["eps"],
            fused=True,
            capturable=on_gpu,
        )
        for tensor, grad, exp_avg, exp_avg_sq in zip(*cut.values(), strict=True):
            tensor.grad = grad
            count = torch.full((), float(given["step"]) - 1.0, device=tensor.device)
            self.optimizer.state[tensor] = {"step": count, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        self.all, teacher = cut["param"], given["teacher"]
        followed = [span for span in spans if span.stop <= teacher.numel()]
        self.followed = self.all[: len(followed)]
        self.averages = [teacher[span.start : span.stop] for span in followed]
        self.share, self.clip = 1.0 - float(given["tau"]), given["clip"]

    def step(self) -> Tensor:
        """Clip, update, follow; the norm before."""
        norm = torch.nn.utils.clip_grad_norm_(self.all, self.clip, foreach=True)
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, self.followed, self.share)
        return norm


class _Fused:
    """What a training script does: clip_grad_norm_, torch.optim.AdamW(fused=True), foreach EMA, on many tensors."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.known: dict[int, tuple[Tensor, _Tensors]] = {}  # by address; the buffer, so that none other takes it

    def __call__(self, **given: Any) -> Tensor:
        param = given["param"]
        if param.data_ptr() not in self.known:
            self.known[param.data_ptr()] = (param, _Tensors(given))
        return self.known[param.data_ptr()][1].step()


BENCHMARK = Benchmark(
    "adamw_ema",
    cost,
    shapes=("ntu",),
    baselines={"torch.optim fused": Baseline(_Fused)},
    make=buffers,
    # With a gradient that is scaled to next to nothing, moments would say nothing of how they use it.
    checked={"clip": 2000.0},
    plain=False,
)


def test_adamw_ema(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["adamw_ema", *sys.argv[1:]]))
