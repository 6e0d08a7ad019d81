"""What others have published beside what was measured: a panel a score, a line a source."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mtlkit.report.blocks import TaskInfo
from mtlkit.report.figures.context import Context
from mtlkit.report.figures.sheet import Columns, Drawing, Entry, PanelGrid
from mtlkit.report.figures.style import COLOURS, GRID, INK
from mtlkit.report.figures.text import shorten, text_width
from mtlkit.report.published import Published, find_published

TITLE = "Published and measured"
CAPTION = (
    "Diamonds are the test AUC that a source states, dots the means measured here, with 95 % "
    "t-intervals over seeds and uniform weights. A source had another draw of rows, other settings "
    "and another budget: a gap is no test, and a small one no proof."
)
LINE = 0.32
SIZE = 7.5
PUBLISHED, MEASURED = COLOURS[1], COLOURS[0]


def draw(context: Context) -> list[Drawing]:
    """Nothing where no number of this data set and protocol is known."""
    found = find_published(context.summary)
    tasks = [
        task for task in context.summary.block.tasks if any(task.name in one.aucs for one in found)
    ]
    if not tasks:
        return []

    # The model above its source, at the left of the first panel.
    names = [f"{one.row.group.model}\n{one.source}" for one in found]
    longest = max(text_width(part, SIZE) for name in names for part in name.split("\n"))
    label = min(longest, 2.4, 0.42 * context.width) + 0.25
    fitting = Columns.that_fit(context.width, min(len(tasks), 3), 1.3, label, 0.3, gap=0.3)
    columns, height = fitting.number, LINE * len(found) + 0.1
    grid = PanelGrid(label, 0.3, fitting.width, height, 0.3, height + 0.85)
    legend = [
        Entry("published", PUBLISHED, "D", hollow=True),
        Entry("measured here, with its interval", MEASURED, "o", "-"),
    ]
    sheet = context.sheet(TITLE, grid.pitch * -(-len(tasks) // columns), legend)
    for index, task in enumerate(tasks):
        line, column = divmod(index, columns)
        axes = grid.axes(sheet, line, column)
        _panel(axes, task, found)
        title = shorten(task.title, 9.5, fitting.width, bold=True)
        axes.set_title(title, size=9.5, weight="bold", loc="left", pad=6)
        if column == 0:
            _name_lines(axes, names, label - 0.2)
    return [Drawing("published", TITLE, CAPTION, sheet.figure)]


def _name_lines(axes: Axes, names: list[str], room: float) -> None:
    across = axes.get_yaxis_transform()
    for position, name in enumerate(names):
        text = "\n".join(shorten(part, SIZE, room) for part in name.split("\n"))
        axes.text(
            -0.03, position, text, transform=across, size=SIZE, color=INK, ha="right", va="center",
            linespacing=1,
        )  # fmt: skip


def _panel(axes: Axes, task: TaskInfo, found: list[Published]) -> None:
    """One score: each source's number, and what was measured with its interval."""
    known = [(place, one) for place, one in enumerate(found) if task.name in one.aucs]
    published = [one.aucs[task.name] for _, one in known]
    measured = [one.row.metric[task.name] for _, one in known]
    places = [place for place, _ in known]
    axes.margins(x=0.06)  # around all of them: here nothing may be left out
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_yticks(range(len(found)), [])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set_xlabel(f"{task.reading.label}, {task.space}")

    means = [mean.mean for mean in measured]
    halves = [mean.half if mean.bounded else 0.0 for mean in measured]
    axes.errorbar(means, places, xerr=halves, fmt="o", color=MEASURED, markersize=5, zorder=3)
    axes.scatter(
        published, places, marker="D", s=28, facecolors="white", edgecolors=PUBLISHED, zorder=4
    )
