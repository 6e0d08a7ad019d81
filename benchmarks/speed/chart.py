"""One picture of the results: a panel a section, of those that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtlkit.report.figures.style import COLOURS, DPI, FAINT, GRID, INK, MUTED, RC, WIDTH

from . import balancers, breakdown, sparse, training
from .common import Record, select

NAMES = {"census": "Census-Income", "ali": "Ali-CCP-shaped"}
LIBRARIES = {"torch-rechub": "Torch-RecHub", "fuxictr": "FuxiCTR"}
LIBRARIES |= {training.TWINS[peer]: f"mtlkit as {name}" for peer, name in LIBRARIES.items()}
GREY = "#a9b1b8"
DARK_GREY = "#6d7780"


def draw(sections: dict[str, Any], path: Path) -> None:
    """Write the chart; without anything to show there is none."""
    panels: dict[str, Callable[[Axes, list[Record]], None]] = {
        "training": _training,
        "balancers": _balancers,
        "breakdown": _breakdown,
        "sparse": _sparse,
    }
    shown = [name for name in panels if name in sections]
    if not shown:
        return
    lines = (len(shown) + 1) // 2
    with mpl.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 3.5 * lines), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        grid = figure.add_gridspec(lines, 2)
        for index, name in enumerate(shown):
            # Two panels on a line; a last one that is alone takes all of it.
            line, column = divmod(index, 2)
            alone = column == 0 and index == len(shown) - 1
            axes = figure.add_subplot(grid[line, :] if alone else grid[line, column])
            panels[name](axes, sections[name]["records"])
        figure.savefig(path, dpi=DPI)


# --- panels ---------------------------------------------------------------------------------------


def _training(axes: Axes, records: list[Record]) -> None:
    """A bar a system, by data set and batch."""
    # Peers are grey, mtlkit and its twins are not.
    conditions = training.conditions(records)
    colours = (GREY, DARK_GREY, COLOURS[0], COLOURS[5], COLOURS[2])
    height = 0.8 / len(training.SYSTEMS)
    for row, (shape, batch) in enumerate(conditions):
        for index, (system, colour) in enumerate(zip(training.SYSTEMS, colours, strict=True)):
            runs = select(records, shape=shape, batch=batch, system=system)
            if not runs:
                continue
            rates = [run["rows_per_second"] / 1000 for run in runs]
            median = statistics.median(rates)
            y = row - 0.4 + height * (index + 0.5)
            label = LIBRARIES.get(system, system) if row == 0 else None
            axes.barh(y, median, height * 0.86, color=colour, label=label)
            axes.plot([min(rates), max(rates)], [y, y], color=INK, linewidth=0.8)
            axes.text(max(rates), y, f" {median:.0f}", va="center", fontsize=7, color=INK)
    _name_rows(axes, conditions)
    axes.set_xlabel("thousand rows per CPU second (line: extremes)")
    axes.grid(axis="x", color=GRID)
    axes.margins(x=0.1)
    _legend_below(axes, 3, rows=2)
    _title(axes, "Training", "MMoE 8 x [16], towers [8], Adam, one thread")


def _balancers(axes: Axes, records: list[Record]) -> None:
    """A line for each kind of method: the time of a step by the number of tasks."""
    groups = {
        "torchjd autojac (fastest)": (balancers.TORCHJD, min, GREY, "s"),
        "mtlkit, scope dense (slowest)": (balancers.DENSE, max, COLOURS[0], "o"),
        "mtlkit, scope representation": ((balancers.REPRESENTATION,), max, COLOURS[2], "D"),
    }
    counts = sorted({record["tasks"] for record in records})
    x = range(len(counts))
    for label, (systems, pick, colour, marker) in groups.items():
        by_count = [_step_factors(records, tasks, systems, pick) for tasks in counts]
        medians = [statistics.median(values) for values in by_count]
        _band(axes, x, by_count, colour)
        axes.plot(x, medians, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label)

    # The targets, and uniform weights at 1.
    limits = [balancers.LIMITS[tasks] for tasks in counts]
    target = {"color": COLOURS[1], "linestyle": (0, (4, 2)), "linewidth": 1.2}
    axes.plot(x, limits, label="target, scope dense", **target)
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set_xticks(x, [f"{tasks} tasks" for tasks in counts])
    axes.set_ylabel("time of a step, uniform weights = 1")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=7.5, loc="best")
    _title(axes, "Balancing by gradients", "Median over data sets and batches; bands: extremes")


def _step_factors(
    records: list[Record], tasks: int, systems: Sequence[str], pick: Callable[[list[float]], float]
) -> list[float]:
    """The median time of a step over uniform's: one of several systems, by data set and batch."""
    picked = []
    for condition in balancers.conditions(select(records, tasks=tasks)):
        factors = balancers.factors(records, condition)
        medians = [statistics.median(factors[system]) for system in systems if system in factors]
        if medians:
            picked.append(pick(medians))
    return picked


def _breakdown(axes: Axes, records: list[Record]) -> None:
    """A bar of phases, by data set and batch."""
    # Bars of shares, the step's own time beside them.
    colours = (COLOURS[5], COLOURS[4], COLOURS[0], COLOURS[1], COLOURS[2], GREY)
    for row, record in enumerate(records):
        by_phase = breakdown.medians(record)
        step = sum(by_phase.values())
        left = 0.0
        for (phase, ms), colour in zip(by_phase.items(), colours, strict=True):
            share = 100 * ms / step
            label = phase if row == 0 else None
            axes.barh(row, share, 0.62, left=left, color=colour, label=label)
            if share >= 7:  # a smaller bar has no room for its number
                centred = {"ha": "center", "va": "center"}
                middle = left + share / 2
                axes.text(middle, row, f"{share:.0f}", fontsize=7.5, color="white", **centred)
            left += share
        axes.text(101.5, row, f"{step:.1f} ms", va="center", fontsize=8, color=INK)
    _name_rows(axes, [(record["shape"], record["batch"]) for record in records])
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("% of the step")
    axes.spines["left"].set_visible(False)
    _legend_below(axes, len(breakdown.PHASES))
    _title(axes, "Where a step's time goes", "mtlkit, uniform weights")


def _sparse(axes: Axes, records: list[Record]) -> None:
    """A line a batch size: the time of a step by the size of the table."""
    for batch, colour, marker in zip(sparse.BATCHES, (COLOURS[0], COLOURS[1]), "os", strict=True):
        by_size = sparse.times(records, batch)
        sizes = list(by_size)
        medians = [statistics.median(ms) for ms in by_size.values()]
        _band(axes, sizes, list(by_size.values()), colour)
        axes.plot(sizes, medians, color=colour, marker=marker, markersize=5, linewidth=1.6)
        above = {"xytext": (0, 9), "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"batch {batch}", (sizes[-1], medians[-1]), color=colour, **above)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.15 * max(max(record["ms"]) for record in records))
    axes.set_xlabel("rows of the embedding table")
    axes.set_ylabel("ms a step")
    axes.grid(axis="y", color=GRID)
    axes.tick_params(axis="x", which="minor", color=FAINT)
    _title(
        axes, "Row-sparse tables", "The same batches on larger and larger tables; bands: extremes"
    )


# --- what they share ------------------------------------------------------------------------------


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=20)
    axes.text(0, 1.035, subtitle, transform=axes.transAxes, fontsize=8, color=MUTED)


def _legend_below(axes: Axes, columns: int, rows: int = 1) -> None:
    corner = {"loc": "lower left", "bbox_to_anchor": (-0.02, -0.27 - 0.07 * rows)}
    axes.legend(
        frameon=False, fontsize=7.5, ncols=columns, handlelength=1, columnspacing=1, **corner
    )


def _name_rows(axes: Axes, conditions: Sequence[tuple[str, int]]) -> None:
    """Data sets and batches beside horizontal bars, the first on top."""
    names = [f"{NAMES[shape]}\nbatch {batch}" for shape, batch in conditions]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def _band(axes: Axes, x: Sequence[float], samples: list[list[float]], colour: str) -> None:
    """Shading from the least to the largest of the values at each x."""
    low = [min(values) for values in samples]
    high = [max(values) for values in samples]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
