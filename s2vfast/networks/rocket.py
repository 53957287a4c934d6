"""One kernel of ROCKET (Dempster, Petitjean and Webb, 2020).

`s2vfast.networks.convolutions` begins with such kernels, and the floor of an evaluation is made of them.
"""

from __future__ import annotations

import math

import numpy as np


def draw_kernel(
    numbers: np.random.Generator, channels: int, length: int, most: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The channels a kernel looks at, its weights and its bias.

    It has 2^u of ``most`` channels, u uniform, normal weights without mean over time, and a bias in [-1, 1).

    Args:
        numbers: where draws come from.
        channels: C, of the clips.
        length: taps.
        most: channels of a kernel, at most C.

    Returns:
        int64 [J], float64 [J, length], and the bias.
    """
    picked = numbers.choice(channels, int(2 ** numbers.uniform(0, math.log2(most + 1))), replace=False)
    weight = numbers.normal(size=(len(picked), length))
    return picked, weight - weight.mean(axis=1, keepdims=True), numbers.uniform(-1, 1)
