"""Pages as files: numbers go in and come out, names are text, the browser's policy fits what is there."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest

from s2vfast.errors import DataError
from s2vfast.view import page, pictures


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_arrays_come_back_bit_for_bit(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)[:, ::-1]
    entry = json.loads(json.dumps(page.packed(array)))
    back = page.unpacked(entry)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(page.unpacked(page.packed(array.astype(array.dtype.newbyteorder(">")))), array)


def test_an_array_that_pages_do_not_read_is_refused():
    with pytest.raises(TypeError, match="float64"):
        page.packed(np.zeros(3))


@pytest.mark.parametrize("bits", [8, 16])
def test_quantised_values_are_off_by_half_a_step(bits):
    values = np.random.default_rng(0).normal(0, 2, (5, 7))
    entry = page.quantised(values, bits)
    step = (values.max() - values.min()) / (2**bits - 1)
    np.testing.assert_allclose(page.unpacked(entry), values, atol=0.5001 * step)
    for odd in (np.zeros((0, 3)), np.full((2, 2), 4.0)):
        np.testing.assert_allclose(page.unpacked(page.quantised(odd, bits)), odd)


@pytest.mark.parametrize("kind", page._SCRIPTS)
def test_the_policy_names_the_scripts_and_styles_that_are_there(kind):
    text = page.render(kind, "t", "s", {"x": 1})
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in text
    assert 'lang="en"' in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_titles_and_data_are_text():
    evil = "</script><script>alert(1)</script><!--<b>&\"'"
    text = page.render("curves", evil, evil, {"name": evil})
    assert evil not in text
    assert text.count("&lt;/script&gt;") == 3 * evil.count("</script>")  # title, heading, subtitle
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&") & set(data)
    assert json.loads(data) == {"name": evil}


@pytest.mark.parametrize(
    ("text", "drawn"), [("a$^$b", "a$^$b"), (r"\$5 $", r"\$5 $"), ("$", "$"), ("clip\ud800", "clip?")]
)
def test_pictures_draw_a_text_as_it_is(text, drawn):
    from matplotlib.text import Text

    # What matplotlib itself makes of it: the text that is laid out, and whether it is mathematics.
    assert Text(text=pictures.plain(text))._preprocess_math(pictures.plain(text)) == (drawn, False)


def test_half_a_character_becomes_a_question_mark(tmp_path):
    out = page.write(tmp_path / "a.html", "curves", "clip\ud800", "wave\udfff", {"name": "clip\ud800"})
    text = out.read_text("utf-8")
    assert "<h1>clip?</h1><p>wave?</p>" in text
    assert '{"name":"clip\\ud800"}' in text


def test_a_page_is_there_whole_or_as_it_was(tmp_path):
    out = tmp_path / "a.html"
    out.write_text("before")
    with pytest.raises(TypeError):
        page.write(out, "curves", "t", "s", {"x": object()})
    assert out.read_text() == "before"
    page.write(out, "curves", "t", "s", {})
    assert out.read_text("utf-8").startswith("<!doctype html>")
    with pytest.raises(DataError, match=r"missing/a\.html: cannot be written: No such file"):
        page.write(tmp_path / "missing/a.html", "curves", "t", "s", {})
    with pytest.raises(DataError, match="cannot be written"):
        page.write(out / "a.html", "curves", "t", "s", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
