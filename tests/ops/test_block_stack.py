import pytest
import torch

from s2vfast import errors, nn
from s2vfast.kernels import _launch
from s2vfast.kernels._block_stack_rows import stacked
from s2vfast.ops import block_stack
from s2vfast.ops.block_stack import PARAMETERS
from s2vfast.reference.block_stack import block_stack as reference


def case(numbers, N=2, L=5, D=16, H=2, E=24, blocks=2, scale=0.5):
    shapes = ([D], [D], [3 * D, D], [3 * D], [D, D], [D], [D], [D], [D], [E, D], [E], [D, E], [D], [D])
    parameters = []
    for i in range(blocks):
        for j, shape in enumerate(shapes):
            parameters.append(numbers(*shape, seed=100 * i + j, scale=shape[-1] ** -0.5 if len(shape) == 2 else scale))
    return {"x": numbers(N, L, D, seed=99), "parameters": parameters, "heads": H}


@pytest.mark.parametrize(
    "shape",
    [{}, {"N": 1, "L": 1}, {"L": 17, "D": 48, "E": 7}, {"D": 20, "H": 1}, {"L": 33, "blocks": 1}, {"blocks": 3}],
)
def test_agrees(agree, numbers, impl, shape):
    agree(block_stack, reference, case(numbers, **shape), impl)


def test_reference_against_the_blocks(numbers):
    """The blocks of the model, cut into four operations, are the same stack."""
    stack = nn.block.BlockStack(2, 16, 2, 2.0, 0.3).double()
    assert [name for name, _ in sorted_parameters(stack[0])] == list(PARAMETERS)
    parameters = [parameter for block in stack for _, parameter in sorted_parameters(block)]
    x = numbers(2, 5, 16, seed=1)
    torch.testing.assert_close(block_stack(x, parameters, 2, impl="reference"), stack(x))


def sorted_parameters(block):
    return sorted(block.named_parameters(), key=lambda item: PARAMETERS.index(item[0]))


@pytest.mark.parametrize("i", range(14))
def test_refuses_shapes_by_name(numbers, i):
    given = case(numbers)
    given["parameters"][14 + i] = given["parameters"][14 + i][..., :-1]
    with pytest.raises(errors.ShapeError, match=rf"block_stack: blocks\.1\.{PARAMETERS[i]}: expected"):
        block_stack(**given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 3}, "heads: expected a divisor of 16"),
        ({"parameters": []}, "parameters: expected 14 tensors a block"),
    ],
)
def test_refuses_what_makes_no_block(numbers, changes, said):
    with pytest.raises(errors.ShapeError, match=f"block_stack: {said}"):
        block_stack(**{**case(numbers), **changes})


@pytest.mark.parametrize("piece", [16, 256])
def test_small_tiles(agree, numbers, piece):
    """Several tiles of everything, with rows that are kept and rows that are read in pieces."""
    walk = {"BLOCK_M": 16, "BLOCK_Q": 16, "BLOCK_E": 16, "BLOCK_K": piece}
    with (
        _launch.override("block_stack", "forward", **walk),
        _launch.override("block_stack", "grad_stream", **walk, BLOCK_R=16),
        _launch.override("block_stack", "grad_weight", BLOCK_M=16, BLOCK_R=16, BLOCK_C=16),
        _launch.override("block_stack", "finish", BLOCK_N=16, BLOCK_C=16),
    ):
        agree(block_stack, reference, case(numbers, N=3, L=23, D=48, E=40), "triton")


@pytest.mark.parametrize("small", [0.0, 1e-30, -1e-12])
def test_layer_scale_that_is_nothing(agree, numbers, impl, small):
    """LayerScale's gradient is divided by LayerScale, which may be 0 where it was not trained yet."""
    given = case(numbers)
    for kind in (6, 13):
        given["parameters"][kind][::3] = small
        given["parameters"][14 + kind][:] = small
    agree(block_stack, reference, given, impl)


def flat(parameters, align=16):
    """The parameters as views of one buffer, as an optimizer keeps them."""
    sizes = [-(-parameter.numel() // align) * align for parameter in parameters]
    views = torch.zeros(sum(sizes)).split(sizes)
    return [v[: p.numel()].view(p.shape).copy_(p) for v, p in zip(views, parameters, strict=True)]


def test_four_launches_for_any_number_of_blocks(numbers):
    """One forward, three backward; and parameters that lie at equal distances are not copied."""
    given = case(numbers, blocks=5)
    parameters = [parameter.requires_grad_() for parameter in flat(given["parameters"])]
    with _launch.capture(90) as launches:
        out = block_stack(given["x"].float(), parameters, 2, impl="triton")
        assert len(launches) == 1
        out.sum().backward()
    names = [launch.kernel.fn.__name__ for launch in launches]
    assert names == ["_forward_kernel", "_grad_stream_kernel", "_grad_weight_kernel", "_finish_kernel"]
    for launch, place in zip(launches[:2], (1, 2), strict=True):
        assert [base.data_ptr() for base in launch.args[place]] == [p.data_ptr() for p in parameters[:14]]
        step = parameters[14].storage_offset() - parameters[0].storage_offset()
        assert launch.args[place + 1] == (step,) * 14


def test_in_one_buffer_the_same_bits(numbers):
    given = case(numbers, L=11, blocks=3)
    x, loose = given["x"].float(), [parameter.float() for parameter in given["parameters"]]
    results = []
    for parameters in (loose, flat(loose), flat(loose)):
        leaves = [x.clone().requires_grad_(), *(parameter.requires_grad_() for parameter in parameters)]
        out = block_stack(leaves[0], leaves[1:], 2, impl="triton")
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        with torch.no_grad():
            assert torch.equal(block_stack(x, parameters, 2, impl="triton"), out)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_is_stacked_and_what_is_copied():
    buffer = torch.arange(200.0)
    together, step = stacked([buffer[16:20], buffer[48:52], buffer[80:84]])
    assert (together.data_ptr(), step) == (buffer[16:].data_ptr(), 32)
    for odd in ([16, 48, 96], [16, 40, 64], [17, 49, 81]):  # not equal, not by 16, not aligned
        together, step = stacked([buffer[start : start + 4] for start in odd])
        assert step == 4
        assert torch.equal(together, torch.stack([buffer[start : start + 4] for start in odd]))
    assert stacked([torch.zeros(4), torch.zeros(4)])[1] == 4  # two buffers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"L": 65}, "at most 64 tokens, a tile; these have 65"),
        ({"D": 272, "H": 8}, "these are 272 and 34 wide"),
        ({"D": 80, "H": 1}, "these are 80 and 80 wide"),
    ],
)
def test_what_triton_refuses(numbers, changes, said):
    given = case(numbers, **changes)
    given |= {"x": given["x"].float(), "parameters": [parameter.float() for parameter in given["parameters"]]}
    with pytest.raises(errors.ImplementationError, match=said):
        block_stack(**given, impl="triton")


def test_triton_refuses_vectors_of_low_precision(numbers):
    parameters = [parameter.bfloat16() for parameter in case(numbers)["parameters"]]
    with pytest.raises(errors.ImplementationError, match="norms, biases and LayerScale have to be float32"):
        block_stack(torch.zeros(2, 5, 16), parameters, 2, impl="triton")
