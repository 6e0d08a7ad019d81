"""Fields of numbers, coloured by value, at a place of a sheet: heatmaps without axes of their own.

A figure may have hundreds of them, and matplotlib's axes take most of its time; so they are drawn
on the sheet's canvas, in inches, and their names are texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, Normalize

from mtlkit.report.figures.sheet import Sheet
from mtlkit.report.figures.style import INK
from mtlkit.report.figures.text import shorten, text_width

NAME_SIZE = 7.5
LONGEST_NAME = 1.1  # inches of a column's name; longer ones are shortened
SLANT = 40  # degrees by which the names of columns are turned
FOOT_SHARE = 0.7  # height of a slanted name, as a share of its width


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
        """Draw (lines, columns) of values with their numbers; NaN is a field without a value."""
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
        size = _number_size(self.width)
        for (line, column), value in np.ndenumerate(values):
            text, colour = scale.missing
            if np.isfinite(value):
                text, colour = scale.text(value), scale.contrast(value)
            x = self.left + self.width * (column + 0.5)
            y = self.top + self.height * (line + 0.5)
            sheet.text(x, y, text, size=size, color=colour, ha="center", va="center")
        return image

    def name_lines(self, sheet: Sheet, names: Sequence[str], room: float) -> None:
        """Names at the left, in a column of ``room`` inches."""
        for line, name in enumerate(names):
            y = self.top + self.height * (line + 0.5)
            name = shorten(name, NAME_SIZE, room - 0.1)
            sheet.text(
                self.left - 0.05, y, name, size=NAME_SIZE, color=INK, ha="right", va="center"
            )

    def name_columns(self, sheet: Sheet, names: Sequence[str], lines: int) -> None:
        """Slanted names below the last of some lines."""
        bottom = self.top + self.height * lines + 0.04
        for column, name in enumerate(names):
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


def foot_of(names: Sequence[str]) -> float:
    """Height of the slanted names of some columns."""
    return FOOT_SHARE * room_for(names, LONGEST_NAME) + 0.16


def _number_size(width: float) -> float:
    """Font size of the numbers in fields of this width."""
    if width > 0.36:
        return 7.5
    return 6.5 if width > 0.28 else 5.5
