"""The whole model on every implementation: a step, compiled, functional, and on two processes."""

import faulthandler
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from s2vfast import ops
from s2vfast.config import Config
from s2vfast.objectives import build_objective

from ..skeletons import chain

JOINTS = 5
CHOICES = [
    name
    for name in ("triton", "native")
    if not (ops.availability("cpu")["masked_mse" if name == "triton" else "tube_mask"][name])
]
NATIVE = ",".join(
    ["torch", *(f"{op}=native" for op, can in sorted(ops.availability("cpu").items()) if not can["native"])]
)


def choice(name):
    """Compiled code where there is some, PyTorch's for the rest."""
    return NATIVE if name == "native" else name


def model(**objective):
    config = Config()
    config.data.frames = 12
    config.model.dim, config.model.heads, config.model.depth, config.objective.decoder_depth = 32, 2, 2, 1
    config.model.segment_frames, config.mask.tube_len, config.mask.ratio = 3, 2, 0.6
    config.model.layer_scale, config.model.init_std, config.objective.top_k = 0.1, 0.1, 2
    for key, value in objective.items():
        setattr(config.objective, key, value)
    torch.manual_seed(0)
    return build_objective(config, chain(JOINTS))


def clips(count=3, seed=0):
    return torch.randn(count, 12, JOINTS, 3, generator=torch.Generator().manual_seed(seed)).cumsum(1) * 0.1


def step(module, impl, x, first=0):
    """Loss and gradients of one step."""
    ids = torch.arange(first, first + len(x))
    with ops.use_impl(impl):
        loss = module(x, seed=1, epoch=0, sample_ids=ids).loss
        loss.backward()
    return loss.detach(), [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def close(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert (f is None) == (e is None)
        if f is not None:
            assert torch.allclose(f, e, rtol=1e-4, atol=2e-6 * float(e.abs().max()) + 1e-7)


@pytest.mark.parametrize("objective", [{}, {"decoder": "cross"}], ids=["self", "cross"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_step_is_the_same(name, objective):
    loss, gradients = step(model(**objective), choice(name), clips())
    expected, expected_gradients = step(model(**objective), "torch", clips())
    assert torch.allclose(loss, expected, rtol=1e-5)
    close(gradients, expected_gradients)


@pytest.mark.parametrize("name", CHOICES)
def test_functional_call(name):
    module = model()
    doubled = {key: 2 * value.detach() for key, value in module.named_parameters()}
    arguments = {"seed": 1, "epoch": 0, "sample_ids": torch.arange(3)}
    losses = []
    for impl in ("torch", choice(name)):
        with ops.use_impl(impl):
            losses.append(torch.func.functional_call(module, doubled, (clips(),), arguments).loss)
    assert torch.allclose(losses[1], losses[0], rtol=1e-5)
    with ops.use_impl(choice(name)):
        assert not torch.allclose(module(clips(), **arguments).loss, losses[1], rtol=1e-3)


@pytest.mark.parametrize("name", CHOICES)
def test_compiled_without_a_break(name):
    """The encoder: what a user would compile."""
    encoder, x = model().encoder, clips()
    visible = torch.tensor([[0, 3, 7, 12]] * 3, dtype=torch.int32)
    results = []
    with ops.use_impl(choice(name)):
        for function in (encoder, torch.compile(encoder, fullgraph=True, backend="aot_eager")):
            encoder.zero_grad()
            function(x, visible).square().sum().backward()
            results.append([p.grad.clone() for p in encoder.parameters()])
    close(results[1], results[0])


class _Loss(nn.Module):
    """DistributedDataParallel wants tensors from forward."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, first):
        return self.module(x, seed=1, epoch=0, sample_ids=torch.arange(first, first + len(x))).loss


def _rank(rank, store, impl, queue, finished):
    faulthandler.dump_traceback_later(50, exit=True)  # a rank that hangs says where
    torch.set_num_threads(1)
    # They meet in a file: a free port may be taken by somebody else before it is used.
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(_Loss(model()))
    with ops.use_impl(impl):
        parallel(clips(4)[2 * rank : 2 * rank + 2], 2 * rank).backward()
    queue.put((rank, [None if p.grad is None else p.grad.numpy() for p in parallel.parameters()]))
    finished.wait()
    # Not through PyTorch's own tear-down of the process group, which now and then waits for ever.
    os._exit(0)


@pytest.mark.parametrize("name", CHOICES)
def test_two_processes_average_their_gradients(name, tmp_path):
    context = mp.get_context("spawn")
    queue, finished = context.SimpleQueue(), context.Event()
    arguments = (tmp_path / "store", choice(name), queue, finished)
    ranks = [context.Process(target=_rank, args=(rank, *arguments)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    received = dict(queue.get() for _ in ranks)
    finished.set()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    halves = [step(model(), "torch", clips(4)[2 * i : 2 * i + 2], 2 * i)[1] for i in range(2)]
    for gradients in received.values():  # the same on both
        found = [None if g is None else torch.from_numpy(g) for g in gradients]
        close(found, [None if a is None else (a + b) / 2 for a, b in zip(*halves, strict=True)])
