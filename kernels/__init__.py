"""Triton kernels, one file an operation; installed as s2vfast.kernels. README.md is the table of operations."""
