"""Text formats: one number grammar, and the extension's parsers against those in Python."""

import os
import struct

import numpy as np
import pytest

from s2vfast import _extension
from s2vfast.data.formats import ntu, text
from s2vfast.data.formats.base import BrokenRecording
from s2vfast.data.importer import import_dataset
from s2vfast.data.store import Store

from .ntu_files import IDS, frames_of, person, skeleton_text

needs_extension = pytest.mark.skipif(
    bool(_extension.why_not()) or not hasattr(_extension.load(), "text_ntu"),
    reason="the compiled extension is missing, or has no text parsers",
)
# More by hand: S2VFAST_FUZZ=1000000.
ROUNDS = int(os.environ.get("S2VFAST_FUZZ", "1500"))

NUMBERS = ["0", "-0", "1", "-1.5", "007", "0.1", "1e5", "1E-5", "1.25e+3", "123456789.123456789", "0.30000000000000004"]
NO_NUMBERS = ["", "-", "+1", "+2_5", "1_0.5", "1.", ".5", "1.e3", "0x1p3", "1e", "1e+", "--1", "1,5", "1 2", "٣",
              "1\x0b2", "infinit", "nan(1)", "1" * 65, "１"]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_are_read_to_the_nearest_double(number):
    assert text.numbers([number.encode()]) == [float(number)]


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_nothing_else_is_a_number(number):
    with pytest.raises(ValueError, match="^'"):
        text.numbers([number.encode()])


@pytest.mark.parametrize("number", ["1_0", "+1", "١", "1.0", "", "1" * 21, "0x1"])
def test_whole_numbers_are_digits(number):
    with pytest.raises(BrokenRecording, match="f:7: count: expected a whole number"):
        text.whole_number(number.encode(), "count", "f", 7, 0, 100)


def ntu_line(x="0.25", body=IDS[0]):
    """A file of one frame and one body, with ``x`` as the first number."""
    frame = frames_of((body, 0, person(1)), total=1)
    lines = skeleton_text(frame, "\n").split("\n")
    lines[4] = " ".join([x, *lines[4].split(" ")[1:]])
    return "\n".join(lines).encode()


@pytest.mark.parametrize("parse", [text.parse_ntu, text.parse_ntu_in_python])
@pytest.mark.parametrize("number", [number for number in NO_NUMBERS if number and " " not in number])
def test_ntu_refuses_what_is_no_number(parse, number):
    with pytest.raises(BrokenRecording, match="f:5: "):
        parse(ntu_line(number), "f")


@pytest.mark.parametrize("parse", [text.parse_ntu, text.parse_ntu_in_python])
@pytest.mark.parametrize("body", ["7205é", "1_2", "abc", "-1", "1" * 21])
def test_ids_of_bodies_are_digits(parse, body):
    with pytest.raises(BrokenRecording, match="f:3: a body's id has up to 20 digits"):
        parse(ntu_line(body=body), "f")


@needs_extension
def test_the_extension_reads_ordinary_files():
    data = skeleton_text(frames_of((IDS[0], 0, person(9)), (IDS[1], 3, person(4)), total=12)).encode()
    assert _extension.load().text_ntu(data) is not None
    assert _extension.load().text_ntu(data.replace(b"\r\n", b"\n") + b" \n\n") is not None
    assert _extension.load().text_pkummd(b"\n".join([b" ".join([b"-1.5e-3"] * 150)] * 3)) is not None
    assert _extension.load().text_pkummd(b"") is not None


@needs_extension
def test_doubles_of_the_extension_are_python_s():
    rng = np.random.default_rng(0)
    for _ in range(60):
        bits = rng.integers(0, 2**63, 150, dtype=np.int64)
        doubles = [struct.unpack("<d", struct.pack("<q", int(b)))[0] for b in bits]
        digits = [repr(x) if np.isfinite(x) else "1.5" for x in doubles]
        digits[::3] = [f"{x:.{d}f}" for x, d in zip(rng.normal(0, 30, 50), rng.integers(1, 17, 50), strict=True)]
        line = " ".join(digits).encode()
        values = _extension.load().text_pkummd(line)
        assert values is not None
        assert values == np.array(list(map(float, line.split()))).tobytes()


def result_of(parse, data):
    """What a parser gives for a file, as plain values: numbers as bytes, or its message."""
    try:
        parsed = parse(data, "f")
    except BrokenRecording as error:
        return str(error)
    if isinstance(parsed, np.ndarray):
        return parsed.tobytes()
    frames, tracks, notes = parsed
    return frames, [(t.body_id, t.frame_index.tolist(), t.joints.tobytes(), t.joints.shape) for t in tracks], notes


PIECES = [b"_", b"+", b"-", b".", b"e", b" ", b"\t", b"\r", b"\n", b"\x0b", b"\0", b"\xff", b"9", b"0", b"nan", b"inf",
          b"1e999", b"1e-999", b"00", "٣".encode(), b"25", b"1_0"]  # fmt: skip


def mutate(data, rng):
    """One to three changes: of a byte, of a field, of a line, a cut, a piece put in."""
    for _ in range(rng.integers(1, 4)):
        at, kind = int(rng.integers(0, max(1, len(data)))), rng.integers(0, 7)
        piece = PIECES[rng.integers(len(PIECES))]
        if kind == 0:
            data = data[:at] + bytes([rng.integers(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + piece + data[at + 1 :]
        elif kind == 2:
            data = data[:at] + piece + data[at:]
        elif kind == 3:
            data = data[:at] + data[at + int(rng.integers(1, 5)) :]
        elif kind == 4 and rng.integers(8) == 0:
            data = data[:at]
        else:
            lines = data.split(b"\n")
            number = int(rng.integers(len(lines)))
            fields = lines[number].split(b" ")
            if kind == 4:
                lines[number] = lines[int(rng.integers(len(lines)))]
            elif kind == 5:
                fields[int(rng.integers(len(fields)))] = piece
                lines[number] = b" ".join(fields)
            else:
                del lines[number]
            data = b"\n".join(lines)
    return data


@needs_extension
@pytest.mark.parametrize("format", ["ntu", "pkummd"])
def test_both_parsers_say_the_same_of_any_file(format):
    rng = np.random.default_rng(1)
    if format == "ntu":
        frames = frames_of((IDS[0], 0, person(2)), (IDS[1], 1, person(1)), total=3)
        good, parse, in_python = skeleton_text(frames, "\n").encode(), text.parse_ntu, text.parse_ntu_in_python
    else:
        lines = [" ".join(f"{x:.5f}" for x in rng.normal(0, 1, 150)) for _ in range(3)]
        good, parse, in_python = "\n".join(lines).encode(), text.parse_pkummd, text.parse_pkummd_in_python
    refused = 0
    for _ in range(ROUNDS):
        data = mutate(good.replace(b"\n", b"\r\n") if rng.integers(2) else good, rng)
        ours, expected = result_of(parse, data), result_of(in_python, data)
        assert ours == expected, data
        refused += isinstance(ours, str)
    assert ROUNDS / 20 < refused < ROUNDS


def test_a_store_is_the_same_without_the_extension(tmp_path, monkeypatch):
    src = tmp_path / "src"
    src.mkdir()
    for action in range(1, 5):
        frames = frames_of((IDS[0], 0, person(20, seed=action)), (IDS[1], 2, person(15, seed=9)), total=20)
        (src / f"S001C00{action % 3 + 1}P00{action}R001A00{action}.skeleton").write_text(skeleton_text(frames))
    import_dataset(src, tmp_path / "a")
    monkeypatch.setattr(text, "_native", lambda name: None)
    import_dataset(src, tmp_path / "b")
    assert Store.open(tmp_path / "a").fingerprint == Store.open(tmp_path / "b").fingerprint


@pytest.mark.parametrize("name", ["a device", "a pipe", "a folder", "a large file"])
def test_what_is_no_plain_file_costs_one_recording(tmp_path, name, monkeypatch):
    src = tmp_path / "src"
    src.mkdir()
    good = skeleton_text(frames_of((IDS[0], 0, person(12)), total=12))
    (src / "S001C001P001R001A001.skeleton").write_text(good)
    bad = src / "S001C001P001R001A002.skeleton"
    if name == "a device":
        bad.symlink_to("/dev/zero")
    elif name == "a pipe":
        os.mkfifo(bad)
    elif name == "a folder":
        bad.mkdir()
    else:
        monkeypatch.setattr(ntu, "MAX_TEXT_BYTES", len(good) + 10)
        bad.write_text(good + " " * 20)
    report = import_dataset(src, tmp_path / "store")
    assert report.sequences == 1
    (entry,) = report.broken
    assert entry["file"] == bad.name
    expected = {"a folder": "cannot be read: Is a directory", "a large file": "at most are read"}
    assert expected.get(name, "is a device or a pipe; a plain file is expected") in entry["reason"]


def test_too_many_lines_are_refused_before_they_are_split(monkeypatch):
    monkeypatch.setattr(text, "MAX_LINES", 100)
    for parse in (text.parse_ntu, text.parse_pkummd):
        with pytest.raises(BrokenRecording, match="f: more than 100 lines"):
            parse(b"\n" * 101, "f")
