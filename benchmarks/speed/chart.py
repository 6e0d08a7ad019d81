"""One picture of the results: a panel a section, of those that were measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
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
        for place, name in enumerate(shown):
            alone = place == len(shown) - 1 and place % 2 == 0
            axes = figure.add_subplot(grid[place // 2, :] if alone else grid[place // 2, place % 2])
            panels[name](axes, sections[name]["records"])
        figure.savefig(path, dpi=DPI)


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=20)
    axes.text(0, 1.035, subtitle, transform=axes.transAxes, fontsize=8, color=MUTED)


def _legend_below(axes: Axes, columns: int, rows: int = 1) -> None:
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, -0.27 - 0.07 * rows)}
    axes.legend(
        frameon=False, fontsize=7.5, ncols=columns, handlelength=1, columnspacing=1, **place
    )


def _training(axes: Axes, records: list[Record]) -> None:
    places = list(dict.fromkeys((record["shape"], record["batch"]) for record in records))
    colours = dict(
        zip(training.SYSTEMS, (GREY, "#6d7780", COLOURS[0], COLOURS[5], COLOURS[2]), strict=True)
    )
    height = 0.8 / len(training.SYSTEMS)
    for row, (shape, batch) in enumerate(places):
        for place, system in enumerate(training.SYSTEMS):
            own = [
                r["rows_per_second"] / 1000
                for r in select(records, shape=shape, batch=batch, system=system)
            ]
            if not own:
                continue
            y = row - 0.4 + height * (place + 0.5)
            middle = statistics.median(own)
            axes.barh(
                y,
                middle,
                height * 0.86,
                color=colours[system],
                label=LIBRARIES.get(system, system) if row == 0 else None,
            )
            axes.plot([min(own), max(own)], [y, y], color=INK, linewidth=0.8)
            axes.text(max(own), y, f" {middle:.0f}", va="center", fontsize=7, color=INK)
    axes.set_yticks(
        range(len(places)), [f"{NAMES[shape]}\nbatch {batch}" for shape, batch in places]
    )
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("thousand rows per CPU second (line: extremes)")
    axes.grid(axis="x", color=GRID)
    axes.margins(x=0.1)
    _legend_below(axes, 3, rows=2)
    _title(axes, "Training", "MMoE 8 x [16], towers [8], Adam, one thread")


def _balancers(axes: Axes, records: list[Record]) -> None:
    groups = {
        "torchjd autojac (fastest)": (balancers.TORCHJD, min, GREY, "s"),
        "mtlkit, scope dense (slowest)": (balancers.DENSE, max, COLOURS[0], "o"),
        "mtlkit, scope representation": ((balancers.REPRESENTATION,), max, COLOURS[2], "D"),
    }
    counts = sorted({record["tasks"] for record in records})
    places = sorted({(record["shape"], record["batch"]) for record in records})
    for label, (systems, pick, colour, marker) in groups.items():
        middles = []
        for tasks in counts:
            found = []
            for shape, batch in places:
                factors = balancers.factors(records, shape=shape, batch=batch, tasks=tasks)
                values = [
                    statistics.median(factors[system]) for system in systems if system in factors
                ]
                found += [pick(values)] if values else []
            middles.append((min(found), statistics.median(found), max(found)))
        x = range(len(counts))
        low, middle, high = zip(*middles, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(x, middle, color=colour, marker=marker, markersize=5, linewidth=1.6, label=label)
    limits = [balancers.LIMITS[tasks] for tasks in counts]
    axes.plot(
        range(len(counts)),
        limits,
        color=COLOURS[1],
        linestyle=(0, (4, 2)),
        linewidth=1.2,
        label="target, scope dense",
    )
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set_xticks(range(len(counts)), [f"{tasks} tasks" for tasks in counts])
    axes.set_ylabel("time of a step, uniform weights = 1")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.08)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, fontsize=7.5, loc="best")
    _title(axes, "Balancing by gradients", "Median over data sets and batches; bands: extremes")


def _breakdown(axes: Axes, records: list[Record]) -> None:
    phases = breakdown.PHASES
    colours = (COLOURS[5], COLOURS[4], COLOURS[0], COLOURS[1], COLOURS[2], GREY)
    for row, record in enumerate(records):
        found = breakdown.medians(record)
        total = sum(found.values())
        left = 0.0
        for phase, colour in zip(phases, colours, strict=True):
            share = 100 * found[phase] / total
            axes.barh(row, share, 0.62, left=left, color=colour, label=phase if row == 0 else None)
            if share >= 7:
                axes.text(
                    left + share / 2,
                    row,
                    f"{share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white",
                )
            left += share
        axes.text(101.5, row, f"{total:.1f} ms", va="center", fontsize=8, color=INK)
    names = [f"{NAMES[record['shape']]}\nbatch {record['batch']}" for record in records]
    axes.set_yticks(range(len(records)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("% of the step")
    axes.spines["left"].set_visible(False)
    _legend_below(axes, len(phases))
    _title(axes, "Where a step's time goes", "mtlkit, uniform weights")


def _sparse(axes: Axes, records: list[Record]) -> None:
    sizes = sorted({record["size"] for record in records})
    for batch, colour, marker in zip(sparse.BATCHES, (COLOURS[0], COLOURS[1]), "os", strict=True):
        own = [select(records, batch=batch, size=size)[0]["ms"] for size in sizes]
        middles = [statistics.median(ms) for ms in own]
        axes.fill_between(
            sizes,
            [min(ms) for ms in own],
            [max(ms) for ms in own],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(sizes, middles, color=colour, marker=marker, markersize=5, linewidth=1.6)
        axes.annotate(
            f"batch {batch}",
            (sizes[-1], middles[-1]),
            (0, 9),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.15 * max(max(record["ms"]) for record in records))
    axes.set_xlabel("rows of the embedding table")
    axes.set_ylabel("ms a step")
    axes.grid(axis="y", color=GRID)
    axes.tick_params(axis="x", which="minor", color=FAINT)
    _title(
        axes, "Row-sparse tables", "The same batches on larger and larger tables; bands: extremes"
    )
