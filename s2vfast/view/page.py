"""A page: one HTML file with its style, its script and its numbers in it, which asks nothing of any network.

The numbers stand as JSON in the page, arrays in it as base64. The browser is told (by a Content-Security-Policy) to
run the page's own script alone, known by its hash, and to load nothing. A live page alone asks for more, of the server
that it came from.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np

import s2vfast.errors as errors
from s2vfast import files

_SCRIPTS = {
    "sequence": ("skeleton",),
    "cloud": ("skeleton",),
    "mask": ("skeleton", "grid"),
    "attention": ("skeleton", "grid"),
    "neighbours": ("skeleton",),
    "map": ("skeleton", "animations"),
    "results": ("skeleton", "animations"),
    "curves": (),
    "live": ("skeleton",),
}
"""Kind of page → the scripts between base.js and its own, in ``assets/``."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; script-src '{script_hash}'; \
style-src '{style_hash}'; {connect}base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><div><h1>{title}</h1><p>{subtitle}</p></div></header>
<main id="main"><noscript>This page draws with JavaScript, which is switched off here.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array for the page's JSON, every bit of it: ``{shape, dtype, data}``, ``data`` base64, little-endian.

    Args:
        array: uint8, uint16, int32 or float32.
    """
    if array.dtype.name not in ("uint8", "uint16", "int32", "float32"):
        raise TypeError(f"{array.dtype}: not a type that the pages read")
    raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "data": base64.b64encode(raw).decode()}


def quantised(array: np.ndarray, bits: int = 16, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """An array in ``bits`` a number: what `packed` gives, with the ``scale`` and ``offset`` that bring the values back.

    Args:
        array: floating, finite.
        bits: 8 or 16.
        low: smallest value there may be; None: the array's own.
        high: largest, likewise.

    Returns:
        value = stored * scale + offset, off by half a scale at most.
    """
    values = np.asarray(array, dtype=np.float64)
    low = float(values.min()) if low is None and values.size else float(low or 0.0)
    high = float(values.max()) if high is None and values.size else float(high or 0.0)
    levels = 2**bits - 1
    scale = (high - low) / levels or 1.0
    stored = np.clip(np.rint((values - low) / scale), 0, levels).astype(np.uint8 if bits == 8 else np.uint16)
    return {**packed(stored), "scale": scale, "offset": low}


def unpacked(entry: dict[str, Any]) -> np.ndarray:
    """The array of a page's ``{shape, dtype, data}``; float64 where it was `quantised`."""
    stored = np.frombuffer(base64.b64decode(entry["data"]), dtype=np.dtype(entry["dtype"]).newbyteorder("<"))
    stored = stored.reshape(entry["shape"])
    return stored * entry["scale"] + entry["offset"] if "scale" in entry else stored


def render(kind: str, title: str, subtitle: str, data: dict[str, Any]) -> str:
    """The HTML of a page.

    Args:
        kind: sequence, cloud, mask, attention, neighbours, map, results, curves or live.
        title: above the page, any text.
        subtitle: below the title, any text.
        data: numbers for JSON; arrays as `packed` or `quantised` give them.
    """
    assets = importlib.resources.files("s2vfast.view") / "assets"
    scripts = [(assets / f"{name}.js").read_text("utf-8") for name in ("base", *_SCRIPTS[kind], kind)]
    # One scope of its own for all of them.
    script = "\n(() => {\n" + "\n".join(scripts) + "\n})();\n"
    style = (assets / "view.css").read_text("utf-8")
    # Of the characters of JSON, only these could end the element that it stands in or begin another.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _PAGE.format(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        style=style,
        style_hash=_hash(style),
        connect="connect-src 'self'; " if kind == "live" else "",
        script=script,
        script_hash=_hash(script),
        data=text,
    )


def write(out: str | Path, kind: str, title: str, subtitle: str, data: dict[str, Any]) -> Path:
    """Write a page to the file ``out``, which is replaced where it is there; arguments as of `render`.

    Raises:
        DataError: the file cannot be written.
    """
    out = Path(out)
    # Half a character (a lone surrogate) of a name is no text; it becomes a question mark.
    content = render(kind, title, subtitle, data).encode("utf-8", "replace")
    with files.disk_errors(out, errors.DataError):
        files.write_bytes(out, content)
    return out


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
