"""Readers of depth: what they read, and one clear line for everything else."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from s2vfast.data.formats.depth_files import Pictures, read_bin, read_mat, read_npy, read_png
from s2vfast.errors import DataError

from . import depth_pictures as pictures

DEPTH = pictures.frames()


def saved(tmp_path, content, name="file.mat"):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("flags", [6, 11])  # a double array whose numbers fit 16 bits, as MSR-Action3D's, and uint16
def test_mat(tmp_path, compressed, flags):
    other = pictures.mat_array(DEPTH[:1], name="fps")
    file = pictures.mat(other, pictures.mat_array(DEPTH, flags=flags), compressed=compressed)
    np.testing.assert_array_equal(read_mat(saved(tmp_path, file)), DEPTH)


def test_mat_of_small_numbers_and_one_frame(tmp_path):
    small = DEPTH[:1] // 16  # fits bytes
    file = pictures.mat(pictures.mat_array(small, stored=2, sizes=list(small.shape[1:])))
    np.testing.assert_array_equal(read_mat(saved(tmp_path, file)), small)


@pytest.mark.parametrize("compressed", [True, False])
def test_mat_is_what_scipy_writes(tmp_path, compressed):
    io = pytest.importorskip("scipy.io")
    io.savemat(tmp_path / "a.mat", {"note": "x", "depth": DEPTH.transpose(1, 2, 0)}, do_compression=compressed)
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat"), DEPTH)


GOOD = pictures.mat(pictures.mat_array(DEPTH))
PLAIN = pictures.mat(pictures.mat_array(DEPTH), compressed=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header is another"),
        (b"MATLAB 7.3 MAT-file" + bytes(600), "version 7.3"),
        (GOOD[:126] + b"MI" + GOOD[128:], "big-endian"),
        (GOOD[:-20], "cut off"),
        (GOOD[:128] + struct.pack("<2I", 15, len(GOOD) - 140) + GOOD[136:-4], "more bytes than its array has, or cut"),
        (PLAIN[:-30], "cut off"),
        (GOOD[:200] + b"\0\0\0\0" + GOOD[204:], "Error -3"),
        (pictures.mat(pictures.mat_array(DEPTH, name="video")), "it holds 'video'"),
        (pictures.mat(pictures.mat_array(DEPTH, flags=1)), "it is cell"),
        (pictures.mat(pictures.mat_array(DEPTH, flags=0x0806)), "it is complex"),
        (pictures.mat(pictures.mat_array(DEPTH, stored=9)), "bytes of type 9"),
        (pictures.mat(pictures.mat_array(DEPTH, sizes=[12, 16, 5])), "1,536 bytes of type 4 for sizes [12, 16, 5]"),
        (pictures.mat(pictures.mat_array(DEPTH, sizes=[12, -16, 4])), "its sizes are [12, -16, 4]"),
        (pictures.mat(pictures.mat_array(DEPTH, sizes=[2, 6, 16, 4])), "its sizes are [2, 6, 16, 4]"),
        (pictures.HEADER + pictures.element(5, b"abcd"), "an element of type 5, expected an array"),
    ],
)  # fmt: skip
def test_mat_that_is_malformed(tmp_path, content, message):
    with pytest.raises(DataError, match="numbers of 16 bits") as caught:
        read_mat(saved(tmp_path, content))
    assert message in str(caught.value)
    assert "file.mat" in str(caught.value)


def bomb(claim=4096 * 4096 * 16 * 2):
    """A megabyte of zeros, deflated to a kilobyte, that claims to become 512 of them."""
    head = pictures.element(6, struct.pack("<2I", 11, 0)) + pictures.element(5, struct.pack("<3i", 4096, 4096, 16))
    head += pictures.element(1, b"depth") + struct.pack("<2I", 4, claim)
    return pictures.HEADER + (lambda packed: struct.pack("<2I", 15, len(packed)) + packed)(
        zlib.compress(struct.pack("<2I", 14, claim + 64) + head + bytes(2**20))
    )


def test_mat_that_would_become_too_large(tmp_path):
    file = saved(tmp_path, bomb())
    tracemalloc.start()
    with pytest.raises(DataError, match="at most of a file of its size: refused"):
        read_mat(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_bin(tmp_path):
    file = saved(tmp_path, pictures.raw(DEPTH), "a.bin")
    np.testing.assert_array_equal(read_bin(file), DEPTH)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\1\0\0", "3 bytes; frames, width and height"),
        (struct.pack("<3I", 0, 4, 4), "0 frames of 4 x 4 pixels: no raw depth"),
        (struct.pack("<3I", 2, 1 << 20, 4), "no raw depth"),
        (pictures.raw(DEPTH)[:-1], "cut off"),
        (struct.pack("<4I", 1, 1, 1, 1 << 16), "a depth of 65,536"),
    ],
)
def test_bin_that_is_malformed(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_bin(saved(tmp_path, content, "a.bin"))


def test_png(tmp_path):
    pictures.png(tmp_path / "a.png", DEPTH[0])
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), DEPTH[0])


def test_png_that_is_malformed(tmp_path):
    pictures.png(tmp_path / "a.png", DEPTH[0])
    good = (tmp_path / "a.png").read_bytes()
    Image.fromarray(DEPTH[0].astype(np.uint8)).save(tmp_path / "eight.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "cut.png").write_bytes(good[:-30])
    (tmp_path / "no.png").write_bytes(b"GIF89a" + good)
    (tmp_path / "wide.png").write_bytes(good[:16] + struct.pack(">I", 1 << 20) + good[20:])
    (tmp_path / "bomb.png").write_bytes(good[:16] + struct.pack(">2I", 8000, 8000) + good[24:])
    for name, message in {
        "eight": "8 bits, grey; 16 bits of one channel",
        "colour": "8 bits, RGB; 16 bits of one channel",
        "cut": "damaged PNG",
        "no": "no PNG",
        "wide": "1,048,576 x 12 pixels",
        "bomb": "that become 128,000,000",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            read_png(tmp_path / f"{name}.png")
        assert f"{name}.png" in str(caught.value)


def test_a_missing_picture_is_a_frame_of_zeros(tmp_path):
    pictures.png(tmp_path / "a.png", DEPTH[0])
    read = list(Pictures([None, tmp_path / "a.png", None]))
    assert [frame.any() for frame in read] == [False, True, False]
    assert {frame.shape for frame in read} == {DEPTH[0].shape}


def test_npy(tmp_path):
    np.save(tmp_path / "a.npy", DEPTH[0] / 1000)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), DEPTH[:1] / 1000)
    for name, array in {"four": DEPTH[None], "words": np.array(["a"]), "none": DEPTH[:0]}.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(DataError, match="expected numbers"):
            read_npy(tmp_path / f"{name}.npy")


@pytest.mark.parametrize(
    ("read", "content"), [(read_mat, GOOD), (read_mat, PLAIN), (read_bin, pictures.raw(DEPTH)), (read_png, None)]
)
def test_damage_is_one_error_and_never_another(tmp_path, read, content):
    if content is None:
        pictures.png(tmp_path / "good.png", DEPTH[0])
        content = (tmp_path / "good.png").read_bytes()
    rng = np.random.default_rng(3)
    messages = []
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(0, len(damaged)))
            match rng.integers(0, 3):
                case 0:
                    damaged[start] = int(rng.integers(0, 256))
                case 1:
                    del damaged[start : start + int(rng.integers(1, 40))]
                case 2:
                    damaged[start:start] = rng.bytes(int(rng.integers(1, 9)))
            damaged = damaged or bytearray(b"x")
        try:
            depth = read(saved(tmp_path, bytes(damaged), "damaged.png"))
            assert depth.dtype == np.uint16
            assert depth.size < 10 * DEPTH.size
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all("damaged.png" in message and "\n" not in message for message in messages)
