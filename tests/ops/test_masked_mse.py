import pytest
import torch

from s2vfast import errors
from s2vfast.kernels import _launch
from s2vfast.ops import masked_mse
from s2vfast.reference.masked_mse import masked_mse as reference


@pytest.mark.parametrize("shape", [(3, 7, 8), (1, 1, 1), (2, 13, 5)])
def test_agrees(agree, numbers, impl, shape):
    agree(masked_mse, reference, {"prediction": numbers(*shape, seed=0), "target": numbers(*shape, seed=1)}, impl)


def test_small_blocks(agree, numbers):
    given = {"prediction": numbers(3, 7, 5, seed=0), "target": numbers(3, 7, 5, seed=1)}
    with _launch.override("masked_mse", "forward", BLOCK=16), _launch.override("masked_mse", "backward", BLOCK=16):
        agree(masked_mse, reference, given, "triton")


def test_by_hand():
    assert reference(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]])) == 2.5


def test_refuses_shapes_by_name():
    with pytest.raises(errors.ShapeError, match="masked_mse: target"):
        masked_mse(torch.zeros(1, 2, 3), torch.zeros(1, 3, 2))
