"""What a piece of code launches, counted: Triton kernels and PyTorch's own, inside of custom operators too."""

from __future__ import annotations

import collections
import contextlib
import importlib
import sys
from collections.abc import Callable
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from s2vfast.kernels import _launch, aot
from s2vfast.ops._custom import KERNELS

ALLOCATIONS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


class _Counting(TorchDispatchMode):
    """Counts PyTorch's kernels, and looks into our own operators."""

    def __init__(self, found: collections.Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "s2vfast":
            with self:
                return KERNELS[function._schema.name](*args, **kwargs)
        result = function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        # What gives back memory that it was given is a view, or a conversion that changes nothing.
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in given]
        if name not in ALLOCATIONS and (made or function._schema.is_mutable):
            self.found[name] += 1
        return result


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def count(function: Callable[[], object]) -> collections.Counter[str]:
    """How often what is launched by ``function()``, forward or backward; names of kernels of ours end in _kernel."""
    found: collections.Counter[str] = collections.Counter()
    real = _launch.launch

    def launch(kernel, grid, *args, **options):
        found[kernel.fn.__name__] += 0 not in grid
        with _disable_current_modes():  # what the interpreter does is no launch
            real(kernel, grid, *args, **options)

    for op in aot.with_kernels():
        importlib.import_module(f"s2vfast.kernels.{op}")
    modules = [m for name, m in sys.modules.items() if name.startswith("s2vfast.kernels.")]
    with contextlib.ExitStack() as stack:
        for module in modules:
            if getattr(module, "launch", None) is real:
                stack.enter_context(mock.patch.object(module, "launch", launch))
        stack.enter_context(_Counting(found))
        function()
    return found
