"""The specification: every operation of the pretraining step in plain, differentiable PyTorch, in any dtype.

One op a file, named as in `s2vfast.ops`. Nothing here imports anything else of s2vfast, Triton or the extension.
"""
