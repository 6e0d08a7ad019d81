"""How wide a text is, and how to shorten one to a width."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags

from mtlkit.report.figures.style import FONTS
from mtlkit.report.summary import Row

BOLD = 1.16  # how much wider bold text is
POINTS = 72  # points of an inch
MEASURED_SIZE = 100.0  # points of the font by which widths are measured


@lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """Inches that a text takes at a font size in points."""
    font = get_font([findfont(FontProperties(family=name)) for name in FONTS])
    font.set_size(MEASURED_SIZE, POINTS)  # again, as drawing uses the same object
    font.set_text(text, flags=LoadFlags.NO_HINTING)
    width, _ = font.get_width_height()  # in 64ths of a point at the size of the font
    return float(width) / 64 / MEASURED_SIZE * size / POINTS


def letters_without_font(texts: Iterable[str]) -> str:
    """Letters of some texts that no font of this machine has, each once."""
    fonts = [get_font(findfont(FontProperties(family=name))) for name in FONTS]
    known = {letter for font in fonts for letter in font.get_charmap()}
    return "".join(sorted(letter for letter in set("".join(texts)) if ord(letter) not in known))


@contextmanager
def missing_letters_allowed() -> Iterator[None]:
    """Draw without a warning for each letter that no font has; see :func:`letters_without_font`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield


def shorten(text: str, size: float, width: float, bold: bool = False) -> str:
    """The text, with an ellipsis in its middle when it is wider than ``width`` inches."""
    size *= BOLD if bold else 1.0
    if text_width(text, size) <= width:
        return text

    # Bisection: ``fits`` letters go into the width, ``over`` letters do not.
    fits, over = 0, len(text)
    while over - fits > 1:
        middle = (fits + over) // 2
        if text_width(_cut(text, middle), size) <= width:
            fits = middle
        else:
            over = middle
    return _cut(text, fits)


def _cut(text: str, kept: int) -> str:
    """Some letters of both ends: names often differ at their end."""
    tail = kept * 2 // 5
    end = text[-tail:].lstrip() if tail else ""
    return text[: kept - tail].rstrip() + "…" + end


def in_two(head: str, tail: str, size: float, width: float) -> str:
    """Two names on one line where they fit, else below each other; each shortened to the width."""
    whole = f"{head} · {tail}"
    if text_width(whole, size) <= width:
        return whole
    return "\n".join(shorten(name, size, width) for name in (head, tail))


def row_label(row: Row, size: float, width: float) -> str:
    """The label of a row, its model shortened first so that rows stay distinct."""
    label = row.group.label
    if text_width(label, size) <= width or label == row.group.model:
        return shorten(label, size, width)
    balancer = shorten(f" + {row.group.balancer}", size, 0.6 * width)
    return shorten(row.group.model, size, width - text_width(balancer, size)) + balancer
