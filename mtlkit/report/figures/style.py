"""One look for all figures: sizes in inches, colours, markers, dashes, matplotlib's settings."""

from __future__ import annotations

from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.font_manager import get_font_names

WIDTH = 9.4
"""Inches: the width of the page's text column, so that figures are shown at their own size."""
DPI = 170
"""Dots by inch of a PNG."""
PAPER_DPI = 300
"""The same of one that is printed."""
SMALLEST = 7
"""Points of the smallest text, which a paper can still print."""

FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Arial Unicode MS",
    "Noto Sans",
)
"""Fonts for letters that matplotlib's own does not have, where they are installed."""

# --- neutral colours, from text to grid lines -----------------------------------------------------

INK = "#1b1f24"
MUTED = "#5c6670"
FAINT = "#d9dee3"
GRID = "#e8ebee"
EMPTY = "#eef0f2"
"""The ground of a field of a heatmap that has no value."""

# --- colours that mean something ------------------------------------------------------------------

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A4E2D", "#6A3D9A")
"""Of balancers: Okabe and Ito's palette, safe for colour-blind readers, without its yellow and
black, and two more hues; lines also differ in dashes after eight.
"""
TASK_COLOURS = (*COLOURS[:7], "#444444")
REFERENCE_COLOUR = "#3b4248"
OTHER_COLOUR = "#a3abb3"
"""Of all balancers for which no colour is left."""
CEILING_COLOUR = "#8a6100"
DIVERGING = LinearSegmentedColormap.from_list(
    "conflict", ["#9c3d00", "#e08a4b", "#f7f7f7", "#5fa3d0", "#00507d"]
).with_extremes(bad=EMPTY)
SEQUENTIAL = LinearSegmentedColormap.from_list(
    "share", ["#f7fafc", "#9cc4df", "#2b7bb3", "#083a63"]
).with_extremes(bad=EMPTY)

# --- markers and dashes ---------------------------------------------------------------------------

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "d")
REFERENCE_MARKER = "*"
OTHER_MARKER = "."
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
CEILING_DASHES = (0, (7, 2, 1.5, 2))
REFERENCE_DASHES = (0, (4, 2))
NEUTRAL_DASHES = (0, (3, 2))
"""Of a line at the value that changes nothing: cosine 0, weight 1, entropy 1."""

FONTS = ["DejaVu Sans", *(name for name in FALLBACKS if name in get_font_names())]

RC: dict[Any, Any] = {
    "font.family": FONTS,
    "text.parse_math": False,  # names may hold dollar signs
    "path.simplify": False,
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": "#9aa3ab",
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.titley": 1.0,  # else every draw looks for ticks that a title must not meet
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
    "pdf.fonttype": 42,  # letters stay letters
    "svg.hashsalt": "mtlkit",  # the same ids, so the same bytes, for the same drawing
}


def cycle(index: int, colours: tuple[str, ...]) -> tuple[str, Any]:
    """Colour and dashes of the line with this number: all colours with one kind of dashes, then all
    of them with the next.
    """
    rounds, colour = divmod(index, len(colours))
    return colours[colour], DASHES[rounds % len(DASHES)]
