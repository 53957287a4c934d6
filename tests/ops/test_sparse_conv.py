import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from s2vfast import _extension, errors, verify
from s2vfast.ops import sparse_conv, voxelize
from s2vfast.ops.voxelize import KERNELS
from s2vfast.reference.sparse_conv import sparse_conv as reference

needs_extension = pytest.mark.skipif(bool(_extension.why_not()), reason="there is no compiled extension")


def case(numbers, R=23, out=19, offsets=4, Cin=6, Cout=5, density=0.6, seed=0):
    """A table with rows that no offset reaches, rows of x that nobody names, and -1."""
    generator = torch.Generator().manual_seed(seed)
    # Each row of x once or not at all for each offset.
    table = torch.rand(offsets, max(R, out), generator=generator).argsort(1)[:, :out].int()
    table[(table >= R) | (torch.rand(table.shape, generator=generator) >= density)] = -1
    x, weight = numbers(R, Cin, seed=seed + 1), numbers(offsets, Cin, Cout, seed=seed + 2, scale=0.4)
    return {"x": x, "weight": weight, "table": table}


# Registers and a rest of channels and rows; one of everything; nothing at all on either side; nobody's neighbour.
SHAPES = [
    {},
    {"R": 90, "out": 80, "offsets": 9, "Cin": 32, "Cout": 64, "density": 0.3},
    {"R": 61, "out": 150, "offsets": 3, "Cin": 4, "Cout": 40},
    {"R": 40, "out": 12, "offsets": 8, "Cin": 33, "Cout": 17, "density": 1.0},
    {"R": 1, "out": 1, "offsets": 1, "Cin": 1, "Cout": 1, "density": 1.0},
    {"R": 0, "out": 0},
    {"R": 5, "out": 0},
    {"R": 0, "out": 5},
    {"density": 0.0},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees(agree, numbers, impl, shape):
    agree(sparse_conv, reference, case(numbers, **shape), impl)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 12), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1)
)
def test_agrees_at_any_size(R, out, offsets, Cin, Cout, density):
    def numbers(*shape, seed, scale=1.0):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale

    arguments = case(numbers, R, out, offsets, Cin, Cout, density)
    for row in verify.compare(sparse_conv, reference, reference, arguments, gradients=True):
        assert row.good, f"{row.name}: error {row.error:.3g}, allowed {row.allowed:.3g}"


def grid(seed, N=2, T=4, S=5, share=0.4):
    """Points at the middle of some cells of a grid, and which cells these are: [N, T, S, S, S]."""
    full = torch.rand(N, T, S, S, S, generator=torch.Generator().manual_seed(seed)) < share
    middle = torch.stack(torch.meshgrid(*[torch.arange(S) + 0.5 - S // 2] * 3, indexing="ij"), -1)  # about the origin
    clips = torch.where(full[..., None], middle, float("nan")).flatten(2, 4)
    return clips, full


@pytest.mark.parametrize("kernel", ["cube", "hybrid", "cross"])
def test_is_the_dense_convolution_at_cells_that_hold_points(kernel, impl):
    """Against F.conv3d of each of three frames, in float64, at cells about the origin."""
    clips, full = grid(0)
    level = voxelize(clips, 1.0, kernel=kernel).levels[0]
    n, t, x, y, z = (level.coordinates.long() + torch.tensor([0, 0, 2, 2, 2])).unbind(1)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(n), 3, generator=generator)
    weight = torch.randn(len(KERNELS[kernel]), 3, 4, generator=generator)
    dense = torch.zeros(*full.shape, 3, dtype=torch.float64)
    dense[n, t, x, y, z] = features.double()
    filters = torch.zeros(3, 4, 3, 3, 3, 3, dtype=torch.float64)  # [dt, Cout, Cin, dx, dy, dz]
    for (dt, dx, dy, dz), matrix in zip(KERNELS[kernel], weight, strict=True):
        filters[dt + 1, :, :, dx + 1, dy + 1, dz + 1] = matrix.double().T
    expected = torch.zeros(*full.shape, 4, dtype=torch.float64)
    for dt in (-1, 0, 1):
        for frame in range(full.shape[1]):
            if 0 <= frame + dt < full.shape[1]:
                volume = dense[:, frame + dt].permute(0, 4, 1, 2, 3)
                expected[:, frame] += F.conv3d(volume, filters[dt + 1], padding=1).permute(0, 2, 3, 4, 1)
    out = sparse_conv(features, weight, level.neighbors, impl=impl)
    torch.testing.assert_close(out.double(), expected[n, t, x, y, z], rtol=1e-4, atol=1e-4)


def test_with_children_is_the_strided_dense_convolution(impl):
    """F.conv3d with kernel and stride 2, of two frames added up; S is even: coarse cells begin with fine ones."""
    clips, full = grid(2, S=4)
    fine, coarse = voxelize(clips, 1.0, strides=[(2, 2)]).levels
    n, t, x, y, z = (fine.coordinates.long() + torch.tensor([0, 0, 2, 2, 2])).unbind(1)
    generator = torch.Generator().manual_seed(1)
    features, weight = torch.randn(len(n), 3, generator=generator), torch.randn(16, 3, 4, generator=generator)
    dense = torch.zeros(*full.shape, 3, dtype=torch.float64)
    dense[n, t, x, y, z] = features.double()
    filters = weight.double().view(2, 2, 2, 2, 3, 4).permute(0, 5, 4, 1, 2, 3)  # [dt, Cout, Cin, dx, dy, dz]
    expected = sum(
        torch.stack([F.conv3d(v, filters[dt], stride=2) for v in dense[:, dt::2].permute(1, 0, 5, 2, 3, 4)], 1)
        for dt in range(2)
    )  # [N, T / 2, Cout, 2, 2, 2]
    n, t, x, y, z = (coarse.coordinates.long() + torch.tensor([0, 0, 1, 1, 1])).unbind(1)
    assert len(n) == int(F.max_pool3d(full.float(), 2).unflatten(1, (2, 2)).amax(2).sum())
    out = sparse_conv(features, weight, coarse.children, impl=impl)
    torch.testing.assert_close(out.double(), expected.movedim(2, -1)[n, t, x, y, z], rtol=1e-4, atol=1e-4)


def test_two_calls_give_the_same_bits(numbers, impl):
    arguments = {
        name: value.float() if value.is_floating_point() else value
        for name, value in case(numbers, R=200, out=180, Cin=20, Cout=24).items()
    }
    results = []
    for _ in range(2):
        x, weight = (arguments[name].clone().requires_grad_() for name in ("x", "weight"))
        out = sparse_conv(x, weight, arguments["table"], impl=impl)
        results.append([out, *torch.autograd.grad(out.square().sum(), (x, weight))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_empty_rows_stay_zero_and_get_no_gradient(impl):
    """A capacity above the number of cells: what lies in the empty rows of x goes nowhere."""
    clips, _ = grid(3, N=1, T=2, S=4)
    level = voxelize(clips, 1.0, kernel="cross", capacity=clips[..., 0].numel()).levels[0]
    count = int(level.starts[-1])
    assert 0 < count < len(level.coordinates)
    x = torch.randn(len(level.coordinates), 8, generator=torch.Generator().manual_seed(0))
    x[count:] = float("nan")
    x.requires_grad_()
    weight = torch.randn(9, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    out = sparse_conv(x, weight, level.neighbors, impl=impl)
    assert (out[count:] == 0).all()
    assert torch.isfinite(out).all()
    by_x, by_weight = torch.autograd.grad(out.square().sum(), (x, weight))
    assert (by_x[count:] == 0).all()
    assert torch.isfinite(by_weight).all()


@needs_extension
def test_the_number_of_threads_changes_nothing(numbers):
    arguments = case(numbers, R=2500, out=2400, offsets=3, Cin=9, Cout=33)
    x, weight = (arguments[name].float().requires_grad_() for name in ("x", "weight"))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = sparse_conv(x, weight, arguments["table"], impl="native")
            results.append([out, *torch.autograd.grad(out.square().sum(), (x, weight))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_extension
def test_tables_that_cannot_be_are_refused(numbers):
    arguments = {k: v.float() if v.is_floating_point() else v for k, v in case(numbers).items()}
    table = arguments["table"].clone()
    table[1, 3] = len(arguments["x"])
    with pytest.raises(errors.ShapeError, match="sparse_conv: table: a number that is no row of x"):
        sparse_conv(**arguments | {"table": table}, impl="native")
    table = arguments["table"].clone()
    table[1, 3:5] = 2
    leaf = arguments["x"].requires_grad_()
    out = sparse_conv(**arguments | {"x": leaf, "table": table}, impl="native")
    with pytest.raises(errors.ShapeError, match="sparse_conv: table: an offset names a row of x twice"):
        out.sum().backward()


def test_refuses_shapes_by_name(numbers):
    arguments = {k: v.float() if v.is_floating_point() else v for k, v in case(numbers).items()}
    for name, wrong in (
        ("x", arguments["x"][0]),
        ("weight", arguments["weight"][:, 1:]),
        ("weight", arguments["weight"].double()),
        ("table", arguments["table"].long()),
        ("table", arguments["table"][1:]),
    ):
        with pytest.raises(errors.ShapeError, match=f"sparse_conv: {name}"):
            sparse_conv(**arguments | {name: wrong})


def test_a_neighbour_that_is_off_shows(numbers):
    """The rule bites: one wrong entry of a table fails the comparison that all implementations pass."""
    arguments = {k: v.float() if v.is_floating_point() else v for k, v in case(numbers).items()}

    def wrong(x, weight, table):
        return sparse_conv(x, weight, torch.where(table == table.max(), 0, table))

    assert not all(row.good for row in verify.compare(wrong, reference, reference, arguments, gradients=False))
