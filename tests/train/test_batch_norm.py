"""Batch norm over the rows of all ranks against one process's, in double precision."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from s2vfast.train import distributed
from s2vfast.train.batch_norm import RankBatchNorm, has_batch_norm, synchronise_batch_norm
from s2vfast.train.distributed import Ranks

STEPS, ROWS, C = 3, 7, 5
# Of 7 rows, rank 0 has so many: as many as can be, and the fewest.
SHARES = (4, 1)
CASES = {
    "1d": (nn.BatchNorm1d, (ROWS, C), {}),
    "2d": (nn.BatchNorm2d, (ROWS, C, 4, 3), {}),
    "3d": (nn.BatchNorm3d, (ROWS, C, 2, 3, 2), {"momentum": None}),
    "sequences": (nn.BatchNorm1d, (ROWS, C, 6), {"momentum": 0.3, "eps": 1e-2}),
    "no affine": (nn.BatchNorm1d, (ROWS, C), {"affine": False}),
    "no statistics": (nn.BatchNorm1d, (ROWS, C), {"track_running_stats": False}),
}


def _network(case):
    """A batch norm in a module, with parameters that are none of its first ones."""
    kind, _, options = CASES[case]
    network, generator = nn.Sequential(kind(C, **options).double()), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network


def _run(case, rows, ranks=None):
    """Outputs, gradients and state after some steps on a part of each batch."""
    network, (_, shape, _) = _network(case), CASES[case]
    if ranks is not None:
        synchronise_batch_norm(network, ranks)
    generator = torch.Generator().manual_seed(1)
    outputs, gradients = [], []
    for _ in range(STEPS):
        batch = 3 + torch.randn(shape, generator=generator, dtype=torch.float64)
        upstream = torch.randn(shape, generator=generator, dtype=torch.float64)
        x = batch[rows].clone().requires_grad_()
        y = network(x)
        # No mean: the sum over ranks is then the sum over the batch.
        found = torch.autograd.grad((y * upstream[rows]).sum(), [x, *network.parameters()])
        outputs.append(y.detach())
        gradients.append(found)
    return outputs, gradients, {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _rank(rank, world, folder):
    torch.set_num_threads(1)
    distributed.make_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {}
    for case in CASES:
        for share in SHARES:
            rows = slice(0, share) if rank == 0 else slice(share, ROWS)
            found[case, share] = _run(case, rows, Ranks(rank, world, rank))
    torch.save(found, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (2, folder), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def _close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process(two_ranks, case, share):
    """Outputs, gradients of inputs and parameters, running statistics; also where shares are uneven."""
    outputs, gradients, state = _run(case, slice(None))
    (first, first_gradients, first_state), (second, second_gradients, second_state) = (
        found[case, share] for found in two_ranks
    )
    for one, other, expected in zip(first, second, outputs, strict=True):
        _close(torch.cat([one, other]), expected)
    for one, other, expected in zip(first_gradients, second_gradients, gradients, strict=True):
        _close(torch.cat([one[0], other[0]]), expected[0])
        for a, b, whole in zip(one[1:], other[1:], expected[1:], strict=True):
            _close(a + b, whole)
    assert first_state.keys() == second_state.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(first_state[name], second_state[name]), name
        _close(first_state[name], tensor)


def test_it_takes_over_parameters_buffers_and_names():
    network = nn.Sequential(nn.Linear(4, C), nn.Sequential(nn.BatchNorm1d(C)), nn.BatchNorm1d(C).eval())
    plain = copy.deepcopy(network)
    assert has_batch_norm(network)
    assert not has_batch_norm(network[0])
    synchronise_batch_norm(network, Ranks())
    assert type(network[2]) is nn.BatchNorm1d  # of one rank they stay PyTorch's
    owned = dict(network.named_parameters())
    synchronise_batch_norm(network, Ranks(0, 2, 0))
    assert [type(network[1][0]), type(network[2])] == [RankBatchNorm] * 2
    assert [part.training for part in (network[1][0], network[2])] == [True, False]
    assert all(parameter is owned[name] for name, parameter in network.named_parameters())
    assert list(network.state_dict()) == list(plain.state_dict())
    once = network[2]
    synchronise_batch_norm(network, Ranks(0, 2, 0))
    assert network[2] is once
    x = torch.randn(3, 4)
    torch.testing.assert_close(network.eval()(x), plain.eval()(x))  # alone: nobody is asked
    with pytest.raises(ValueError, match="expected 2 dimensions or more, got 1"):
        network[2](torch.randn(C))


def test_a_norm_in_two_places_stays_one():
    network = nn.Module()
    network.first = network.second = nn.BatchNorm1d(C)
    network.inner = nn.Sequential(network.first)
    names = [name for name, _ in network.named_parameters()]
    synchronise_batch_norm(network, Ranks(0, 2, 0))
    assert isinstance(network.first, RankBatchNorm)
    assert network.first is network.second is network.inner[0]
    assert [name for name, _ in network.named_parameters()] == names
