"""Figures for a paper: the width that was asked for, no small letter, nothing cut off or covered."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mtlkit.errors import UsageError
from mtlkit.report import write_report
from mtlkit.report.figures import FIGURES, draw_all, trials
from mtlkit.report.figures.context import Context, Look
from mtlkit.report.figures.ranks import draw_ranks
from mtlkit.report.figures.style import PAPER_DPI, RC, SMALLEST, WIDTH
from mtlkit.report.paper import paper_width
from mtlkit.store import ResultStore
from tests.fakes import cell, fill, record
from tests.report.full_grid import TASKS
from tests.report.test_across import across, planted
from tests.report.test_importance import summary as tuned

WIDTHS = (3.3, 7.0)
KINDS = {
    "metrics", "pareto", "published", "calibration", "learning", "cosine-end", "cosine-run",
    "conflict", "gates", "ablation", "gate-entropy", "weights",
}  # fmt: skip
"""All but those of many tasks, of tuning, and across data sets."""
LEEWAY = 1.5
"""Points by which boxes of texts may meet: they hold room above and below the letters."""


@pytest.fixture(scope="module")
def seen(full_contexts, tmp_path_factory):
    """Width and number of tasks to what is seen of the figures; those of tuning and across data
    sets as well. The figures themselves, at 288 dots an inch, would take gigabytes.
    """
    planted(root := tmp_path_factory.mktemp("across"))
    summary = tuned(lambda settings, draw: settings["lr"])
    found = {}
    for width in WIDTHS:
        for name, context in full_contexts.items():
            found[width, name] = list(map(Seen, draw_all(context.at(width))))
        with mpl.rc_context(RC):
            of_tuning = trials.draw(Context(summary, {}, Look({}, {}), width=width))
        found[width, "trials"] = list(map(Seen, of_tuning))
        found[width, "across"] = [Seen(draw_ranks(across(root), width))]
    return found


class Seen:
    """The size of a figure, and its texts."""

    def __init__(self, drawing):
        figure = drawing.figure
        self.name = drawing.name
        self.width = figure.get_figwidth()
        self.room = Bbox.from_bounds(0, 0, self.width * 72, figure.get_figheight() * 72)
        texts = texts_of(figure)
        self.sizes = {text.get_text(): text.get_fontsize() for text, _ in texts}
        self.boxes = [(text.get_text(), box) for text, box in texts]
        self.straight = [
            (text.get_text(), box) for text, box in texts if text.get_rotation() % 90 == 0
        ]


def test_every_figure_is_looked_at(seen):
    for width in WIDTHS:
        names = {figure.name for figure in seen[width, "two"]}
        assert {name.removesuffix("-mmoe").removesuffix("-ple") for name in names} == KINDS
        assert "similarity" in {figure.name for figure in seen[width, "many"]}
        assert len(seen[width, "trials"]) == len(seen[width, "across"]) == 1
    assert len(FIGURES) == len(KINDS) + 2  # similarity and trials


@pytest.mark.parametrize("grid", [*TASKS, "trials", "across"])
@pytest.mark.parametrize("width", WIDTHS)
def test_letters_can_be_read(seen, width, grid):
    for figure in seen[width, grid]:
        assert figure.width == width
        assert min(figure.sizes.values()) >= SMALLEST, (figure.name, figure.sizes)
        cut = [text for text, box in figure.boxes if not holds(figure.room, box)]
        assert not cut, (figure.name, cut)
        straight = figure.straight
        covered = [(straight[i][0], straight[j][0]) for i, j in meetings(straight)]
        assert not covered, (figure.name, covered)


def texts_of(figure):
    """The texts that are drawn, with their boxes in points."""
    figure.set_dpi(288)  # 4 dots a point: at fewer, letters stand where the dots are
    FigureCanvasAgg(figure)  # one renderer: without it, each text makes a picture of its own
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = []
    for text in texts:
        box = Text.get_window_extent(text)  # without the line of a label
        boxes.append((text, Bbox(box.get_points() / 4)))
    ticks = hidden_ticks(figure)
    return [(text, box) for text, box in boxes if text not in ticks and box.width > 0]


def hidden_ticks(figure):
    """Labels of ticks beyond the ends of an axis, which are not drawn."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                outside = not low - slack <= tick.get_loc() <= high + slack
                if outside or not axes.axison:
                    hidden |= {tick.label1, tick.label2}
    return hidden


def holds(room, box):
    return (
        box.x0 >= room.x0 - 0.5
        and box.y0 >= room.y0 - LEEWAY
        and box.x1 <= room.x1 + 0.5
        and box.y1 <= room.y1 + LEEWAY
    )


def meetings(texts):
    """Pairs of texts that lie on each other."""
    left, low, right, top = np.array([box.extents for _, box in texts]).T
    width = np.minimum.outer(right, right) - np.maximum.outer(left, left)
    height = np.minimum.outer(top, top) - np.maximum.outer(low, low)
    return np.argwhere(np.triu((width > 0.5) & (height > 2 * LEEWAY), 1))


@pytest.fixture(scope="module")
def at_column(tmp_path_factory):
    """A report whose files of figures are as wide as a column."""
    store = fill(tmp_path_factory.mktemp("column"), ("mmoe",), ("uniform", "uwl"), seeds=(0, 1))
    return write_report(store.root, width="column", formats=("png", "pdf"))


def test_settings_of_matplotlib_are_left_alone(tmp_path):
    store = fill(tmp_path, ("mmoe",), ("uniform",), seeds=(0,))
    before = dict(mpl.rcParams)
    write_report(store.root, width="column", formats=())
    assert dict(mpl.rcParams) == before


def test_every_file_has_the_width_that_was_asked_for(at_column):
    widths = {"svg": set(), "png": set(), "pdf": set()}
    for file in at_column.figures:
        data = file.read_bytes()
        if file.suffix == ".svg":
            widths["svg"].add(float(re.search(rb'<svg[^>]* width="([\d.]+)pt"', data)[1]) / 72)
        elif file.suffix == ".png":
            widths["png"].add(int.from_bytes(data[16:20], "big") / PAPER_DPI)
        else:
            widths["pdf"].add(float(re.search(rb"/MediaBox \[ *0 0 ([\d.]+)", data)[1]) / 72)
    for found in widths.values():
        assert found
        assert max(abs(width - 3.3) for width in found) < 0.005


def test_figures_of_the_page_keep_their_width_and_title(at_column):
    page = at_column.page.read_text("utf-8")
    views = {float(width) / 72 for width in re.findall(r'viewBox="0 0 ([\d.]+) ', page)}
    assert WIDTH in {round(width, 2) for width in views}
    assert 3.3 not in {round(width, 2) for width in views}
    [file] = [file for file in at_column.figures if file.name.endswith("-metrics.svg")]
    assert ">Test metric of every row</text>" in page
    assert ">Test metric of every row</text>" not in file.read_text("utf-8")


@pytest.mark.parametrize(("asked", "inches"), [("column", 3.3), ("text", 7.0), ("4.5", 4.5)])
def test_widths_have_names(asked, inches):
    assert paper_width(asked) == inches


@pytest.mark.parametrize("asked", ["page", "2.9", "21", "nan", "-3.3"])
def test_a_width_that_no_figure_can_have_is_refused(asked, cli, tmp_path):
    with pytest.raises(UsageError, match="it is column, text, or inches from 3 to 20"):
        paper_width(asked)
    ResultStore(tmp_path).save(record(cell()))
    refused = cli("report", tmp_path, "--width", asked, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "hint: mtlkit report results --width column" in refused.err
    assert not (tmp_path / "out" / "index.html").exists()
