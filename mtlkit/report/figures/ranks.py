"""Mean ranks across data sets, each with its critical difference."""

from __future__ import annotations

import matplotlib as mpl

from mtlkit.report.across import Across, label
from mtlkit.report.figures.sheet import Drawing, Sheet
from mtlkit.report.figures.style import COLOURS, GRID, RC, WIDTH
from mtlkit.report.figures.text import shorten, text_width

CAPTION = (
    "Mean rank of each method over {blocks} blocks, each a task of a data set; 1 is best. Bars are "
    "as long as Nemenyi's critical difference: two methods whose bars overlap are not told apart. "
    "The grey band is the best method's bar. Friedman's test that all ranks are the same: "
    "p = {p_value:.2g}."
)
LINE = 0.24  # height of a method's line
LONGEST_NAME = 3


def draw_ranks(across: Across, width: float = WIDTH) -> Drawing:
    """The critical-difference diagram, a line a method, so that any number of them is legible."""
    room = min(LONGEST_NAME, 0.5 * width)
    names = [shorten(label(method), 8, room) for method in across.standings.index]
    ranks = across.standings["rank"].to_numpy()
    left, half = max(text_width(name, 8) for name in names) + 0.3, across.critical / 2
    title = f"Mean ranks {across.title[0].lower()}{across.title[1:]}"
    with mpl.rc_context(RC):
        subtitle = f"critical difference {across.critical:.2f} of {across.blocks} blocks"
        sheet = Sheet(title, subtitle, LINE * len(names) + 0.6, width=width)
        axes = sheet.axes(left, 0.05, width - left - 0.3, LINE * len(names))
        axes.axvspan(ranks[0] - half, ranks[0] + half, color=GRID, zorder=0)
        places = range(len(names))
        axes.errorbar(ranks, places, xerr=half, fmt="o", color=COLOURS[0], elinewidth=1.4, zorder=3)
        axes.set_yticks(places, names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("mean rank")
    caption = CAPTION.format(blocks=across.blocks, p_value=across.p_value)
    return Drawing("ranks", title, caption, sheet.figure)
