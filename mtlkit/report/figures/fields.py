"""Fields of numbers, coloured by value, at a place of a sheet: heatmaps without axes of their own.

A figure may have hundreds of them, and matplotlib's axes take most of its time; so they are drawn
on the sheet's canvas, in inches, and their names are texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, Normalize

from mtlkit.report.figures.sheet import Sheet
from mtlkit.report.figures.style import INK, SMALLEST
from mtlkit.report.figures.text import shorten, text_width

NAME_SIZE = 7.5
NUMBER_SIZE = 7.5
LONGEST_NAME = 1.1  # inches of a column's name; longer ones are shortened
SLANT = 40  # degrees by which the names of columns are turned
FOOT_SHARE = 0.7  # height of a slanted name, as a share of its width
OVERHANG_SHARE = 0.78  # what a slanted name takes at the left of its column, likewise
NAME_PITCH = 0.17  # of slanted names beside each other
LEADING_ZERO = re.compile(r"^([+−]?)0\.")


@dataclass(frozen=True)
class Scale:
    """How values become colours and numbers."""

    colours: Colormap  # the colour map
    norm: Normalize  # its ends
    ticks: Sequence[float]  # on the colour bar
    label: str  # of the colour bar
    text: Callable[[float], str]  # how a value is written
    missing: tuple[str, str]  # text and colour of a field without a value

    def contrast(self, value: float) -> str:
        """Black or white, whichever reads better on the colour of a value."""
        red, green, blue, _ = self.colours(self.norm(value))
        brightness = 0.299 * red + 0.587 * green + 0.114 * blue
        return "white" if brightness < 0.55 else INK


@dataclass(frozen=True)
class Fields:
    """Lines and columns of fields of one size, in inches from the top left of a sheet's body."""

    left: float
    top: float
    width: float
    height: float

    def draw(self, sheet: Sheet, values: np.ndarray, scale: Scale) -> Any:
        """Draw (lines, columns) of values with their numbers, as far as the fields have room for
        them; NaN is a field without a value.
        """
        lines, columns = values.shape
        image = sheet.canvas.pcolormesh(
            self.left + self.width * np.arange(columns + 1),
            self.top + self.height * np.arange(lines + 1),
            np.ma.masked_invalid(values),
            cmap=scale.colours,
            norm=scale.norm,
            edgecolors="white",
            linewidth=1.2,
        )
        numbers, size = self._numbers(values, scale)
        for (line, column), text in np.ndenumerate(numbers):
            value = float(values[line, column])
            colour = scale.contrast(value) if np.isfinite(value) else scale.missing[1]
            x = self.left + self.width * (column + 0.5)
            y = self.top + self.height * (line + 0.5)
            sheet.text(x, y, text, size=size, color=colour, ha="center", va="center")
        return image

    def _numbers(self, values: np.ndarray, scale: Scale) -> tuple[np.ndarray, float]:
        """(lines, columns) of texts, and their size in points: of narrow fields smaller, then
        without a leading 0, then none at all.
        """
        texts = np.full(values.shape, scale.missing[0], dtype=object)
        for place in zip(*np.nonzero(np.isfinite(values)), strict=True):
            texts[place] = scale.text(float(values[place]))
        bare = np.vectorize(lambda text: LEADING_ZERO.sub(r"\1.", text), otypes=[object])(texts)
        for shown, size in ((texts, NUMBER_SIZE), (texts, SMALLEST), (bare, SMALLEST)):
            if max(text_width(text, size) for text in shown.flat) < self.width - 0.03:
                return shown, size
        return np.full(values.shape, "", dtype=object), SMALLEST

    def name_lines(self, sheet: Sheet, names: Sequence[str], room: float) -> None:
        """Names at the left, in a column of ``room`` inches."""
        for line, name in enumerate(names):
            y = self.top + self.height * (line + 0.5)
            name = shorten(name, NAME_SIZE, room - 0.1)
            sheet.text(
                self.left - 0.05, y, name, size=NAME_SIZE, color=INK, ha="right", va="center"
            )

    def name_columns(self, sheet: Sheet, names: Sequence[str], lines: int) -> None:
        """Slanted names below the last of some lines; every second or third of narrow columns."""
        bottom = self.top + self.height * lines + 0.04
        step = math.ceil(NAME_PITCH / self.width)
        for column, name in list(enumerate(names))[::step]:
            sheet.text(
                self.left + self.width * (column + 0.5),
                bottom,
                shorten(name, NAME_SIZE, LONGEST_NAME),
                size=NAME_SIZE,
                color=INK,
                rotation=SLANT,
                rotation_mode="anchor",
                ha="right",
                va="top",
            )


def room_for(names: Sequence[str], most: float) -> float:
    """Inches that the longest of some names takes, up to ``most``."""
    return min(max(text_width(name, NAME_SIZE) for name in names), most)


def overhang(names: Sequence[str]) -> float:
    """What the slanted name of the first column may take at the left of the fields."""
    return OVERHANG_SHARE * room_for(names, LONGEST_NAME) - 0.2


def foot_of(names: Sequence[str]) -> float:
    """Height of the slanted names of some columns."""
    return FOOT_SHARE * room_for(names, LONGEST_NAME) + 0.16
