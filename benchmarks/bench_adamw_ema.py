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
OPTIONS = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.05, "clip": 1.0, "tau": 0.999}


def cost(shape: Shape, backward: bool) -> Cost:
    """The norm reads the gradient; the update reads it, parameter and two moments, writes three; the teacher."""
    return Cost(bytes=4.0 * (PARAMETERS * (1 + 4 + 3) + 2 * TEACHER))


def buffers(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Flat buffers; every second span decays."""
    generator = torch.Generator().manual_seed(0)
    names = {"param": PARAMETERS, "grad": PARAMETERS, "exp_avg": PARAMETERS, "exp_avg_sq": PARAMETERS}
    made = {name: torch.randn(size, generator=generator) for name, size in {**names, "teacher": TEACHER}.items()}
    made["exp_avg_sq"].square_()
    edges = [0, *sorted(torch.randint(PARAMETERS, (SPANS - 2,), generator=generator).tolist()), TEACHER, PARAMETERS]
    spans = [ops.Span(a, b, i % 2 == 0) for i, (a, b) in enumerate(itertools.pairwise(sorted(edges)))]
    return {name: tensor.to(device) for name, tensor in made.items()} | {"spans": spans, "step": 5, **OPTIONS}


class _Fused:
    """What a training script does: clip_grad_norm_, torch.optim.AdamW(fused=True), foreach EMA, on many tensors."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.of: Tensor | None = None

    def _set_up(self, given: dict[str, Any]) -> None:
        """An optimizer of the buffers' spans as tensors of their own, with the moments that there are."""
        names, spans = ("param", "grad", "exp_avg", "exp_avg_sq"), given["spans"]
        cut = {name: [given[name][span.start : span.stop] for span in spans] for name in names}
        decays = [[p for p, span in zip(cut["param"], spans, strict=True) if span.decay == on] for on in (True, False)]
        groups = [
            {"params": mine, "weight_decay": decay}
            for mine, decay in zip(decays, (given["weight_decay"], 0.0), strict=True)
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=given["lr"], betas=(given["beta1"], given["beta2"]), eps=given["eps"], fused=True
        )
        for tensor, grad, exp_avg, exp_avg_sq in zip(*cut.values(), strict=True):
            tensor.grad = grad
            count = torch.full((), given["step"] - 1.0, device=tensor.device)
            self.optimizer.state[tensor] = {"step": count, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        self.tensors, teacher = cut["param"], given["teacher"]
        followed = [span for span in spans if span.stop <= teacher.numel()]
        self.followed = self.tensors[: len(followed)]
        self.averages = [teacher[span.start : span.stop] for span in followed]

    def __call__(self, **given: Any) -> Tensor:
        if self.of is not given["param"]:
            self._set_up(given)
            self.of = given["param"]
        norm = torch.nn.utils.clip_grad_norm_(self.tensors, given["clip"], foreach=True)
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, self.followed, 1.0 - given["tau"])
        return norm


BENCHMARK = Benchmark(
    "adamw_ema",
    cost,
    shapes=("ntu",),
    baselines={"torch.optim fused": Baseline(_Fused)},
    make=buffers,
    plain=False,
)


def test_adamw_ema(case):
    """For pytest-benchmark: see benchmarks/conftest.py."""
    case()


if __name__ == "__main__":
    sys.exit(main(["adamw_ema", *sys.argv[1:]]))
