"""One look for all figures: colours, markers, sizes in inches, and deterministic files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.frame import Frames
from mtlkit.report.probe_frames import Probes
from mtlkit.report.summary import Row, Summary
from mtlkit.report.tables import fixed

WIDTH = 9.4
"""Inches: the width of the page's text column, so that figures are shown at their own size."""
DPI = 170
INK, MUTED, FAINT, GRID = "#1b1f24", "#5c6670", "#d9dee3", "#e8ebee"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4E2D", "#6A3D9A")
"""Okabe and Ito's palette without its yellow and black, and two more hues; lines also differ in
dashes after eight.
"""
TASK_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7A4E2D",
    "#444444",
)
REFERENCE_COLOUR = "#3b4248"
CEILING = (
    "The brown lines are the planted model of the simulated data, which no row passes but by luck; where one lies "
    "outside of a panel, an arrow beside its value shows the side."
)
CEILING_COLOUR, CEILING_DASHES = "#8a6100", (0, (7, 2, 1.5, 2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "d")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
DIVERGING = LinearSegmentedColormap.from_list(
    "conflict", ["#9c3d00", "#e08a4b", "#f7f7f7", "#5fa3d0", "#00507d"]
)
SEQUENTIAL = LinearSegmentedColormap.from_list(
    "share", ["#f7fafc", "#9cc4df", "#2b7bb3", "#083a63"]
)
RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": "#9aa3ab",
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "mtlkit",
}


@dataclass(frozen=True)
class Look:
    """Balancer to colour and dashes, model to marker: the same in all figures of a report."""

    colours: Mapping[str, str]
    dashes: Mapping[str, Any]
    markers: Mapping[str, str]

    @classmethod
    def of(cls, frames: Frames) -> Look:
        groups = [group for block in frames.blocks for group in block.groups]
        balancers = sorted(
            {group.balancer for group in groups if group.balancer_name != "none"},
            key=_uniform_first,
        )
        models = sorted({group.model for group in groups if not group.is_reference})
        references = {group.model: "*" for group in groups if group.is_reference}
        colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(balancers)}
        dashes = {
            name: DASHES[place // len(COLOURS) % len(DASHES)]
            for place, name in enumerate(balancers)
        }
        markers = {
            name: MARKERS[place % len(MARKERS)] for place, name in enumerate(models)
        } | references
        return cls(colours, dashes, markers)

    def colour(self, row: Row) -> str:
        return self.colours.get(row.group.balancer, REFERENCE_COLOUR)

    def marker(self, row: Row) -> str:
        return self.markers[row.group.model]


@dataclass(frozen=True)
class Context:
    """What a figure may read: one data set block's summary and probes, and the look."""

    summary: Summary
    probes: Mapping[str, Probes]
    look: Look

    @property
    def subtitle(self) -> str:
        return self.summary.block.label

    @property
    def ceiling_entry(self) -> list[Entry]:
        """The legend entry of the planted model's line; none for real data."""
        known = any(not math.isnan(task.ceiling) for task in self.summary.block.tasks)
        return (
            [Entry("planted model (ceiling)", CEILING_COLOUR, "", CEILING_DASHES)] if known else []
        )

    def probed(self) -> list[tuple[Row, Probes]]:
        """Rows with probes, ordered by model and balancer."""
        rows = [
            (row, self.probes[row.group.id])
            for row in self.summary.rows
            if row.group.id in self.probes
        ]
        return sorted(
            rows, key=lambda pair: (pair[0].group.model, _uniform_first(pair[0].group.balancer))
        )

    def legend(self, rows: Sequence[Row], models: bool = True, lines: bool = False) -> list[Entry]:
        """Legend entries of the balancers (colour) and models (marker) among some rows."""
        balancers = sorted(
            {row.group.balancer for row in rows if row.group.balancer in self.look.colours},
            key=_uniform_first,
        )
        entries = [Entry("balancer", MUTED, "")] if balancers else []
        entries += [
            Entry(
                name,
                self.look.colours[name],
                "" if lines else "o",
                self.look.dashes[name] if lines else "",
            )
            for name in balancers
        ]
        if models:
            entries.append(Entry("model", MUTED, ""))
            names = sorted(
                {row.group.model for row in rows},
                key=lambda name: (self.look.markers[name] == "*", name),
            )
            entries += [Entry(name, MUTED, self.look.markers[name], hollow=True) for name in names]
        return entries


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Args:
        name: Part of the file name.
        title: Heading on the page.
        caption: What is shown and how to read it.
        figure: The drawing itself.
    """

    name: str
    title: str
    caption: str
    figure: Figure = field(compare=False)


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
        return 0.3 if self.line else 0.12 if self.marker else 0.0

    @property
    def width(self) -> float:
        return self.symbol + text_width(self.label, 8.5) + (0.27 if self.symbol else 0.18)


class Sheet:
    """A figure laid out in inches from its top left: title, subtitle, legend, then the body.

    Args:
        title: What the figure shows.
        subtitle: Which data set.
        body: Height below the legend.
        legend: Entries, wrapped to the width.
    """

    def __init__(
        self,
        title: str,
        subtitle: str,
        body: float,
        legend: Sequence[Entry] = (),
        width: float = WIDTH,
    ) -> None:
        self.width = width
        places = _flow(legend, width - 0.1)
        rows = max((row for _, row in places), default=-1) + 1
        self.body_top = 0.66 + (0.22 * rows + 0.1 if rows else 0.08)
        self.height = self.body_top + body
        self.figure = Figure(figsize=(width, self.height))
        self.figure.text(
            0.1 / width,
            self._y(0.12),
            shorten(title, 11.5, width - 2.8, bold=True),
            size=11.5,
            weight="bold",
            va="top",
        )
        self.figure.text(
            0.1 / width,
            self._y(0.39),
            shorten(subtitle, 9, width - 0.3),
            size=9,
            color=MUTED,
            va="top",
        )
        for entry, (left, row) in zip(legend, places, strict=True):
            self._legend_entry(entry, 0.1 + left, 0.78 + 0.22 * row)

    def _y(self, inches: float) -> float:
        return 1 - inches / self.height

    def _legend_entry(self, entry: Entry, left: float, top: float) -> None:
        middle, y = left + entry.symbol / 2, self._y(top)
        xs = [left / self.width, middle / self.width, (left + entry.symbol) / self.width]
        style = {
            "color": entry.colour,
            "linestyle": entry.line or "none",
            "linewidth": 1.8,
            "marker": entry.marker or None,
            "markevery": [1],
            "markersize": 8 if entry.marker == "*" else 6,
            "markerfacecolor": "white" if entry.hollow else entry.colour,
        }
        if entry.symbol:
            self.figure.add_artist(Line2D(xs, [y] * 3, **style))  # type: ignore[arg-type]
        start = (left + entry.symbol + (0.07 if entry.symbol else 0.0)) / self.width
        colour = INK if entry.symbol else MUTED
        self.figure.text(start, y, entry.label, size=8.5, va="center_baseline", color=colour)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a place of the body, in inches from its top left."""
        bottom = self._y(self.body_top + top + height)
        return self.figure.add_axes(
            (left / self.width, bottom, width / self.width, height / self.height)
        )

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text at a place of the body, in inches."""
        self.figure.text(left / self.width, self._y(self.body_top + top), text, **style)

    def colourbar(
        self, image: Any, label: str, ticks: Sequence[float], length: float = 2.2
    ) -> None:
        """A horizontal colour bar at the right of the title."""
        bar = self.figure.add_axes(
            (
                (self.width - length - 0.2) / self.width,
                self._y(0.4),
                length / self.width,
                0.1 / self.height,
            )
        )
        colours = self.figure.colorbar(image, cax=bar, orientation="horizontal")
        colours.outline.set_visible(False)
        bar.tick_params(labelsize=7.5, length=2, pad=1.5)
        bar.set_xticks(list(ticks), [f"{tick:.3g}".replace("-", "−") for tick in ticks])
        bar.set_title(label, size=8, color=MUTED, pad=3)


def _flow(entries: Sequence[Entry], width: float) -> list[tuple[float, int]]:
    """Left edge and line of each entry; entries under a heading stay on one line where that is
    possible.
    """
    places, left, row = [], 0.0, 0
    for place, entry in enumerate(entries):
        rest = [other.symbol == 0 for other in entries[place + 1 :]]
        end = place + 1 + rest.index(True) if True in rest else len(entries)
        needed = (
            sum(other.width for other in entries[place:end]) if entry.symbol == 0 else entry.width
        )
        if left and left + min(needed, width) > width:
            left, row = 0.0, row + 1
        places.append((left, row))
        left += entry.width
    return places


def _uniform_first(balancer: str) -> tuple[bool, str]:
    return balancer != "uniform", balancer


@lru_cache(maxsize=4096)
def text_width(text: str, size: float) -> float:
    """Inches that a text takes."""
    if not text.strip():
        return 0.0
    return (
        float(
            TextPath((0, 0), text, size=size, prop=FontProperties(family="DejaVu Sans"))
            .get_extents()
            .width
        )
        / 72
    )


def shorten(text: str, size: float, width: float, bold: bool = False) -> str:
    """The text, with an ellipsis in its middle when it is wider than ``width`` inches."""
    size *= 1.16 if bold else 1.0
    if text_width(text, size) <= width:
        return text
    fits, over = 0, len(text)
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (
            (middle, over) if text_width(_cut(text, middle), size) <= width else (fits, middle)
        )
    return _cut(text, fits)


def _cut(text: str, kept: int) -> str:
    """Some letters of both ends: names often differ at their end."""
    tail = kept * 2 // 5
    return text[: kept - tail].rstrip() + "…" + (text[-tail:].lstrip() if tail else "")


def row_label(row: Row, size: float, width: float) -> str:
    """The label of a row, its model shortened first so that rows stay distinct."""
    label = row.group.label
    if text_width(label, size) <= width or label == row.group.model:
        return shorten(label, size, width)
    end = shorten(f" + {row.group.balancer}", size, 0.6 * width)
    return shorten(row.group.model, size, width - text_width(end, size)) + end


def contrast(value: float, image: Any) -> str:
    """Black or white, whichever reads better on the colour of a value."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK


def limits(
    points: Sequence[float], spans: Sequence[tuple[float, float]] = ()
) -> tuple[float, float]:
    """Axis limits around most points, so that one collapsed run does not flatten the others."""
    values = sorted(points)
    if not values:
        return 0.0, 1.0
    quarter, three_quarters = values[len(values) // 4], values[(3 * len(values)) // 4]
    reach = 4 * max(three_quarters - quarter, 1e-4)
    kept = [value for value in values if quarter - reach <= value <= three_quarters + reach]
    low, high = kept[0], kept[-1]
    room = max(high - low, 2e-4)
    for start, end in spans:
        low, high = (
            min(low, max(start, kept[0] - 0.6 * room)),
            max(high, min(end, kept[-1] + 0.6 * room)),
        )
    margin = 0.06 * max(high - low, 2e-4)
    return low - margin, high + margin


def with_ceiling(bounds: tuple[float, float], ceiling: float, most: float) -> tuple[float, float]:
    """Axis limits that hold a ceiling as well, where that lengthens the axis by no more than the
    share ``most``.
    """
    low, high = bounds
    room = high - low
    if high < ceiling + 0.04 * room <= high + most * room:
        return low, ceiling + 0.04 * room
    if low > ceiling - 0.04 * room >= low - most * room:
        return ceiling - 0.04 * room, high
    return bounds


def ceiling_text(task: TaskInfo, bounds: tuple[float, float], arrows: str = "◀▶") -> str:
    """What a figure says of the ceiling, with an arrow where its line lies outside of the axis;
    empty without one.
    """
    if math.isnan(task.ceiling):
        return ""
    low, high = min(bounds), max(bounds)
    text = f"ceiling {fixed(task.ceiling, task.reading.decimals)}"
    return (
        f"{text} {arrows[1]}"
        if task.ceiling > high
        else f"{arrows[0]} {text}"
        if task.ceiling < low
        else text
    )


def save(drawing: Drawing, stem: Path) -> tuple[Path, Path]:
    """Write ``<stem>.svg`` and ``<stem>.png``, the same bytes for the same drawing."""
    svg, png = stem.with_name(stem.name + ".svg"), stem.with_name(stem.name + ".png")
    with mpl.rc_context(RC):
        drawing.figure.savefig(
            svg, metadata={"Date": None, "Creator": "mtlkit", "Title": drawing.title}
        )
        drawing.figure.savefig(png, dpi=DPI, metadata={"Software": "mtlkit"})
    return svg, png
