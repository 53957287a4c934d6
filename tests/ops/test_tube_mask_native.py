"""The compiled tube_mask against a plain numpy version of the contract, bit for bit."""

import math
import os
import threading

import numpy as np
import pytest

from s2vfast import _extension

if _extension.why_not():
    pytest.skip(_extension.why_not(), allow_module_level=True)
native = _extension.load()

M0, M1, W0, W1, LOW = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF
GUARD = 64  # numbers before and after each output that must stay as they are
POISON = -77


def philox(counter, key):
    """Philox4x32-10 in Python's own integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & LOW, (p0 >> 32) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0, c1, c2, c3


def draws(seed, epoch, ids, count):
    """Uniform draws of the mask stream: float32 [N, count]."""
    rows = []
    for sample in map(int, ids):
        high = (sample >> 32) << 8 & LOW | 3
        words = [
            word
            for block in range(-(-count // 4))
            for word in philox((block, sample & LOW, epoch, high), (seed & LOW, seed >> 32))
        ]
        rows.append([np.float32(word >> 8) * np.float32(2.0**-24) for word in words[:count]])
    return np.array(rows, np.float32).reshape(len(rows), count)


def motions(clips, s, tube_len, weight):
    """weight * normalised intensity [N, tubes, V]: one rounded operation after the other, in the dtype of the clips."""
    N, T, V, C = clips.shape
    dtype = clips.dtype.type
    motion = np.zeros_like(clips)
    motion[:, :-1] = np.abs(clips[:, 1:] - clips[:, :-1])
    motion = motion.reshape(N, T // s // tube_len, tube_len, s, V, C)
    tube = np.zeros((*motion.shape[:2], V), dtype)
    for segment in range(tube_len):
        token = np.zeros_like(tube)
        for f in range(s):
            for c in range(C):
                token = token + motion[:, :, segment, f, :, c]
        tube = tube + token / dtype(s * C)
    tube = tube / dtype(tube_len)
    return dtype(weight) * (tube / (tube.max(axis=-1, keepdims=True) + dtype(1e-6)))


def oracle(clips, s, tube_len, keep, weight, noise):
    """The contract: visible and masked tokens."""
    N, T, V, _ = clips.shape
    score = noise.astype(clips.dtype) + motions(clips, s, tube_len, weight)
    order = np.argsort(score, axis=-1, kind="stable").repeat(tube_len, axis=1)  # [N, S, V]
    first = np.arange(T // s)[:, None] * V
    visible = first + np.sort(order[..., :keep], axis=-1)
    masked = first + np.sort(order[..., keep:], axis=-1)
    return visible.reshape(N, -1).astype(np.int32), masked.reshape(N, -1).astype(np.int32)


def run(clips, s, tube_len, keep, weight, noise=None, seed=0, epoch=0, ids=None, threads=1):
    """The extension, with guarded and poisoned outputs."""
    N, T, V, C = clips.shape
    shapes = (N, T // s * keep), (N, T // s * (V - keep))
    outputs = [np.full(math.prod(shape) + 2 * GUARD, POISON, np.int32) for shape in shapes]
    native.tube_mask(
        clips=clips.ctypes.data, itemsize=clips.itemsize, tracks=N, frames=T, joints=V, channels=C,
        segment_frames=s, tube_len=tube_len, keep=keep, motion_weight=weight,
        noise=0 if noise is None else noise.ctypes.data, seed=seed, epoch=epoch,
        ids=0 if ids is None else ids.ctypes.data,
        visible=outputs[0][GUARD:].ctypes.data, masked=outputs[1][GUARD:].ctypes.data, threads=threads,
    )  # fmt: skip
    for output in outputs:
        assert (output[:GUARD] == POISON).all()
        assert (output[-GUARD:] == POISON).all()
    return tuple(output[GUARD:-GUARD].reshape(shape) for output, shape in zip(outputs, shapes, strict=True))


def made(N, T, V, C, dtype, seed=0):
    """A random walk with an empty track, as absent bodies are."""
    steps = np.random.default_rng(seed).normal(size=(N, T, V, C)).astype(dtype)
    clips = np.cumsum(steps * np.linspace(0, 1, V, dtype=dtype)[:, None], axis=1, dtype=dtype)
    if N > 1:
        clips[N // 2] = 0
    return clips


def assert_same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_philox_of_this_file_gives_the_published_vectors():
    # Known answers of the authors' library (Random123, kat_vectors).
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox((LOW,) * 4, (LOW, LOW)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


# V around the widths of vectors, with and without the channel counts that have code of their own.
SHAPES = [
    (3, 90, 25, 3, 3, 5, 2),
    (2, 32, 20, 6, 8, 2, 4),
    (4, 12, 17, 2, 4, 1, 3),
    (1, 6, 1, 3, 3, 2, 1),
    (2, 4, 8, 3, 1, 4, 7),
    (2, 6, 16, 6, 3, 1, 1),
    (3, 8, 133, 3, 2, 2, 13),
    (2, 1, 5, 1, 1, 1, 2),
    (5, 6, 9, 3, 3, 1, 0),
    (5, 6, 9, 3, 3, 1, 9),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_given_noise(shape, dtype):
    N, T, V, C, s, tube_len, keep = shape
    clips = made(N, T, V, C, dtype)
    noise = np.random.default_rng(1).random((N, T // s // tube_len, V)).astype(dtype)
    for weight in (0.0, 0.1, 3.0):
        expected = oracle(clips, s, tube_len, keep, weight, noise)
        assert_same(run(clips, s, tube_len, keep, weight, noise=noise), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_own_draws(shape, dtype):
    N, T, V, C, s, tube_len, keep = shape
    clips = made(N, T, V, C, dtype, seed=2)
    seed, epoch = 0x1234_5678_9ABC_DEF0, 0xFEDC_BA98
    ids = np.array([0, 0xFFFF_FFFF, 5 | 1 << 32, 7 | 1 << 32 | 3 << 40, (1 << 55) + 11][:N], np.int64)
    noise = draws(seed, epoch, ids, T // s // tube_len * V).reshape(N, -1, V)
    expected = oracle(clips, s, tube_len, keep, 0.1, noise)
    assert_same(run(clips, s, tube_len, keep, 0.1, seed=seed, epoch=epoch, ids=ids), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("C", [1, 2, 3, 6])
def test_every_rounding_is_the_contracts(dtype, C):
    """Noise that makes nearly all scores equal: a last bit that is rounded otherwise anywhere changes the choice."""
    clips = np.random.default_rng(5).normal(size=(20, 36, 25, C)).astype(dtype)
    moved = motions(clips, 3, 4, 3.0)
    target = dtype(3.5)
    noise = target - moved
    assert np.mean(noise + moved == target) > 0.9
    for keep in (5, 12):
        found = run(clips, 3, 4, keep, 3.0, noise=noise)
        assert_same(found, oracle(clips, 3, 4, keep, 3.0, noise))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", [0.1, -1.0])
def test_equal_scores_go_to_the_lower_joint(dtype, weight):
    clips = np.zeros((1, 4, 6, 3), dtype)
    # +0 and -0 are equal; a negative weight lets -0 through to the scores.
    noise = np.array([[[0.5, 0.0, -0.0, 0.5, -0.0, 0.25], [0.5] * 6]], dtype)
    visible, _ = run(clips, 1, 2, 2, weight, noise=noise)
    assert visible.tolist() == [[1, 2, 7, 8, 12, 13, 18, 19]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_coordinate_costs_no_joint(dtype, bad):
    clips = made(4, 12, 25, 3, dtype)
    clips[1, 3, 4, 0] = bad
    noise = np.random.default_rng(3).random((4, 2, 25)).astype(dtype)
    with np.errstate(invalid="ignore"):
        expected = oracle(clips, 3, 2, 5, 0.1, noise)
    found = run(clips, 3, 2, 5, 0.1, noise=noise)
    assert_same(found, expected)
    assert (np.sort(np.concatenate(found, axis=1), axis=1) == np.arange(100)).all()


def test_negative_scores_keep_their_order():
    noise = np.random.default_rng(4).normal(size=(3, 2, 25)).astype(np.float32)
    clips = made(3, 12, 25, 3, np.float32)
    assert_same(run(clips, 3, 2, 7, 0.1, noise=noise), oracle(clips, 3, 2, 7, 0.1, noise))


def test_the_number_of_threads_changes_nothing():
    clips = made(130, 90, 25, 3, np.float32)
    ids = np.arange(130, dtype=np.int64)
    expected = run(clips, 3, 5, 2, 0.1, ids=ids, seed=9, threads=1)
    for threads in (0, 2, 5):
        assert_same(run(clips, 3, 5, 2, 0.1, ids=ids, seed=9, threads=threads), expected)


def test_a_call_returns_when_all_threads_are_done():
    # Two long tracks: the caller does the first and is ready well before the thread that started later.
    clips = made(2, 30_000, 25, 3, np.float32)
    ids = np.arange(2, dtype=np.int64)
    expected = run(clips, 3, 5, 2, 0.1, ids=ids, threads=1)
    assert_same(run(clips, 3, 5, 2, 0.1, ids=ids, threads=2), expected)


def test_several_callers_at_once_and_a_forked_child():
    clips = made(64, 90, 25, 3, np.float32)
    ids = np.arange(64, dtype=np.int64)
    expected = run(clips, 3, 5, 2, 0.1, ids=ids, threads=1)
    failures = []

    def call():
        for _ in range(20):
            found = run(clips, 3, 5, 2, 0.1, ids=ids, threads=2)
            if not all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)):
                failures.append("another mask")

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures

    child = os.fork()  # the parent's pool of threads does not exist in the child
    if child == 0:
        found = run(clips, 3, 5, 2, 0.1, ids=ids, threads=2)
        os._exit(0 if all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_tracks():
    visible, masked = run(np.zeros((0, 6, 5, 3), np.float32), 3, 2, 1, 0.1, ids=np.zeros(0, np.int64))
    assert visible.size == masked.size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"itemsize": 2}, "itemsize"),
        ({"tracks": -1}, "negative"),
        ({"joints": 0}, "joints"),
        ({"frames": 2**20, "joints": 2**12}, "2\\*\\*31"),
        ({"segment_frames": 4}, "segment_frames"),
        ({"tube_len": 3}, "tube_len"),
        ({"keep": 6}, "keep"),
        ({"keep": -1}, "keep"),
        ({"clips": 0}, "clips is a null pointer"),
        ({"visible": 0}, "visible is a null pointer"),
        ({"masked": 0}, "masked is a null pointer"),
        ({"ids": 0}, "either noise or ids"),
        ({"noise": 8}, "either noise or ids"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(change, message):
    clips, ids = np.zeros((1, 6, 5, 3), np.float32), np.zeros(1, np.int64)
    outputs = np.zeros(10, np.int32)
    good = {
        "clips": clips.ctypes.data, "itemsize": 4, "tracks": 1, "frames": 6, "joints": 5, "channels": 3,
        "segment_frames": 3, "tube_len": 2, "keep": 1, "motion_weight": 0.1, "ids": ids.ctypes.data,
        "visible": outputs.ctypes.data, "masked": outputs[2:].ctypes.data,
    }  # fmt: skip
    native.tube_mask(**good)
    with pytest.raises(ValueError, match=message):
        native.tube_mask(**{**good, **change})
