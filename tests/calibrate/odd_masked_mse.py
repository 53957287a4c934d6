"""A plugin: implementations of masked_mse and mask_fill as people write them on bad days."""

import ctypes
import os
import time

import torch

from s2vfast import ops


def right(prediction, target):
    return (prediction - target).square().mean()


def wrong(prediction, target):
    return right(prediction, target) * 1.01


def wrong_gradient(prediction, target):
    return right(prediction, target) + (prediction - prediction.detach()).sum()


def crash(prediction, target):
    os._exit(3)


def segfault(prediction, target):
    ctypes.string_at(0)


def hang(prediction, target):
    time.sleep(600)


def slow(prediction, target):
    time.sleep(0.1)
    return right(prediction, target)


def fails(prediction, target):
    raise RuntimeError("out of luck")


def crash_later(prediction, target):
    """Right on a small input; ends its process on a larger one."""
    if prediction.shape[0] > 2:
        os._exit(4)
    return right(prediction, target)


def out_of_memory(prediction, target):
    raise torch.OutOfMemoryError("too large")


def in_haste(latents, mask_token, positions, visible):
    """Quick, and not exact, where the precision of products allows it."""
    filled = ops.mask_fill(latents, mask_token, positions, visible, impl="torch")
    if torch.get_float32_matmul_precision() == "high":
        return filled * 1.01
    time.sleep(0.1)
    return filled


ops.register_impl("mask_fill", "in_haste", in_haste)
for function in (right, wrong, wrong_gradient, crash, segfault, hang, slow, fails, crash_later, out_of_memory):
    ops.register_impl("masked_mse", function.__name__, function)
