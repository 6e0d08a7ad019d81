"""The sheet that a figure is drawn on: title, subtitle, legend and panels, laid out in inches."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtlkit.report.figures.compact import compact
from mtlkit.report.figures.style import (
    DPI,
    INK,
    MUTED,
    PAPER_DPI,
    RC,
    REFERENCE_MARKER,
    SMALLEST,
    WIDTH,
)
from mtlkit.report.figures.text import shorten, text_width

MARGIN = 0.1
LEGEND_LINE = 0.22
LEGEND_SIZE = 8.5
LONGEST_ENTRY = 3.5
HIGHEST_PNG = 20  # inches
ABOUT: dict[str, dict[str, str | None]] = {
    "svg": {"Date": None, "Creator": "mtlkit"},
    "png": {"Software": "mtlkit"},
    "pdf": {"CreationDate": None, "Creator": "mtlkit"},
}
"""Format to what a file says of itself, which is the same whenever it is written."""


@dataclass(frozen=True)
class Drawing:
    """A finished figure."""

    name: str  # part of the file name
    title: str  # heading on the page
    caption: str  # what is shown and how to read it
    figure: Figure = field(compare=False)  # the drawing itself


@dataclass(frozen=True)
class Entry:
    """One entry of a legend: a marker, a line, or both; a heading when it has neither."""

    label: str
    colour: str
    marker: str = "o"
    line: Any = ""
    hollow: bool = False

    @property
    def symbol(self) -> float:
        """Width of the marker or line."""
        if self.line:
            return 0.3
        return 0.12 if self.marker else 0.0

    @property
    def space(self) -> float:
        """Width of what is no text: the symbol, and the room after it and after the text."""
        return self.symbol + 0.27 if self.symbol else 0.18

    @property
    def width(self) -> float:
        """Width of the whole entry."""
        return self.space + text_width(self.label, LEGEND_SIZE)

    def within(self, width: float) -> Entry:
        """The same entry, its label shortened if it is very long, or wider than the sheet."""
        room = min(LONGEST_ENTRY, width - self.space)
        return replace(self, label=shorten(self.label, LEGEND_SIZE, room))


@dataclass(frozen=True)
class PanelGrid:
    """Panels of one size in lines and columns, in inches from the top left of a sheet's body."""

    left: float  # left edge of the first column
    top: float  # upper edge of the first line
    width: float  # width of a panel
    height: float  # height of a panel
    gap: float  # space between columns
    pitch: float  # from the upper edge of one line to that of the next

    def x(self, column: int) -> float:
        """Left edge of a column."""
        return self.left + column * (self.width + self.gap)

    def axes(self, sheet: Sheet, line: int, column: int) -> Axes:
        """New axes at a place of the grid."""
        return sheet.axes(self.x(column), self.top + line * self.pitch, self.width, self.height)


@dataclass(frozen=True)
class Columns:
    """Panels that fill a sheet beside each other."""

    number: int  # of panels on a line
    width: float  # of a panel

    @classmethod
    def that_fit(
        cls, width: float, wanted: int, least: float, left: float, right: float, gap: float
    ) -> Columns:
        """As many columns as wanted, or as fit on a sheet.

        Args:
            width: Of the sheet.
            least: Width of the narrowest panel that can be read.
            left: Room at the left of the first column.
            right: Room at the right of the last one.
            gap: Space between columns.
        """
        room = width - left - right + gap
        number = max(1, min(wanted, int(room / (least + gap))))
        return cls(number, room / number - gap)


Place = tuple[int, int]
"""Line and column of a panel."""


def flow_panels(counts: Sequence[int], columns: int) -> list[list[Place]]:
    """The places of groups of panels, each of which begins a new line."""
    places, first = [], 0
    for count in counts:
        places.append([(first + index // columns, index % columns) for index in range(count)])
        first += -(-count // columns)
    return places


class Sheet:
    """A figure laid out in inches from its top left: title, subtitle, legend, then the body.

    On paper, which has another width than the page, the text has the title in its caption; there
    the sheet begins with the subtitle.

    Args:
        body: Height below the legend.
        legend: Entries, wrapped to the width.
        width: Of the whole figure.
        has_bar: Whether there is a colour bar, for which paper needs a line of its own.
    """

    def __init__(
        self,
        title: str,
        subtitle: str,
        body: float,
        legend: Sequence[Entry] = (),
        *,
        width: float = WIDTH,
        has_bar: bool = False,
    ) -> None:
        self.width = width
        self.is_paper = width != WIDTH
        if self.is_paper:
            head, subtitle_top, size = 0.3, 0.08, 8.0
        else:
            head, subtitle_top, size = 0.66, 0.39, 9.0

        # The legend decides where the body begins, and so how high the figure is.
        entries = [entry.within(width - MARGIN) for entry in legend]
        places = _flow(entries, width - MARGIN)
        legend_lines = max((line for _, line in places), default=-1) + 1
        legend_height = LEGEND_LINE * legend_lines + 0.1 if legend_lines else 0.08
        self._bar_top = head + legend_height + 0.2 if self.is_paper else 0.4
        self.body_top = head + legend_height + (0.5 if self.is_paper and has_bar else 0)
        self.height = self.body_top + body
        self.figure = Figure(figsize=(width, self.height))

        # A colour bar may stand at the right of the title.
        if not self.is_paper:
            title = shorten(title, 11.5, width - 2.8, bold=True)
            self._text(MARGIN, 0.12, title, size=11.5, weight="bold", va="top")
        subtitle = shorten(subtitle, size, width - 0.3)
        self._text(MARGIN, subtitle_top, subtitle, size=size, color=MUTED, va="top")
        for entry, (left, line) in zip(entries, places, strict=True):
            self._legend_entry(entry, MARGIN + left, head + 0.12 + LEGEND_LINE * line)

    def _y(self, inches: float) -> float:
        """The share of the height that matplotlib counts from below."""
        return 1 - inches / self.height

    def _text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text at a place of the whole figure."""
        self.figure.text(left / self.width, self._y(top), text, **style)

    def _legend_entry(self, entry: Entry, left: float, top: float) -> None:
        if not entry.symbol:
            self._legend_text(entry, left, top, colour=MUTED)
            return

        # A line of three points, so that the marker stands in its middle.
        right = left + entry.symbol
        xs = [edge / self.width for edge in (left, left + entry.symbol / 2, right)]
        symbol = Line2D(
            xs,
            [self._y(top)] * 3,
            color=entry.colour,
            linestyle=entry.line or "none",
            linewidth=1.8,
            marker=entry.marker or None,
            markevery=[1],
            markersize=8 if entry.marker == REFERENCE_MARKER else 6,
            markerfacecolor="white" if entry.hollow else entry.colour,
        )
        self.figure.add_artist(symbol)
        self._legend_text(entry, right + 0.07, top, colour=INK)

    def _legend_text(self, entry: Entry, left: float, top: float, colour: str) -> None:
        self._text(left, top, entry.label, size=LEGEND_SIZE, va="center_baseline", color=colour)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place of the body, in inches from its top left."""
        bottom = self._y(self.body_top + top + height)
        place = (left / self.width, bottom, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    @cached_property
    def canvas(self) -> Axes:
        """Axes without a frame that span the body, with inches from its top left as coordinates."""
        height = self.height - self.body_top
        axes = self.axes(0, 0, self.width, height)
        axes.set_axis_off()
        axes.set_xlim(0, self.width)
        axes.set_ylim(height, 0)
        axes.set_autoscale_on(False)
        return axes

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text at a place of the body, in inches."""
        self._text(left, self.body_top + top, text, **style)

    def heading(self, left: float, top: float, text: str, size: float, width: float) -> None:
        """Bold text on a line of the body, shortened to the width of the panel below it."""
        text = shorten(text, size, width, bold=True)
        self.text(left, top, text, size=size, weight="bold", va="bottom")

    def colourbar(
        self, image: Any, label: str, ticks: Sequence[float], length: float = 2.2
    ) -> None:
        """A horizontal colour bar at the right of the title; on paper, above the body."""
        left = MARGIN + 0.1 if self.is_paper else self.width - length - 0.2
        place = (left / self.width, self._y(self._bar_top + 0.1))
        bar = self.figure.add_axes((*place, length / self.width, 0.1 / self.height))
        colours = self.figure.colorbar(image, cax=bar, orientation="horizontal")
        colours.outline.set_visible(False)
        bar.tick_params(labelsize=SMALLEST, length=2, pad=1.5)
        bar.set_xticks(list(ticks), [f"{tick:.3g}".replace("-", "−") for tick in ticks])
        bar.set_title(label, size=8, color=MUTED, pad=3)


def _flow(entries: Sequence[Entry], width: float) -> list[tuple[float, int]]:
    """Left edge and line of each entry; entries under a heading stay on one line where that is
    possible.
    """
    places = []
    left, line = 0.0, 0
    for index, entry in enumerate(entries):
        needed = entry.width
        if entry.symbol == 0:
            # A heading takes all entries up to the next heading with it.
            headings = (
                other for other in range(index + 1, len(entries)) if entries[other].symbol == 0
            )
            end = next(headings, len(entries))
            needed = sum(other.width for other in entries[index:end])

        if left and left + min(needed, width) > width:
            left, line = 0.0, line + 1
        places.append((left, line))
        left += entry.width
    return places


def file_content(drawing: Drawing, ending: str) -> bytes:
    """What a file of a drawing holds; the same bytes for the same drawing."""
    content = io.BytesIO()
    about = ABOUT[ending] | {"Title": drawing.title}
    dpi = DPI if drawing.figure.get_figwidth() == WIDTH else PAPER_DPI
    with mpl.rc_context(RC):
        drawing.figure.savefig(content, format=ending, dpi=dpi, metadata=about)
    data = content.getvalue()
    return compact(data.decode()).encode() if ending == "svg" else data


def save(drawing: Drawing, stem: Path, formats: Sequence[str] = ()) -> list[Path]:
    """Write ``<stem>.svg``, and other formats if they are asked for, each of which takes as long.
    A figure that is too high for a slide gets no PNG.
    """
    files = []
    for ending in dict.fromkeys(("svg", *formats)):
        if ending == "png" and drawing.figure.get_figheight() > HIGHEST_PNG:
            continue
        files.append(stem.with_name(f"{stem.name}.{ending}"))
        files[-1].write_bytes(file_content(drawing, ending))
    return files
