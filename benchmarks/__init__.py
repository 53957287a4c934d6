"""Measurements: each file compares implementations in one run, interleaved, after checking that they agree."""
