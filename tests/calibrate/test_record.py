"""What is kept of a call, and what is answered for a call like it."""

import json

import torch

from s2vfast import inputs, ops
from s2vfast.calibrate.record import LARGE, Choices, Recorder, SavedTensor, from_json, signature, text


def test_tensors_come_back_with_their_layout():
    for tensor in (
        torch.randn(4, 6).t(),
        torch.randn(3, 1, 5).expand(3, 7, 5),
        torch.arange(5, dtype=torch.int32),
        torch.tensor(2.0, dtype=torch.float64),
        torch.randn(2, 8)[:, ::2].requires_grad_(),
        torch.zeros(0, 3),
    ):
        again = SavedTensor.of(tensor).rebuilt(torch.device("cpu"))
        assert torch.equal(again, tensor)
        assert again.stride() == tensor.stride()
        assert again.requires_grad == tensor.requires_grad


def test_of_a_large_tensor_some_rows_stand_for_all():
    tensor = torch.rand(3000, 1000).bfloat16()
    saved = SavedTensor.of(tensor)
    assert saved.rows.numel() <= LARGE
    again = saved.rebuilt(torch.device("cpu"))
    assert again.shape == tensor.shape
    assert again.dtype == torch.bfloat16
    assert bool((again > 0).any())
    assert torch.equal(again[0], tensor[0])
    # Indices point at something: they are kept whole.
    index = torch.arange(2 * LARGE)
    assert torch.equal(SavedTensor.of(index).rebuilt(torch.device("cpu")), index)


def test_a_signature_tells_sizes_dtypes_and_gradients_apart():
    x = torch.zeros(2, 3)
    base = signature((x, 7), {"flag": True})
    assert signature((torch.ones(2, 3), 8), {"flag": True}) == base
    for other in (x.double(), torch.zeros(3, 3), torch.zeros(2, 3, requires_grad=True), [x, x], None):
        assert signature((other, 7), {"flag": True}) != base
    assert signature((x, 7), {"flag": False}) != base
    with torch.no_grad():
        assert signature((torch.zeros(2, 3, requires_grad=True), 7), {"flag": True}) == base
    assert from_json(json.loads(json.dumps(base))) == base
    assert text(base) == "float32 2 × 3"


def test_each_signature_is_kept_once_and_named_choices_are_not():
    recorder = Recorder("cpu")
    arguments = inputs.inputs("masked_mse")
    with ops.use_chooser(recorder):
        ops.masked_mse(**arguments)
        ops.masked_mse(**arguments)
        ops.masked_mse(**arguments, impl="torch")
        with ops.use_impl("torch"):
            ops.attention(torch.randn(1, 3, 3, 1, 4))
    ops.mlp(**inputs.inputs("mlp"))
    assert [(op, recorder.counts[op, key]) for op, key in recorder.calls] == [("masked_mse", 2)]
    other = Recorder("cuda")
    with ops.use_chooser(other):
        ops.masked_mse(**arguments)
    assert not other.calls


def test_auto_takes_what_the_table_has_or_the_nearest(monkeypatch):
    ran = []
    for name in ("one", "two"):
        monkeypatch.setitem(
            ops.operation("masked_mse").implementations, name, lambda p, t, name=name: ran.append(name) or p.sum()
        )
    monkeypatch.setitem(ops.operation("masked_mse").reasons, "two", lambda *a, **k: ["tired"] if ran[4:] else [])

    def x(rows, dtype=torch.float32):
        return torch.zeros(rows, 1, 3, dtype=dtype), torch.zeros(rows, 1, 3, dtype=dtype)

    table = {("masked_mse", signature(x(4), {})): "one", ("masked_mse", signature(x(400), {})): "two"}
    with ops.use_chooser(Choices("cpu", table)):
        for rows in (4, 400, 6, 300):
            ops.masked_mse(*x(rows))
        ops.masked_mse(*x(4, torch.float64))  # nothing like it
        ops.masked_mse(*x(4), impl="torch")
        assert ran == ["one", "two", "one", "two"]
        ran.append("")
        ops.masked_mse(*x(400))  # it cannot run now: never a failure of auto
    assert ran == ["one", "two", "one", "two", ""]
    with ops.use_chooser(Choices("cuda", table)):
        ops.masked_mse(*x(4))
    assert len(ran) == 5
