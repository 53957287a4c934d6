"""Golden numbers: the results of published code, compared with those of the models here.

A kind of file is a module ``golden_<name>.py`` of this folder with two functions:

    def fits(golden, meta): ...  # whether a file is of this kind, by its keys and its settings
    def check(golden, meta, impl, dtype, device): ...  # relative errors by name

It is found because it is there. What kinds share stands here.
"""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2vfast import compat, errors


def check_golden(
    path: str | Path, impl: str = "reference", dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Relative errors of a step, or of several, against a file of golden numbers.

    The error of a quantity is its largest absolute difference over the golden quantity's largest absolute value
    (gradients: of that parameter, but no less than 1e-6 of the largest gradient, because some are zero up to
    rounding). Which quantities there are is said by ``check`` of the file's kind.

    Args:
        path: an .npz file with settings (``meta`` or ``config``), inputs, parameters and results in the published
            naming.
        impl: implementation of the operations: a name, or a choice such as ``torch,tube_mask=native``.
        dtype: of all numbers. Triton's kernels and some compiled ones take float32, not float64.
        device: where it runs.

    Raises:
        DataError: no file of golden numbers, or one of no kind that is known.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
        meta = json.loads(str(golden["meta" if "meta" in golden else "config"]))
    except (OSError, ValueError, KeyError) as error:
        raise errors.DataError(f"{path}: not a file of golden numbers ({error})") from None
    kinds = _kinds()
    for kind in kinds.values():
        if kind.fits(golden, meta):
            return kind.check(golden, meta, impl, dtype, device)
    raise errors.DataError(f"{path}: golden numbers of no kind that is known; there are {', '.join(kinds)}")


def _kinds() -> dict[str, ModuleType]:
    """The modules of kinds by name."""
    names = [module.name for module in pkgutil.iter_modules(compat.__path__) if module.name.startswith("golden_")]
    return {name.removeprefix("golden_"): importlib.import_module(f"{compat.__name__}.{name}") for name in names}


def under(prefix: str, golden: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}


def tensors(prefix: str, golden: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """`under` as tensors."""
    return {name: torch.tensor(value) for name, value in under(prefix, golden).items()}


def cast(value: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    """A tensor, or a dict of them, in a dtype on a device."""
    if isinstance(value, dict):
        return {name: cast(entry, dtype, device) for name, entry in value.items()}
    return value.to(device, dtype)


def on_host(run: dict[str, Any]) -> dict[str, Any]:
    """Tensors, and dicts of them, on the CPU."""
    return {
        name: {key: tensor.cpu() for key, tensor in value.items()} if isinstance(value, dict) else value.cpu()
        for name, value in run.items()
    }


def gradient_error(golden: Mapping[str, np.ndarray], gradients: Mapping[str, Tensor]) -> float:
    """The largest relative error of ``grad/NAME``, all of which and no others are expected.

    Raises:
        DataError: gradients of other parameters.
    """
    expected = under("grad/", golden)
    if set(expected) != set(gradients):
        raise errors.DataError(f"gradients of other parameters: {sorted(set(expected) ^ set(gradients))[:3]}")
    floor = 1e-6 * max(np.abs(v).max() for v in expected.values())
    return max(relative(gradients[k], v, floor) for k, v in expected.items())


def relative(result: Tensor, expected: np.ndarray, floor: float = 1e-300) -> float:
    """Largest difference over the largest expected value, which is no less than ``floor``; inf where one is NaN."""
    difference = np.abs(result.detach().cpu().numpy() - expected).max()
    # Python's max would drop a NaN that it does not begin with.
    return float(difference / max(np.abs(expected).max(), floor)) if np.isfinite(difference) else math.inf
