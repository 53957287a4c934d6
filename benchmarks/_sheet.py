"""What pictures of results are drawn with: colours of light and dark pages, a sheet with a title, labels kept apart."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DPI = 200
WIDTH = 5.6  # inches: 1120 pixels
LARGE, NORMAL, SMALL, TINY = 11.0, 9.0, 7.5, 6.8  # points: to be read where a phone shows 400 pixels
MARGIN = 0.12  # inches
LINE = 0.155  # inches, of small print
SMALL_PRINT = 96  # characters of a line
_COLOURS = 128  # in a file: few, so that it is small; letters have soft edges


@dataclass(frozen=True)
class Theme:
    """Colours of a page; ``colours`` are told apart by colour-blind readers, too (after Okabe and Ito)."""

    name: str
    ground: str
    text: str
    muted: str
    faint: str
    colours: tuple[str, ...]


THEMES = (
    Theme(
        *("light", "#ffffff", "#1f2328", "#59636e", "#d8dee4"),
        ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#9aa3ad"),
    ),
    Theme(
        *("dark", "#0d1117", "#f0f6fc", "#9198a1", "#2f363e"),
        ("#4aa3df", "#f0b429", "#2bbd90", "#e29bc4", "#a5dcfb", "#ff7f3f", "#f5ec7a", "#7d8590"),
    ),
)


class Sheet:
    """A figure with a title, in small print what it is of, and a note below.

    Args:
        theme: its colours.
        title: in large letters.
        small: below the title.
        note: at the bottom.
        height: inches between these, for what is drawn.
    """

    def __init__(self, theme: Theme, title: str, small: str, note: str, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        above, below = textwrap.wrap(small, SMALL_PRINT), textwrap.wrap(note, SMALL_PRINT)
        self.theme = theme
        self.top = MARGIN + 0.24 + LINE * len(above) + 0.1  # inches from the upper edge to what is drawn
        self.height = self.top + height + LINE * len(below) + 2 * MARGIN
        # Figure and canvas of their own: pyplot would look for a display and keep global state.
        self.figure = Figure(figsize=(WIDTH, self.height), dpi=DPI, facecolor=theme.ground)
        self.canvas = FigureCanvasAgg(self.figure)
        self.write(MARGIN, MARGIN, title, size=LARGE, weight="bold", va="top")
        for number, line in enumerate(above):
            self.write(MARGIN, MARGIN + 0.24 + LINE * number, line, size=SMALL, va="top", color=theme.muted)
        for number, line in enumerate(below):
            at = self.top + height + MARGIN + LINE * number
            self.write(MARGIN, at, line, size=SMALL, va="top", color=theme.muted)

    def write(self, x: float, y: float, text: str, **options: Any) -> None:
        """Text at inches from the left and the upper edge."""
        options = {"size": NORMAL, "color": self.theme.text, "va": "center", **options}
        self.figure.text(x / WIDTH, 1 - y / self.height, text, **options)

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        """A thin line between points in inches from the left and the upper edge."""
        from matplotlib.lines import Line2D

        x, y = [start[0] / WIDTH, end[0] / WIDTH], [1 - start[1] / self.height, 1 - end[1] / self.height]
        self.figure.add_artist(Line2D(x, y, color=colour, linewidth=0.8, zorder=1))

    def axes(self, left: float, width: float, top: float, height: float) -> Any:
        """Axes, placed in inches, ``top`` below the title."""
        bottom = self.height - self.top - top - height
        place = (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
        found = self.figure.add_axes(place, facecolor=self.theme.ground)
        found.spines[:].set_visible(False)
        found.tick_params(colors=self.theme.muted, labelsize=SMALL, length=0, which="both")
        found.set_axisbelow(True)
        return found

    def place(self, axes: Any, x: float, y: float) -> tuple[float, float]:
        """Where a point of axes is: inches from the left and the upper edge."""
        right, up = axes.transData.transform((x, y)) / DPI
        return float(right), self.height - float(up)

    def png(self) -> bytes:
        """The picture: the same bytes for the same drawing."""
        from PIL import Image

        self.canvas.draw()
        picture = Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")
        buffer = io.BytesIO()
        few = picture.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        # Colours that are near each other became one: the ground is to be the page's own.
        palette, at = few.getpalette() or [], 3 * few.getpixel((0, 0))
        palette[at : at + 3] = bytes.fromhex(self.theme.ground[1:])
        few.putpalette(palette)
        few.save(buffer, "PNG", optimize=True, dpi=(DPI, DPI))
        return buffer.getvalue()


def powers(low: float, high: float, base: int) -> list[float]:
    """Powers of a base in a range, seven at most."""
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / 7))
    return [float(base) ** power for power in range(first, last + 1) if power % step == 0]


def decades(low: float, high: float) -> list[float]:
    """Round numbers in a range: powers of ten; where these are fewer than three, also twice and five times them."""
    found = powers(low, high, 10)
    if len(found) > 2:
        return found
    tens = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)))]
    return [many * ten for ten in tens for many in (1, 2, 5) if low <= many * ten <= high]


def mark(axis: Any, places: Sequence[float]) -> None:
    """Numbers along an axis, and no others."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_minor_locator(NullLocator())
    axis.set_ticklabels([f"{place:,g}" for place in places])


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions in the order of ``wanted``, ``gap`` apart at least, as near to it as can be (least squares)."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # mean and count of those that touch
    for place, i in enumerate(order):
        blocks.append((wanted[i] - place * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (b, m), (a, n) = blocks.pop(), blocks.pop()
            blocks.append(((a * n + b * m) / (n + m), n + m))
    means = [mean for mean, count in blocks for _ in range(count)]
    found = [0.0] * len(wanted)
    for place, i in enumerate(order):
        found[i] = means[place] + place * gap
    return found


def uncrossed(points: Sequence[tuple[float, float]], column: float, labels: Sequence[float]) -> list[float]:
    """The labels' heights, given out so that no two straight lines from a point to its label cross.

    Args:
        points: x and y.
        column: x of the labels, right of all points.
        labels: y of each point's label.
    """
    found = list(labels)

    def at(i: int, x: float) -> float:
        """Height of a line there."""
        x0, y0 = points[i]
        return y0 + (found[i] - y0) * (x - x0) / (column - x0)

    def cross(i: int, j: int) -> bool:
        x = max(points[i][0], points[j][0])
        return (at(i, x) - at(j, x)) * (found[i] - found[j]) < 0

    # Every exchange makes the lines shorter, so that this comes to an end.
    while pairs := [(i, j) for i in range(len(found)) for j in range(i) if cross(i, j)]:
        i, j = pairs[0]
        found[i], found[j] = found[j], found[i]
    return found


def readable_on(colour: str) -> str:
    """Black or white, whichever is read more easily on a colour."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return "#000000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#ffffff"
